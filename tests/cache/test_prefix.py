"""What two prompts begin with is computed once, and never the wrong prompt's."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIG, assert_same, random_model

import llama3_edu.cache.prefix
from llama3_edu import BlockPool, OutOfBlocks, PagedCache, PrefixCache
from llama3_edu.cache import chain_hash
from llama3_edu.cache.blocks import release_all
from llama3_edu.events import BlockEvicted, BlockPublished, Event, PrefixReused, PrefixTouched

SIZE = 4
MODEL = random_model()


class Served:
    """A pool with a prefix cache, and prompts run the way an engine would."""

    def __init__(self, num_blocks: int = 12) -> None:
        self.events: list[Event] = []
        self.pool = BlockPool(CONFIG, num_blocks=num_blocks, block_size=SIZE, dtype=torch.float64)
        self.prefix = PrefixCache(self.pool, observer=self.events.append)
        self.num_run = 0

    def run(self, ids: list[int], *, salt: str = "") -> list[int]:
        """Run a prompt, check its last logits, publish it; return its block table."""
        table = self.prefix.acquire(ids, salt=salt)
        cached = len(table) * SIZE
        logits = MODEL(torch.tensor([ids[cached:]], dtype=torch.long), PagedCache(self.pool, [table], [cached]))
        assert_same(logits[0], MODEL(torch.tensor([ids]))[0, cached:])
        self.num_run += len(ids) - cached
        self.prefix.insert(ids, table, salt=salt)
        return table

    def finish(self, ids: list[int], *, salt: str = "") -> None:
        release_all(self.pool, self.run(ids, salt=salt))

    def state(self) -> tuple[object, ...]:
        return self.prefix.blocks, [self.pool.ref_count(block) for block in range(self.pool.num_blocks)], len(self.events)


def count(first: int, length: int) -> list[int]:
    return [(first + index) % 60 for index in range(length)]


def test_what_prompts_begin_with_is_computed_once() -> None:
    served = Served()
    system = count(0, 10)
    first = served.run(system + [50, 51, 52])
    second = served.run(system + [55, 56])
    assert first[:2] == second[:2] and first[2:] != second[2:]
    assert served.num_run == 13 + 4
    assert [served.pool.ref_count(block) for block in first] == [3, 3, 2, 1]


@pytest.mark.parametrize("length", range(1, 14))
def test_a_prompt_cached_to_its_end_still_has_logits_and_writes_no_shared_block(length: int) -> None:
    served = Served()
    ids = count(0, length)
    first = served.run(ids)
    before = served.pool.store.read(0, torch.tensor([first]))[0][0, :length].clone()
    assert len(served.prefix.match(ids)) == (length - 1) // SIZE
    served.run(ids)
    assert 1 <= served.num_run - length <= SIZE
    assert torch.equal(served.pool.store.read(0, torch.tensor([first]))[0][0, :length], before)


def test_looking_changes_nothing() -> None:
    served = Served()
    served.finish(count(0, 9))
    served.finish(count(20, 9))
    before = served.state()
    assert served.prefix.match(count(0, 9)) == served.prefix.blocks[::-1][2:]
    assert served.prefix.match(count(1, 9)) == served.prefix.match([]) == []
    assert served.state() == before


def test_equal_blocks_after_different_beginnings_are_different() -> None:
    served = Served()
    served.run([1, 2, 3, 4, 9, 9, 9, 9, 5])
    served.run([4, 3, 2, 1, 9, 9, 9, 9, 5])
    assert served.num_run == 18 and len(served.prefix) == 4


@pytest.mark.parametrize("ids", [[2, 1, 3, 4, 5], [1, 2, 3, 5, 5], [0, 1, 2, 3, 4]])
def test_other_tokens_are_no_match(ids: list[int]) -> None:
    served = Served()
    served.run([1, 2, 3, 4, 5])
    assert served.prefix.match(ids) == [] and served.prefix.match([1, 2, 3, 4, 9]) != []


def test_salts_share_nothing() -> None:
    served = Served()
    mine, yours = served.run(count(0, 9), salt="mine"), served.run(count(0, 9), salt="yours")
    assert not set(mine) & set(yours)
    matches = [served.prefix.match(count(0, 9), salt=salt) for salt in ("mine", "yours", "")]
    assert matches == [mine[:2], yours[:2], []]


@pytest.mark.parametrize("salts", [("", ""), ("a", "b")])
def test_a_collision_of_names_returns_nobody_elses_keys(monkeypatch: pytest.MonkeyPatch, salts: tuple[str, str]) -> None:
    monkeypatch.setattr(llama3_edu.cache.prefix, "chain_hash", lambda parent, token_ids: b"same")
    served = Served()
    for ids in (count(0, 9), count(20, 9), count(0, 13), [*count(20, 4), *count(0, 9)]):
        for salt in salts:
            served.finish(ids, salt=salt)
    assert served.prefix.match(count(20, 9), salt=salts[0]) == []
    assert served.prefix.match([*count(20, 4), *count(0, 9)], salt=salts[0]) == []
    assert served.prefix.match(count(0, 9), salt=salts[0]) != []
    assert (served.prefix.match(count(0, 9), salt=salts[1]) == []) == (salts[0] != salts[1])


def test_a_collision_of_later_blocks_is_seen_through_their_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks are named by their own tokens alone: what every chain of hashes must rule out.
    monkeypatch.setattr(llama3_edu.cache.prefix, "chain_hash", lambda parent, token_ids: chain_hash(b"", token_ids))
    served = Served()
    served.finish([1, 2, 3, 4, 9, 9, 9, 9, 5])
    served.finish([4, 3, 2, 1, 9, 9, 9, 9, 5])
    assert len(served.prefix.match([1, 2, 3, 4, 9, 9, 9, 9, 5])) == 2
    assert len(served.prefix.match([4, 3, 2, 1, 9, 9, 9, 9, 5])) == 1


def test_two_equal_prompts_in_one_step_end_up_sharing() -> None:
    served = Served()
    ids = count(0, 9)
    tables = [served.prefix.acquire(ids), served.prefix.acquire(ids)]
    logits = MODEL(torch.tensor([ids, ids]), PagedCache(served.pool, tables))
    assert_same(logits, MODEL(torch.tensor([ids, ids])))
    assert [served.prefix.insert(ids, table) for table in tables] == [2, 0]
    assert tables[0][:2] == tables[1][:2] and tables[0][2] != tables[1][2]
    assert served.pool.num_used == 4
    step = MODEL(torch.tensor([[7], [8]]), PagedCache(served.pool, tables, [9, 9]))
    assert_same(step[:, 0], torch.stack([MODEL(torch.tensor([[*ids, last]]))[0, -1] for last in (7, 8)]))


def test_publishing_again_changes_nothing() -> None:
    served = Served()
    ids = count(0, 9)
    table = served.run(ids)
    before = served.state()
    assert served.prefix.insert(ids, table) == 0 and served.state() == before


def test_a_table_too_short_for_its_tokens_is_refused() -> None:
    served = Served()
    with pytest.raises(ValueError, match="9 tokens fill 2 blocks; the block table has 1"):
        served.prefix.insert(count(0, 9), served.pool.allocate_many(1))
    assert len(served.prefix) == 0


@pytest.mark.parametrize(("ids", "salt"), [(count(1, 9), ""), (count(0, 9), "another")])
def test_a_block_is_published_for_one_beginning_alone(ids: list[int], salt: str) -> None:
    served = Served()
    table = served.run(count(0, 9))
    before = served.state()
    with pytest.raises(ValueError, match=f"block {table[0]} is published already, for other tokens or under another salt"):
        served.prefix.insert(ids, table, salt=salt)
    assert served.state() == before


# -- Eviction ---------------------------------------------------------------------------------------------------------


def test_blocks_outlive_their_sequence_until_the_pool_needs_them() -> None:
    served = Served(num_blocks=4)
    served.finish(count(0, 9))
    assert (served.pool.num_used, served.pool.num_available) == (2, 4)
    table = served.run(count(20, 16))
    assert len(table) == 4 and served.prefix.match(count(0, 9)) == []


def test_the_one_used_longest_ago_goes_first_and_children_before_parents() -> None:
    served = Served(num_blocks=6)
    old, young = count(0, 9), count(20, 9)
    served.finish(old)
    served.finish(young)
    served.finish(old)  # used again, so young is the older one now
    served.pool.allocate_many(3)
    assert len(served.prefix.match(young)) == 1 and len(served.prefix.match(old)) == 2
    served.pool.allocate_many(2)
    assert len(served.prefix.match(young)) == 0 and len(served.prefix.match(old)) == 1


def test_what_a_sequence_holds_is_never_evicted() -> None:
    served = Served(num_blocks=6)
    held = served.run(count(0, 9))
    served.finish(count(20, 9))
    assert (served.pool.num_free, served.pool.num_available) == (1, 3)
    with pytest.raises(OutOfBlocks, match="4 blocks are needed; 3 to be had"):
        served.pool.allocate_many(4)
    assert len(served.prefix) == 4, "nothing is evicted for a request that is refused"
    served.pool.allocate_many(3)
    assert served.prefix.match(count(0, 9)) == held[:2] and len(served.prefix) == 2


def test_a_copy_may_evict_too() -> None:
    served = Served(num_blocks=4)
    served.finish(count(0, 9))
    held = served.pool.allocate_many(2)
    served.pool.copy(held[0])
    assert len(served.prefix) == 1


def test_more_than_nobody_holds_cannot_be_reclaimed() -> None:
    served = Served()
    served.run(count(0, 9))
    with pytest.raises(ValueError, match="0 published blocks are held by nobody else; it was asked for 1"):
        served.prefix.reclaim(1)
    assert len(served.prefix) == 2


def test_clearing_leaves_nothing_but_what_is_held() -> None:
    served = Served()
    held = served.run(count(0, 9))
    served.finish(count(20, 9))
    served.prefix.clear()
    assert sorted(served.prefix.blocks) == sorted(held[:2])
    release_all(served.pool, held)
    served.prefix.clear()
    assert len(served.prefix) == 0 and served.pool.num_used == 0


def test_everything_is_told() -> None:
    served = Served()
    ids = count(0, 9)
    table = served.run(ids)
    release_all(served.pool, served.run(ids))
    release_all(served.pool, [*table])
    served.prefix.clear()
    assert served.events == [
        BlockPublished(block=table[0], parent=None, token_ids=(0, 1, 2, 3)),
        BlockPublished(block=table[1], parent=table[0], token_ids=(4, 5, 6, 7)),
        PrefixTouched(blocks=(table[0], table[1])),
        PrefixReused(blocks=(table[0], table[1]), num_cached=8, num_tokens=9),
        BlockEvicted(block=table[1]),
        BlockEvicted(block=table[0]),
    ]


def test_the_order_of_use_can_be_followed_from_what_is_told() -> None:
    served = Served()
    for start in (0, 20, 0, 40, 20, 8, 30):
        served.finish(count(start, 9))
        served.finish(count(start, 5) + [60] * 4)
        order: list[int] = []
        for event in served.events:
            if isinstance(event, BlockPublished):
                order.append(event.block)
            elif isinstance(event, BlockEvicted):
                order.remove(event.block)
            elif isinstance(event, PrefixTouched):
                order = [*(block for block in order if block not in event.blocks), *reversed(event.blocks)]
        assert order == served.prefix.blocks
    assert len(served.prefix) > 4 and any(isinstance(event, BlockEvicted) for event in served.events)


# -- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [lambda: chain_hash(b"p", [1, 3]), lambda: chain_hash(b"q", [1, 2]), lambda: chain_hash(b"p", [1])]
)
def test_a_name_depends_on_everything_before(other: Callable[[], bytes]) -> None:
    assert chain_hash(b"p", [1, 2]) == chain_hash(b"p", (1, 2)) != other()


def test_names_are_the_same_in_every_process() -> None:
    command = "from llama3_edu.cache import chain_hash; print(chain_hash(b'p', [1, 128255]).hex())"
    there = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    assert there == chain_hash(b"p", [1, 128255]).hex()
