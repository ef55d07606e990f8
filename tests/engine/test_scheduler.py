"""Who computes what: decided over lengths and counts. No model runs here."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG

from llama3_edu import BlockPool, PrefixCache
from llama3_edu.cache.blocks import blocks_for
from llama3_edu.engine import NoPrefixCache, Scheduler, Sequence
from llama3_edu.engine.scheduler import divide, group
from llama3_edu.events import Event, SequenceAdmitted, SequenceForked, SequencePreempted

SHAPE = replace(CONFIG, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2)
lengths = st.lists(st.integers(1, 40), max_size=8)


def sequence(number: int, length: int) -> Sequence:
    return Sequence(id=number, token_ids=[number] * length, prompt_len=length, max_new_tokens=100)


class Played:
    """A scheduler whose steps are played without a model: what is scheduled counts as computed, and a token is chosen."""

    def __init__(
        self, *, num_blocks: int, max_batch: int = 4, max_tokens_per_step: int = 10, prefix_caching: bool = False,
        continuous: bool = True,
    ) -> None:  # fmt: skip
        self.events: list[Event] = []
        self.pool = BlockPool(SHAPE, num_blocks=num_blocks, block_size=4)
        self.prefix = PrefixCache(self.pool) if prefix_caching else NoPrefixCache()
        self.scheduler = Scheduler(
            self.pool, self.prefix, max_batch=max_batch, max_tokens_per_step=max_tokens_per_step, continuous=continuous,
            observer=self.events.append,
        )  # fmt: skip

    def add(self, *new: Sequence) -> None:
        for each in new:
            self.scheduler.add(each)

    def step(self) -> list[tuple[int, int]]:
        """Play one step; return who computed how many tokens."""
        chunks = self.scheduler.schedule()
        done = [(chunk.sequence.id, chunk.num_tokens) for chunk in chunks]
        for chunk in chunks:
            one = chunk.sequence
            one.num_cached += chunk.num_tokens
            missing = blocks_for(one.num_cached, self.pool.block_size) - len(one.block_table)
            one.block_table += self.pool.allocate_many(missing)  # or the scheduler promised too much
            self.scheduler.publish(one)
            if one.num_pending == 0:
                one.token_ids.append(one.id)
        return done

    def running(self) -> list[int]:
        return [each.id for each in self.scheduler.running]

    def waiting(self) -> list[int]:
        return [each.id for each in self.scheduler.waiting]

    def of(self, kind: type[Event]) -> list[int]:
        return [event.sequence for event in self.events if isinstance(event, kind)]


# -- Tokens --


@given(pending=lengths, budget=st.integers(1, 60))
def test_a_step_is_divided_without_rest_and_next_tokens_come_first(pending: list[int], budget: int) -> None:
    shares = divide(pending, budget=budget)
    assert sum(shares) == min(budget, sum(pending))
    assert all(0 <= share <= wanted for share, wanted in zip(shares, pending, strict=True))
    single = [share for share, wanted in zip(shares, pending) if wanted == 1]
    assert sum(single) == min(budget, len(single))
    longer = [(share, wanted) for share, wanted in zip(shares, pending) if wanted > 1]
    assert sum(0 < share < wanted for share, wanted in longer) <= 1, "one prompt at most is left half done by one step"
    served = [share > 0 for share, _ in longer]
    assert served == sorted(served, reverse=True), "first come, first served"


@given(rows=lengths)
def test_no_row_is_padded_to_more_than_twice_its_length(rows: list[int]) -> None:
    groups = group(rows)
    assert sorted(row for rows_of_one in groups for row in rows_of_one) == list(range(len(rows)))
    for one in groups:
        assert max(rows[row] for row in one) <= 2 * min(rows[row] for row in one)
    firsts = [rows[one[0]] for one in groups]
    assert all(first > 2 * second or first > second for first, second in zip(firsts, firsts[1:]))


def test_alike_rows_run_together() -> None:
    assert group([1, 60, 1, 64, 1]) == [[3, 1], [0, 2, 4]]
    assert group([3, 2, 2]) == [[0, 1, 2]]
    assert group([]) == []


# -- Admission --


def test_sequences_come_in_by_order_of_arrival_as_long_as_there_is_a_place() -> None:
    played = Played(num_blocks=20, max_batch=2)
    played.add(sequence(2, 3), sequence(0, 3), sequence(1, 3))
    assert played.step() == [(0, 3), (1, 3)]
    assert played.waiting() == [2]
    played.scheduler.remove(played.scheduler.running[0])
    assert played.step() == [(1, 1), (2, 3)]
    assert played.of(SequenceAdmitted) == [0, 1, 2]


def test_a_static_batch_ends_before_the_next_begins() -> None:
    played = Played(num_blocks=20, max_batch=2, continuous=False)
    played.add(sequence(0, 3), sequence(1, 3), sequence(2, 3), sequence(3, 3))
    assert played.step() == [(0, 3), (1, 3)]
    played.scheduler.remove(played.scheduler.running[0])
    assert played.step() == [(1, 1)], "the place of the one that ended stays empty"
    played.scheduler.remove(played.scheduler.running[0])
    assert played.step() == [(2, 3), (3, 3)]


def test_a_static_batch_is_filled_even_where_its_prompts_take_several_steps() -> None:
    played = Played(num_blocks=20, max_batch=3, continuous=False)
    played.add(sequence(0, 12), sequence(1, 9), sequence(2, 2), sequence(3, 2))
    assert played.step() == [(0, 10)]
    assert (played.running(), played.waiting()) == ([0, 1, 2], [3])
    assert played.step() == [(0, 2), (1, 8)]
    assert played.step() == [(0, 1), (1, 1), (2, 2)]


def test_a_long_prompt_is_computed_in_chunks_beside_next_tokens() -> None:
    played = Played(num_blocks=20)
    played.add(sequence(0, 2))
    assert played.step() == [(0, 2)]
    played.add(sequence(1, 24), sequence(2, 3))
    assert played.step() == [(0, 1), (1, 9)]
    assert played.step() == [(0, 1), (1, 9)]
    assert played.step() == [(0, 1), (1, 6), (2, 3)]
    assert played.step() == [(0, 1), (1, 1), (2, 1)]


def test_nobody_overtakes_one_that_does_not_fit_yet() -> None:
    played = Played(num_blocks=6)
    played.add(sequence(0, 8), sequence(1, 16), sequence(2, 1))
    played.step()
    assert (played.running(), played.waiting()) == ([0], [1, 2])


def test_a_prompt_comes_in_only_where_all_of_it_fits_and_the_others_may_grow() -> None:
    for num_blocks, comes_in in ((4, False), (5, True)):
        played = Played(num_blocks=num_blocks)
        played.add(sequence(0, 8), sequence(1, 8))
        played.step()
        assert (1 in played.running()) == comes_in


def test_blocks_that_only_the_prefix_cache_holds_count_once() -> None:
    # Two blocks are found, and to be had as well. Taking them over uses them up.
    played = Played(num_blocks=3, prefix_caching=True)
    first = sequence(0, 8)
    played.add(first)
    played.step()
    played.scheduler.remove(first)
    assert played.pool.num_available == 3
    again = sequence(0, 12)
    played.add(again)
    assert played.step() == [(0, 4)]
    assert len(again.block_table) == 3 and played.pool.num_available == 0


# -- Preemption --


def test_the_last_one_in_gives_way_and_comes_back_before_those_behind_it() -> None:
    played = Played(num_blocks=6, max_tokens_per_step=30)
    played.add(sequence(0, 7), sequence(1, 8), sequence(2, 4))
    assert played.step() == [(0, 7), (1, 8)]
    while not played.of(SequencePreempted):
        played.step()
    assert (played.running(), played.waiting()) == ([0], [1, 2])
    lost = next(event for event in played.events if isinstance(event, SequencePreempted))
    back = played.scheduler.waiting[0]
    assert lost.num_lost == len(back.token_ids) - 1 and back.block_table == [] and back.num_cached == 0
    played.scheduler.remove(played.scheduler.running[0])
    assert played.step() == [(1, len(back.token_ids) - 1), (2, 4)]


@given(prompts=st.lists(st.integers(1, 20), min_size=1, max_size=6), num_blocks=st.integers(8, 12), prefix_caching=st.booleans())
def test_whoever_fits_alone_gets_through(prompts: list[int], num_blocks: int, prefix_caching: bool) -> None:
    played = Played(num_blocks=num_blocks, max_batch=3, prefix_caching=prefix_caching)
    waiting = [sequence(number, length) for number, length in enumerate(prompts)]
    played.add(*waiting)
    for _ in range(500):
        assert played.step() or not waiting, "a step with work to do computed nothing"
        for one in [one for one in waiting if len(one.token_ids) - one.prompt_len >= 10]:
            played.scheduler.remove(one)
            waiting.remove(one)
    assert waiting == [] and played.pool.num_available == num_blocks


# -- Forks --


def test_a_fork_runs_over_the_same_blocks_or_waits_without_any() -> None:
    played = Played(num_blocks=10, max_batch=2)
    parent, one, other = sequence(0, 6), sequence(1, 6), sequence(2, 6)
    played.add(parent)
    played.step()
    played.scheduler.fork(parent, one)
    played.scheduler.fork(parent, other)
    assert one.block_table == parent.block_table is not one.block_table
    assert [played.pool.ref_count(block) for block in parent.block_table] == [2, 2]
    assert (other.block_table, played.waiting()) == ([], [2])
    assert [event.blocks for event in played.events if isinstance(event, SequenceForked)] == [tuple(parent.block_table), ()]


def test_the_copy_a_fork_will_make_is_counted() -> None:
    played = Played(num_blocks=3, max_batch=2)
    parent, child = sequence(0, 6), sequence(1, 6)
    played.add(parent)
    played.step()
    played.scheduler.fork(parent, child)
    child.token_ids.append(9)
    blocker = played.pool.allocate()
    assert [chunk.sequence.id for chunk in played.scheduler.schedule()] == [0], "there is no block for a copy"
    assert played.of(SequencePreempted) == [1]
    played.pool.release(blocker)


@pytest.mark.parametrize("wrong", ["max_batch", "max_tokens_per_step"])
def test_sizes_below_one_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"{wrong} should be at least 1; it is 0"):
        Played(num_blocks=4, **{wrong: 0})
