"""Exercises of chapter 5: bugs."""

from llama3_edu.checks.exercise import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()
