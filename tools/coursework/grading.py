"""Grades a folder of submissions: canaries first, then one after the other or several at once, and a table at the end."""

import csv
import os
import secrets
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import llama3_edu
from coursework.assignment import ROOT, Assignment, CourseError
from coursework.journal import Journal, fingerprint
from coursework.judge import Verdict, judge_task
from coursework.sandbox import HERE, Limits, Sandbox, SandboxBroken, readable_inside
from coursework.submission import Cell, Unreadable, own_cells, read_cells

__all__ = ["Grader", "Submission", "Row", "submissions_in", "grade_all", "write_csv", "run_canaries"]


@dataclass(frozen=True)
class Submission:
    """A file that was handed in.

    Args:
        student: whose it is: the folder it lies in, or the file's name.
        path: the file; none where a student's folder has no notebook.
        file: its path below the folder of submissions.
        notes: what is odd about it already.
    """

    student: str
    path: Path | None
    file: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A submission and what came of it.

    Args:
        verdicts: by exercise; empty where it could not be graded at all.
        failure: why it could not.
    """

    submission: Submission
    verdicts: tuple[Verdict, ...] = ()
    failure: str = ""

    @property
    def status(self) -> str:
        """`graded`; `review`: a person should look; `technical`: something went wrong that says nothing about the work."""
        states = {verdict.status for verdict in self.verdicts}
        return "technical" if self.failure or "technical" in states else "review" if "review" in states else "graded"


@dataclass(frozen=True)
class Grader:
    """Grades submissions to one assignment.

    Args:
        assignment: what was to be handed in.
        bwrap: path of bubblewrap; nothing runs without walls.
        limits: what a submission may use.
        seed: makes the inputs of the checks.
    """

    assignment: Assignment
    bwrap: str | None
    limits: Limits
    seed: int

    def grade(self, cells: list[Cell]) -> list[Verdict]:
        """Judge every exercise of a submission, in a sandbox of its own.

        Raises:
            SandboxBroken: there is no sandbox to do it in.
        """
        own = own_cells(self.assignment, cells)
        bad: dict[int, str] = {}
        with Boxes(self.bwrap, self.limits) as boxes:
            return [judge_task(self.assignment, task, own, boxes.get, self.seed, bad) for task in self.assignment.tasks]

    def plan(self) -> str:
        """Return a name for everything that grades hang on besides submissions."""
        package = Path(llama3_edu.__file__).parent
        sources = sorted([*package.rglob("*.py"), *HERE.glob("*.py")])
        hidden = [check.source for task in self.assignment.tasks for check in task.checks]
        return fingerprint(self.assignment.path, repr(self.limits), repr(bool(self.bwrap)), *hidden, *sources)


class Boxes:
    """Gives a sandbox that is alive, a new one when the last one is not."""

    def __init__(self, bwrap: str | None, limits: Limits) -> None:
        self._make: Callable[[], Sandbox] = lambda: Sandbox(bwrap, limits)
        self._box: Sandbox | None = None

    def __enter__(self) -> "Boxes":
        return self

    def __exit__(self, *error: object) -> None:
        if self._box:
            self._box.close()

    def get(self) -> Sandbox:
        if self._box and not self._box.alive:
            self._box.close()
            self._box = None
        self._box = self._box or self._make()
        return self._box


def submissions_in(folder: Path, assignment: str) -> list[Submission]:
    """Return what was handed in, in order: nbgrader's `student/assignment/notebook.ipynb`, a folder per student, or single files.

    Raises:
        CourseError: there is nothing.
    """
    if not folder.is_dir():
        raise CourseError(f"{folder} should be a folder with submissions")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))
    found = [
        one
        for entry in entries
        for one in (_of_student(entry, folder, assignment) if _is_folder(entry) else [_of_file(entry, folder)])
    ]
    if not found:
        raise CourseError(f"{folder} is empty")
    counts = Counter(one.student for one in found)
    several = {student: (f"{count} files by this student",) for student, count in counts.items() if count > 1}
    return [Submission(one.student, one.path, one.file, several.get(one.student, ())) for one in found]


def _is_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.is_symlink()


def _of_file(path: Path, folder: Path) -> Submission:
    return Submission(path.stem, path, path.relative_to(folder).as_posix())


def _of_student(own: Path, folder: Path, assignment: str) -> list[Submission]:
    """Return a student's notebooks; where they handed in several assignments, those of this one."""
    place = own / assignment if (own / assignment).is_dir() else own
    seen = (path for path in place.rglob("*") if not any(part.startswith(".") for part in path.relative_to(own).parts))
    paths = sorted(path for path in seen if path.suffix.lower() == ".ipynb")
    one_per_path = [Submission(own.name, path, path.relative_to(folder).as_posix()) for path in paths]
    return one_per_path or [Submission(own.name, None, f"{own.name}/")]


def run_canaries(grader: Grader) -> None:
    """Grade the solution and the empty notebook.

    Raises:
        CourseError: the one does not get every point, or the other gets any.
    """
    tasks = grader.assignment.tasks
    solved = [Cell(task.solution, task.name, frozenset(), "", False) for task in tasks]
    empty = [Cell(task.stub, task.name, frozenset(), "", False) for task in tasks]
    for what, cells, wanted in (
        ("solution", solved, [task.points for task in tasks]),
        ("empty notebook", empty, [0] * len(tasks)),
    ):
        verdicts = grader.grade(cells)
        if [verdict.points for verdict in verdicts] != wanted:
            told = "; ".join(f"{v.name}: {v.points} points {[*losses(v), *v.notes]}" for v in verdicts)
            raise CourseError(f"nothing was graded: the {what} of {grader.assignment.name} should get {wanted} points. {told}")


def grade_all(grader: Grader, submissions: list[Submission], journal: Journal, *, jobs: int) -> list[Row]:
    """Grade submissions, several at once; take from the journal what it has.

    Whatever goes wrong with one is in its row, and nowhere else.
    """
    rows: dict[Submission, Row] = {}
    stopping = threading.Event()

    def grade(submission: Submission) -> Row | None:
        return None if stopping.is_set() else _row(grader, submission, journal)

    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(grade, submission): submission for submission in submissions}
        try:
            for future in tqdm(
                as_completed(running), total=len(running), desc=grader.assignment.name, unit="submission", file=sys.stderr
            ):
                row = future.result()
                rows[row.submission] = row
        except BaseException:
            stopping.set()
            raise
    return [rows[submission] for submission in submissions]


ADDING = threading.Lock()


def _row(grader: Grader, submission: Submission, journal: Journal) -> Row:
    if submission.path is None:
        return Row(submission, failure="there is no notebook in this folder")
    try:
        cells = read_cells(submission.path)
        key = fingerprint(submission.path)
        if key not in journal:
            verdicts = grader.grade(cells)
            if any(verdict.status == "technical" for verdict in verdicts):
                return Row(submission, tuple(verdicts))
            with ADDING:
                journal.add(key, verdicts)
        return Row(submission, tuple(journal[key]))
    except (Unreadable, SandboxBroken) as error:
        return Row(submission, failure=str(error))
    except Exception as error:  # whatever it is, the others are graded all the same
        return Row(submission, failure=f"the grader failed: {type(error).__name__}: {error}")


def write_csv(path: Path, assignment: Assignment, rows: Iterable[Row]) -> None:
    """Write the grades, a row for each submission; where something failed that is not the student's doing, a score is empty."""
    names = [task.name for task in assignment.tasks]
    made = path.with_name(f".{path.name}.new")
    with made.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["student", "file", *names, "total points", "out of", "status", "notes"])
        for row in rows:
            writer.writerow([plain(cell) for cell in _cells(row, names, assignment.points)])
    os.replace(made, path)


def _cells(row: Row, names: list[str], most: int) -> list[str]:
    points = {verdict.name: verdict.points for verdict in row.verdicts}
    scores = [points.get(name) for name in names]
    total = None if None in scores else sum(scores)
    numbers = ["" if number is None else str(number) for number in (*scores, total)]
    return [row.submission.student, row.submission.file, *numbers, str(most), row.status, " | ".join(_notes(row))]


def _notes(row: Row) -> list[str]:
    """Say what an instructor should know about a submission: of each exercise what it lost, then what is odd, said once."""
    lost = [f"{verdict.name}: {one}" for verdict in row.verdicts for one in losses(verdict)]
    odd: dict[str, list[str]] = {}
    for verdict in row.verdicts:
        for one in verdict.notes:
            odd.setdefault(one, []).append(verdict.name)
    failed = [row.failure] if row.failure else []
    return [*row.submission.notes, *failed, *lost, *(f"{', '.join(names)}: {one}" for one, names in odd.items())]


def losses(verdict: Verdict) -> list[str]:
    """Say why checks of an exercise gave no points."""
    several = len(verdict.outcomes) > 1
    bad = [one for one in verdict.outcomes if one.status != "right"]
    return [f"{f'{one.which} ' if several else ''}{one.status}: {one.message.removeprefix(f'{verdict.name}: ')}" for one in bad]


def plain(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula, in one line."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in cell).split())
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def refuse_readable(*paths: Path | None) -> None:
    """Make sure that no submission can read some files.

    Raises:
        CourseError: one lies in a folder that the sandbox shows.
    """
    for path in paths:
        if path is not None and readable_inside(path):
            raise CourseError(f"{path} lies in a folder that submissions can read; put it somewhere else")


def refuse_public(*paths: Path | None) -> None:
    """Make sure that nothing hidden can be committed by accident.

    Raises:
        CourseError: a folder lies in this repository.
    """
    for path in paths:
        if path is not None and path.resolve().is_relative_to(ROOT):
            raise CourseError(f"{path} lies in the public repository; keep hidden checks and solutions somewhere else")


def new_seed() -> int:
    return secrets.randbits(31)
