"""What an exercise is: inputs from small to large, what should come of each, and the wrong answers we know."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from llama3_edu.checks.compare import difference

__all__ = ["Case", "Suspect", "Exercise", "Solution", "Wrong", "by_value"]

Solution: TypeAlias = Callable[..., Any]
"""What a learner hands in: a function, or a class."""


class Wrong(Exception):
    """An answer is wrong for one input.

    Args:
        problem: what came, and what was wanted.
        hint: where to look. Empty where nothing better is known than the exercise's own `look`.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


@dataclass(frozen=True)
class Case:
    """One input, and what should come of it.

    Args:
        says: the input in words: `x of shape [1, 2, 1, 4], n_rep = 2`.
        args: what the answer is called with.
        wanted: what it should return.
        kwargs: what it is called with by name.
        tolerance: how far floating-point numbers may be from those wanted, relative to the largest of them. 0: not at all.
        extra: whatever the exercise's own `judge` needs besides.
    """

    says: str
    args: tuple[Any, ...]
    wanted: Any = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 0.0
    extra: Any = None


@dataclass(frozen=True)
class Suspect:
    """A wrong answer that people give.

    Args:
        hint: what to tell them.
        imitate: returns what that answer returns. It is called as the answer is, with copies of the arguments.
    """

    hint: str
    imitate: Callable[..., Any]


Judge: TypeAlias = Callable[["Exercise", Solution, Case], None]
"""Tries an answer on one input. Raises `Wrong`, or whatever the answer raises."""


def by_value(exercise: "Exercise", solution: Solution, case: Case) -> None:
    """Call the answer; what it returns should be what was wanted, and what it was given should be as it was.

    Raises:
        Wrong: one of the two is not so.
    """
    given, named = copied(case.args), copied(dict(case.kwargs))
    came = solution(*given, **named)
    problem = difference(came, case.wanted, tolerance=case.tolerance)
    if problem and came is None:
        raise Wrong(problem, hint="Is a `return` missing?")
    if problem:
        raise Wrong(problem, hint=exercise.hint_for(case, came))
    for name, before, after in [*zip(range(1, 99), case.args, given), *((n, case.kwargs[n], named[n]) for n in named)]:
        if difference(after, before):
            which = f"argument {name}" if isinstance(name, int) else f"{name!r}"
            raise Wrong(
                f"it returned what was wanted, but changed {which} in place", hint="Work on a copy, or write to a new tensor."
            )


@dataclass(frozen=True)
class Exercise:
    """One exercise, without its text and without its solution: those stand in the notebook.

    Args:
        name: what `check` is called with, and the name of the function to write.
        chapter: the chapter it belongs to.
        title: what is to be done, in a few words.
        stars: 1 to 3, how hard it is.
        minutes: how long it takes.
        cases: yields inputs, the smallest first, from a seeded generator. The first that fails is the one the learner is told.
        look: where to look when the answer is none of the known wrong ones.
        suspects: wrong answers that are known, each with a hint of its own.
        judge: how an answer is tried on an input.
    """

    name: str
    chapter: int
    title: str
    stars: int
    minutes: int
    cases: Callable[[torch.Generator], Iterable[Case]]
    look: str
    suspects: tuple[Suspect, ...] = ()
    judge: Judge = by_value

    def hint_for(self, case: Case, came: Any) -> str:
        """Return the hint of the first suspect that returns what came, or nothing."""
        for suspect in self.suspects:
            try:
                imitated = suspect.imitate(*copied(case.args), **copied(dict(case.kwargs)))
            except Exception:  # a wrong answer may well fail on this input
                continue
            if not difference(came, imitated, tolerance=case.tolerance):
                return suspect.hint
        return ""


def copied(value: Any) -> Any:
    """Return a copy that shares no tensor and no container with the original; anything else is handed on as it is."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return value
