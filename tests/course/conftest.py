"""What the tests of the course share: a bubblewrap that works, a folder for what they write, the command line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coursework import sandbox
from coursework.assignment import Assignment, find_assignment
from coursework.release import student_notebook

sys.path.insert(0, str(Path(__file__).parent))

import notebooks  # noqa: E402
from handed_in import PRIVATE  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

Course = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def bwrap() -> str:
    """A bubblewrap that works. Where there is none it is installed; where that fails, so does the test."""
    try:
        return sandbox.bubblewrap()
    except sandbox.SandboxMissing:
        subprocess.run([ROOT / "tools" / "apt-install.sh", "bubblewrap"], check=True)
        return sandbox.bubblewrap()


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instructor's own folder, outside the repository, as the command line wants it."""
    return shutil.copytree(PRIVATE, tmp_path_factory.mktemp("kept") / "private")


@pytest.fixture(scope="session")
def course() -> Course:
    """Runs tools/course.py as an instructor would."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools" / "course.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}), cwd=ROOT)

    return run


@pytest.fixture(scope="session")
def small() -> Assignment:
    """An assignment with four small exercises: two judged outside the sandbox, two inside."""
    return find_assignment("90_small", PRIVATE)


@pytest.fixture(scope="session")
def given(small: Assignment) -> dict[str, Any]:
    """The notebook that students get for it, as it lies on disk."""
    return json.loads(notebooks.text_of(student_notebook(small, notebooks.Repository.from_config())))
