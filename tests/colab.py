"""An environment like Google Colab's, with the versions it had, a kernel that runs in it, and the cell that prepares it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from queue import Empty

import notebooks
import torch
from jupyter_client import KernelManager
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "tests" / "colab_constraints.txt"

PART_OF_EVERY_COLAB = ("tqdm",)
PUT_IN_BY_THE_SETUP_CELL = ("jaxtyping", "wadler-lindig")
"""What the package asks for beyond the versions that are written down."""


def versions() -> dict[str, str]:
    """What Colab had, by name."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return dict(re.sub("_", "-", line).split("==") for line in lines if line and line[0] != "#")


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with Colab's versions of what this package asks for, and without this package; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    source = subprocess.run([str(ROOT / "tools" / "torch-source.sh"), sys.executable], check=True, capture_output=True, text=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(CONSTRAINTS)]
    of_colab = [f"{name}=={version}" for name, version in versions().items()]
    torch_here = f"torch=={torch.__version__.partition('+')[0]}"
    subprocess.run([*install, *source.stdout.split(), torch_here, *of_colab, *PART_OF_EVERY_COLAB, "setuptools<81"], check=True)
    return python


def build_wheel(folder: Path) -> Path:
    """Build the package as it would be published."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def setup_cell_from(wheel: Path) -> str:
    """The cell at the top of every notebook, word for word but for one: where the package comes from."""
    source = notebooks.setup_cell(notebooks.Repository.from_config()).source
    cell, places = re.subn(r"git\+[^\"]+", wheel.as_uri(), source)
    assert places == 1, "the cell should name the repository once"
    return cell


def make_google_colab(folder: Path) -> Path:
    """Write a stand-in for Colab's own module, which remembers what was asked of it; return the folder to import it from."""
    package = folder / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "output.py").write_text(
        "asked = []\n\n\ndef enable_custom_widget_manager():\n    asked.append('widgets')\n", encoding="utf-8"
    )
    return folder


def installed(python: Path) -> dict[str, str]:
    """Every package of an environment, with its version."""
    listed = [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    found = json.loads(subprocess.run(listed, check=True, capture_output=True, text=True).stdout)
    return {package["name"].lower().replace("_", "-"): package["version"] for package in found}


class Manager(KernelManager):
    """Starts kernels with a Python that is not the one of these tests."""

    def __init__(self, python: Path, **kwargs) -> None:
        super().__init__(**kwargs)
        command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self._kernel_spec = KernelSpec(argv=command, display_name="Like Colab", language="python")


class Kernel:
    """A kernel in such an environment, and what it says."""

    def __init__(self, python: Path, folder: Path, *, modules: Path | None = None) -> None:
        self._manager = Manager(python)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder), "PYTHONPATH": str(modules or "")}
        self._manager.start_kernel(cwd=str(folder), env=environment)
        self.client: BlockingKernelClient = self._manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, code: str) -> list[dict]:
        """Run a cell; return every message it caused, once the kernel is idle again.

        Raises:
            RuntimeError: the cell ended in an error; the message is its traceback.
        """
        messages = self._until_idle(self.client.execute(code))
        for message in messages:
            if message["msg_type"] == "error":
                raise RuntimeError(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(message["content"]["traceback"])))
        return messages

    def printed(self, code: str) -> str:
        """Run a cell; return what it printed."""
        return "".join(message["content"]["text"] for message in self.run(code) if message["msg_type"] == "stream")

    def move(self, comm_id: str, **state) -> list[dict]:
        """Change a widget's state, as its page would."""
        content = {"comm_id": comm_id, "data": {"method": "update", "state": state, "buffer_paths": []}}
        message = self.client.session.msg("comm_msg", content)
        self.client.shell_channel.send(message)
        return self._until_idle(message["header"]["msg_id"])

    def close(self) -> None:
        self.client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def _until_idle(self, request: str) -> list[dict]:
        messages = []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=120)
            except Empty:
                raise RuntimeError("the kernel should answer within two minutes") from None
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return messages
            messages.append(message)
