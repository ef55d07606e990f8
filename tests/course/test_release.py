"""What students get is a stock nbgrader assignment that opens in Colab and shows no solution and no hidden check."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import nbformat
import notebooks
import pytest
from coursework.assignment import Assignment, CourseError, assignments, find_assignment
from coursework.release import leaks, source_notebook, student_notebook, write_course
from handed_in import PRIVATE

from llama3_edu.checks import EXERCISES

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = notebooks.Repository.from_config()
EVERY = [*assignments((), None), *(one for one in assignments((), PRIVATE) if one.path.is_relative_to(PRIVATE))]

CHAPTER_6 = [exercise for exercise in EXERCISES if exercise.chapter == 6]

every_assignment = pytest.mark.parametrize("assignment", EVERY, ids=lambda one: one.name)


def text_of(notebook: nbformat.NotebookNode) -> str:
    return json.dumps(notebook)


def test_every_exercise_of_the_book_is_in_some_assignment() -> None:
    of_the_book = {task.name for assignment in assignments((), None) for task in assignment.tasks}
    assert of_the_book == {exercise.name for exercise in EXERCISES}


@every_assignment
def test_students_see_no_solution(assignment: Assignment) -> None:
    notebook = student_notebook(assignment, REPOSITORY)
    assert leaks(assignment, notebook) == []
    for task in assignment.tasks:
        defining = [
            cell.source for cell in notebook.cells if re.search(rf"^(def|class) {task.name}\b", cell.source, re.MULTILINE)
        ]
        assert [source.strip() for source in defining] == [task.stub.strip()]


@every_assignment
def test_a_solution_left_in_is_noticed(assignment: Assignment) -> None:
    notebook = student_notebook(assignment, REPOSITORY)
    notebook.cells[-1].source += f"\n{assignment.tasks[0].solution}"
    assert leaks(assignment, notebook) == [f"the solution of {assignment.tasks[0].name}"]


@every_assignment
def test_the_source_is_noticed_in_full(assignment: Assignment) -> None:
    found = leaks(assignment, source_notebook(assignment, REPOSITORY))
    assert {f"the solution of {task.name}" for task in assignment.tasks} < set(found)


def test_nothing_private_reaches_students(tmp_path: Path) -> None:
    write_course(assignments((), PRIVATE), tmp_path)
    shown = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("release/**/*") if path.is_file())
    kept = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("source/**/*") if path.is_file())
    for word in ("zebra_keys", "zebra_order", "HIDDEN TESTS", "BEGIN SOLUTION", "data_ptr"):
        assert word not in shown and word in kept
    assert stat.S_IMODE((tmp_path / "source").stat().st_mode) == 0o700


@every_assignment
def test_it_opens_in_colab_with_the_setup_cell(assignment: Assignment) -> None:
    notebook = student_notebook(assignment, REPOSITORY)
    (setup,) = [cell for cell in notebook.cells if "colab-setup" in cell.metadata.get("tags", ())]
    assert setup.source == notebooks.setup_cell(REPOSITORY).source
    assert notebook.cells.index(setup) == min(place for place, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    assert "](../" not in text_of(notebook), "links lead into the book from wherever the notebook is"
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    nbformat.validate(notebook)


@every_assignment
def test_points_are_those_of_the_exercises(assignment: Assignment) -> None:
    cells = student_notebook(assignment, REPOSITORY).cells
    points = {cell.metadata.nbgrader.grade_id: cell.metadata.nbgrader.points for cell in cells if cell.metadata.nbgrader.grade}
    assert sum(points.values()) == assignment.points
    for task in assignment.tasks:
        assert points[f"check-{task.name}"] == (EXERCISES[task.name].stars if task.name in {e.name for e in EXERCISES} else 0)


def test_a_misspelt_private_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "repeat_kw.py").write_text("def cases(generator):\n    yield 1\n")
    with pytest.raises(CourseError, match=r"repeat_kw.py is for no exercise; there are .*repeat_kv"):
        assignments((), tmp_path)


@pytest.mark.parametrize(("text", "problem"), [("x = 1", "should define cases"), ("1 / 0", "ZeroDivisionError")])
def test_a_hidden_check_that_does_not_work_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "repeat_kv.py").write_text(text)
    with pytest.raises(CourseError, match=problem):
        find_assignment("6", tmp_path)


def test_unknown_chapters_and_names_are_refused() -> None:
    with pytest.raises(CourseError, match=r"no exercises for chapters \[77\]"):
        assignments((77,), None)
    with pytest.raises(CourseError, match="'nothing' should name one assignment; there are .*06_gqa"):
        find_assignment("nothing", None)


# With nbgrader itself

INSTRUCTORS = ROOT / ".venv-instructors" / "bin" / "python"

SCORES = """
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db") as book:
    for assignment in book.assignments:
        for one in book.assignment_submissions(assignment.name):
            print(assignment.name, one.student.id, f"{one.score:g}", f"{one.max_score:g}")
"""


def instructors(*arguments: str, folder: Path) -> str:
    """Run the Python that has nbgrader; return what it printed."""
    active = f"{INSTRUCTORS.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1", "PATH": active}
    done = subprocess.run([str(INSTRUCTORS), *arguments], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def nbgrader_course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course folder with two assignments, released by nbgrader itself; ours is kept beside it."""
    if not INSTRUCTORS.exists():
        subprocess.run([ROOT / "tools" / "instructors.sh"], check=True, env=os.environ | {"BOOK": sys.prefix})
    folder = tmp_path_factory.mktemp("nbgrader")
    write_course([one for one in assignments((), PRIVATE) if one.name in ("06_gqa", "90_small")], folder)
    shutil.move(folder / "release", folder / "ours")
    for name in ("06_gqa", "90_small"):
        instructors("-m", "nbgrader", "generate_assignment", name, folder=folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["06_gqa", "90_small"])
def test_nbgrader_makes_the_same_release(nbgrader_course: Path, name: str) -> None:
    ours, theirs = (nbformat.read(nbgrader_course / kind / name / f"{name}.ipynb", 4) for kind in ("ours", "release"))
    assert [(cell.id, cell.source, cell.metadata) for cell in ours.cells] == [(c.id, c.source, c.metadata) for c in theirs.cells]


@pytest.mark.slow
def test_nbgrader_grades_solutions_and_stubs(nbgrader_course: Path) -> None:
    for student, kind in (("solver", "source"), ("idler", "ours")):
        shutil.copytree(nbgrader_course / kind, nbgrader_course / "submitted" / student)
    for name in ("06_gqa", "90_small"):
        instructors("-m", "nbgrader", "autograde", name, folder=nbgrader_course)
    scores = instructors("-c", SCORES, folder=nbgrader_course).splitlines()
    points = sum(exercise.stars for exercise in CHAPTER_6) + 2  # and those of the hidden check
    wanted = [f"06_gqa idler 0 {points}", f"06_gqa solver {points} {points}", "90_small idler 0 5", "90_small solver 5 5"]
    assert sorted(scores) == wanted


@pytest.mark.slow
def test_nbgrader_validates(nbgrader_course: Path) -> None:
    told = instructors("-m", "nbgrader", "validate", "ours/06_gqa/06_gqa.ipynb", folder=nbgrader_course)
    assert f"VALIDATION FAILED ON {len(CHAPTER_6)} CELL" in told and "not done yet" in told
    assert "Success" in instructors("-m", "nbgrader", "validate", "source/06_gqa/06_gqa.ipynb", folder=nbgrader_course)
