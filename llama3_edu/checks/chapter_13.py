"""Exercises of chapter 13: beams and copy-on-write."""

from llama3_edu.checks.exercise import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()
