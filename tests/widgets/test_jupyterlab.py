"""A widget in a real JupyterLab: what is moved in the page is moved in Python, and the other way round."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from browser import WIDGET, step_of
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Locator, Page, expect

ROOT = Path(__file__).resolve().parents[2]

CELLS = (
    "import llama3_edu as le\n"
    "from llama3_edu import widgets\n"
    "widget = widgets.HeadGroups(frames=le.head_group_frames(le.LlamaConfig.from_preset('llama3-8b')))\n"
    "widget",
    "print('in Python it is step', widget.step)",
    "widget.step = widget.num_steps - 1\nprint('moved from Python')",
    "print('in the end it is step', widget.step)",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_it_answers(server: subprocess.Popen, address: str, log: Path) -> None:
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"JupyterLab should answer at {address}; it said:\n{log.read_text(encoding='utf-8')[-3000:]}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab whose only file is a notebook with the cells above, and whose settings are its own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "files").mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[new_code_cell(source) for source in CELLS], metadata=kernel)
    nbformat.write(notebook, folder / "files" / "widget.ipynb")
    address = f"http://127.0.0.1:{(port := free_port())}"
    own = {
        f"JUPYTER{name}_DIR": str(folder / name.strip("_").lower())
        for name in ("_CONFIG", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")
    }
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder / 'files'}"]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    try:
        wait_until_it_answers(server, address, log)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def run(page: Page, index: int) -> Locator:
    """Run one cell as a learner does; return the place of its output."""
    cell = page.locator(".jp-CodeCell").nth(index)
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    return cell.locator(".jp-OutputArea-output").first


def test_the_slider_and_the_trait_move_together(lab: str, browser: Browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1600})
    page.set_default_timeout(60_000)
    page.goto(f"{lab}/doc/tree/widget.ipynb")
    expect(page.locator(".jp-CodeCell")).to_have_count(len(CELLS), timeout=60_000)
    # JupyterLab drops what is run before its kernel is there.
    expect(page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (ipykernel) | Idle", timeout=60_000)
    run(page, 0)
    widget = page.locator(f".jp-OutputArea {WIDGET}")
    expect(widget).to_be_visible(timeout=60_000)
    assert step_of(widget) == 0

    slider = widget.locator('input[type="range"]')
    slider.focus()
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    expect(widget).to_have_attribute("data-step", "2")
    expect(run(page, 1)).to_contain_text("in Python it is step 2", timeout=60_000)

    expect(run(page, 2)).to_contain_text("moved from Python", timeout=60_000)
    last = int(slider.get_attribute("max"))
    expect(widget).to_have_attribute("data-step", str(last))
    expect(run(page, 3)).to_contain_text(f"in the end it is step {last}", timeout=60_000)
    page.close()
