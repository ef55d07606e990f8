"""Exercises of chapter 11: blocks."""

from llama3_edu.checks.exercise import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()
