"""Random arrivals, forks, cancellations and preemptions in tiny pools: every output is its lone run's, nothing leaks."""

from collections import Counter

import pytest
from engine_life import LifeOfEngine
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

ENOUGH = {
    "StepScheduled": 300,
    "shared forks": 30,
    "BlockCopied": 10,
    "PrefixReused": 5,
    "BlockEvicted": 20,
    "unasked preemptions": 20,
}
"""A life without trouble proves nothing."""


@pytest.mark.parametrize("lives, steps", [(25, 25), pytest.param(150, 50, marks=pytest.mark.slow)])
def test_every_request_gets_what_it_gets_alone(lives: int, steps: int) -> None:
    class Life(LifeOfEngine):
        seen = Counter()

    run_state_machine_as_test(Life, settings=settings(max_examples=lives, stateful_step_count=steps))
    Life.seen["unasked preemptions"] = Life.seen["SequencePreempted"] - Life.seen["preemptions on request"]
    assert {name: Life.seen[name] for name, least in ENOUGH.items() if Life.seen[name] < least * lives / 40} == {}
