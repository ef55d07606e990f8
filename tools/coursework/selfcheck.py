"""Tries to break out of the sandbox in the ways that a submission would."""

import socket
from pathlib import Path

from coursework.assignment import CourseError
from coursework.sandbox import Limits, Sandbox

__all__ = ["PROBES", "check_sandbox"]

PROBES = {
    "reach a network": "import socket\ndef probe():\n    if len(socket.if_nameindex()) <= 1:\n        raise OSError",
    "reach servers of this machine": "import socket\ndef probe():\n    socket.create_connection(('127.0.0.1', {port}), 1)",
    "read where the grader lies": "def probe():\n    open({own!r})",
    "read the list of users": "def probe():\n    open('/etc/passwd')",
    "write to the package": "def probe():\n    open('/book/llama3_edu/new', 'w')",
    "write to the system": "def probe():\n    open('/usr/new', 'w')",
    "write a large file": "def probe():\n    open('/tmp/large', 'wb').write(bytes(2 * {file}))",
    "fill the disk": "def probe():\n    for number in range(10**4):\n        open(f'/tmp/{{number}}', 'wb').write(bytes(2**24))",
    "fill shared memory": "def probe():\n    for n in range(10**4):\n        open(f'/dev/shm/{{n}}', 'wb').write(bytes(2**24))",
    "take all memory": "def probe():\n    bytearray({memory} + 2**28)",
    "end other processes": "import os\ndef probe():\n    os.kill(1, 0)\n    os.kill(os.getppid() + 10**6, 9)",
}
"""What a submission may try, each as code that has to raise an error."""


def check_sandbox(bwrap: str, limits: Limits) -> None:
    """Make sure that the sandbox keeps in what runs in it. Never to be tried without one: the probes do what they say.

    Raises:
        CourseError: it does not.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        values = {
            "port": server.getsockname()[1],
            "own": str(Path(__file__).resolve()),
            "file": limits.file,
            "memory": limits.memory,
        }
        box = Sandbox(bwrap, limits)
        try:
            open_doors = [what for what, code in PROBES.items() if not _raises(box, code.format(**values))]
        finally:
            box.close()
    if open_doors:
        raise CourseError(f"the sandbox does not hold. A submission can: {', '.join(open_doors)}")


def _raises(box: Sandbox, code: str) -> bool:
    box.send({"setup": [], "cells": [(0, code)], "name": "probe", "hidden": None})
    while "loaded" not in box.receive():
        pass
    with box.within(box.limits.check_seconds):
        reply = box.ask(("call", (), {}))
    box.end_kernel()
    return "raised" in reply
