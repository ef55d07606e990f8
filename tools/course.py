"""The instructors' side of the exercises.

    python tools/course.py release --out DIR [--chapters N …] [--private DIR]
    python tools/course.py grade --assignment NAME SUBMISSIONS --csv FILE [--feedback DIR] [--private DIR]
    python tools/course.py selfcheck [--private DIR]

`release` makes nbgrader assignments. `grade` grades a folder of submissions in a sandbox and writes a table; run it again to go
on where it was stopped. `selfcheck` makes sure that every solution gets all points, every empty notebook none, and that the
sandbox holds. book/instructors.md explains a course from its first day to its last.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # grades do not hang on what this machine has

from coursework import sandbox
from coursework.assignment import CourseError, assignments, find_assignment
from coursework.feedback import write_feedback
from coursework.grading import (
    Grader,
    Row,
    grade_all,
    new_seed,
    refuse_public,
    refuse_readable,
    run_canaries,
    submissions_in,
    write_csv,
)
from coursework.journal import Journal
from coursework.judge import judged_outside
from coursework.release import write_course
from coursework.selfcheck import check_sandbox


def main() -> int:
    """Do what the command line asks for; return 0, or 2 where something has to be put right first."""
    arguments = _parser().parse_args()
    try:
        refuse_public(arguments.private, getattr(arguments, "out", None))
        return arguments.run(arguments)
    except (CourseError, sandbox.SandboxMissing, sandbox.SandboxBroken) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to go on.", file=sys.stderr)
        return 130


def release(arguments: argparse.Namespace) -> int:
    """Write the assignments and say where."""
    found = assignments(tuple(arguments.chapters), arguments.private)
    for path in write_course(found, arguments.out):
        print(path)
    print(f"Hand out release/. Keep the rest of {arguments.out} to yourself: source/ has the solutions.")
    return 0


def grade(arguments: argparse.Namespace) -> int:
    """Grade a folder of submissions; say how many there were and what needs a person."""
    assignment = find_assignment(arguments.assignment, arguments.private)
    refuse_readable(arguments.private, arguments.submissions, arguments.csv, arguments.feedback)
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    grader = Grader(assignment, _walls(arguments), _limits(arguments), seed=0)
    submissions = submissions_in(arguments.submissions, assignment.name)
    journal = Journal(arguments.csv.with_name(f"{arguments.csv.name}.progress"), plan=grader.plan(), seed=new_seed())
    grader = Grader(assignment, grader.bwrap, grader.limits, journal.seed)
    run_canaries(grader)
    rows = grade_all(grader, submissions, journal, jobs=arguments.jobs)
    write_csv(arguments.csv, assignment, rows)
    if arguments.feedback:
        write_feedback(arguments.feedback, assignment, rows)
    _summarise(rows, arguments.csv)
    return 0


def selfcheck(arguments: argparse.Namespace) -> int:
    """Try the sandbox, then every assignment's canaries."""
    bwrap = _walls(arguments)
    if bwrap:
        check_sandbox(bwrap, _limits(arguments))
        print("The sandbox holds.")
    found = assignments((), arguments.private)
    for assignment in found:
        run_canaries(Grader(assignment, bwrap, _limits(arguments), seed=new_seed()))
        print(f"{assignment.name}: the solution gets {assignment.points} of {assignment.points} points, the empty notebook none.")
    inside = [
        task.name for one in found for task in one.tasks if not all(judged_outside(check.exercise) for check in task.checks)
    ]
    print(f"Judged inside the sandbox: {', '.join(inside) or 'none'}.")
    return 0


def _summarise(rows: list[Row], path: Path) -> None:
    counts = {status: sum(row.status == status for row in rows) for status in ("graded", "review", "technical")}
    print(f"{path}: {counts['graded']} of {len(rows)} submissions graded.")
    if counts["review"]:
        print(f"{counts['review']} need a person: status `review`, no score.")
    if counts["technical"]:
        print(f"{counts['technical']} could not be graded: status `technical`, no score. Run the same command again to retry.")


def _walls(arguments: argparse.Namespace) -> str | None:
    if not arguments.unsafe:
        return sandbox.bubblewrap()
    print("UNSAFE: submissions run with your rights, beside your files.", file=sys.stderr)
    return None


def _limits(arguments: argparse.Namespace) -> sandbox.Limits:
    return sandbox.Limits(
        cell_seconds=arguments.cell_seconds, check_seconds=arguments.check_seconds, memory=int(arguments.memory_gb * 2**30)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asked = commands.add_parser("release", help="make nbgrader assignments")
    asked.add_argument("--chapters", nargs="+", type=int, default=[], metavar="N", help="all, when left out")
    asked.add_argument("--out", type=Path, required=True, metavar="DIR", help="the course folder to write")
    asked.set_defaults(run=release)
    graded = commands.add_parser("grade", help="grade a folder of submissions")
    graded.add_argument("submissions", type=Path, metavar="SUBMISSIONS")
    graded.add_argument("--assignment", required=True, metavar="NAME", help="06_gqa, or 6, or a notebook's path")
    graded.add_argument("--csv", type=Path, required=True, metavar="FILE", help="the table to write")
    graded.add_argument("--feedback", type=Path, metavar="DIR", help="write a page for each submission")
    graded.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    graded.set_defaults(run=grade)
    checked = commands.add_parser("selfcheck", help="try the sandbox and every check")
    checked.set_defaults(run=selfcheck)
    for command in (asked, graded, checked):
        command.add_argument("--private", type=Path, metavar="DIR", help="your hidden checks and solutions")
    for command in (graded, checked):
        command.add_argument("--unsafe", action="store_true", help="run submissions without a sandbox")
        command.add_argument("--cell-seconds", type=float, default=20.0)
        command.add_argument("--check-seconds", type=float, default=10.0)
        command.add_argument("--memory-gb", type=float, default=2.0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
