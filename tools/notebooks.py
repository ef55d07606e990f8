"""Runs the book's notebooks and keeps them fit to commit.

    python tools/notebooks.py run [NOTEBOOK …]         execute in place, then normalise
    python tools/notebooks.py normalise [NOTEBOOK …]   take out what changes by itself; put in the Colab cell
    python tools/notebooks.py check [NOTEBOOK …]       say what is wrong and exit with 1; change nothing

Without a NOTEBOOK, all of `book/` is meant. A normalised notebook comes out of another run unchanged, byte for byte, as
long as its cells print the same.
"""

import argparse
import hashlib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent

SETUP_TAG, IGNORE_TAG, RAISES_TAG = "colab-setup", "nbval-ignore-output", "raises-exception"

LARGEST_IGNORED_SHARE = 0.15
"""Of the cells that have output, how many may go uncompared."""

KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}

# Everything else in a metadata entry is a trace of the program that wrote the file.
KEPT_NOTEBOOK_METADATA = ("myst", "mystnb")
KEPT_CELL_METADATA = ("cellView", "exercise", "mystnb", "nbgrader", "tags")

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

SETUP = """\
# @title Prepare Colab (does nothing elsewhere)
import sys

if "google.colab" in sys.modules:
    %pip install --quiet --no-deps jaxtyping wadler-lindig anywidget psygnal "llama3-edu @ git+{url}@{branch}"
    from google.colab import output

    output.enable_custom_widget_manager()

    from llama3_edu import default_device, hardware

    print("This notebook runs on", hardware.describe(default_device()))"""


@dataclass(frozen=True)
class Repository:
    """Where the project lives: what Colab installs the package from."""

    url: str
    branch: str

    @classmethod
    def from_config(cls, path: Path = ROOT / "_config.yml") -> "Repository":
        """Read the address from the site's configuration, the one place that has it."""
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))["repository"]
        return cls(url=fields["url"], branch=fields["branch"])


def setup_cell(repository: Repository) -> NotebookNode:
    """Return the cell that installs the package on Colab, beside the torch, numpy and ipywidgets that Colab has.

    The site leaves it out: its readers have nothing to install.
    """
    source = SETUP.format(url=repository.url, branch=repository.branch)
    return nbformat.v4.new_code_cell(source, metadata={"cellView": "form", "tags": [SETUP_TAG, "remove-cell"]})


def read(path: Path) -> NotebookNode:
    """Read a notebook, of whatever version, as version 4.5."""
    return nbformat.v4.upgrade(nbformat.read(path, as_version=4))


def text_of(notebook: NotebookNode) -> str:
    """Return what the notebook's file holds."""
    return nbformat.writes(notebook) + "\n"


def normalised(notebook: NotebookNode, repository: Repository) -> NotebookNode:
    """Return the notebook with its Colab cell and without anything that another run or another editor would change."""
    metadata = {**KERNEL, **_kept(notebook.metadata, KEPT_NOTEBOOK_METADATA)}
    cells = _with_setup(notebook.cells, repository)
    executed = all(cell.execution_count for cell in cells if _is_run(cell) and not _has_tag(cell, SETUP_TAG))
    counts = iter(range(1, len(cells) + 1))
    names = _names(cells)
    cells = [
        _normalised_cell(cell, name, next(counts) if executed and _is_run(cell) else None) for cell, name in zip(cells, names)
    ]
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def problems(path: Path, repository: Repository) -> list[str]:
    """Return what keeps a notebook from being committed, each as a sentence; nothing when it is fit."""
    notebook = read(path)
    found = []
    if any(cell.execution_count is None for cell in notebook.cells if _is_run(cell)):
        found.append("a code cell was not executed")
    if not any(_has_tag(cell, SETUP_TAG) for cell in notebook.cells):
        found.append(f"no cell has the tag {SETUP_TAG!r}")
    for cell in notebook.cells:
        found.extend(f"cell {cell.id}: {problem}" for problem in _cell_problems(cell))
    if path.read_text(encoding="utf-8") != text_of(normalised(notebook, repository)):
        found.append("it is not normalised: run tools/notebooks.py normalise")
    return found


def ignored_share(notebooks: Iterable[NotebookNode]) -> float:
    """Return how many of the cells with output are not compared, from 0 to 1."""
    with_output = [cell for notebook in notebooks for cell in notebook.cells if cell.get("outputs")]
    ignored = sum(_has_tag(cell, IGNORE_TAG) for cell in with_output)
    return ignored / max(len(with_output), 1)


def run(path: Path, repository: Repository, *, timeout: int = 1800) -> None:
    """Execute a notebook with the kernel of this Python, in an empty folder, and write it back normalised.

    Raises:
        CellExecutionError: a cell failed. The file is as it was.
    """
    notebook = normalised(read(path), repository)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", store_widget_state=False, resources={"metadata": {"path": folder}}
        )
        client.execute()
    write(path, normalised(notebook, repository))


def write(path: Path, notebook: NotebookNode) -> None:
    """Write the notebook where its text differs from the file's."""
    text = text_of(notebook)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _kept(metadata: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: metadata[name] for name in names if metadata.get(name)}


def _is_run(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and bool(cell.source.strip())


def _has_tag(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def _with_setup(cells: list[NotebookNode], repository: Repository) -> list[NotebookNode]:
    """Put the Colab cell before the first other code cell, below the title; replace one that is there."""
    others = [cell for cell in cells if not _has_tag(cell, SETUP_TAG)]
    below_title = 1 if others and others[0].cell_type == "markdown" else 0
    return [*others[:below_title], setup_cell(repository), *others[below_title:]]


def _names(cells: list[NotebookNode]) -> list[str]:
    """Name each cell after what it says, so that only an edited cell gets another name."""
    seen: Counter[str] = Counter()
    names = []
    for cell in cells:
        name = hashlib.sha256(f"{cell.cell_type}\n{cell.source.strip()}".encode()).hexdigest()[:8]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _normalised_cell(cell: NotebookNode, name: str, count: int | None) -> dict[str, Any]:
    clean = {
        "cell_type": cell.cell_type,
        "id": name,
        "metadata": _kept(cell.metadata, KEPT_CELL_METADATA),
        "source": cell.source.strip("\n"),
    }
    if cell.cell_type == "code":
        clean["execution_count"] = count
        clean["outputs"] = [_normalised_output(output, count) for output in _joined(cell.outputs)]
    return clean


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: where they were cut depends on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1] = nbformat.from_dict({**joined[-1], "text": joined[-1].text + output.text})
        else:
            joined.append(output)
    return joined


def _normalised_output(output: NotebookNode, count: int | None) -> dict[str, Any]:
    clean = {key: value for key, value in output.items() if key != "transient"}
    if "data" in clean:
        # A widget's view names its model, and models get a random name at each run. The text of the widget stays.
        clean["data"] = {mime: value for mime, value in clean["data"].items() if mime != WIDGET_VIEW}
        clean["metadata"] = {}
    if output.output_type == "execute_result":
        clean["execution_count"] = count
    return clean


def _cell_problems(cell: NotebookNode) -> list[str]:
    found = []
    for output in cell.get("outputs", ()):
        shown = output.get("text", "") + "".join(str(value) for value in output.get("data", {}).values())
        if output.output_type == "error" and not _has_tag(cell, RAISES_TAG):
            found.append(f"it ended with {output.ename}")
        if output.get("name") == "stderr":
            found.append("it wrote to stderr")
        if re.search(r"\bat 0x[0-9a-f]{6,}", shown) and not _has_tag(cell, IGNORE_TAG):
            found.append("its output shows an object's address in memory")
    return found


def _run_all(paths: list[Path], repository: Repository) -> int:
    for path in paths:
        print(f"running {path}", flush=True)
        try:
            run(path, repository)
        except CellExecutionError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
    return 0


def _normalise_all(paths: list[Path], repository: Repository) -> int:
    for path in paths:
        write(path, normalised(read(path), repository))
    return 0


def _check_all(paths: list[Path], repository: Repository) -> int:
    found = [f"{path}: {problem}" for path in paths for problem in problems(path, repository)]
    share = ignored_share(map(read, paths))
    if share > LARGEST_IGNORED_SHARE:
        found.append(f"{share:.0%} of the cells with output carry {IGNORE_TAG!r}; at most {LARGEST_IGNORED_SHARE:.0%} may")
    print("\n".join(found) or f"{len(paths)} notebooks are fit to commit")
    return 1 if found else 0


def book_notebooks() -> list[Path]:
    """Return every notebook of the book, in reading order."""
    return sorted(path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def main() -> int:
    commands = {"run": _run_all, "normalise": _normalise_all, "check": _check_all}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    arguments = parser.parse_args()
    return commands[arguments.command](arguments.notebooks or book_notebooks(), Repository.from_config())


if __name__ == "__main__":
    sys.exit(main())
