"""Every widget and every chapter beside the versions that Colab has: imported, made, moved from the page and back."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import colab
import nbformat
import pytest
from nbclient import NotebookClient
from widget_pages import MAKERS

from llama3_edu import widgets

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").rglob("*.ipynb"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colab.make_environment(tmp_path_factory.mktemp("colab"))


@pytest.fixture(scope="module")
def kernel(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[colab.Kernel]:
    running = colab.Kernel(python, tmp_path_factory.mktemp("kernel"))
    running.run("import json\nfrom importlib.metadata import version\nfrom llama3_edu import widgets")
    yield running
    running.close()


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
        assert shown.traceback == wanted.traceback and len(shown.traceback) == 1, "one line, and no way through the package's code"
