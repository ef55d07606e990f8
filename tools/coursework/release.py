"""Makes nbgrader assignments: a source with solutions and hidden checks, and a notebook without either for students."""

import copy
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

import notebooks
from coursework.assignment import Assignment, CourseError, Task, has_tag

__all__ = ["write_course", "student_notebook", "source_notebook", "leaks"]

CONFIG = '''\
"""nbgrader's settings for this course. Made by tools/course.py; yours to edit."""

c = get_config()

c.CourseDirectory.course_id = "llama3-kv-cache"
# The stub stands above the solution in each source; what nbgrader takes out leaves nothing behind.
c.ClearSolutions.code_stub = {"python": ""}
c.ClearSolutions.enforce_metadata = True
c.ExecutePreprocessor.timeout = 60
'''

RUN_HERE = "# More checks run here when your work is graded."

HIDDEN = """\
{run_here}
### BEGIN HIDDEN TESTS
{source}

import secrets as _secrets

from llama3_edu.checks import Exercise as _Exercise
from llama3_edu.checks.runner import Exercises as _Exercises

_own = {{_field: globals().pop(_field) for _field in ("judge", "suspects") if _field in globals()}}
_Exercises((_Exercise("{name}", -1, "{name}", 1, 1, cases, look="See the statement.", **_own),)).check("{name}", {name})
### END HIDDEN TESTS"""


def write_course(assignments: list[Assignment], out: Path) -> list[Path]:
    """Write a course folder for nbgrader: settings, `source/` for the instructor alone, `release/` for students.

    Raises:
        CourseError: a student notebook would show a solution or a hidden check. Then nothing of it is written.
    """
    repository = notebooks.Repository.from_config()
    written = []
    for assignment in assignments:
        source, student = source_notebook(assignment, repository), student_notebook(assignment, repository)
        found = leaks(assignment, student)
        if found:
            raise CourseError(f"{assignment.name} would show students {'; '.join(found)}")
        for kind, notebook in (("source", source), ("release", student)):
            path = out / kind / assignment.name / f"{assignment.name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.validate(notebook)
            path.write_text(notebooks.text_of(notebook), encoding="utf-8")
        written.append(path)
    config = out / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG, encoding="utf-8")
    os.chmod(out / "source", 0o700)
    return written


def student_notebook(assignment: Assignment, repository: notebooks.Repository) -> NotebookNode:
    """Return what students get: stubs, locked checks with points, hints; no solution, no output."""
    return _notebook(assignment, repository, for_students=True)


def source_notebook(assignment: Assignment, repository: notebooks.Repository) -> NotebookNode:
    """Return what nbgrader makes the student notebook and its gradebook from: the same with solutions and hidden checks."""
    return _notebook(assignment, repository, for_students=False)


def leaks(assignment: Assignment, notebook: NotebookNode) -> list[str]:
    """Return what a notebook shows that students should not see, each in words."""
    text = "\n".join(cell.source for cell in notebook.cells)
    bare = _bare(text)
    found = [f"the solution of {task.name}" for task in assignment.tasks if any(form in bare for form in _forms(task))]
    hidden = {task.name: check.source for task in assignment.tasks for check in task.checks if check.source}
    found += [f"the hidden check of {name}" for name, source in hidden.items() if any(line in bare for line in _telling(source))]
    found += [f"a marker: {mark}" for mark in ("### BEGIN", "### END") if mark in text]
    found += ["a folded solution" for cell in notebook.cells if has_tag(cell, "solution")]
    found += ["an output" for cell in notebook.cells if cell.get("outputs")]
    return found


def _forms(task: Task) -> set[str]:
    """Return how a solution may look in a notebook: all of it, and without the lines that the stub has as well."""
    given = {line.strip() for line in task.stub.splitlines()}
    body = "\n".join(line for line in task.solution.splitlines() if line.strip() not in given)
    return {_bare(task.solution), _bare(body)} - {""}


def _telling(source: str) -> list[str]:
    """Return the lines of a hidden check that stand in no other file by chance."""
    return [_bare(line) for line in source.splitlines() if len(_bare(line)) >= 30 and not line.startswith(("import ", "from "))]


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _notebook(assignment: Assignment, repository: notebooks.Repository, *, for_students: bool) -> NotebookNode:
    tasks = {task.name: task for task in assignment.tasks}
    cells: list[NotebookNode] = []
    for cell in assignment.notebook.cells:
        role = next((role for role in ("stub", "check", "hints", "solution") if has_tag(cell, role)), "")
        task = tasks.get(cell.metadata.get("exercise", ""))
        if role == "solution":
            continue
        cells.append(_cell(cell, role, task, len(cells), repository, for_students=for_students))
        hidden = [check for check in task.checks if check.which == "hidden"] if task and role == "check" else []
        cells += [_hidden_cell(task, check.source, check.points, for_students=for_students) for check in hidden]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebooks.KERNEL)


def _cell(
    cell: NotebookNode, role: str, task: Task | None, place: int, repository: notebooks.Repository, *, for_students: bool
) -> NotebookNode:
    new = copy.deepcopy(cell)
    new.metadata = nbformat.from_dict(
        {name: cell.metadata[name] for name in ("cellView", "exercise", "tags") if name in cell.metadata}
    )
    if new.cell_type == "code":
        new.outputs, new.execution_count = [], None
    else:
        new.source = with_full_links(new.source, repository)
    if has_tag(cell, "colab-setup"):
        new.source = notebooks.setup_cell(repository).source
    if task and role == "stub":
        solution = f"### BEGIN SOLUTION\n{task.solution.strip()}\n### END SOLUTION"
        new.source = f"{task.stub}\n" + ("" if for_students else solution)
        return _for_nbgrader(new, task.name, solution=True)
    if task and role == "check":
        return _for_nbgrader(new, f"check-{task.name}", points=next((c.points for c in task.checks if c.which == "public"), 0))
    return _for_nbgrader(new, f"given-{place}")


def _hidden_cell(task: Task, source: str, points: int, *, for_students: bool) -> NotebookNode:
    code = RUN_HERE if for_students else HIDDEN.format(run_here=RUN_HERE, source=source.strip(), name=task.name)
    metadata = {"exercise": task.name, "tags": ["check", "raises-exception"]}
    cell = nbformat.v4.new_code_cell(code, metadata=metadata, id=f"hidden-{task.name}"[:64])
    return _for_nbgrader(cell, f"hidden-{task.name}", points=points)


def _for_nbgrader(cell: NotebookNode, grade_id: str, *, solution: bool = False, points: int | None = None) -> NotebookNode:
    """Mark a cell in nbgrader's own way: an answer, a locked test with points, or a locked text."""
    fields = {"grade_id": grade_id, "schema_version": 3, "solution": solution, "locked": not solution, "task": False}
    fields |= {"cell_type": cell.cell_type, "grade": points is not None} | ({} if points is None else {"points": points})
    cell.metadata["nbgrader"] = nbformat.from_dict(fields | {"checksum": _checksum(cell, fields)})
    cell.metadata["deletable"] = False
    if not solution:
        cell.metadata["editable"] = False
    return cell


def _checksum(cell: NotebookNode, fields: dict[str, Any]) -> str:
    """Return what nbgrader tells an edited cell by."""
    said = [cell.source, cell.cell_type, str(fields["grade"]), str(fields["solution"]), str(fields["locked"]), fields["grade_id"]]
    said += [str(float(fields["points"]))] if fields["grade"] else []
    return hashlib.md5("".join(said).encode(), usedforsecurity=False).hexdigest()


def with_full_links(text: str, repository: notebooks.Repository) -> str:
    """Return a text whose links into the book lead there from wherever the notebook is opened."""
    return re.sub(r"\]\(\.\./([^)\s]+)\)", rf"]({repository.url}/blob/{repository.branch}/book/\1)", text)
