"""Where submissions run: a kernel with no network, no files but the system's, and an end to everything it may use.

bubblewrap makes the walls: namespaces of its own for network, processes, IPC and host name; of the file system, the system and
this package, to read, and a small disk in memory, to write. Limits of the kernel hold for each process, and a watch from
outside for all of them together. Started by root, submissions run as a user of their own that owns nothing.
"""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

import llama3_edu
from coursework import wire

__all__ = ["Limits", "Sandbox", "SandboxMissing", "SandboxBroken", "KernelGone", "Stopped", "bubblewrap", "readable_inside"]

HERE = Path(__file__).resolve().parent
PACKAGE = Path(llama3_edu.__file__).resolve().parent

FIRST_USER, USERS = 52000, 8000
"""Numbers of users that no machine is likely to have. Started by root, each sandbox takes one: process limits count by user."""

SECONDS_TO_START = 120.0
WATCH_EVERY = 0.25
NURSERY = 2**30
"""Bytes that what every kernel is forked from may hold: the libraries."""

CONTAINER = (
    "docker run --rm -it --network none --memory 8g --pids-limit 1024 --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
    '--security-opt apparmor=unconfined --security-opt systempaths=unconfined -v "$PWD/course:/course" llama3-edu-course grade …'
)
"""How to have a Linux with bubblewrap where there is none. The image is made with book/instructors.md."""

MISSING = f"""\
Submissions run in a sandbox, and {{why}}.

  Debian, Ubuntu:   apt-get install bubblewrap
  elsewhere:        {CONTAINER}

See book/instructors.md. With --unsafe they run with your rights: they can read your files, the other submissions and the
grades, and use the network. That is for submissions you have read, or for a machine you can throw away."""


class SandboxMissing(Exception):
    """There is nothing here to run submissions in."""


class SandboxBroken(Exception):
    """The sandbox did not start, or does not do its work. No submission is to blame."""


class KernelGone(Exception):
    """A kernel ended before its work was done."""


class Stopped(KernelGone):
    """A kernel was stopped because it went over a limit."""


@dataclass(frozen=True)
class Limits:
    """What a submission may use. Times are of computing; waiting may take three times as long.

    Args:
        cell_seconds: for each cell.
        check_seconds: for each check, over all its inputs.
        memory: bytes that a kernel may add to what it starts with; also what all its processes together may hold.
        disk: bytes it may write, and a single file: `file`.
        processes: how many it may start, threads included.
    """

    cell_seconds: float = 20.0
    check_seconds: float = 10.0
    memory: int = 2 * 2**30
    disk: int = 256 * 2**20
    file: int = 64 * 2**20
    processes: int = 64


def bubblewrap() -> str:
    """Return the path of a bubblewrap that works here.

    Raises:
        SandboxMissing: there is none, or it may not make namespaces.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise SandboxMissing(MISSING.format(why="there is no bubblewrap (bwrap) here"))
    walls = [path, "--ro-bind", "/", "/", "--unshare-all", "--proc", "/proc", "--size", "65536", "--tmpfs", "/tmp", "true"]
    tried = subprocess.run(walls, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if tried.returncode != 0:
        raise SandboxMissing(MISSING.format(why=f"bubblewrap does not work here: {tried.stderr.strip()[:300]}"))
    return path


class Sandbox:
    """One sandbox and the nursery of kernels in it.

    Args:
        bwrap: path of bubblewrap; nothing runs submissions without walls.
        limits: what a submission may use.
    """

    _slots = itertools.count()

    def __init__(self, bwrap: str | None, limits: Limits) -> None:
        self.limits = limits
        self._reason, self._computed = "", 0.0
        self._deadline = Deadline(float("inf"), float("inf"))
        self._said = tempfile.TemporaryFile()
        self._folder = None if bwrap else tempfile.TemporaryDirectory()
        user = FIRST_USER + (os.getpid() * 31 + next(self._slots)) % USERS if bwrap and os.geteuid() == 0 else None
        place = self._folder.name if self._folder else "/"
        self._process = subprocess.Popen(
            self._command(bwrap, user), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, start_new_session=True,
            env=None if bwrap else os.environ | environment(place, walls=False), cwd=place,
        )  # fmt: skip
        self._watch = threading.Thread(target=self._keep_watch, daemon=True)
        self._watch.start()
        self._wait_until_ready()

    def _command(self, bwrap: str | None, user: int | None) -> list[str]:
        limits = asdict(self.limits) | {"user": user, "contained": bwrap is not None}
        run = [sys.executable, "-m", "coursework.inside", json.dumps(limits)]
        return [*walls(bwrap, self.limits, user), *run] if bwrap else run

    def _wait_until_ready(self) -> None:
        try:
            with self.within(SECONDS_TO_START):
                self.receive()
        except KernelGone as gone:
            self.close()
            self._said.seek(0)
            said = self._said.read(2000).decode(errors="replace").strip()
            raise SandboxBroken(f"the sandbox did not start: {gone}. {said[-1500:]}") from None

    @property
    def alive(self) -> bool:
        """Whether another kernel can be asked for."""
        return not self._reason and self._process.poll() is None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Stop the sandbox if what is done meanwhile takes longer."""
        self._deadline = Deadline(time.monotonic() + 3 * seconds, self._computed + seconds + WATCH_EVERY)
        try:
            yield
        finally:
            self._deadline = Deadline(float("inf"), float("inf"))

    def send(self, request: Any) -> None:
        """Send a message.

        Raises:
            KernelGone: nobody is there to read it.
        """
        try:
            wire.write_frame(self._process.stdin.fileno(), pickle.dumps(request))
        except wire.Closed as closed:
            raise self._gone(str(closed)) from None

    def receive(self) -> dict[str, Any]:
        """Wait for a message and return it.

        Raises:
            KernelGone: the kernel ended, or wrote something else.
        """
        try:
            message = wire.read_json(self._process.stdout.fileno())
        except wire.Closed as closed:
            self._kill("it broke the connection")
            raise self._gone(str(closed)) from None
        if "gone" in message:
            raise self._gone(f"the kernel ended with {str(message['gone'])[:40]}")
        return message

    def ask(self, request: Any) -> dict[str, Any]:
        """Send a message, wait for the answer to it and return that."""
        self.send(request)
        return self.receive()

    def end_kernel(self) -> None:
        """Let the kernel go; the nursery stays, unless the kernel has harmed it."""
        with suppress(KernelGone), self.within(5):
            self.send(("end",))
            while True:
                self.receive()

    def close(self) -> None:
        """End everything in the sandbox."""
        self._kill("closed")
        self._process.wait()
        self._watch.join()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                stream.close()
        if self._folder:
            self._folder.cleanup()

    def _gone(self, why: str) -> KernelGone:
        stopped = self._reason.startswith("over: ")
        return Stopped(self._reason.removeprefix("over: ")) if stopped else KernelGone(why)

    def _kill(self, reason: str) -> None:
        self._reason = self._reason or reason
        for process in self._family():
            with suppress(psutil.Error):
                process.kill()

    def _family(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.Error:
            return []

    def _keep_watch(self) -> None:
        while self._process.poll() is None and not self._reason:
            family, deadline = self._family(), self._deadline
            self._computed = sum(map(_computed, family))
            if time.monotonic() > deadline.clock or self._computed > deadline.computed:
                self._kill("over: time")
            elif sum(map(_held, family)) > self.limits.memory + NURSERY:
                self._kill("over: memory")
            time.sleep(WATCH_EVERY)


@dataclass(frozen=True)
class Deadline:
    """When to stop: by the clock, and by the time computed."""

    clock: float
    computed: float


def _computed(process: psutil.Process) -> float:
    """Seconds that a process has computed, and those of its children that have ended."""
    with suppress(psutil.Error):
        return sum(process.cpu_times()[:4])
    return 0.0


def _held(process: psutil.Process) -> int:
    """Bytes that a process holds; pages it shares with others count by their share."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    with suppress(psutil.Error):
        return process.memory_info().rss
    return 0


def walls(bwrap: str, limits: Limits, user: int | None) -> list[str]:
    """Return the command that runs another one in the sandbox."""
    command = [bwrap, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    if user is None:
        command += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
    else:
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    command += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(limits.disk), "--tmpfs", "/dev/shm"]
    command += ["--remount-ro", "/dev", "--perms", "1777", "--size", str(limits.disk), "--tmpfs", "/tmp", *_system()]
    for folder, place in _folders().items():
        command += [*_parents(place), "--ro-bind", str(folder), str(place)]
    for name, value in environment("/tmp", walls=True).items():
        command += ["--setenv", name, value]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _system() -> list[str]:
    """Return what makes the system readable."""
    parts = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            parts += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            parts += ["--ro-bind", name, name]
    parts += ["--perms", "0755", "--dir", "/etc"]
    for name in ("/etc/ld.so.cache", "/etc/localtime"):
        parts += ["--ro-bind-try", os.path.realpath(name), name]
    return parts


def _folders() -> dict[Path, Path]:
    """Return the folders a kernel reads besides the system's, each with its place in the sandbox."""
    python = {Path(folder).resolve() for folder in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    python |= {Path(entry).resolve() for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))}
    own = {Path(sys.executable).parent.parent} | {folder for folder in python if folder.is_dir()}
    inner = {folder: folder for folder in sorted(own) if not folder.is_relative_to("/usr") and folder != Path("/")}
    return inner | {PACKAGE: Path("/book/llama3_edu"), HERE: Path("/book/coursework")}


def _parents(place: Path) -> list[str]:
    """Return what makes the folders above a place, open to everybody: without it only root could pass."""
    above = [str(folder) for folder in reversed(place.parents) if str(folder) not in ("/", "/tmp", "/usr")]
    return [part for folder in above for part in ("--perms", "0755", "--dir", folder)]


def environment(folder: str, *, walls: bool) -> dict[str, str]:
    """Return the environment of a kernel whose own folder is this one."""
    search = "/book" if walls else os.pathsep.join([str(HERE.parent), str(PACKAGE.parent)])
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": folder, "TMPDIR": folder, "IPYTHONDIR": f"{folder}/ipython", "MPLCONFIGDIR": f"{folder}/matplotlib",
        "USER": "student", "LANG": "C.UTF-8", "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "SANDBOXED": "1" if walls else "",
    }  # fmt: skip


def readable_inside(path: Path) -> bool:
    """Whether a submission could read this file or folder."""
    place = path.resolve()
    return any(place.is_relative_to(folder) for folder in [Path("/usr"), *_folders()])
