"""Runs in the sandbox: a kernel that executes a submission's cells and calls its answers.

One process, the nursery, imports what every answer needs. For each exercise it forks a kernel, so each starts from the same clean
state within milliseconds, and whatever an answer does to its own kernel ends with it.
"""

import builtins
import json
import math
import os
import pickle
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from IPython.core.interactiveshell import InteractiveShell

import llama3_edu.checks as checks
from coursework import wire
from coursework.hidden import hidden_exercise
from llama3_edu.checks.runner import try_cases

__all__ = ["main"]

OF_THE_SHELL = ("_", "__", "___", "display", "exit", "get_ipython", "quit")
"""What IPython puts among the builtins, and takes away, by itself."""

OF_TORCH = "torch.manual_seed"
"""What torch replaces by itself, when its compiler is first imported."""

LONGEST_MESSAGE = 600
"""Characters of an error's message that are told."""


def main() -> None:
    """Give up every privilege, then serve the grader until it hangs up."""
    limits = json.loads(sys.argv[1])
    down, up = os.dup(0), os.dup(1)
    _limit(limits)
    _become(limits["user"])
    _close_standard_streams()
    tell = Teller(up)
    shell = _shell()
    tell({"ready": os.getpid()})
    while True:
        try:
            request = pickle.loads(wire.read_frame(down))
        except wire.Closed:
            return
        tell({"gone": _in_a_fork(lambda: Kernel(shell, request, down, tell, limits["memory"]).serve())})


class Teller:
    """Writes messages to the grader."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, message: dict[str, Any]) -> None:
        wire.write_frame(self._descriptor, json.dumps(message).encode())


def _limit(limits: dict[str, Any]) -> None:
    """Set what holds for the nursery and for everything forked from it. Nothing can take it back."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file"], limits["file"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    if limits["user"] is not None or limits["contained"]:  # else every process of this user counts, the desktop's too
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"], limits["processes"]))


def _become(user: int | None) -> None:
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def _close_standard_streams() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _shell() -> InteractiveShell:
    """Return what executes cells: magics and top-level `await` included, as in a notebook."""
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    shell.colors = "NoColor"
    return shell


def _in_a_fork(work: Callable[[], None]) -> str:
    """Do some work in a process of its own; return how that ended, once nothing is left of it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.getenv("SANDBOXED"):  # in a process namespace of its own, this reaches whatever the kernel left running
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit {code}"


class Kernel:
    """Executes one submission's cells for one exercise, then answers what the grader asks.

    Args:
        shell: executes cells.
        request: `setup`, the locked cells; `cells`, the submission's own, each with its number; `name`, what to hand in;
            `hidden`, the source of a hidden check that can only be judged in here, or nothing.
        down: where the grader's messages come from.
        tell: writes to the grader.
        memory: bytes it may add to what it starts with.
    """

    def __init__(self, shell: InteractiveShell, request: dict[str, Any], down: int, tell: Teller, memory: int) -> None:
        self._shell, self._request, self._down, self._tell = shell, request, down, tell
        limit = _address_space() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        self._answer: Any = None

    def serve(self) -> None:
        judges = self._judges()
        guard = Guard(judges.values())
        self._execute()

        def judge(which: str, seed: int, token: str) -> dict[str, Any]:
            return _judge(judges[which], guard, self._answer, seed, token)

        answers: dict[str, Callable[..., dict[str, Any]]] = {"call": self._call, "judge": judge}
        while True:
            kind, *arguments = pickle.loads(wire.read_frame(self._down))
            if kind == "end":
                return
            self._tell(answers[kind](*arguments))

    def _judges(self) -> dict[str, Any]:
        """Return the exercises that can be judged in here, made before any cell of the submission runs."""
        judges = {exercise.name: exercise for exercise in checks.EXERCISES}
        hidden = self._request["hidden"]
        return judges | ({"hidden": hidden_exercise(self._request["name"], hidden)} if hidden else {})

    def _execute(self) -> None:
        names = self._shell.user_ns
        for number, source in enumerate(self._request["setup"]):
            self._run("setup", number, source)
        for number, source in self._request["cells"]:
            self._run("cell", number, source)
        self._answer = names.get(self._request["name"])
        self._tell({"loaded": self._request["name"] in names})

    def _run(self, kind: str, number: int, source: str) -> None:
        self._tell({"begins": kind, "number": number})
        result = self._shell.run_cell(source, store_history=False, silent=True)
        error = result.error_before_exec or result.error_in_exec
        self._tell({"ends": kind, "number": number, "error": told(error) if error is not None else ""})

    def _call(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Call the answer; return what it returned or raised, and its arguments as they were then."""
        try:
            came = self._answer(*args, **kwargs)
        except BaseException as error:
            message = " ".join(str(error).split())[:LONGEST_MESSAGE]
            return {"raised": type(error).__name__, "message": message, "line": _line(error, self._answer)}
        return {"value": _plain(came), "args": _plain(list(args)), "kwargs": _plain(dict(kwargs))}


def told(error: BaseException) -> str:
    """Say an error in one line."""
    line = f", in line {error.lineno} of its cell" if isinstance(error, SyntaxError) and error.lineno else ""
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:LONGEST_MESSAGE] + line


class Guard:
    """Notices when what judges an answer was replaced by what it judges.

    Args:
        exercises: what judges, besides the modules it is made of.
    """

    def __init__(self, exercises: Iterable[checks.Exercise]) -> None:
        places = {place.__name__: place for place in _guarded()} | {f"exercise {one.name}": one for one in exercises}
        self._before = {name: (place, _contents(place)) for name, place in places.items()}

    def replaced(self) -> list[str]:
        """Return what is not what it was."""
        found = []
        for place_name, (place, before) in self._before.items():
            now = _contents(place)
            found += [f"{place_name}.{name}" for name, value in before.items() if now.get(name) is not value]
        return [name for name in found if not name.startswith(OF_TORCH)]


def _contents(place: Any) -> dict[str, Any]:
    """Return what stands under each name in a module or class; of a function also its code."""
    contents = {name: value for name, value in vars(place).items() if name not in OF_THE_SHELL}
    codes = {f"{name}.__code__": value.__code__ for name, value in contents.items() if isinstance(value, FunctionType)}
    return contents | codes


def _guarded() -> Iterator[type | ModuleType]:
    yield from (builtins, math, random, pickle, json, torch, torch.nn.functional, torch.linalg, torch.testing)
    yield from torch.Tensor.__mro__[:-1]
    for module in [sys.modules[name] for name in sorted(sys.modules) if name.startswith(("llama3_edu", "coursework"))]:
        yield module
        yield from (value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__)


def _judge(exercise: checks.Exercise, guard: Guard, answer: Any, seed: int, token: str) -> dict[str, Any]:
    """Judge the answer in its own process: for what cannot be sent out to be compared."""
    replaced = guard.replaced()
    tried: list[checks.Case] = []
    outcome: dict[str, Any] = {"token": token, "outcome": "right", "message": ""}
    try:
        try_cases(exercise, answer, seed, tried)
    except checks.NotDoneYet as failed:
        outcome |= {"outcome": "not done", "message": str(failed)}
    except checks.CheckFailed as failed:
        outcome |= {"outcome": "wrong", "message": str(failed)}
    replaced = replaced or guard.replaced()
    return outcome | {"tried": len(tried), "replaced": replaced[:5]}


def _plain(value: Any) -> Any:
    try:
        return wire.encoded(value)
    except Exception:
        return _plain_parts(value)


def _plain_parts(value: Any) -> Any:
    """Encode what can be encoded of the arguments; say how the rest looks."""
    if type(value) is list:
        return {"list": [_plain(item) for item in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": [[key, _plain(item)] for key, item in value.items()]}
    try:
        return {"opaque": repr(value)[:200]}
    except BaseException as error:
        return {"opaque": f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"}


def _line(error: BaseException, answer: Any) -> int:
    """Return the line of the answer's cell in which an error was raised; 0 where none is known."""
    code = getattr(answer, "__code__", None)
    if not isinstance(code, CodeType):
        return 0
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == code.co_filename]
    return lines[-1] or 0 if lines else 0


def _address_space() -> int:
    """Bytes of address space that this process has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
