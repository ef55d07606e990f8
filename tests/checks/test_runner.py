"""`check` itself: what it says, in how many lines, how it stops what does not end, and what it leaves as it was."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Thread

import pytest
import torch

from llama3_edu.checks import EXERCISES, Case, CheckFailed, Exercise, NotDoneYet, check
from llama3_edu.checks.compare import difference
from llama3_edu.checks.runner import Exercises
from llama3_edu.checks.runaway import TooLong, call_within


def right(x, n_rep):
    return x.repeat_interleave(n_rep, dim=2)


def swallow_everything():
    while True:
        try:
            time.sleep(0.3)
        except BaseException:
            continue


def swallow_and_compute():
    number = 0
    while True:
        try:
            number += 1
        except BaseException:
            number = 0


def spin():
    while True:
        pass


RUNAWAYS = [spin, swallow_everything, swallow_and_compute]


@pytest.mark.parametrize("runaway", RUNAWAYS)
def test_a_runaway_is_stopped(runaway: Callable):
    with pytest.raises(CheckFailed, match=r"^repeat_kv: stopped after 0.2 s. It was at x of shape \[1, 1, 1, 1\]"):
        check("repeat_kv", lambda x, n_rep: runaway(), seconds=0.2)


def test_after_a_runaway_everything_is_as_before():
    handler, tracer = signal.getsignal(signal.SIGALRM), sys.gettrace()
    for runaway in RUNAWAYS:
        with pytest.raises(TooLong):
            call_within(0.1, runaway)
    assert signal.getsignal(signal.SIGALRM) is handler and sys.gettrace() is tracer
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    check("repeat_kv", right)


def test_a_runaway_is_stopped_outside_the_main_thread_too():
    said = []

    def run():
        try:
            check("repeat_kv", lambda x, n_rep: spin(), seconds=0.2)
        except CheckFailed as failed:
            said.append(str(failed))

    thread = Thread(target=run)
    thread.start()
    thread.join()
    assert said and "stopped after 0.2 s" in said[0]


def test_results_and_errors_come_through():
    assert call_within(1, lambda: 7) == 7
    for error in (KeyError("a"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            call_within(1, lambda: (_ for _ in ()).throw(error))


def test_an_error_is_told_with_its_line():
    def answer(x, n_rep):
        y = x + 1
        return y[7]

    line = answer.__code__.co_firstlineno + 2
    with pytest.raises(CheckFailed, match=f"raised IndexError: .*, in line {line} of its cell"):
        check("repeat_kv", answer)


def test_an_error_in_a_class_is_told_with_its_line():
    class FreeList:
        def __init__(self, num_blocks):
            self.num_free = num_blocks

        def allocate(self, count):
            return {}[count]

    line = FreeList.allocate.__code__.co_firstlineno + 1
    with pytest.raises(CheckFailed, match=f"raised KeyError: .*, in line {line} of its cell"):
        check("FreeList", FreeList)


def test_even_an_exit_is_told():
    with pytest.raises(CheckFailed, match="raised SystemExit"):
        check("repeat_kv", lambda x, n_rep: sys.exit(3))


def test_a_missing_return_is_told():
    def answer(x, n_rep):
        x.repeat_interleave(n_rep, dim=2)

    with pytest.raises(CheckFailed, match="Is a `return` missing?"):
        check("repeat_kv", answer)


def test_what_was_called_already_is_told():
    with pytest.raises(CheckFailed, match="Hand in the function itself, without calling it"):
        check("repeat_kv", right(torch.zeros(1, 1, 1, 1), 1))


def test_a_failure_names_a_seed_that_repeats_it():
    with pytest.raises(CheckFailed, match=r"\(seed=(\d+)\)") as first:
        check("repeat_kv", lambda x, n_rep: right(x, n_rep) + 1)
    seed = int(str(first.value).rpartition("seed=")[2].rstrip(")"))
    with pytest.raises(CheckFailed) as again:
        check("repeat_kv", lambda x, n_rep: right(x, n_rep) + 1, seed=seed)
    assert str(again.value) == str(first.value)


def test_seeds_are_fresh_and_the_learners_own_randomness_is_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    seeds = set()
    for _ in range(3):
        with pytest.raises(CheckFailed) as failed:
            check("repeat_kv", lambda x, n_rep: x + 1)
        seeds.add(str(failed.value).rpartition("seed=")[2])
    assert len(seeds) == 3
    assert torch.equal(torch.rand(3), wanted)


def test_the_first_failing_input_is_the_smallest():
    def wrong_from_three_heads_on(x, n_rep):
        return right(x, n_rep) + (x.shape[2] > 3)

    with pytest.raises(CheckFailed, match=r"for x of shape \[2, 5, 4, 8\]"):
        check("repeat_kv", wrong_from_three_heads_on)


def test_progress_is_told(capsys: pytest.CaptureFixture[str]):
    def cases(generator):
        yield Case("1", (1,), 2)

    exercises = Exercises(tuple(Exercise(name, 3, "", 1, 5, cases, "") for name in ("one", "two")))
    assert exercises.progress(3) == "Chapter 3: 0 of 2 solved (○ one, ○ two)."
    exercises.check("two", lambda x: x + 1)
    assert capsys.readouterr().out.splitlines()[-1] == "Chapter 3: 1 of 2 solved (○ one, ✓ two)."
    with pytest.raises(CheckFailed):
        exercises.check("one", lambda x: x)
    assert exercises.progress(3) == "Chapter 3: 1 of 2 solved (○ one, ✓ two)."


def test_unknown_and_doubled_names_are_refused():
    with pytest.raises(KeyError, match="there is no exercise 'repeat'; there are .*repeat_kv"):
        check("repeat", right)
    exercise = next(iter(EXERCISES))
    with pytest.raises(ValueError, match="a name of its own"):
        Exercises((exercise, exercise))


def test_an_exercise_without_inputs_never_passes():
    with pytest.raises(ValueError, match="should have inputs"):
        Exercises((Exercise("empty", 0, "", 1, 5, lambda generator: (), ""),)).check("empty", lambda: 1)


IN_IPYTHON = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("from llama3_edu.checks import check")
shell.run_cell("def stub(x, n_rep):\\n    raise NotImplementedError")
shell.run_cell("check('repeat_kv', stub)")
shell.run_cell("check('repeat_kv', lambda x, n_rep: x)")
"""


def test_ipython_shows_one_line_and_no_traceback():
    done = subprocess.run([sys.executable, "-c", IN_IPYTHON], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == "○ repeat_kv: not done yet."
    assert lines[1].startswith("✗ repeat_kv: for x of shape") and len(lines) == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_a_check_that_failed_is_an_assertion_for_pytest():
    assert issubclass(NotDoneYet, CheckFailed) and issubclass(CheckFailed, AssertionError)


@pytest.mark.parametrize(
    ("came", "wanted", "tolerance", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), 0, "a tensor of shape [2, 3] came, wanted is [3, 2]"),
        (torch.zeros(2).double(), torch.zeros(2), 0, "a tensor of torch.float64 came, wanted is torch.float32"),
        (torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0]), 0, "at [1], 5 came, wanted is 2"),
        (torch.tensor([1.0, 2.001]), torch.tensor([1.0, 2.0]), 1e-3, ""),
        (torch.tensor([1.0, 2.003]), torch.tensor([1.0, 2.0]), 1e-3, "at [1], 2.003 came, wanted is 2"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), 1e9, "at [0], nan came, wanted is 1"),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), 0, ""),
        (torch.tensor([float("inf")]), torch.tensor([1.0]), 1e-3, "at [0], inf came, wanted is 1"),
        (torch.tensor(3), torch.tensor(4), 0, "3 came, wanted is 4"),
        (4, torch.tensor(4), 0, "4 came, wanted is a tensor of shape []"),
        (torch.tensor(4), 4, 0, "a tensor of shape [] came, wanted is 4"),
        (4.0, 4, 0, "4 (float) came, wanted is 4 (int)"),
        (True, 1, 0, "True (bool) came, wanted is 1 (int)"),
        (1, 1.0, 0, ""),
        (0.1 + 0.2, 0.3, 1e-9, ""),
        ([1, 2], (1, 2), 0, "[1, 2] came, wanted is a tuple: (1, 2)"),
        ([1, 2, 3], [1, 2], 0, "[1, 2, 3] came, of length 3, wanted is [1, 2], of length 2"),
        ([1, 3], [1, 2], 0, "in item 1 of the list, 3 came, wanted is 2"),
        ({"a": 1}, {"a": 2}, 0, "under 'a', 1 came, wanted is 2"),
        ({"b": 1}, {"a": 1}, 0, "keys ['b'] came, wanted are ['a']"),
        (None, 3, 0, "None (NoneType) came, wanted is 3 (int)"),
        ("a", "b", 0, "'a' came, wanted is 'b'"),
    ],
)
def test_differences_are_told(came, wanted, tolerance, said):
    assert difference(came, wanted, tolerance=tolerance) == said
