"""A page for each submission: what came of it, and where to look. Of hidden checks it tells the result alone."""

import html
from pathlib import Path

from coursework.assignment import Assignment, Task
from coursework.grading import Row
from coursework.judge import Outcome, Verdict

__all__ = ["write_feedback"]

IN_WORDS = {
    "right": "Right.",
    "wrong": "Not right yet.",
    "not done": "Not done yet.",
    "missing": "There is no answer: no cell of your notebook defines this name.",
    "error": "The cell could not be run.",
    "timeout": "Stopped: it took too long. Is there a loop that does not end?",
    "died": "It ended the kernel each time it was run.",
    "review": "A person will look at this one.",
    "technical": "This could not be graded, for a reason that says nothing about your work. It will be graded again.",
}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .25rem }}
p {{ margin: .25rem 0; overflow-wrap: anywhere }}
.points {{ float: right; font-variant-numeric: tabular-nums }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{body}
</html>
"""


def write_feedback(folder: Path, assignment: Assignment, rows: list[Row]) -> None:
    """Write a page for each submission: `folder/student/assignment.html`, and where a student has several, one for each file."""
    students = [row.submission.student for row in rows]
    for row in rows:
        student = row.submission.student
        name = (
            assignment.name
            if students.count(student) == 1
            else Path(row.submission.file).with_suffix("").as_posix().replace("/", "_")
        )
        path = folder / student.replace("/", "_") / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(assignment, row), encoding="utf-8")


def page(assignment: Assignment, row: Row) -> str:
    """Return the page of one submission."""
    verdicts = {verdict.name: verdict for verdict in row.verdicts}
    points = [verdict.points for verdict in row.verdicts]
    if row.failure:
        summary = f"{row.submission.file}: this file could not be graded. Please hand in the notebook itself again."
    elif None in points:
        summary = f"{row.submission.file}: not every exercise could be graded yet."
    else:
        summary = f"{row.submission.file}: {sum(points)} of {assignment.points} points."
    body = "\n".join(_section(task, verdicts[task.name]) for task in assignment.tasks if task.name in verdicts)
    return PAGE.format(title=html.escape(f"Feedback: {assignment.name}"), summary=html.escape(summary), body=body)


def _section(task: Task, verdict: Verdict) -> str:
    points = "–" if verdict.points is None else verdict.points
    heading = f'<h2>{html.escape(task.title)} <span class="points">{points} of {task.points}</span></h2>'
    return heading + "".join(f"<p>{html.escape(line)}</p>" for outcome in verdict.outcomes for line in _lines(outcome))


def _lines(outcome: Outcome) -> list[str]:
    words = IN_WORDS[outcome.status]
    if outcome.which == "hidden":
        return [f"Hidden check: {words}"]
    tells = outcome.status in ("wrong", "error")
    return [words, outcome.message] if tells else [words]
