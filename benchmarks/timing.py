"""Times contenders in turns, on a machine that others may be using: a sample counts where nothing else ran beside it.

In a round, every contender is sampled once, and each round begins with another one. Before a sample the harness waits for the
machine to fall quiet; afterwards it compares the processor time that the whole machine spent with what the sampled process spent.
Where other processes took more than a few percent, the sample is thrown away and taken again. Time that the machine's host gave to
others ("steal") counts as taken by them. Nothing here waits for ever: `TooBusy` says how far it came.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import psutil

__all__ = ["Contender", "Load", "Quiet", "Timing", "TooBusy", "measure", "ratios"]

TICK = 0.01
"""Seconds: systems count processor time in ticks, so a reading may be off by one."""


class Contender(Protocol):
    """Something that is timed: `sample` does its work once and returns the seconds that the timed part of it took."""

    name: str
    pid: int

    def sample(self) -> float: ...


class TooBusy(RuntimeError):
    """The machine was not quiet for long enough; the message says what was kept, what was not, and why."""


@dataclass(frozen=True)
class Load:
    """A reading of the machine's clocks, in seconds.

    Args:
        wall: a clock on the wall.
        busy: processor time that the machine has spent on anything, all its cores together.
        own: processor time of the processes that are being sampled.
    """

    wall: float
    busy: float
    own: float

    @classmethod
    def read(cls, pids: Sequence[int]) -> "Load":
        """Read the machine, and the processes of these numbers: this one and the one that is sampled, for example."""
        times = psutil.cpu_times()._asdict()
        idle = {"idle", "iowait", "guest", "guest_nice"}  # a guest's time is part of `user` already
        busy = sum(seconds for kind, seconds in times.items() if kind not in idle)
        own = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in set(pids))
        return cls(wall=time.perf_counter(), busy=busy, own=own)

    def others_since(self, before: "Load", *, cores: int) -> float:
        """Return the share of the machine that other processes took since an earlier reading; 1 is all of it, all the time.

        What clocks that count in ticks cannot tell apart is taken off, so a short sample is not refused for a rounding error.
        """
        others = (self.busy - before.busy) - (self.own - before.own) - 2 * TICK
        return max(0.0, others / (cores * max(self.wall - before.wall, TICK)))


@dataclass(frozen=True)
class Quiet:
    """When a sample counts, and how long to wait for that.

    Args:
        others: the largest share of the machine that other processes may take.
        settle: seconds that the machine has to be quiet before a sample.
        patience: seconds for a whole measurement, of all contenders.
        cores: of the machine; as many as there are when left out.
        read: reads the load; a test puts its own in place.
        sleep: waits; likewise.
    """

    others: float = 0.04
    settle: float = 0.1
    patience: float = 300.0
    cores: int = os.cpu_count() or 1
    read: Callable[[Sequence[int]], Load] = Load.read
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Timing:
    """What was measured of one contender: the seconds of every sample kept, in order of rounds, and how many were not."""

    name: str
    seconds: list[float] = field(default_factory=list)
    rejected: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third; smallest and largest where there are fewer than four samples."""
        if len(self.seconds) < 4:
            return min(self.seconds), max(self.seconds)
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def figures(self, scale: float = 1.0) -> dict[str, float | int]:
        """Return median, quartiles, extremes and counts for a table, times multiplied by `scale`."""
        low, high = self.quartiles
        seconds = {"median": self.median, "q1": low, "q3": high, "least": min(self.seconds), "most": max(self.seconds)}
        scaled = {name: value * scale for name, value in seconds.items()}
        return {**scaled, "samples": len(self.seconds), "rejected": self.rejected}


def measure(contenders: Sequence[Contender], *, rounds: int, quiet: Quiet | None = None) -> dict[str, Timing]:
    """Sample every contender `rounds` times, in turns, each sample in quiet.

    Args:
        contenders: with different names. Each is sampled once beforehand, to warm up; that sample is not kept.
        rounds: samples to keep of each.

    Raises:
        TooBusy: the patience ran out.
        ValueError: two contenders have the same name.
    """
    quiet = quiet or Quiet()
    timings = {contender.name: Timing(contender.name) for contender in contenders}
    if len(timings) < len(contenders):
        raise ValueError(f"contenders need different names; they are {[contender.name for contender in contenders]}")
    watch = _Watch(quiet, timings)
    for contender in contenders:
        contender.sample()
    for round_ in range(rounds):
        first = round_ % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            watch.keep_one(contender)
    return timings


def ratios(slower: Timing, faster: Timing) -> list[float]:
    """Return how many times as long one contender took as another, round by round."""
    return [a / b for a, b in zip(slower.seconds, faster.seconds, strict=True)]


class _Watch:
    """Takes samples until one was undisturbed, and gives up when the patience ends."""

    def __init__(self, quiet: Quiet, timings: Mapping[str, Timing]) -> None:
        self._quiet, self._timings = quiet, timings
        self._end = quiet.read([os.getpid()]).wall + quiet.patience

    def keep_one(self, contender: Contender) -> None:
        pids, timing = (os.getpid(), contender.pid), self._timings[contender.name]
        while True:
            self._settle(pids, contender)
            before = self._quiet.read(pids)
            seconds = contender.sample()
            others = self._quiet.read(pids).others_since(before, cores=self._quiet.cores)
            if others <= self._quiet.others:
                timing.seconds.append(seconds)
                return
            timing.rejected += 1
            self._check_patience(contender, others)

    def _settle(self, pids: Sequence[int], contender: Contender) -> None:
        """Wait until the machine did next to nothing for a moment."""
        while True:
            before = self._quiet.read(pids)
            self._quiet.sleep(self._quiet.settle)
            others = self._quiet.read(pids).others_since(before, cores=self._quiet.cores)
            if others <= self._quiet.others:
                return
            self._check_patience(contender, others)

    def _check_patience(self, contender: Contender, others: float) -> None:
        if self._quiet.read((os.getpid(),)).wall > self._end:
            kept = ", ".join(
                f"{timing.name}: {len(timing.seconds)} kept, {timing.rejected} not" for timing in self._timings.values()
            )
            raise TooBusy(
                f"the machine was not quiet for long enough within {self._quiet.patience:.0f} s: last, other processes took {others:.0%} "
                f"of it beside {contender.name}, and at most {self._quiet.others:.0%} may be. Samples: {kept}"
            )
