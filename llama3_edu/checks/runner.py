"""`check`: try a learner's answer, and say in one line what came of it."""

import secrets
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from llama3_edu.checks.exercise import Case, Exercise, Wrong
from llama3_edu.checks.runaway import TooLong, call_within

__all__ = ["CheckFailed", "NotDoneYet", "Exercises", "SECONDS"]

SECONDS = 10.0
"""How long an answer may take over all its inputs."""


class CheckFailed(AssertionError):
    """An answer is not right yet. The message is one line that says what came, what was wanted, and where to look.

    A notebook shows that line and nothing else: the way through this package's own code would help nobody.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self}"]


class NotDoneYet(CheckFailed):
    """The answer is still the empty one that the notebook began with."""

    def _render_traceback_(self) -> list[str]:
        return [f"○ {self}"]


class Exercises:
    """Exercises by name, and which of them were solved.

    Args:
        exercises: in the book's order.

    Raises:
        ValueError: two have the same name.
    """

    def __init__(self, exercises: tuple[Exercise, ...]) -> None:
        self._by_name = {exercise.name: exercise for exercise in exercises}
        if len(self._by_name) != len(exercises):
            raise ValueError(f"each exercise should have a name of its own; they are {[e.name for e in exercises]}")
        self._solved: set[str] = set()

    def __iter__(self) -> Iterator[Exercise]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Exercise:
        if name not in self._by_name:
            raise KeyError(f"there is no exercise {name!r}; there are {', '.join(self._by_name)}")
        return self._by_name[name]

    def check(self, exercise: str, solution: object, *, seed: int | None = None, seconds: float = SECONDS) -> None:
        """Try an answer on inputs from small to large, and print that it is right, and what else is solved.

        Args:
            exercise: the exercise's name.
            solution: the answer: the function, not what it returns.
            seed: makes the inputs. A fresh one when left out; a failure names it, so that it can be tried again.
            seconds: how long all of it may take.

        Raises:
            CheckFailed: it is wrong; the message tells of the smallest input it is wrong for.
            NotDoneYet: it is still the empty answer.
            KeyError: there is no such exercise.
        """
        asked = self[exercise]
        used = secrets.randbits(31) if seed is None else seed
        progress: list[Case] = []
        try:
            call_within(seconds, lambda: try_cases(asked, solution, used, progress))
        except TooLong:
            on = f" It was at {progress[-1].says}." if progress else ""
            told = f"{asked.name}: stopped after {seconds:g} s.{on} Is there a loop that does not end?"
            raise CheckFailed(told) from None
        self._solved.add(asked.name)
        print(f"✓ {asked.name}: right for {len(progress)} inputs, from {progress[0].says} to {progress[-1].says}.")
        print(self.progress(asked.chapter))

    def progress(self, chapter: int) -> str:
        """Return which of a chapter's exercises were solved since the notebook was started."""
        own = [exercise for exercise in self if exercise.chapter == chapter]
        marks = ", ".join(f"{'✓' if exercise.name in self._solved else '○'} {exercise.name}" for exercise in own)
        return f"Chapter {chapter}: {sum(e.name in self._solved for e in own)} of {len(own)} solved ({marks})."


def try_cases(exercise: Exercise, solution: object, seed: int, tried: list[Case]) -> None:
    """Try an answer on every input; add each to `tried` before it is.

    Raises:
        CheckFailed: the answer is wrong for an input, or raises.
        NotDoneYet: it is the empty answer.
    """
    if not callable(solution):
        what = f"the answer should be a function; {type(solution).__name__} came"
        raise CheckFailed(f"{exercise.name}: {what}. Hand in the function itself, without calling it.")
    for case in exercise.cases(torch.Generator().manual_seed(seed)):
        tried.append(case)
        try:
            exercise.judge(exercise, solution, case)
        except NotImplementedError:
            raise NotDoneYet(f"{exercise.name}: not done yet.") from None
        except Wrong as wrong:
            hint = wrong.hint or exercise.look
            raise CheckFailed(f"{exercise.name}: for {case.says}, {wrong.problem}. {hint} (seed={seed})") from None
        except (CheckFailed, KeyboardInterrupt, TooLong):
            raise
        except BaseException as error:
            raise CheckFailed(
                f"{exercise.name}: for {case.says}, {raised(error, solution)}. {exercise.look} (seed={seed})"
            ) from None
    if not tried:
        raise ValueError(f"exercise {exercise.name!r} should have inputs to try an answer on; it has none")


def raised(error: BaseException, solution: Any) -> str:
    """Say which error an answer raised, and in which of its lines."""
    message = " ".join(str(error).split())
    said = f"it raised {type(error).__name__}" + (f": {message[:160]}" if message else "")
    code = getattr(solution, "__code__", None) or getattr(getattr(solution, "__init__", None), "__code__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if code and frame.filename == code.co_filename]
    return f"{said}, in line {lines[-1]} of its cell" if lines else said
