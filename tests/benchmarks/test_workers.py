"""Workers: a line each way, errors that arrive, processes that end. The peer here is one of Python's own objects."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.serve import serve  # noqa: E402
from benchmarks.workers import PeerFailed, Worker, peer  # noqa: E402

SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
from benchmarks.peers.serve import main

class Calculator:
    version = "Calculator 1.0"

    def __init__(self, model, *, dtype, threads):
        print("what a library prints must not look like a reply")
        self._threads = threads

    def add(self, left, right):
        print("nor here")
        return {{"sum": left + right, "threads": self._threads, "pid": os.getpid()}}

    def divide(self, left, right):
        return left / right

    def leave(self):
        os._exit(3)

main(Calculator)
"""


def calculator() -> Worker:
    root = str(Path(__file__).resolve().parents[2])
    return Worker("calculator", [sys.executable, "-c", SCRIPT.format(root=root), "model", "--threads", "2"])


def test_a_worker_answers_call_after_call() -> None:
    with calculator() as worker:
        assert worker.version == "Calculator 1.0"
        first, second = worker.call("add", left=1, right=2), worker.call("add", left=[1], right=[2])
    assert first == {"sum": 3, "threads": 2, "pid": worker.pid} and second["sum"] == [1, 2]


def test_an_error_arrives_and_the_worker_goes_on() -> None:
    with calculator() as worker:
        with pytest.raises(PeerFailed, match="calculator: ZeroDivisionError: division by zero"):
            worker.call("divide", left=1, right=0)
        assert worker.call("divide", left=1, right=2) == 0.5


def test_a_process_that_ends_is_reported() -> None:
    with calculator() as worker:
        with pytest.raises(PeerFailed, match="its process ended with exit status 3"):
            worker.call("leave")
        with pytest.raises(PeerFailed, match="its process ended"):
            worker.call("add", left=1, right=2)


def test_no_process_outlives_its_worker() -> None:
    with calculator() as worker:
        pid = worker.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_that_does_not_start_says_why() -> None:
    with pytest.raises(PeerFailed, match=r"exit status 1: NameError: name 'nothing' is not defined"):
        Worker("broken", [sys.executable, "-c", "nothing"])


def test_a_missing_environment_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workers.PEERS_PYTHON", tmp_path / "python")
    with pytest.raises(PeerFailed, match=r"openvino: there is no .*python; benchmarks/peers.sh will make it"):
        peer("openvino", tmp_path / "huggingface", dtype="float32", threads=1)
    (tmp_path / "python").touch()
    with pytest.raises(PeerFailed, match=r"there is no .*openvino; benchmarks/peers.sh will convert the model"):
        peer("openvino", tmp_path / "huggingface", dtype="float32", threads=1)


def test_serving_ends_with_the_requests() -> None:
    requests = io.StringIO('{"call": "upper", "with": {}}\n{"call": "nonsense", "with": {}}\n')
    replies = io.StringIO()
    serve("abc", requests, replies)
    first, second = map(json.loads, replies.getvalue().splitlines())
    assert first == {"value": "ABC"} and "nonsense" in second["error"]
