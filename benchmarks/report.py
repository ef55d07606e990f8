"""What every benchmark does with its figures: print them as a table, and keep them beside the machine they were measured on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llama3_edu.hardware import describe

RESULTS = Path(__file__).parent / "results"


@dataclass
class Report:
    """A table under a title. Rows are dictionaries with the same keys, which head the columns.

    Args:
        name: of the script, and of the files under `results/`.
        title: what is measured, in a line.
        notes: how: sizes, seeds, what is counted and what is timed.
        command: the options it was run with, behind `python -m benchmarks.NAME`.
        device: what it was measured on.
        script: the module, where several reports come from one; else the same as the name.
        versions: of what was compared, and the day of the measurement, where a table depends on them.
    """

    name: str
    title: str
    notes: Sequence[str]
    command: str = ""
    device: str = "cpu"
    script: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    rows: list[Mapping[str, object]] = field(default_factory=list)
    figures: list[Mapping[str, object]] = field(default_factory=list)

    def add(self, **row: object) -> None:
        """Add a row."""
        self.rows.append(row)

    def record(self, **figures: object) -> None:
        """Keep numbers with all their digits for whoever reads the JSON file; the table does not show them."""
        self.figures.append(figures)

    def markdown(self) -> str:
        """Return title, machine, table and notes."""
        columns = [name.replace("_", " ") for name in self.rows[0]]
        lines = [
            f"# {self.title}",
            "",
            f"`python -m benchmarks.{self.script or self.name}{self.command}` on {describe(self.device)}",
            "",
        ]
        if self.versions:
            lines += [", ".join(f"{name} {version}" for name, version in self.versions.items()), ""]
        lines += [_row(columns), _row(["---", *["---:"] * (len(columns) - 1)])]
        lines += [_row([_shown(value) for value in row.values()]) for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])

    def finish(self) -> None:
        """Print the table, and write it and its figures under `results/`."""
        print(self.markdown())
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        figures = {"title": self.title, "hardware": describe(self.device), "notes": list(self.notes), "rows": self.rows}
        if self.versions:
            figures |= {"versions": dict(self.versions), "command": f"{self.script or self.name}{self.command}"}
        if self.figures:
            figures["figures"] = self.figures
        (RESULTS / f"{self.name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def percent(part: float, whole: float) -> str:
    """Return a share for people: `97.8 %`."""
    return f"{100 * part / whole:.1f} %"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
