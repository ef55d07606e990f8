"""What the exercises are checked with: `check("repeat_kv", repeat_kv)`."""

from llama3_edu.checks import chapter_06
from llama3_edu.checks.runner import CheckFailed, Exercises, NotDoneYet
from llama3_edu.checks.exercise import Case, Exercise, Suspect, Wrong

__all__ = ["CheckFailed", "NotDoneYet", "Exercise", "Case", "Suspect", "Wrong", "EXERCISES", "check", "progress"]

EXERCISES = Exercises((*chapter_06.EXERCISES,))
"""Every exercise of the book, in its order."""

check = EXERCISES.check
progress = EXERCISES.progress
