"""What `make install` says where it cannot go on: why, and what to do next."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"#!/bin/sh\n{text}\n".encode())
    path.chmod(0o755)
    return path


def install(folder: Path, python: Path) -> tuple[int, str]:
    """Run a copy of the script in a folder with a Python; return its status and what it said on standard error."""
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "environment.sh", folder / "tools")
    script(folder / "tools" / "torch-source.sh", "")
    settings = {**os.environ, "PYTHON": python.as_posix()}
    done = subprocess.run(["sh", "tools/environment.sh"], cwd=folder, env=settings, capture_output=True, encoding="utf-8")
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 3.9", "needs Python 3.10 to 3.13; {python} is 3.9. Name another: make PYTHON="),
        ("echo 3.14", "needs Python 3.10 to 3.13; {python} is 3.14. Name another: make PYTHON="),
        ("exit 3", "{python} does not run. Name another Python from 3.10 to 3.13"),
        (None, "There is no {python} here. Install Python 3.10 to 3.13"),
    ],
)
def test_a_python_that_will_not_do_is_named(text: str | None, said: str, tmp_path: Path) -> None:
    python = script(tmp_path / "python", text) if text else tmp_path / "python"
    status, err = install(tmp_path, python)
    assert status == 1 and said.format(python=python.as_posix()) in err


def test_where_pip_fails_its_reason_stays_and_the_way_out_follows(tmp_path: Path) -> None:
    pip_fails = 'case "$*" in *pip*install*) echo "No matching distribution found" >&2; exit 1 ;; *) echo 3.11 ;; esac'
    status, err = install(tmp_path, script(tmp_path / ".venv" / "bin" / "python", pip_fails))
    reason, way_out = err.splitlines()
    assert (status, reason) == (1, "No matching distribution found")
    assert "network or proxy" in way_out and "GiB are free in this folder" in way_out and "run the same command again" in way_out
