"""Stop a call that does not end, even one that swallows every exception."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

__all__ = ["TooLong", "call_within"]


class TooLong(BaseException):
    """A call did not end in time. Not an `Exception`: an answer that catches those should be stopped all the same."""


def call_within(seconds: float, function: Callable[[], Any]) -> Any:
    """Call a function and return what it returns, if it ends in time.

    The call stays in this thread, where notebooks can be interrupted and output appears, unless there is no signal to stop it with:
    on Windows, and outside the main thread.

    Args:
        seconds: how long it may take.
        function: takes nothing.

    Raises:
        TooLong: it did not end in time. A call that is deep in compiled code ends when it comes back from there.
    """
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        return _call_under_alarm(seconds, function)
    return _call_in_thread(seconds, function)


def _call_under_alarm(seconds: float, function: Callable[[], Any]) -> Any:
    here = sys._getframe()
    tracer = sys.gettrace()
    over = False

    def stop(number: int, frame: FrameType | None) -> None:
        if over:
            return
        # Raising is not enough where the code catches everything: then the first line of its handler raises once more.
        sys.settrace(_leave_new_calls_alone)
        while frame is not None and frame is not here:
            frame.f_trace = _raise_at_the_next_line
            frame = frame.f_back
        raise TooLong

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
    try:
        return function()
    finally:
        over = True
        sys.settrace(tracer)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def _leave_new_calls_alone(frame: FrameType, event: str, argument: object) -> None:
    """Trace no call that begins from now on; those that are under way have a tracer of their own."""


def _raise_at_the_next_line(frame: FrameType, event: str, argument: object) -> Any:
    if event == "line":
        raise TooLong
    return _raise_at_the_next_line


def _call_in_thread(seconds: float, function: Callable[[], Any]) -> Any:
    came: dict[str, Any] = {}

    def call() -> None:
        try:
            came["value"] = function()
        except BaseException as error:
            came["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        with suppress(KeyError):  # it may end just now
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TooLong))
        thread.join(1.0)
        raise TooLong
    if "error" in came:
        raise came["error"]
    return came["value"]
