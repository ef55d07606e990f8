"""Beside the versions that Colab has: the cell that prepares it, then every widget and every notebook in what that cell made."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import colab
import nbformat
import notebooks
import pytest
from nbclient import NotebookClient
from widget_pages import MAKERS

from llama3_edu import widgets

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").rglob("*.ipynb"))

pytestmark = pytest.mark.slow


MOST_BYTES_INSTALLED = 25_000_000
"""What the cell may put on a disk: seconds, where a machine of Colab fetches it."""


@dataclass(frozen=True)
class Prepared:
    """An environment before and after the cell ran in it, and what the cell said."""

    python: Path
    cell: str
    before: dict[str, str]
    after: dict[str, str]
    printed: str
    asked: str


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Colab as it is when a notebook opens; then its first cell runs."""
    python = colab.make_environment(tmp_path_factory.mktemp("colab"))
    cell = colab.setup_cell_from(colab.build_wheel(tmp_path_factory.mktemp("dist")))
    before = colab.installed(python)
    modules = colab.make_google_colab(tmp_path_factory.mktemp("modules"))
    running = colab.Kernel(python, tmp_path_factory.mktemp("first"), modules=modules)
    running.run("import google.colab")
    printed = running.printed(cell)
    asked = running.printed("print(google.colab.output.asked)")
    running.close()
    return Prepared(python, cell, before, colab.installed(python), printed, asked.strip())


@pytest.fixture(scope="module")
def python(prepared: Prepared) -> Path:
    return prepared.python


@pytest.fixture(scope="module")
def kernel(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[colab.Kernel]:
    running = colab.Kernel(python, tmp_path_factory.mktemp("kernel"))
    running.run("import json\nfrom importlib.metadata import version\nfrom llama3_edu import widgets")
    yield running
    running.close()


def test_the_setup_cell_moves_nothing(prepared: Prepared) -> None:
    assert {name: prepared.after.get(name) for name in prepared.before} == prepared.before
    assert {"torch", "numpy", "ipywidgets"} <= set(prepared.before)


def test_the_setup_cell_installs_what_colab_lacks_alone(prepared: Prepared) -> None:
    assert set(prepared.after) - set(prepared.before) == {"llama3-edu", *colab.PUT_IN_BY_THE_SETUP_CELL}


def test_the_setup_cell_installs_little(prepared: Prepared, kernel: colab.Kernel) -> None:
    names = sorted(set(prepared.after) - set(prepared.before))
    sizes = f"[(name, sum(file.locate().stat().st_size for file in files(name) if file.locate().exists())) for name in {names}]"
    found = dict(json.loads(kernel.printed(f"from importlib.metadata import files\nprint(json.dumps({sizes}))")))
    assert 0 < sum(found.values()) <= MOST_BYTES_INSTALLED, found


def test_the_setup_cell_shows_widgets_and_says_what_it_runs_on(prepared: Prepared, kernel: colab.Kernel) -> None:
    here = kernel.printed("import llama3_edu as le\nprint(le.hardware.describe(le.default_device()))")
    assert prepared.printed.strip().splitlines()[-1] == f"This notebook runs on {here.strip()}"
    assert prepared.asked == "['widgets']"


def test_the_setup_cell_does_nothing_elsewhere(prepared: Prepared, tmp_path: Path) -> None:
    elsewhere = colab.Kernel(prepared.python, tmp_path)
    messages = elsewhere.run(prepared.cell)
    assert [message["msg_type"] for message in messages if message["msg_type"] not in ("status", "execute_input")] == []
    assert (
        elsewhere.printed("import sys\nprint([name for name in sys.modules if name.startswith(('llama3_edu', 'torch'))])")
        == "[]\n"
    )
    elsewhere.close()
    assert colab.installed(prepared.python) == prepared.after


def test_every_notebook_begins_with_that_cell() -> None:
    repository = notebooks.Repository.from_config()
    for path in NOTEBOOKS:
        first = next(cell for cell in notebooks.read(path).cells if cell.cell_type == "code")
        assert first.source == notebooks.setup_cell(repository).source, path


def test_the_environment_has_what_colab_has(kernel: colab.Kernel) -> None:
    here = json.loads(kernel.printed(f"print(json.dumps({{name: version(name) for name in {list(colab.versions())}}}))"))
    assert here == colab.versions()


@pytest.mark.parametrize("cls", MAKERS, ids=lambda cls: cls.name)
def test_a_widget_is_made_drawn_and_moved(cls: type[widgets.FrameWidget], kernel: colab.Kernel, tmp_path: Path) -> None:
    frames = MAKERS[cls]()
    (tmp_path / "frames.json").write_text(json.dumps(frames), encoding="utf-8")
    made = kernel.run(f"widget = widgets.{cls.__name__}(frames=json.load(open({str(tmp_path / 'frames.json')!r})))\nwidget")

    (shown,) = [message["content"]["data"] for message in made if message["msg_type"] in ("display_data", "execute_result")]
    states = {m["content"]["comm_id"]: m["content"]["data"]["state"] for m in made if m["msg_type"] == "comm_open"}
    model_id = shown["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert states[model_id]["frames"] == json.loads(json.dumps(frames)), "the page is sent every frame"
    assert "render" in states[model_id]["_esm"] and states[model_id]["_css"]
    assert shown["text/plain"].startswith(f"{cls.__name__}(")

    last = len(frames["steps"]) - 1
    kernel.move(model_id, step=last)
    assert (
        kernel.printed("print(widget.step, json.dumps(widget.summary))").strip()
        == f"{last} {json.dumps(frames['steps'][last]['summary'])}"
    )
    sent = [message["content"]["data"] for message in kernel.run("widget.step = 0") if message["msg_type"] == "comm_msg"]
    assert [data["state"]["step"] for data in sent if "step" in data["state"]] == ([0] if last else [])


def test_a_live_monitor_tells_its_page_from_its_own_thread(kernel: colab.Kernel) -> None:
    kernel.run("import time\nmonitor = widgets.MemoryMonitor(hz=40)")
    messages = kernel.run("with monitor:\n    time.sleep(1)")
    sent = [message["content"]["data"]["state"] for message in messages if message["msg_type"] == "comm_msg"]
    lengths = [len(state["frames"]["steps"]) for state in sent if "frames" in state]
    assert len(lengths) > 3 and lengths == sorted(lengths) and lengths[-1] > 10
    assert [state["live"] for state in sent if "live" in state] == [True, False]
    assert kernel.printed("print(monitor.live, monitor.step + 1 == monitor.num_steps, monitor)") == "False True MemoryMonitor()\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_notebook_runs_and_checks_say_one_line(path: Path, python: Path, tmp_path: Path) -> None:
    notebook, committed = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": ""}
    client = NotebookClient(notebook, km=colab.Manager(python), timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    checks = [(cell, before) for cell, before in zip(notebook.cells, committed.cells) if "check" in cell.metadata.get("tags", ())]
    assert bool(checks) == (path.parent.name == "exercises")
    for cell, before in checks:
        (shown,), (wanted,) = cell.outputs, before.outputs
        assert shown.traceback == wanted.traceback and len(shown.traceback) == 1, (
            "one line, and no way through the package's code"
        )
