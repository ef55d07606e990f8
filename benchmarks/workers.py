"""Contenders in other processes: started once, asked for one sample at a time, ended with this one."""

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["PeerFailed", "Worker", "peer", "PEERS_PYTHON"]

ROOT = Path(__file__).resolve().parents[1]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
FOLDERS = {"transformers": "huggingface", "openvino": "openvino", "ctranslate2": "ctranslate2"}
"""Which of a model's folders each peer reads."""


class PeerFailed(RuntimeError):
    """A peer is not there, ended, or could not do what it was asked; the message says which and why."""


class Worker:
    """A process that answers calls, a line of JSON each way: see `benchmarks.peers.serve`. Use it in a `with`.

    Args:
        name: for messages.
        command: what to run.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.pid = self._process.pid
        self.version: str = self._reply()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: it stops when its requests do."""
        self._errors.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a method of the peer and return what it returns.

        Raises:
            PeerFailed: it raised, or its process ended.
        """
        with contextlib.suppress(BrokenPipeError):  # where it ended, the reply that does not come says so
            self._process.stdin.write(json.dumps({"call": name, "with": arguments}) + "\n")
            self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise PeerFailed(f"{self.name}: its process ended with exit status {self._process.wait()}{self._last_words()}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerFailed(f"{self.name}: {reply['error']}")
        return reply["value"]

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        return next((f": {line}" for line in reversed(lines) if line.strip()), "")


def peer(name: str, model: Path, *, dtype: str, threads: int) -> Worker:
    """Start a peer from its own environment.

    Args:
        name: transformers, openvino or ctranslate2.
        model: the checkpoint in the layout of Hugging Face; what was converted from it lies beside it.

    Raises:
        PeerFailed: there is no environment or no converted model, or the peer does not start.
    """
    folder = model if name == "transformers" else model.parent / FOLDERS[name]
    for path, remedy in ((PEERS_PYTHON, "make it"), (folder, "convert the model")):
        if not path.exists():
            raise PeerFailed(f"{name}: there is no {path}; benchmarks/peers.sh will {remedy}")
    module = f"benchmarks.peers.{name}_peer"
    command = [str(PEERS_PYTHON), "-m", module, str(folder), "--dtype", dtype, "--threads", str(threads)]
    return Worker(name, command)
