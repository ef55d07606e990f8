"""Of long runs some steps stand for all: which, how many, and what is said about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama3_edu as le
from llama3_edu.thinning import MOST_STEPS, evenly, kept_steps
from llama3_edu.trace import Frames


def run_of(num_steps: int) -> Frames:
    return {"tokens": ["a"], "steps": [{"number": number, "summary": f"Step {number}."} for number in range(num_steps)]}


@given(num_steps=st.integers(1, 400), most=st.integers(2, 60), data=st.data())
def test_the_first_the_last_and_the_important_steps_are_kept(num_steps: int, most: int, data: st.DataObject):
    important = data.draw(st.sets(st.integers(0, num_steps - 1), max_size=80))
    kept = kept_steps(num_steps, most=most, important=important)
    assert len(kept) == min(num_steps, most)
    assert kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == num_steps - 1
    wanted = important | {0, num_steps - 1}
    if num_steps > most:
        assert wanted <= set(kept) or set(kept) <= wanted


@given(num_steps=st.integers(2, 5000), most=st.integers(2, 300))
def test_what_is_kept_is_spread_evenly(num_steps: int, most: int):
    kept = kept_steps(num_steps, most=most)
    gaps = [after - before for before, after in zip(kept, kept[1:])]
    assert max(gaps) <= 2 * num_steps / min(num_steps, most) + 1


@given(items=st.lists(st.integers(), max_size=50), most=st.integers(0, 60))
def test_evenly_keeps_order_and_number(items: list[int], most: int):
    numbered = list(enumerate(items))
    found = evenly(numbered, most)
    assert len(found) == min(len(items), most)
    assert [index for index, _ in found] == sorted({index for index, _ in found})


def test_a_note_says_how_many_there_were():
    run = run_of(10_000)
    frames = le.thinned(run, most=3_000, important=[7, 4321])
    assert frames["note"] == "3,000 of 10,000 steps are shown."
    assert {0, 7, 4321, 9_999} <= {step["number"] for step in frames["steps"]}
    assert all(step == run["steps"][step["number"]] for step in frames["steps"])
    again = le.thinned(frames, most=100)
    assert again["note"] == "100 of 10,000 steps are shown.", "thinned twice, it is still the run that is counted"


def test_a_short_run_is_left_as_it_is():
    assert le.thinned(run_of(MOST_STEPS)) == run_of(MOST_STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"most": 1}, "most should be at least 2, to keep the first and the last step; it is 1"),
        ({"important": [5, 12]}, "the steps go from 0 to 9; important names 12"),
        ({"important": [-1, 5]}, "the steps go from 0 to 9; important names -1"),
    ],
)
def test_what_cannot_be_kept_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        le.thinned(run_of(10), **options)
