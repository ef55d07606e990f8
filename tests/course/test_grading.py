"""A run of grading: it needs a sandbox and working canaries, goes on where it stopped, and writes an honest row for each."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from coursework import grading, sandbox
from coursework.assignment import Assignment, CourseError
from coursework.grading import Grader, Row, Submission, grade_all, run_canaries, submissions_in, write_csv
from coursework.journal import Journal
from coursework.judge import Outcome, Verdict, judged_outside
from coursework.sandbox import Limits, Sandbox, SandboxBroken, SandboxMissing, Stopped
from coursework.selfcheck import PROBES, check_sandbox
from handed_in import POINTS, PRIVATE, RIGHT, HandedIn, written

ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(cell_seconds=5, check_seconds=5)


def hand_in(folder: Path, given, **students: HandedIn) -> Path:
    for student, one in students.items():
        (folder / student).mkdir(parents=True)
        (folder / student / "90_small.ipynb").write_text(written(given, one), encoding="utf-8")
    return folder


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def right(assignment: Assignment) -> list[Verdict]:
    return [Verdict(task.name, tuple(Outcome(c.which, "right", "", c.points) for c in task.checks)) for task in assignment.tasks]


class Counting:
    """Grades without a sandbox, and counts how often."""

    def __init__(self, assignment: Assignment, *, fails: type[BaseException] | None = None, after: int = 0) -> None:
        self.assignment, self.graded, self._fails, self._after = assignment, 0, fails, after

    def grade(self, cells) -> list[Verdict]:
        if self._fails and self.graded >= self._after:
            raise self._fails("no room")
        self.graded += 1
        return right(self.assignment)


# What is handed in


def test_every_layout_is_understood(tmp_path: Path) -> None:
    for place in (
        "ann/06_gqa/06_gqa.ipynb",
        "ann/05_bug_hunt/05_bug_hunt.ipynb",
        "ben/Copy of 06_gqa.ipynb",
        "cem/.ipynb_checkpoints/x.ipynb",
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("{}")
    for name in ("dee_06_gqa.ipynb", "eli.pdf", ".DS_Store"):
        (tmp_path / name).write_text("{}")
    found = {one.student: one.file for one in submissions_in(tmp_path, "06_gqa")}
    assert found == {
        "ann": "ann/06_gqa/06_gqa.ipynb", "ben": "ben/Copy of 06_gqa.ipynb", "cem": "cem/",
        "dee_06_gqa": "dee_06_gqa.ipynb", "eli": "eli.pdf",
    }  # fmt: skip


def test_two_files_of_one_student_are_two_rows_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    for name in ("a.ipynb", "b.ipynb"):
        (tmp_path / "ann" / name).write_text("{}")
    assert [(one.student, one.notes) for one in submissions_in(tmp_path, "06_gqa")] == [("ann", ("2 files by this student",))] * 2


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="is empty"):
        submissions_in(tmp_path, "06_gqa")


# One after the other


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, small, given) -> None:
    folder = hand_in(
        tmp_path / "in", given, **{f"s{n}": HandedIn({"double": f"def double(x):\n    return {n}"}) for n in range(6)}
    )
    submissions, path = submissions_in(folder, small.name), tmp_path / "progress"
    first = Counting(small, fails=KeyboardInterrupt, after=4)
    with pytest.raises(KeyboardInterrupt):
        grade_all(first, submissions, Journal(path, plan="p", seed=1), jobs=1)
    second = Counting(small)
    rows = grade_all(second, submissions, Journal(path, plan="p", seed=2), jobs=1)
    assert (first.graded, second.graded) == (4, 2)
    assert [row.submission.student for row in rows] == [f"s{n}" for n in range(6)] and {row.status for row in rows} == {"graded"}


def test_the_journal_survives_a_line_that_was_cut(tmp_path: Path, small) -> None:
    path = tmp_path / "progress"
    Journal(path, plan="p", seed=7).add("a", right(small))
    path.write_text(path.read_text()[:-1] + '\n{"plan": "p", "key": "b", "resu')
    again = Journal(path, plan="p", seed=8)
    assert "a" in again and "b" not in again and again.seed == 7 and again["a"] == right(small)
    again.add("b", right(small))
    assert "b" in Journal(path, plan="p", seed=9)


def test_results_of_another_plan_do_not_count(tmp_path: Path, small) -> None:
    Journal(tmp_path / "progress", plan="p", seed=7).add("a", right(small))
    other = Journal(tmp_path / "progress", plan="q", seed=8)
    assert "a" not in other and other.seed == 8


def test_a_plan_changes_with_what_grades_hang_on(small) -> None:
    plans = {Grader(small, bwrap, limits, seed=0).plan() for bwrap in ("/usr/bin/bwrap", None) for limits in (Limits(), QUICK)}
    assert len(plans) == 4


@pytest.mark.parametrize("failure", [SandboxBroken, RuntimeError])
def test_what_fails_in_the_grader_is_no_zero_and_is_tried_again(tmp_path: Path, small, given, failure) -> None:
    folder = hand_in(tmp_path / "in", given, ann=HandedIn(), ben=HandedIn({"double": None}))
    submissions, journal = submissions_in(folder, small.name), Journal(tmp_path / "progress", plan="p", seed=1)
    rows = grade_all(Counting(small, fails=failure, after=1), submissions, journal, jobs=1)
    assert [row.status for row in rows] == ["graded", "technical"]
    write_csv(tmp_path / "grades.csv", small, rows)
    ben = table(tmp_path / "grades.csv")["ben"]
    assert [ben[name] for name in (*POINTS, "total points")] == [""] * 5 and "no room" in ben["notes"]
    again = Counting(small)
    assert [row.status for row in grade_all(again, submissions, journal, jobs=1)] == ["graded", "graded"] and again.graded == 1


def test_a_table_has_a_score_for_each_exercise_and_none_where_a_person_has_to_look(tmp_path: Path, small) -> None:
    verdicts = right(small)
    verdicts[1] = Verdict("total", (Outcome("hidden", "review", "odd", 1),), ("look: it walks",))
    row = Row(Submission("ann", Path("x"), "x"), tuple(verdicts))
    write_csv(tmp_path / "grades.csv", small, [row])
    ann = table(tmp_path / "grades.csv")["ann"]
    assert (ann["double"], ann["total"], ann["Counter"], ann["total points"], ann["out of"]) == ("1", "", "2", "", "5")
    assert ann["status"] == "review" and ann["notes"] == "total: review: odd | total: look: it walks"


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\n-1"])
def test_no_cell_is_taken_for_a_formula(cell: str) -> None:
    assert grading.plain(cell).startswith("'")


# Canaries


@pytest.mark.slow
@pytest.mark.sandbox
def test_a_solution_that_fails_stops_the_run(tmp_path: Path, small, given, course, bwrap) -> None:
    private = tmp_path / "private"
    shutil.copytree(PRIVATE, private)
    (private / "solutions" / "total.py").write_text("def total(numbers):\n    return sum(numbers) + 1\n")
    folder = hand_in(tmp_path / "in", given, ann=HandedIn())
    done = course("grade", "--assignment", "90_small", folder, "--private", private, "--csv", tmp_path / "grades.csv")
    assert done.returncode == 2 and "nothing was graded: the solution of 90_small should get [1, 1, 2, 1] points" in done.stderr
    assert not (tmp_path / "grades.csv").exists()


def test_a_check_that_the_empty_notebook_passes_stops_the_run(small) -> None:
    with pytest.raises(CourseError, match=r"the empty notebook of 90_small should get \[0, 0, 0, 0\] points"):
        run_canaries(Counting(small))


# The sandbox


def test_without_bubblewrap_nothing_runs(tmp_path: Path, small, given, course, private) -> None:
    folder = hand_in(tmp_path / "in", given, ann=HandedIn())
    arguments = ("grade", "--assignment", "90_small", folder, "--private", private, "--csv", tmp_path / "grades.csv")
    done = course(*arguments, env={"PATH": str(tmp_path)})
    assert done.returncode == 2 and not (tmp_path / "grades.csv").exists()
    assert "there is no bubblewrap" in done.stderr and "docker run" in done.stderr and "--unsafe" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bubblewrap_that_does_not_work_is_refused(tmp_path: Path, monkeypatch) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SandboxMissing, match="does not work here: setting up uid map: Permission denied"):
        sandbox.bubblewrap()


@pytest.mark.slow
def test_unsafe_grades_the_same_and_says_what_it_is(tmp_path: Path, small, given, course, private) -> None:
    folder = hand_in(tmp_path / "in", given, ann=HandedIn(), ben=HandedIn({"double": "def double(x):\n    return x"}))
    done = course("grade", "--assignment", "90_small", folder, "--private", private, "--csv", tmp_path / "grades.csv", "--unsafe")
    assert done.returncode == 0 and done.stderr.startswith("UNSAFE: submissions run with your rights")
    assert {student: row["total points"] for student, row in table(tmp_path / "grades.csv").items()} == {"ann": "5", "ben": "4"}


def test_files_that_submissions_could_read_are_refused(tmp_path: Path, course) -> None:
    inside = Path("/usr/local/private")  # the sandbox shows all of /usr
    done = course("grade", "--assignment", "6", tmp_path, "--private", inside, "--csv", tmp_path / "grades.csv")
    assert done.returncode == 2 and "submissions can read; put it somewhere else" in done.stderr


def test_nothing_hidden_may_lie_in_the_repository(tmp_path: Path, course) -> None:
    for arguments in (("selfcheck", "--private", PRIVATE), ("release", "--out", ROOT / "course")):
        done = course(*arguments)
        assert done.returncode == 2 and "lies in the public repository" in done.stderr
    assert not (ROOT / "course").exists()


@pytest.mark.slow
@pytest.mark.sandbox
def test_the_sandbox_holds(bwrap) -> None:
    check_sandbox(bwrap, Limits())
    assert len(PROBES) >= 10


@pytest.mark.slow
@pytest.mark.sandbox
def test_a_hole_in_the_sandbox_is_noticed(bwrap, monkeypatch) -> None:
    walls = sandbox.walls

    def thin(*arguments) -> list[str]:
        command = [part for part in walls(*arguments) if part != "--unshare-net"]
        shown = [*sandbox._parents(ROOT / "tools"), "--ro-bind", str(ROOT / "tools"), str(ROOT / "tools")]
        shown += ["--ro-bind", "/etc/passwd", "/etc/passwd"]
        last = command.index("--remount-ro", command.index("SANDBOXED"))
        return [*command[:last], *shown, *command[last:]]

    monkeypatch.setattr(sandbox, "walls", thin)
    with pytest.raises(
        CourseError, match="can: reach .*servers of this machine, read where the grader lies, read the list of users$"
    ):
        check_sandbox(bwrap, Limits())


@pytest.mark.slow
@pytest.mark.sandbox
def test_a_sandbox_that_does_not_start_is_nobodys_zero(bwrap, monkeypatch) -> None:
    monkeypatch.setattr(sandbox, "HERE", Path("/nowhere"))
    with pytest.raises(SandboxBroken, match="did not start"):
        Sandbox(bwrap, QUICK)


@pytest.mark.slow
@pytest.mark.sandbox
def test_memory_of_all_processes_together_is_limited(bwrap) -> None:
    code = """
import os, time
def grow():
    for _ in range(8):
        if os.fork() == 0:
            held = bytearray(os.urandom(2**20)) * 900
            time.sleep(1000)
    time.sleep(1000)
"""
    box = Sandbox(bwrap, Limits(memory=2**30, check_seconds=60))
    box.send({"setup": [], "cells": [(0, code)], "name": "grow", "hidden": None})
    while "loaded" not in box.receive():
        pass
    with pytest.raises(Stopped, match="memory"), box.within(60):
        box.ask(("call", (), {}))
    box.close()


# Everything together


def test_plain_values_are_judged_outside(small) -> None:
    assert {task.name: judged_outside(task.checks[0].exercise) for task in small.tasks} == {
        "double": True, "total": True, "Counter": False, "same_memory": False,
    }  # fmt: skip


GUARD = """
from coursework.inside import Guard
from llama3_edu import checks
guard = Guard(checks.EXERCISES)
import torch._dynamo, torch.utils.flop_counter
assert guard.replaced() == [], guard.replaced()
torch.equal = torch.allclose
checks.compare.difference.__code__ = (lambda came, wanted, tolerance=0: "").__code__
object.__setattr__(next(iter(checks.EXERCISES)), "judge", print)
print(len(guard.replaced()))
"""


def test_the_guard_notices_what_was_replaced_and_nothing_that_torch_does_itself() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    done = subprocess.run([sys.executable, "-c", GUARD], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3


@pytest.mark.slow
@pytest.mark.sandbox
def test_selfcheck_passes_for_every_exercise(course, bwrap, private) -> None:
    done = course("selfcheck", "--private", private)
    assert done.returncode == 0, done.stderr
    assert "The sandbox holds." in done.stdout and "90_small: the solution gets 5 of 5 points" in done.stdout
    assert "Judged inside the sandbox: " in done.stdout and "Counter, same_memory" in done.stdout


@pytest.mark.slow
@pytest.mark.sandbox
def test_killed_in_the_middle_a_batch_goes_on(tmp_path: Path, small, given, bwrap, private) -> None:
    ids = [f"s{n:02d}" for n in range(12)]
    answers = {name: HandedIn({"double": f"def double(x):\n    return x * {n % 3}"}) for n, name in enumerate(ids)}
    for name, one in answers.items():  # no two files are the same
        answers[name] = HandedIn(one.answers, change=lambda notebook, name=name: notebook["metadata"].update(student=name))
    folder, grades = hand_in(tmp_path / "in", given, **answers), tmp_path / "grades.csv"
    command = [sys.executable, str(ROOT / "tools" / "course.py"), "grade", "--assignment", "90_small", str(folder)]
    command += ["--private", str(private), "--csv", str(grades)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = tmp_path / "grades.csv.progress"
    while not progress.exists() or len(progress.read_text().splitlines()) < 4:
        assert running.poll() is None
        time.sleep(0.05)
    running.kill()
    running.wait()
    done_before = [json.loads(line) for line in progress.read_text().splitlines()]
    assert 4 <= len(done_before) < 13 and not grades.exists()
    subprocess.run(command, check=True, capture_output=True)
    assert [json.loads(line) for line in progress.read_text().splitlines()][: len(done_before)] == done_before
    assert len(progress.read_text().splitlines()) == 13
    assert {name: row["total points"] for name, row in table(grades).items()} == {
        name: "5" if n % 3 == 2 else "4" for n, name in enumerate(ids)
    }  # fmt: skip


def test_solutions_of_these_tests_are_the_fixtures_own(small) -> None:
    assert {task.name: task.stub.split("\n")[0] for task in small.tasks} == {
        name: code.split("\n")[0] for name, code in RIGHT.items()
    }  # fmt: skip
