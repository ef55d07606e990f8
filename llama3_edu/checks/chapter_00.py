"""Exercises of chapter 0: the decoder."""

from llama3_edu.checks.exercise import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()
