"""What of a submission is the student's own, whatever happened to the file on its way.

A submission's metadata may be gone, its checks edited, doubled or deleted, its name changed. So nothing of it is trusted but
the source of its cells. Those that are the assignment's own are dropped, and pristine ones take their place; what is left is
the student's. The cell that answers an exercise is the last one that defines its name.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coursework.assignment import SETUP_TAG, Assignment, Task

__all__ = ["Own", "Unreadable", "read_cells", "own_cells", "without_installs"]

LARGEST_FILE = 50 * 2**20

DEFINES = re.compile(r"^(?:(?:async[ \t]+)?def|class)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
CALLS_A_CHECK = re.compile(r"(?:checks\.)?(?:check|progress)\(")

SUSPICIOUS = {
    "walks the interpreter's frames": r"_getframe|currentframe|f_back|f_locals|inspect\.stack|settrace|setprofile",
    "looks for objects in memory": r"\bgc\.|\bimport gc\b|get_objects|get_referrers",
    "calls C code by hand": r"\bctypes\b|\bcffi\b",
    "replaces parts of libraries": (
        r"^[ \t]*(?:torch|builtins|le|llama3_edu)(?:\.\w+)+[ \t]*=(?!=)|\bsetattr\([ \t]*(?:torch|builtins|le\b|llama3_edu)"
    ),
    "reaches into the checks": r"llama3_edu\.checks\.\w+|\bEXERCISES\b|try_cases",
    "starts processes or ends its own": r"\bsubprocess\b|os\.(?:fork|system|popen|exec\w*|_exit|kill)|\bmultiprocessing\b",
    "uses the network": r"\bsocket\b|\burllib\b|\brequests\b",
}
"""What no exercise asks for. It costs nothing; a person should look."""


class Unreadable(Exception):
    """A file is no notebook."""


@dataclass(frozen=True)
class Cell:
    """A code cell of a submission: its source, and what its metadata claims it is."""

    source: str
    exercise: str
    tags: frozenset[str]
    grade_id: str
    is_test: bool


@dataclass(frozen=True)
class Own:
    """The student's own part of a submission.

    Args:
        cells: source of each of their code cells, in order.
        answers: for each exercise the cell that answers it, as a place in `cells`; none where there is none.
        left_empty: exercises that still have the stub.
        notes: for each exercise what an instructor may want to know.
    """

    cells: tuple[str, ...]
    answers: dict[str, int | None]
    left_empty: frozenset[str]
    notes: dict[str, tuple[str, ...]]


def read_cells(path: Path) -> list[Cell]:
    """Read the code cells of a notebook, leniently: of any version, with or without metadata.

    Raises:
        Unreadable: it is no notebook.
    """
    if path.is_symlink() or not path.is_file():
        raise Unreadable("it is a link, or no file")
    if path.stat().st_size > LARGEST_FILE:
        raise Unreadable(f"it has {path.stat().st_size} bytes; at most {LARGEST_FILE} are read")
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
        sheets = fields.get("worksheets") or [fields]
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        return [_cell(cell) for cell in cells if cell.get("cell_type") == "code"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise Unreadable(f"it is no notebook ({type(error).__name__})") from None


def own_cells(assignment: Assignment, cells: list[Cell]) -> Own:
    """Return what of a submission's cells is the student's own."""
    given = _given(assignment)
    stubs = {_bare(task.stub): task.name for task in assignment.tasks}
    names = {task.name for task in assignment.tasks}
    mine = [cell for cell in cells if _bare(cell.source) not in given and not _stands_in_for_a_given_one(cell, names)]
    answers, notes = {}, {}
    for task in assignment.tasks:
        answers[task.name], notes[task.name] = _answer(task, mine)
    left_empty = frozenset(stubs[_bare(cell.source)] for cell in cells if _bare(cell.source) in stubs)
    return Own(tuple(cell.source for cell in mine), answers, left_empty, notes)


def without_installs(source: str) -> str:
    """Return a cell without the lines that install something: here is no network, and everything is there."""
    return re.sub(r"^([ \t]*)[%!]+[ \t]*(?:pip|conda|apt|apt-get)\b.*$", r"\1pass", source, flags=re.MULTILINE)


def _cell(fields: dict[str, Any]) -> Cell:
    source = fields.get("source", fields.get("input", ""))
    metadata = fields.get("metadata") or {}
    of_nbgrader = metadata.get("nbgrader") or {}
    tags = frozenset(str(tag) for tag in metadata.get("tags") or ())
    return Cell(
        source="".join(source), exercise=str(metadata.get("exercise", "")), tags=tags,
        grade_id=str(of_nbgrader.get("grade_id", "")), is_test=bool(of_nbgrader.get("grade") and not of_nbgrader.get("solution")),
    )  # fmt: skip


def _given(assignment: Assignment) -> set[str]:
    """Return the sources that are the assignment's own: setup, checks, and stubs as they came. And nothing."""
    stubs_and_checks = [source for task in assignment.tasks for source in (task.stub, task.locked)]
    return {"", *map(_bare, assignment.setup), *map(_bare, stubs_and_checks)}


def _stands_in_for_a_given_one(cell: Cell, names: set[str]) -> bool:
    """Whether a cell is a check or the Colab cell, edited or copied: pristine ones take their place."""
    if names & set(_defined(cell.source)):
        return False
    is_check = cell.is_test or "check" in cell.tags or _only_calls_checks(cell.source)
    is_setup = SETUP_TAG in cell.tags or ("google.colab" in cell.source and "pip install" in cell.source)
    return is_check or is_setup


def _only_calls_checks(source: str) -> bool:
    lines = [line.strip() for line in source.splitlines()]
    return all(not line or line.startswith("#") or CALLS_A_CHECK.match(line) for line in lines)


def _answer(task: Task, mine: list[Cell]) -> tuple[int | None, tuple[str, ...]]:
    defining = [place for place, cell in enumerate(mine) if task.name in _defined(cell.source)]
    tagged = [place for place, cell in enumerate(mine) if task.name in (cell.exercise, cell.grade_id)]
    notes = []
    if len(defining) > 1:
        notes.append(f"{len(defining)} cells define it; the last one counts")
    place = (defining or tagged or [None])[-1]
    if place is not None:
        notes += [f"look: it {what}" for what, words in SUSPICIOUS.items() if re.search(words, mine[place].source, re.MULTILINE)]
    return place, tuple(notes)


def _defined(source: str) -> list[str]:
    """Return the names that a cell defines at its top level. By pattern: nothing here runs or parses a submission's code."""
    return [function or variable for function, variable in DEFINES.findall(source)]


def _bare(source: str) -> str:
    """Return a source without what editors change: line ends, trailing blanks, empty lines around it."""
    return "\n".join(line.rstrip() for line in source.strip().splitlines())
