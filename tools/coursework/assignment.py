"""What there is to hand in: the exercises of a notebook, each with its checks, the book's and those of a private folder."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from coursework.hidden import hidden_exercise
from llama3_edu.checks import EXERCISES, Exercise

__all__ = ["Check", "Task", "Assignment", "assignments", "find_assignment", "has_tag", "CourseError"]

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book" / "exercises"
SETUP_TAG = "colab-setup"
TAKEN = {"student", "file", "status", "notes"}


class CourseError(Exception):
    """Something an instructor has to put right. The message says what."""


@dataclass(frozen=True)
class Check:
    """One thing an answer is tried with.

    Args:
        which: `public`, which learners run themselves, or `hidden`.
        exercise: the inputs and what should come of them.
        points: what it is worth.
        source: of a hidden check, its code.
    """

    which: str
    exercise: Exercise
    points: int
    source: str = ""


@dataclass(frozen=True)
class Task:
    """One exercise of an assignment.

    Args:
        name: of the exercise, and of the function or class to write.
        title: its heading.
        stub: what learners begin with.
        solution: code that is right.
        locked: the check cell of the notebook.
        checks: what an answer is graded with.
    """

    name: str
    title: str
    stub: str
    solution: str
    locked: str
    checks: tuple[Check, ...]

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)


@dataclass(frozen=True)
class Assignment:
    """The exercises of one notebook.

    Args:
        path: the notebook, as it stands in the book or in the private folder.
        notebook: what it holds.
        tasks: its exercises, in order.
    """

    path: Path
    notebook: NotebookNode
    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def points(self) -> int:
        return sum(task.points for task in self.tasks)

    @cached_property
    def setup(self) -> tuple[str, ...]:
        """The locked cells that every answer needs: imports, and what the notebook defines for its exercises."""
        code = [cell for cell in self.notebook.cells if cell.cell_type == "code" and not has_tag(cell, SETUP_TAG)]
        return tuple(cell.source for cell in code if not cell.metadata.get("exercise"))


def assignments(chapters: tuple[int, ...], private: Path | None) -> list[Assignment]:
    """Return the assignments of some chapters, or of all when none is named, and those of the private folder.

    Raises:
        CourseError: a chapter has no exercises, or a file of the private folder is not fit.
    """
    paths = sorted(BOOK.glob("*.ipynb"))
    if chapters:
        missing = [chapter for chapter in chapters if not any(path.name.startswith(f"{chapter:02d}_") for path in paths)]
        if missing:
            raise CourseError(f"there are no exercises for chapters {missing}; there are {[path.stem for path in paths]}")
        paths = [path for path in paths if int(path.name[:2]) in chapters]
    paths += sorted((private / "notebooks").glob("*.ipynb")) if private else []
    found = [_assignment(path, private) for path in paths]
    if private:
        _refuse_strangers(
            private, found if not chapters else [_assignment(path, None) for path in sorted(BOOK.glob("*.ipynb"))] + found
        )
    return found


def find_assignment(name: str, private: Path | None) -> Assignment:
    """Return an assignment by the name of its notebook (`06_gqa`), by its chapter (`6`), or by the path of the notebook.

    Raises:
        CourseError: there is no such assignment.
    """
    folders = [BOOK, *([private / "notebooks"] if private else [])]
    known = [path for folder in folders for path in sorted(folder.glob("*.ipynb"))]
    chosen = [path for path in known if name in (path.stem, path.name, str(path))]
    chosen = chosen or [path for path in known if name.isdigit() and path.name.startswith(f"{int(name):02d}_")]
    if len(chosen) != 1:
        raise CourseError(f"{name!r} should name one assignment; there are {[path.stem for path in known]}")
    return _assignment(chosen[0], private)


def has_tag(cell: Any, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def _assignment(path: Path, private: Path | None) -> Assignment:
    notebook = nbformat.v4.upgrade(nbformat.read(path, as_version=4))
    own = [cell for cell in notebook.cells if cell.metadata.get("exercise")]
    names = list(dict.fromkeys(cell.metadata["exercise"] for cell in own))
    if not names:
        raise CourseError(f"{path} has no cell that belongs to an exercise")
    if TAKEN & set(names):
        raise CourseError(
            f"{path}: the table of grades has columns of its own called {sorted(TAKEN)}; rename {sorted(TAKEN & set(names))}"
        )
    return Assignment(path, notebook, tuple(_task(path, name, notebook.cells, private) for name in names))


def _task(path: Path, name: str, cells: list[NotebookNode], private: Path | None) -> Task:
    parts = {role: cell for cell in cells if cell.metadata.get("exercise") == name for role in cell.metadata.get("tags", ())}
    if not {"stub", "check"} <= parts.keys():
        raise CourseError(
            f"{path}: exercise {name!r} should have a cell tagged stub and one tagged check; it has {sorted(parts)}"
        )
    folded = parts["solution"].source if "solution" in parts else ""
    solution = _private_text(private, "solutions", name) or _folded_solution(folded)
    if not solution:
        raise CourseError(f"{path}: exercise {name!r} has no solution, neither in the notebook nor in solutions/{name}.py")
    checks = tuple(_checks(name, private))
    if not checks:
        raise CourseError(
            f"{path}: exercise {name!r} is not one of the book's, so it needs hidden/{name}.py in the private folder"
        )
    above = cells[: cells.index(parts["stub"])]
    title = next((cell.source.splitlines()[0].lstrip("# ") for cell in reversed(above) if cell.source.startswith("## ")), name)
    return Task(name, title, parts["stub"].source, solution, parts["check"].source, checks)


def _checks(name: str, private: Path | None) -> list[Check]:
    public = [Check("public", exercise, exercise.stars) for exercise in EXERCISES if exercise.name == name]
    source = _private_text(private, "hidden", name)
    if not source:
        return public
    try:
        exercise = hidden_exercise(name, source)
    except Exception as error:
        raise CourseError(f"hidden/{name}.py cannot be used: {type(error).__name__}: {error}") from error
    return [*public, Check("hidden", exercise, exercise.stars, source)]


def _private_text(private: Path | None, kind: str, name: str) -> str:
    path = private / kind / f"{name}.py" if private else None
    return path.read_text(encoding="utf-8") if path and path.exists() else ""


def _folded_solution(text: str) -> str:
    found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def _refuse_strangers(private: Path, found: list[Assignment]) -> None:
    """A misspelt file name would mean that a check is never run."""
    known = {task.name for assignment in found for task in assignment.tasks}
    for path in sorted([*private.glob("hidden/*.py"), *private.glob("solutions/*.py")]):
        if path.stem not in known:
            raise CourseError(f"{path} is for no exercise; there are {sorted(known)}")
