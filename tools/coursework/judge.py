"""Judges one answer: calls it in the sandbox, and decides out here, wherever that is possible.

An exercise whose inputs and outputs are plain values is judged *outside*: its inputs are made here, the answer gets them
through a pipe and sends back what it returned, and the comparison happens in a process that no line of a submission runs in.
What was wanted never enters the sandbox. An exercise that looks at more than values (a class, shared memory, an expected error)
is judged *inside*, in the answer's own process, by code bound before the answer was; a guard there reports parts that were
replaced.
"""

import pickle
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch

from coursework import wire
from coursework.assignment import Assignment, Check, Task
from coursework.submission import Own, without_installs
from coursework.sandbox import KernelGone, Sandbox, Stopped
from llama3_edu.checks import CheckFailed, Exercise, NotDoneYet
from llama3_edu.checks.exercise import Case, by_value
from llama3_edu.checks.runner import try_cases

__all__ = ["Outcome", "Verdict", "judge_task", "judged_outside"]

EARNED = ("right", "wrong", "not done", "missing", "error", "timeout", "died")
"""Outcomes that are the answer's own doing, and so are worth what they are worth. `review` and `technical` are for a person."""

MOST_BAD_CELLS = 4
"""Cells beside the answers that may hang or die before only the answers are still run."""


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Args:
        which: `public` or `hidden`.
        status: one of `EARNED`, or `review`, or `technical`.
        message: why.
        most: points that could be earned.
    """

    which: str
    status: str
    message: str
    most: int

    @property
    def points(self) -> int | None:
        """Points earned; none where a person has to look first."""
        if self.status not in EARNED:
            return None
        return self.most if self.status == "right" else 0


@dataclass(frozen=True)
class Verdict:
    """What came of one exercise.

    Args:
        name: the exercise.
        outcomes: one for each of its checks.
        notes: what an instructor may want to know besides.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()

    @property
    def points(self) -> int | None:
        """Points earned; none where a person has to look first."""
        earned = [outcome.points for outcome in self.outcomes]
        return None if None in earned else sum(earned)

    @property
    def status(self) -> str:
        """The first outcome that is not `right`, those for a person before all others."""
        states = [outcome.status for outcome in self.outcomes]
        bad = [status for status in states if status not in EARNED] + [status for status in states if status != "right"]
        return bad[0] if bad else "right"


class BadCell(Exception):
    """A cell beside the answer hung, or ended the kernel."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


class Failed(Exception):
    """An answer could not be tried."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def judge_task(
    assignment: Assignment, task: Task, own: Own, sandbox: Callable[[], Sandbox], seed: int, bad: dict[int, str]
) -> Verdict:
    """Judge a submission's answer to one exercise.

    Args:
        assignment: what was to be handed in.
        task: the exercise.
        own: the student's own cells.
        sandbox: gives a sandbox that is alive.
        seed: makes the inputs.
        bad: cells, by place, known to hang or to end the kernel; those found are added.
    """
    notes = own.notes[task.name]
    place = own.answers[task.name]
    if place is None and task.name not in own.left_empty:
        return Verdict(task.name, _all(task, "missing", f"no cell defines {task.name}"), notes)
    verdict = Attempt(assignment, task, own, sandbox, seed, bad).judged()
    if verdict.status in ("died", "technical"):  # once may be bad luck: what happens twice is the answer's own doing
        bad.pop(place, None)
        verdict = Attempt(assignment, task, own, sandbox, seed, bad).judged()
    return replace(verdict, notes=tuple(dict.fromkeys([*notes, *verdict.notes])))


@dataclass
class Attempt:
    """Tries one answer; begins again without a cell that keeps it from being tried."""

    assignment: Assignment
    task: Task
    own: Own
    sandbox: Callable[[], Sandbox]
    seed: int
    bad: dict[int, str]
    notes: list[str] = field(default_factory=list)
    raised: dict[int, str] = field(default_factory=dict)

    @property
    def place(self) -> int | None:
        """Where the answer stands among the student's cells."""
        return self.own.answers[self.task.name]

    def judged(self) -> Verdict:
        """Load the student's cells into a fresh kernel, then run every check."""
        while self.place is None or self.place not in self.bad:
            self.notes.clear()
            box = self.sandbox()
            try:
                self._load(box)
                return Verdict(self.task.name, tuple(self._checked(box)), tuple(self.notes))
            except BadCell as error:
                self.bad[error.place] = str(error)
            except Failed as failed:
                if failed.status == "technical":
                    box.close()
                return Verdict(self.task.name, _all(self.task, failed.status, str(failed)), tuple(self.notes))
            finally:
                box.end_kernel()
        status = "timeout" if "limit of time" in self.bad[self.place] else "died"
        return Verdict(self.task.name, _all(self.task, status, f"its cell {self.bad[self.place]}"))

    def _cells(self) -> list[tuple[int, str]]:
        """Return the cells to run: all of the student's, or, where too many hang, the answers alone."""
        answers = set(self.own.answers.values())
        few = len(self.bad) >= MOST_BAD_CELLS
        places = [place for place in range(len(self.own.cells)) if place not in self.bad and (place in answers or not few)]
        empty = [] if self.place is not None else [(-1, self.task.stub)]
        return empty + [(place, self.own.cells[place]) for place in places]

    def _load(self, box: Sandbox) -> None:
        hidden = next(
            (check.source for check in self.task.checks if check.which == "hidden" and not judged_outside(check.exercise)), None
        )
        cells = [(place, without_installs(source)) for place, source in self._cells()]
        box.send({"setup": self.assignment.setup, "cells": cells, "name": self.task.name, "hidden": hidden})
        current: tuple[str, int] = ("setup", -1)
        while True:
            try:
                with box.within(box.limits.cell_seconds):
                    message = box.receive()
            except KernelGone as gone:
                self._cell_failed(current, gone)
            if "loaded" in message:
                self._loaded(message)
                return
            current = (str(message.get("begins") or message.get("ends")), int(message.get("number", -1)))
            if message.get("error"):
                self._cell_raised(current, str(message["error"]))

    def _cell_failed(self, current: tuple[str, int], gone: KernelGone) -> None:
        kind, place = current
        why = f"was stopped: it went over its limit of {gone}" if isinstance(gone, Stopped) else f"ended the kernel ({gone})"
        if kind != "cell" or place < 0:
            raise Failed("technical", f"before the first cell of the submission, the kernel {why}")
        raise BadCell(place, why)

    def _cell_raised(self, current: tuple[str, int], error: str) -> None:
        kind, place = current
        if kind != "cell":
            raise Failed("technical", f"a locked cell raised {error}")
        self.raised[place] = error

    def _loaded(self, message: dict[str, Any]) -> None:
        for place, why in self.bad.items():
            self.notes.append(f"cell {place + 1} of the student's was left out: it {why}")
        own = self.raised.pop(self.place, "") if self.place is not None else ""
        self.notes += [f"cell {place + 1} of the student's raised {error[:200]}" for place, error in self.raised.items()]
        if message["loaded"] is not True:
            raise Failed("error", f"its cell raised {own}" if own else f"its cell does not define {self.task.name}")
        self.notes += [f"its cell raised {own[:200]}"] if own else []

    def _checked(self, box: Sandbox) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for check in self.task.checks:
            seed = self.seed if check.which == "public" else self.seed ^ 0x5EED
            try:
                status, message = _outside(box, check, seed) if judged_outside(check.exercise) else _inside(box, check, seed)
            except Stopped as stopped:
                status, message = "timeout", f"stopped: it went over its limit of {stopped}"
            except KernelGone as gone:
                status, message = "died", str(gone)
            outcomes.append(Outcome(check.which, status, message, check.points))
            if status in ("timeout", "died"):  # nobody is there to try the rest on
                rest = self.task.checks[len(outcomes) :]
                return outcomes + [Outcome(check.which, status, "not tried", check.points) for check in rest]
        return outcomes


def _all(task: Task, status: str, message: str) -> tuple[Outcome, ...]:
    """Return the same outcome for every check of an exercise."""
    return tuple(Outcome(check.which, status, message, check.points) for check in task.checks)


@cache
def judged_outside(exercise: Exercise) -> bool:
    """Whether all that the exercise's judge looks at can be sent through a pipe."""
    if exercise.judge is not by_value:
        return False
    try:
        for case in exercise.cases(torch.Generator().manual_seed(0)):
            wire.encoded(case.wanted)
            pickle.dumps((case.args, dict(case.kwargs)))
    except Exception:  # pickle raises whatever its objects raise
        return False
    return True


def _outside(box: Sandbox, check: Check, seed: int) -> tuple[str, str]:
    answer = RemoteAnswer(box)
    tried: list[Case] = []
    try:
        with box.within(box.limits.check_seconds):
            try_cases(check.exercise, answer, seed, tried)
    except NotDoneYet as failed:
        return "not done", str(failed)
    except CheckFailed as failed:
        if answer.gone:
            raise answer.gone from None
        return "wrong", str(failed)
    return "right", f"right for {len(tried)} inputs"


class RemoteAnswer:
    """An answer in the sandbox. Calling it calls that one, changes arguments as that one did, returns or raises the same."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box
        self.gone: KernelGone | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            reply = self._box.ask(("call", args, kwargs))
        except KernelGone as gone:
            self.gone = gone
            raise
        if "raised" in reply:
            raise _error(reply)
        try:
            _take_over(list(args), wire.decoded(reply["args"]))
            _take_over(kwargs, wire.decoded(reply["kwargs"]))
            return wire.decoded(reply["value"])
        except (KeyError, wire.Closed) as error:
            self.gone = KernelGone(f"the kernel sent no answer: {error}")
            raise self.gone from None


def _error(reply: dict[str, Any]) -> Exception:
    """Return an error that looks like the one raised in the sandbox."""
    name, line = str(reply["raised"])[:80], reply.get("line")
    place = f", in line {line} of its cell" if isinstance(line, int) and line > 0 else ""
    known = NotImplementedError if name == "NotImplementedError" else Exception
    return type(name, (known,), {})((str(reply.get("message", ""))[:120] + place).removeprefix(", "))


def _take_over(given: Any, after: Any) -> Any:
    """Do to an argument what the answer did to its own; return it, or what stands in its place now."""
    if isinstance(given, torch.Tensor) and isinstance(after, torch.Tensor):
        if given.dtype == after.dtype:
            given.data = after
        return given
    if type(given) is list and type(after) is list:
        given[:] = [_take_over(*pair) for pair in zip(given, after)] + after[len(given) :]
        return given
    if type(given) is dict and type(after) is dict:
        items = {key: _take_over(given[key], value) if key in given else value for key, value in after.items()}
        given.clear()
        given.update(items)
        return given
    if type(given) is tuple and type(after) is tuple:
        return tuple(_take_over(*pair) for pair in zip(given, after))
    return given if isinstance(after, wire.Opaque) else after


def _inside(box: Sandbox, check: Check, seed: int) -> tuple[str, str]:
    token = secrets.token_hex(16)  # made when every cell has run: they cannot have read it
    which = "hidden" if check.which == "hidden" else check.exercise.name
    with box.within(box.limits.check_seconds):
        reply = box.ask(("judge", which, seed, token))
    if reply.get("token") != token or reply.get("outcome") not in ("right", "wrong", "not done"):
        return "review", "the kernel reported what it was not asked for"
    if reply.get("replaced"):
        return "review", f"it replaces parts of what judges it: {str(reply['replaced'])[:200]}"
    if reply["outcome"] == "right":
        return "right", f"right for {str(reply.get('tried'))[:9]} inputs"
    return reply["outcome"], str(reply.get("message", ""))[:1000]
