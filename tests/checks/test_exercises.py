"""Every exercise: its solution is right, its stub is not done yet, and wrong answers are told what is wrong with them."""

import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest
from exercise_notebooks import all_written

from llama3_edu.checks import EXERCISES, CheckFailed, NotDoneYet, check

MODULES = sorted((Path(__file__).parent / "mutants").glob("chapter_*.py"))
MUTANTS = {
    name: wrong
    for path in MODULES
    for name, wrong in importlib.import_module(f"mutants.{path.stem}").MUTANTS.items()
}  # fmt: skip
"""For each exercise, its wrong answers by name: the code, and words from the message meant for it."""

LEAST_MUTANTS = 3

every_exercise = pytest.mark.parametrize("name", [exercise.name for exercise in EXERCISES])
every_mutant = pytest.mark.parametrize(
    ("name", "code", "told"),
    [pytest.param(name, *wrong, id=f"{name}-{what}") for name, mutants in MUTANTS.items() for what, wrong in mutants.items()],
)


def test_notebooks_and_checks_have_the_same_exercises():
    assert {exercise.name for exercise in EXERCISES} == set(all_written()) == set(MUTANTS)


def test_an_exercise_stands_in_the_notebook_of_its_chapter():
    for exercise in EXERCISES:
        path, _ = all_written()[exercise.name]
        assert path.stem.startswith(f"{exercise.chapter:02d}_"), f"{exercise.name} is of chapter {exercise.chapter}"
        assert (path.parents[1] / path.name).exists(), "an exercise notebook has its chapter's name"


def test_every_chapter_has_two_to_four_exercises():
    counts = defaultdict(int)
    for exercise in EXERCISES:
        counts[exercise.chapter] += 1
    assert all(2 <= count <= 4 for count in counts.values()), dict(counts)


@every_exercise
def test_the_notebook_says_how_hard_it_is_and_how_long_it_takes(name: str):
    exercise, (_, written) = EXERCISES[name], all_written()[name]
    assert re.search(rf"^{'★' * exercise.stars} · {exercise.minutes} minutes$", written.statement, re.MULTILINE)
    assert written.check == f'check("{name}", {name})' and "raises-exception" in written.check_tags
    assert written.hints.count("<summary>") == written.hints.count("</details>") >= 1
    assert re.search(r"```\n\n.*\w.*\n", written.solution), "a solution gives its reason"


@every_exercise
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_solution_is_right(name: str, seed: int, capsys: pytest.CaptureFixture[str]):
    written = all_written()[name][1]
    check(name, written.answer(written.solution_code), seed=seed)
    assert f"✓ {name}: right for " in capsys.readouterr().out


@every_exercise
def test_the_stub_is_not_done_yet(name: str):
    written = all_written()[name][1]
    with pytest.raises(NotDoneYet, match=f"^{name}: not done yet.$"):
        check(name, written.answer(written.stub))


@every_exercise
def test_there_are_enough_wrong_answers(name: str):
    assert len(MUTANTS[name]) >= LEAST_MUTANTS
    told = [words for _, words in MUTANTS[name].values()]
    assert len(set(told)) >= LEAST_MUTANTS, "wrong answers that differ are told different things"


@every_mutant
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wrong_answer_is_told_what_is_wrong(name: str, code: str, told: str, seed: int):
    with pytest.raises(CheckFailed) as failed:
        check(name, all_written()[name][1].answer(code), seed=seed)
    assert not isinstance(failed.value, NotDoneYet)
    assert told in str(failed.value)
    assert "\n" not in str(failed.value) and len(str(failed.value)) < 600


@every_exercise
def test_every_hint_is_given_to_some_wrong_answer(name: str):
    given = set()
    for code, _ in MUTANTS[name].values():
        with pytest.raises(CheckFailed) as failed:
            check(name, all_written()[name][1].answer(code), seed=0)
        given |= {suspect.hint for suspect in EXERCISES[name].suspects if suspect.hint in str(failed.value)}
    assert {suspect.hint for suspect in EXERCISES[name].suspects} == given
