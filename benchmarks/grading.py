"""How long a class takes to grade, each submission in a sandbox of its own.

python -m benchmarks.grading
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from coursework.assignment import Assignment, find_assignment  # noqa: E402
from coursework.grading import Grader, Row, grade_all, run_canaries, submissions_in, write_csv  # noqa: E402
from coursework.journal import Journal  # noqa: E402
from coursework.sandbox import Limits, bubblewrap  # noqa: E402

from benchmarks.report import Report  # noqa: E402

HANGS_EVERY, DIES_EVERY, EMPTY_EVERY, WRONG_EVERY = 50, 40, 10, 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--submissions", type=int, default=200)
    options.add_argument("--assignment", default="06_gqa")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = options.parse_args()
    assignment = find_assignment(given.assignment, None)
    report = Report(
        name="grading",
        title="Grading a class",
        command=f" --submissions {given.submissions} --assignment {given.assignment} --jobs {given.jobs}",
        notes=[
            f"Exercises in each submission: {len(assignment.tasks)}. One submission in {HANGS_EVERY} hangs, one in {DIES_EVERY} "
            f"ends its kernel, one in {EMPTY_EVERY} is empty, one in {WRONG_EVERY} is wrong, the others are right. Asserted.",
            "Resumed: the same command once more, with every result in its journal; canaries run again.",
            "By the clock, canaries included, on a machine that may do other things too.",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        hand_in(Path(folder) / "in", assignment, given.submissions)
        for run in ("whole", "resumed"):
            seconds, rows = graded(Path(folder), assignment, given.jobs)
            check(rows, given.submissions)
            report.add(
                run=run, submissions=len(rows), jobs=given.jobs, seconds=round(seconds, 1), each=f"{seconds / len(rows):.2f} s"
            )
    report.finish()


def kind(number: int) -> str:
    """Return what the submission of a student is like."""
    every = {"hangs": HANGS_EVERY, "dies": DIES_EVERY, "empty": EMPTY_EVERY, "wrong": WRONG_EVERY}
    return next((what for what, share in every.items() if number % share == share - 1), "right")


def hand_in(folder: Path, assignment: Assignment, count: int) -> None:
    """Write submissions, no two of them the same file."""
    folder.mkdir(parents=True)
    for number in range(count):
        sources = [answer(kind(number), task.name, task.stub, task.solution) for task in assignment.tasks]
        cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
        (folder / f"student{number:04d}.ipynb").write_text(json.dumps({"cells": cells, "metadata": {"student": number}}))


def answer(what: str, name: str, stub: str, solution: str) -> str:
    bodies = {"hangs": "while True: pass", "dies": "import os; os._exit(1)", "wrong": "return None"}
    wrong = f"def {name}(*arguments, **named):\n    {bodies.get(what)}"
    return solution if what == "right" else stub if what == "empty" else wrong


def graded(folder: Path, assignment: Assignment, jobs: int) -> tuple[float, list[Row]]:
    start = time.perf_counter()
    grader = Grader(assignment, bubblewrap(), Limits(), seed=1)
    run_canaries(grader)
    rows = grade_all(
        grader, submissions_in(folder / "in", assignment.name), Journal(folder / "progress", plan="", seed=1), jobs=jobs
    )
    write_csv(folder / "grades.csv", assignment, rows)
    return time.perf_counter() - start, rows


def check(rows: list[Row], count: int) -> None:
    """Make sure that every submission got what it should: a fast run that graded wrongly would be no figure."""
    full = sum(sum(verdict.points or 0 for verdict in row.verdicts) > 0 for row in rows)
    wanted = Counter(kind(number) == "right" for number in range(count))[True]
    if full != wanted or any(row.status != "graded" for row in rows):
        raise RuntimeError(
            f"{wanted} of {count} submissions are right; {full} got points, {[r.failure for r in rows if r.failure]}"
        )


if __name__ == "__main__":
    main()
