"""Exercises of chapter 8: why decoding is slow."""

from llama3_edu.checks.exercise import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()
