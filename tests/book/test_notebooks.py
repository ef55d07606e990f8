"""Committed notebooks are executed, normalised and compared; the tool that makes them so keeps its word."""

from pathlib import Path

import nbformat
import notebooks
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

BOOK = notebooks.book_notebooks()
REPOSITORY = notebooks.Repository(url="https://example.org/us/book", branch="main")
WIDGET = """\
import anywidget, traitlets

class Counter(anywidget.AnyWidget):
    _esm = "export default { render() {} };"
    count = traitlets.Int(3).tag(sync=True)

    def __repr__(self):
        return "Counter at 3"

Counter()"""


def executed_notebook() -> nbformat.NotebookNode:
    """A notebook as an editor leaves it: odd counts, timestamps, pieces of streams, a widget's random name."""
    cells = [
        new_markdown_cell("# Title\n"),
        new_code_cell(
            "print(1); print(2)",
            execution_count=7,
            metadata={"execution": {"iopub.status.busy": "2026-01-01"}, "collapsed": False, "tags": ["nbval-ignore-output"]},
            outputs=[new_output("stream", name="stdout", text="1\n"), new_output("stream", name="stdout", text="2\n")],
        ),
        new_code_cell(
            "w",
            execution_count=9,
            outputs=[
                new_output(
                    "execute_result", {"text/plain": "W(3)", notebooks.WIDGET_VIEW: {"model_id": "f00d"}}, execution_count=9
                )
            ],
        ),
    ]
    return new_notebook(cells=cells, metadata={"widgets": {"state": {}}, "kernelspec": {"name": "mine", "display_name": "Mine"}})


@pytest.mark.parametrize("path", BOOK, ids=lambda path: path.stem)
def test_committed_notebook_is_fit(path: Path) -> None:
    assert notebooks.problems(path, notebooks.Repository.from_config()) == []


def test_nearly_every_output_of_the_book_is_compared() -> None:
    assert notebooks.ignored_share(map(notebooks.read, BOOK)) <= notebooks.LARGEST_IGNORED_SHARE


def test_normalising_takes_out_what_changes_by_itself() -> None:
    text = notebooks.text_of(notebooks.normalised(executed_notebook(), REPOSITORY))
    for noise in ("iopub", "model_id", "collapsed", '"widgets"', "Mine"):
        assert noise not in text


def test_normalising_keeps_sources_tags_and_printed_text() -> None:
    before, after = executed_notebook(), notebooks.normalised(executed_notebook(), REPOSITORY)
    title, setup, printing, widget = after.cells
    assert [title.source, printing.source, widget.source] == [cell.source.strip() for cell in before.cells]
    assert printing.metadata.tags == ["nbval-ignore-output"]
    assert [output.text for output in printing.outputs] == ["1\n2\n"]
    assert widget.outputs[0].data == {"text/plain": "W(3)"}
    assert [cell.execution_count for cell in (setup, printing, widget)] == [1, 2, 3]


def test_normalising_twice_is_normalising_once() -> None:
    once = notebooks.normalised(executed_notebook(), REPOSITORY)
    assert notebooks.normalised(once, REPOSITORY) == once
    nbformat.validate(once)


def test_cell_names_follow_their_text_alone() -> None:
    renamed = executed_notebook()
    for number, cell in enumerate(renamed.cells):
        cell.id = f"editor-{number}"
    assert notebooks.normalised(renamed, REPOSITORY) == notebooks.normalised(executed_notebook(), REPOSITORY)


def test_colab_cell_follows_the_repository() -> None:
    moved = notebooks.Repository(url="https://example.org/them/copy", branch="trunk")
    cells = notebooks.normalised(notebooks.normalised(executed_notebook(), REPOSITORY), moved).cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code", "code", "code"]
    assert "git+https://example.org/them/copy@trunk" in cells[1].source
    assert REPOSITORY.url not in cells[1].source


def test_colab_cell_moves_nothing_that_colab_has() -> None:
    (install,) = [line for line in notebooks.setup_cell(REPOSITORY).source.splitlines() if "pip install" in line]
    assert "--no-deps" in install
    assert not {"torch", "numpy", "ipywidgets"} & set(install.split())


def test_running_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "widget.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A"), new_code_cell(WIDGET), new_code_cell("print('b')")]), path)
    notebooks.run(path, REPOSITORY)
    first = path.read_bytes()
    notebooks.run(path, REPOSITORY)
    assert path.read_bytes() == first
    assert b"Counter at 3" in first
    assert notebooks.problems(path, REPOSITORY) == []


def test_a_failing_cell_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    before = path.read_bytes()
    with pytest.raises(notebooks.CellExecutionError, match="ZeroDivisionError"):
        notebooks.run(path, REPOSITORY)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (new_code_cell("x = 1"), "a code cell was not executed"),
        (new_code_cell("f", execution_count=2, outputs=[new_output("stream", name="stderr", text="!")]), "it wrote to stderr"),
        (
            new_code_cell("f", execution_count=2, outputs=[new_output("stream", name="stdout", text="<f at 0x7f00aa11>")]),
            "its output shows an object's address in memory",
        ),
        (
            new_code_cell("f", execution_count=2, outputs=[new_output("error", ename="KeyError", evalue="", traceback=[])]),
            "it ended with KeyError",
        ),
    ],
)
def test_what_is_wrong_is_named(cell: nbformat.NotebookNode, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.ipynb"
    notebooks.write(path, notebooks.normalised(new_notebook(cells=[new_markdown_cell("# A"), cell]), REPOSITORY))
    assert any(found.endswith(problem) for found in notebooks.problems(path, REPOSITORY))


def test_a_notebook_that_is_not_normalised_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raw.ipynb"
    nbformat.write(executed_notebook(), path)
    found = notebooks.problems(path, REPOSITORY)
    assert "no cell has the tag 'colab-setup'" in found
    assert "it is not normalised: run tools/notebooks.py normalise" in found
