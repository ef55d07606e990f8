"""Which cells of a submission are the student's own, and which of them answers what."""

import copy
import json
from pathlib import Path

import pytest
from coursework.submission import Cell, Own, Unreadable, own_cells, read_cells, without_installs
from handed_in import ALL, RIGHT, HandedIn, double_the_checks, strip_metadata, written


def own_of(tmp_path: Path, small, given, one: HandedIn) -> Own:
    path = tmp_path / "one.ipynb"
    path.write_text(written(given, one), encoding="utf-8")
    return own_cells(small, read_cells(path))


def answers(own: Own) -> dict[str, str]:
    return {name: own.cells[place] for name, place in own.answers.items() if place is not None}


@pytest.mark.parametrize("change", [lambda notebook: None, strip_metadata, double_the_checks])
def test_nothing_but_the_answers_is_the_students_own(tmp_path, small, given, change) -> None:
    own = own_of(tmp_path, small, given, HandedIn(change=change))
    assert own.cells == tuple(RIGHT.values()) and answers(own) == RIGHT


def test_an_untouched_notebook_holds_nothing_of_their_own(tmp_path, small, given) -> None:
    path = tmp_path / "one.ipynb"
    path.write_text(json.dumps(given), encoding="utf-8")
    own = own_cells(small, read_cells(path))
    assert own.cells == () and own.left_empty == set(ALL)


def test_cells_of_their_own_stay_in_order(tmp_path, small, given) -> None:
    def add(notebook):
        notebook["cells"].insert(5, {"cell_type": "code", "metadata": {}, "source": ["import math\n", "y = 1"]})
        notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "def double(x): no code"})

    own = own_of(tmp_path, small, given, HandedIn(change=add))
    assert own.cells.index("import math\ny = 1") == 1 and len(own.cells) == 5


def test_an_answer_under_a_check_is_no_check(small) -> None:
    cell = Cell("def double(x):\n    return x\ncheck('double', double)", "", frozenset({"check"}), "check-double", True)
    assert own_cells(small, [cell]).answers["double"] == 0


@pytest.mark.parametrize(
    "source", ["check('double', double)", "# again\ncheck('double', double)\n\nprogress(3)", "checks.check('total', total);"]
)
def test_a_cell_that_only_checks_is_left_out(small, source: str) -> None:
    assert own_cells(small, [Cell(source, "", frozenset(), "", False)]).cells == ()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def double(x): return x", {"double"}),
        ("async def double(x): return x", {"double"}),
        ("class Counter(object): pass", {"Counter"}),
        ("double = lambda x: x", {"double"}),
        ("double: object = max", {"double"}),
        ("double == 3", set()),
        ("def double_it(x): return x", set()),
        ("if True:\n    def double(x): return x", set()),
    ],
)
def test_answers_are_found_by_the_name_they_define(small, source: str, names: set[str]) -> None:
    own = own_cells(small, [Cell(source, "", frozenset(), "", False)])
    assert {name for name, place in own.answers.items() if place is not None} == names


def test_a_tagged_cell_answers_where_no_cell_defines_the_name(small) -> None:
    cell = Cell("if True:\n    def double(x): return x", "double", frozenset({"stub"}), "", False)
    assert own_cells(small, [cell]).answers["double"] == 0


@pytest.mark.parametrize(
    "line", ["import gc", "sys._getframe(1)", "import ctypes", "torch.Tensor.__eq__ = f", "os.fork()", "import socket"]
)
def test_what_no_exercise_asks_for_is_pointed_out(small, line: str) -> None:
    cell = Cell(f"{line}\n{RIGHT['double']}", "", frozenset(), "", False)
    own = own_cells(small, [cell])
    assert own.notes["double"] and own.notes["double"][0].startswith("look: it ") and own.notes["total"] == ()


@pytest.mark.parametrize("answer", RIGHT.values())
def test_right_answers_are_not_pointed_out(small, answer: str) -> None:
    assert not any(own_cells(small, [Cell(answer, "", frozenset(), "", False)]).notes.values())


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{"cell_type": "code", "source": [1]}]}', "\x00"]
)
def test_what_is_no_notebook_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "one.ipynb"
    path.write_text(text)
    with pytest.raises(Unreadable, match="it is no notebook"):
        read_cells(path)


def test_links_are_refused(tmp_path: Path, given) -> None:
    (tmp_path / "real.ipynb").write_text(json.dumps(given))
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "real.ipynb")
    with pytest.raises(Unreadable, match="link"):
        read_cells(tmp_path / "link.ipynb")


def test_broken_metadata_does_no_harm(tmp_path: Path, small, given) -> None:
    for metadata in ({"tags": None}, {"tags": [3]}, {"nbgrader": []}, {"nbgrader": {"grade_id": 3}}, {"exercise": ["double"]}):
        notebook = copy.deepcopy(given)
        notebook["cells"].append({"cell_type": "code", "metadata": metadata, "source": RIGHT["double"]})
        path = tmp_path / "one.ipynb"
        path.write_text(json.dumps(notebook))
        assert answers(own_cells(small, read_cells(path))) == {"double": RIGHT["double"]}


def test_installs_are_left_out() -> None:
    assert without_installs("%pip install a\nx = 1\n  !pip install b") == "pass\nx = 1\n  pass"
    assert without_installs("y = 7 %pip") == "y = 7 %pip"
