"""One run over submissions of every kind: each is graded as it should be, and none touches another's grade."""

import csv
import os
import socket
from pathlib import Path
from threading import Thread

import pytest
from handed_in import ALL, POINTS, PRIVATE, UNGRADED, HandedIn, adversarial, written

NAMES = sorted(adversarial(secret=PRIVATE, gradebook=PRIVATE, port=0))

pytestmark = [pytest.mark.slow, pytest.mark.sandbox]


class Run:
    """What the run left behind."""

    def __init__(self, folder: Path, private: Path, port: int) -> None:
        self.submissions, self.table, self.feedback = (
            folder / "submissions",
            folder / "grades" / "grades.csv",
            folder / "feedback",
        )
        self.all = adversarial(secret=private / "hidden" / "double.py", gradebook=self.table, port=port)
        self.rows: dict[str, dict[str, str]] = {}
        self.visitors: list[object] = []

    def hand_in(self, given: dict) -> None:
        for name, one in self.all.items():
            path = self.submissions / name / (one.file or "90_small.ipynb")
            path.parent.mkdir(parents=True)
            path.write_text(written(given, one), encoding="utf-8")
        (self.submissions / "no notebook at all").mkdir()
        (self.submissions / "a link").symlink_to("/etc/passwd")

    def read(self) -> None:
        with self.table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.rows = {row["student"]: row for row in rows}
        assert len(self.rows) == len(rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, course, given, bwrap, private) -> Run:
    """Everything handed in at once and graded by one command; meanwhile a server listens whether anybody comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        run = Run(tmp_path_factory.mktemp("course"), private, server.getsockname()[1])
        Thread(target=lambda: run.visitors.append(server.accept()), daemon=True).start()
        run.hand_in(given)
        done = course(
            "grade", "--assignment", "90_small", run.submissions, "--private", private, "--csv", run.table,
            "--feedback", run.feedback, "--cell-seconds", 3, "--check-seconds", 3, "--jobs", len(os.sched_getaffinity(0)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        run.read()
    return run


def row_of(run: Run, name: str) -> dict[str, str]:
    return run.rows.get(name) or run.rows[f"'{name}"]


@pytest.mark.parametrize("name", sorted(set(NAMES) - UNGRADED))
def test_each_is_graded_as_intended(run: Run, name: str) -> None:
    one, row = run.all[name], row_of(run, name)
    for exercise in ALL:
        lost = one.lost.get(exercise)
        wanted = "" if lost == "review" else "0" if lost else str(POINTS[exercise])
        assert row[exercise] == wanted, f"{exercise}: {row['notes']}"
        if lost and lost != "*":
            assert f"{exercise}: {lost}" in row["notes"]
    review = "review" in one.lost.values()
    assert row["status"] == ("review" if review else "graded")
    assert row["total points"] == ("" if review else str(sum(POINTS[name] for name in ALL if name not in one.lost)))
    assert [words for words in one.told if words not in row["notes"]] == []


@pytest.mark.parametrize("name", sorted(UNGRADED))
def test_what_cannot_be_graded_is_no_zero(run: Run, name: str) -> None:
    row = run.rows[name]
    assert row["status"] == "technical" and row["notes"]
    assert [row[exercise] for exercise in (*ALL, "total points")] == [""] * (len(ALL) + 1)


def test_everybody_has_one_row(run: Run) -> None:
    assert {student.removeprefix("'") for student in run.rows} == set(NAMES) | UNGRADED
    assert {row["out of"] for row in run.rows.values()} == {str(sum(POINTS.values()))}


def test_no_cell_is_a_formula(run: Run) -> None:
    assert [cell for row in run.rows.values() for cell in row.values() if cell.startswith(("=", "+", "-", "@"))] == []


def test_nobody_reached_the_network(run: Run) -> None:
    assert run.visitors == []


def test_everybody_has_feedback_and_it_hides_hidden_checks(run: Run) -> None:
    pages = {path.parent.name: path.read_text(encoding="utf-8") for path in run.feedback.glob("*/*.html")}
    assert set(pages) == set(NAMES) | UNGRADED
    assert "5 of 5 points" in pages["correct"]
    assert "Not right yet." in pages["wrong"]
    for page in pages.values():
        assert "x of shape" not in page and "wanted is" not in page


def test_nothing_is_left_running(run: Run) -> None:
    import psutil

    left = [process for process in psutil.process_iter(["cmdline"]) if "coursework.inside" in (process.info["cmdline"] or [])]
    assert left == []


def test_there_are_enough_kinds() -> None:
    assert len(NAMES) >= 18 and all(
        isinstance(one, HandedIn) for one in adversarial(secret=PRIVATE, gradebook=PRIVATE, port=0).values()
    )
