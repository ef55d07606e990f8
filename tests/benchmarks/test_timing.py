"""The harness of the speed benchmarks, with clocks and loads that the test turns itself: no time is ever waited for or asserted."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.timing import Load, Quiet, Timing, TooBusy, measure, ratios  # noqa: E402


class FakeMachine:
    """Two cores and a clock. Contenders spend its time; others do where the test says so."""

    def __init__(self) -> None:
        self.wall = self.busy = self.own = 0.0
        self.log: list[str] = []
        self.noise: Iterator[float] = iter(())
        self.pause_noise = 0.0

    def read(self, pids: Sequence[int]) -> Load:
        assert os.getpid() in pids
        return Load(wall=self.wall, busy=self.busy, own=self.own)

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.busy += 2 * seconds * self.pause_noise

    def work(self, seconds: float, *, others: float) -> None:
        """Run for some time on one core, while others take a share of the whole machine."""
        self.wall += seconds
        self.own += seconds
        self.busy += seconds + 2 * seconds * others

    def quiet(self, **options: object) -> Quiet:
        return Quiet(**{"others": 0.05, "cores": 2, "patience": 100.0, "read": self.read, "sleep": self.sleep, **options})


class FakeContender:
    def __init__(self, name: str, machine: FakeMachine, seconds: float) -> None:
        self.name, self.pid, self._machine, self._seconds, self.samples = name, 1, machine, seconds, 0

    def sample(self) -> float:
        self.samples += 1
        self._machine.log.append(self.name)
        self._machine.work(self._seconds, others=next(self._machine.noise, 0.0))
        return self._seconds * self.samples


def test_contenders_take_turns_and_each_round_begins_with_another() -> None:
    machine = FakeMachine()
    contenders = [FakeContender(name, machine, 1.0) for name in "abc"]
    timings = measure(contenders, rounds=4, quiet=machine.quiet())
    assert "".join(machine.log) == "abc" + "abc" + "bca" + "cab" + "abc", "the first round warms up"
    assert {len(timing.seconds) for timing in timings.values()} == {4}
    assert timings["a"].seconds == [2.0, 3.0, 4.0, 5.0], "the sample that warmed up is not kept"


def test_a_sample_that_others_disturbed_is_taken_again() -> None:
    machine = FakeMachine()
    machine.noise = iter([0.0, 0.0, 0.5, 0.02, 0.2, 0.9, 0.0])
    a, b = contenders = [FakeContender("a", machine, 1.0), FakeContender("b", machine, 1.0)]
    timings = measure(contenders, rounds=1, quiet=machine.quiet())
    assert (timings["a"].rejected, timings["b"].rejected) == (1, 2)
    assert timings["a"].seconds == [3.0] and timings["b"].seconds == [4.0]
    assert (a.samples, b.samples) == (3, 4)


def test_what_the_sampled_process_takes_itself_is_no_load() -> None:
    machine = FakeMachine()
    before = machine.read([os.getpid()])
    machine.work(3.0, others=0.0)
    assert machine.read([os.getpid()]).others_since(before, cores=2) == 0.0
    machine.work(1.0, others=0.25)
    assert machine.read([os.getpid()]).others_since(before, cores=2) == pytest.approx((2 * 0.25 - 0.02) / (2 * 4.0))


def test_no_sample_begins_before_the_machine_is_quiet() -> None:
    machine = FakeMachine()
    machine.pause_noise = 0.8
    slept = []

    def sleep(seconds: float) -> None:
        FakeMachine.sleep(machine, seconds)
        slept.append(seconds)
        machine.pause_noise = 0.8 if len(slept) < 5 else 0.0

    timings = measure([FakeContender("a", machine, 1.0)], rounds=1, quiet=machine.quiet(sleep=sleep, settle=0.5))
    assert slept == [0.5] * 6 and timings["a"].rejected == 0


@pytest.mark.parametrize("where", ["while a sample runs", "before it"])
def test_it_gives_up_in_bounded_time_and_says_how_far_it_came(where: str) -> None:
    machine = FakeMachine()
    if where == "before it":
        machine.pause_noise = 0.5
    else:
        machine.noise = iter([0.0, 0.0, 0.0] + [0.5] * 1000)
    contenders = [FakeContender("a", machine, 1.0), FakeContender("b", machine, 1.0)]
    with pytest.raises(TooBusy, match=r"within 30 s: .* took \d+% .* beside [ab], and at most 5% may be.*a: \d+ kept"):
        measure(contenders, rounds=5, quiet=machine.quiet(patience=30.0, settle=0.1))
    assert machine.wall < 40


def test_contenders_of_one_name_are_refused() -> None:
    machine = FakeMachine()
    with pytest.raises(ValueError, match=r"different names; they are \['a', 'a'\]"):
        measure([FakeContender("a", machine, 1.0)] * 2, rounds=1, quiet=machine.quiet())


def test_figures_are_median_quartiles_and_extremes() -> None:
    timing = Timing("a", [5.0, 1.0, 2.0, 4.0, 3.0], rejected=2)
    assert timing.figures(scale=10) == {"median": 30, "q1": 20, "q3": 40, "least": 10, "most": 50, "samples": 5, "rejected": 2}
    assert Timing("a", [3.0, 1.0]).quartiles == (1.0, 3.0)
    assert ratios(Timing("a", [4.0, 9.0]), Timing("b", [2.0, 3.0])) == [2.0, 3.0]
    with pytest.raises(ValueError):
        ratios(Timing("a", [4.0]), Timing("b", [2.0, 3.0]))


def test_the_load_of_this_machine_is_read() -> None:
    before = Load.read([os.getpid()])
    while Load.read([os.getpid()]).own == before.own:
        sum(range(10_000))
    after = Load.read([os.getpid()])
    assert after.wall > before.wall and after.busy >= before.busy and after.own > before.own
    assert 0 <= after.others_since(before, cores=os.cpu_count() or 1)
