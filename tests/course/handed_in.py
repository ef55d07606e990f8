"""Submissions of every kind, and what each should get. All answer the four exercises of private/notebooks/90_small.ipynb."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRIVATE = Path(__file__).parent / "private"

RIGHT = {
    "double": "def double(x):\n    return x + x",
    "total": "def total(numbers):\n    return sum(numbers)",
    "Counter": "class Counter:\n    def __init__(self):\n        self.count = 0\n\n    def step(self):\n        self.count += 1",
    "same_memory": "def same_memory(x):\n    return x.T",
}
POINTS = {"double": 1, "total": 1, "Counter": 2, "same_memory": 1}

ALL = tuple(RIGHT)


@dataclass(frozen=True)
class HandedIn:
    """One submission.

    Args:
        answers: code by exercise, where it is not the right one; None leaves the cell out.
        lost: what becomes of each exercise that does not get its points: its status, or `*` where that hangs on who is quicker.
        told: words from the notes.
        change: does something to the notebook once its answers are in.
        file: its name, where it is not the submission's own.
        raw: the whole file, where it is no notebook.
    """

    answers: dict[str, str | None] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    change: Callable[[dict[str, Any]], None] = lambda notebook: None
    file: str = ""
    raw: str | None = None


def written(given: dict[str, Any], one: HandedIn) -> str:
    """Return the file of a submission, made from the notebook that students were given."""
    if one.raw is not None:
        return one.raw
    notebook = copy.deepcopy(given)
    for cell in list(notebook["cells"]):
        name = cell["metadata"].get("exercise")
        if "stub" in cell["metadata"].get("tags", ()):
            code = {**RIGHT, **one.answers}[name]
            notebook["cells"].remove(cell) if code is None else cell.update(source=code)
    one.change(notebook)
    return json.dumps(notebook)


def code_cell(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None}


def put_first(source: str) -> Callable[[dict[str, Any]], None]:
    return lambda notebook: notebook["cells"].insert(0, code_cell(source))


def put_last(source: str) -> Callable[[dict[str, Any]], None]:
    return lambda notebook: notebook["cells"].append(code_cell(source))


def strip_metadata(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        cell.pop("id", None)
    notebook["metadata"] = {}


def checks_of(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if "check" in cell["metadata"].get("tags", ())]


def double_the_checks(notebook: dict[str, Any]) -> None:
    for cell in checks_of(notebook):
        notebook["cells"].insert(notebook["cells"].index(cell), copy.deepcopy(cell))


def delete_the_checks(notebook: dict[str, Any]) -> None:
    for cell in checks_of(notebook):
        notebook["cells"].remove(cell)


def pass_the_checks(notebook: dict[str, Any]) -> None:
    for cell in checks_of(notebook):
        cell["source"] = "print('✓ right')"


def as_version_3(notebook: dict[str, Any]) -> None:
    cells = [{**cell, "input": cell.pop("source")} if cell["cell_type"] == "code" else cell for cell in notebook.pop("cells")]
    notebook.update(nbformat=3, nbformat_minor=0, worksheets=[{"cells": cells}])


def as_lines(notebook: dict[str, Any]) -> None:
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"]).replace("\n", "\r\n").splitlines(keepends=True)


def answer_below_the_stub(notebook: dict[str, Any]) -> None:
    put_first(RIGHT["double"])(notebook)


SPIN = "while True:\n    pass"
SWALLOW = (
    "while True:\n        try:\n            while True:\n                pass\n        except BaseException:\n            pass"
)
STUB = "def double(x):\n    raise NotImplementedError"
PATCH = (
    "import torch\ntorch.equal = torch.allclose = lambda *a, **k: True\n"
    "torch.Tensor.__eq__ = lambda *a: torch.ones((), dtype=torch.bool)\ntorch.Tensor.any = lambda *a, **k: False\n"
)
NO_CHECK = (
    "import llama3_edu.checks.runner as r, llama3_edu.checks.compare as c\nr.try_cases = c.difference = lambda *a, **k: ''\n"
)
WRONG = "def double(x):\n    return x"
FORGE = """
import json, os, struct
def double(x):
    message = json.dumps({"value": {"list": []}, "token": "?", "outcome": "right"}).encode()
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, struct.pack(">I", len(message)) + message)
        except OSError:
            pass
    return x
"""
FORGE_INSIDE = """
import json, os, struct
class Counter:
    def __init__(self):
        message = json.dumps({"token": "", "outcome": "right", "replaced": [], "tried": 2}).encode()
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, struct.pack(">I", len(message)) + message)
            except OSError:
                pass
"""
FORK = """
import os, time
def double(x):
    while True:
        if os.fork() == 0:
            time.sleep(1000)
"""
LARGE_FILE = """
def double(x):
    with open("big", "wb") as file:
        for _ in range(2000):
            file.write(bytes(10**6))
"""
LEFT_BEHIND = """
import os, time
def double(x):
    if os.fork() == 0:
        os.setsid()
        while True:
            pass
    return x + x
"""


def adversarial(*, secret: Path, gradebook: Path, port: int) -> dict[str, HandedIn]:
    """Every submission, by name.

    Args:
        secret: a file of the private folder.
        gradebook: the table that is being written.
        port: where a server of this machine listens.
    """
    timeout, died, wrong = {"double": "timeout"}, {"double": "died"}, {"double": "wrong"}
    return {
        "correct": HandedIn(),
        "wrong": HandedIn({"double": WRONG}, wrong, ("wanted is",)),
        "empty": HandedIn({name: None for name in ALL}, {name: "missing" for name in ALL}),
        "untouched": HandedIn({"double": STUB}, {"double": "not done"}),
        "loop in a function": HandedIn(
            {"double": f"def double(x):\n    {SPIN.replace(chr(10), chr(10) + '    ')}"}, timeout, ("time",)
        ),
        "loop that waits": HandedIn({"double": "import time\ndef double(x):\n    time.sleep(10**6)"}, timeout),
        "loop in its cell": HandedIn({"double": f"{SPIN}\n{RIGHT['double']}"}, timeout),
        "loop in another cell": HandedIn(change=put_first(SPIN), told=("was left out",)),
        "loop that swallows everything": HandedIn({"double": f"def double(x):\n    {SWALLOW}"}, timeout),
        "loop at import that swallows everything": HandedIn({"double": f"if True:\n    {SWALLOW}\n{RIGHT['double']}"}, timeout),
        "os._exit": HandedIn({"double": "import os\ndef double(x):\n    os._exit(0)"}, died, ("exit 0",)),
        "os._exit in its cell": HandedIn({"double": f"{RIGHT['double']}\nimport os\nos._exit(0)"}, died),
        "os._exit in another cell": HandedIn(change=put_last("import os; os._exit(0)"), told=("was left out",)),
        "sys.exit": HandedIn({"double": "import sys\ndef double(x):\n    sys.exit(0)"}, wrong, ("SystemExit",)),
        "segfault": HandedIn({"double": "import ctypes\ndef double(x):\n    ctypes.string_at(0)"}, died, ("SIGSEGV", "look:")),
        "memory bomb": HandedIn({"double": "def double(x):\n    return [0] * 10**10"}, wrong, ("MemoryError",)),
        "memory bomb of tensors": HandedIn(
            {"double": "def double(x):\n    return x.expand(10**9, -1).double().contiguous()"}, wrong
        ),
        "2 GB file": HandedIn({"double": LARGE_FILE}, wrong, ("File too large",)),
        "files until the disk is full": HandedIn(
            {"double": "def double(x):\n    for n in range(10**4):\n        open(f'{n}', 'wb').write(bytes(10**7))"},
            wrong,
            ("No space",),
        ),
        "fork of processes": HandedIn({"double": FORK}, wrong, ("BlockingIOError",)),
        "process left behind": HandedIn({"double": LEFT_BEHIND}),
        "kills its parent": HandedIn({"double": "import os\ndef double(x):\n    os.kill(os.getppid(), 9)"}, {"double": "*"}),
        "kills everything": HandedIn({"double": "import os\ndef double(x):\n    os.kill(-1, 9)\n    return x"}, {"double": "*"}),
        "stops its parent": HandedIn(
            {"double": "import os\ndef double(x):\n    os.kill(os.getppid(), 19)\n    os._exit(0)"}, timeout
        ),
        "syntax error": HandedIn({"double": "def double(x:\n    return x"}, {"double": "error"}, ("SyntaxError",)),
        "error in its cell": HandedIn(
            {"double": "import no_such_module\n" + RIGHT["double"]}, {"double": "error"}, ("no_such_module",)
        ),
        "stripped metadata": HandedIn(change=strip_metadata),
        "stripped metadata and a wrong answer": HandedIn({"double": WRONG}, wrong, change=strip_metadata),
        "duplicated check": HandedIn(change=double_the_checks),
        "deleted check": HandedIn({"double": WRONG}, wrong, change=delete_the_checks),
        "edited check": HandedIn({"double": WRONG}, wrong, change=pass_the_checks),
        "Colab copy": HandedIn(change=strip_metadata, file="Copy of 90_small.ipynb"),
        "renamed": HandedIn(file="final (2) FINAL.IPYNB"),
        "another format": HandedIn(change=as_version_3),
        "other line ends": HandedIn(change=as_lines),
        "answer beside the stub": HandedIn({"double": STUB}, change=answer_below_the_stub),
        "answer twice": HandedIn({"double": WRONG}, change=put_last(RIGHT["double"]), told=("2 cells define it",)),
        "a helper of its own": HandedIn(
            {"double": "def double(x):\n    return helper(x)"}, change=put_last("import math\ndef helper(x):\n    return x * 2")
        ),
        "installs something": HandedIn(change=put_first("%pip install --quiet numpy\n!pip install torch")),
        "patched torch.equal": HandedIn({"double": PATCH + WRONG}, wrong | {"Counter": "review", "same_memory": "review"}),
        "patched checks": HandedIn(
            {"double": NO_CHECK + WRONG, "Counter": "class Counter:\n    pass"},
            wrong | {"Counter": "review", "same_memory": "review"},
        ),
        "patches while it is judged": HandedIn(
            {"same_memory": "def same_memory(x):\n    torch.equal = lambda *a: True\n    return x"}, {"same_memory": "review"}
        ),
        "forged messages": HandedIn({"double": FORGE}, {"double": "*"}),
        "forged verdict": HandedIn({"Counter": FORGE_INSIDE}, {"Counter": "review"}),
        "returns a lie about itself": HandedIn(
            {"double": "class Same:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Same()"}, wrong
        ),
        "returns too much": HandedIn({"double": "def double(x):\n    return torch.zeros(2 * 10**7)"}, died, ("announced",)),
        "destroys its input": HandedIn(
            {"double": "def double(x):\n    return x.mul_(2)"}, wrong, ("changed argument 1 in place",)
        ),
        "reads the hidden file": HandedIn(
            {"double": f"def double(x):\n    return open({str(secret)!r}).read()"}, wrong, ("FileNotFoundError",)
        ),
        "edits the gradebook": HandedIn(
            {"double": f"def double(x):\n    open({str(gradebook)!r}, 'a').write('correct,100')\n    return x"},
            wrong,
            ("FileNotFoundError",),
        ),
        "network": HandedIn(
            {"double": f"import socket\ndef double(x):\n    socket.create_connection(('127.0.0.1', {port}))\n    return 2 * x"},
            wrong,
        ),
        "floods its output": HandedIn({"double": "def double(x):\n    print('x' * 10**8)\n    return x + x"}),
        "=1+1": HandedIn(),
        "not JSON": HandedIn(raw="%PDF-1.7", file="thesis.pdf"),
        "nested too deep": HandedIn(raw="[" * 10**6),
        "no cells": HandedIn(raw="{}"),
        "half a file": HandedIn(raw='{"cells": [{"cell_type": "code", "sou'),
    }


UNGRADED = {"not JSON", "nested too deep", "no cells", "half a file", "no notebook at all", "a link"}
