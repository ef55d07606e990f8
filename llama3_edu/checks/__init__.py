"""What the exercises are checked with: `check("repeat_kv", repeat_kv)`."""

from llama3_edu.checks import (
    chapter_00,
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_08,
    chapter_09,
    chapter_10,
    chapter_11,
    chapter_12,
    chapter_13,
    chapter_14,
)
from llama3_edu.checks.runner import CheckFailed, Exercises, NotDoneYet
from llama3_edu.checks.exercise import Case, Exercise, Suspect, Wrong

__all__ = ["CheckFailed", "NotDoneYet", "Exercise", "Case", "Suspect", "Wrong", "EXERCISES", "check", "progress"]

CHAPTERS = (
    chapter_00, chapter_01, chapter_02, chapter_03, chapter_04, chapter_05, chapter_06, chapter_07,
    chapter_08, chapter_09, chapter_10, chapter_11, chapter_12, chapter_13, chapter_14,
)  # fmt: skip

EXERCISES = Exercises(tuple(exercise for chapter in CHAPTERS for exercise in chapter.EXERCISES))
"""Every exercise of the book, in its order."""

check = EXERCISES.check
progress = EXERCISES.progress
