"""Reads exercises out of their notebooks: the stub a learner begins with, the solution that is folded away, the text around them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "book" / "exercises"


@dataclass(frozen=True)
class Written:
    """One exercise as it stands in a notebook."""

    name: str
    setup: str
    statement: str
    stub: str
    hints: str
    check: str
    solution: str
    check_tags: tuple[str, ...]

    @property
    def solution_code(self) -> str:
        (code,) = re.findall(r"^```python\n(.*?)^```", self.solution, re.MULTILINE | re.DOTALL)
        return code

    def answer(self, code: str) -> Callable[..., Any]:
        """Run the notebook's first cells and then some code; return what carries the exercise's name."""
        names: dict[str, Any] = {"__name__": "notebook"}
        exec(compile(f"{self.setup}\n{code}", f"<{self.name}>", "exec"), names)
        return names[self.name]


def written_in(path: Path) -> list[Written]:
    cells = nbformat.read(path, as_version=4).cells
    own = [cell for cell in cells if cell.metadata.get("exercise")]
    code = [cell.source for cell in cells if cell.cell_type == "code" and not cell.metadata.get("exercise")]
    setup = "\n".join(source for source in code if "google.colab" not in source)
    return [_written(name, cells, own, setup) for name in dict.fromkeys(cell.metadata["exercise"] for cell in own)]


def _written(name: str, cells: list, own: list, setup: str) -> Written:
    parts = {}
    for cell in own:
        if cell.metadata["exercise"] == name:
            (role,) = {"stub", "check", "hints", "solution"} & set(cell.metadata.tags)
            assert role not in parts, f"{name} has two cells tagged {role}"
            parts[role] = cell
    before = cells[cells.index(parts["stub"]) - 1]
    texts = {role: cell.source for role, cell in parts.items()}
    return Written(name=name, setup=setup, statement=before.source, check_tags=tuple(parts["check"].metadata.tags), **texts)


@cache
def all_written() -> dict[str, tuple[Path, Written]]:
    """Every exercise of every notebook, by name."""
    found = [(path, written) for path in sorted(FOLDER.glob("*.ipynb")) for written in written_in(path)]
    names = [written.name for _, written in found]
    assert len(names) == len(set(names)), "two exercises share a name"
    return {written.name: (path, written) for path, written in found}
