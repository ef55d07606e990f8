"""A pool counts holders, gives out what is free, and refuses what makes no sense."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIG

from llama3_edu import BlockPool, OutOfBlocks, kv_bytes
from llama3_edu.cache.blocks import blocks_for, fork, release_all
from llama3_edu.events import BlockAllocated, BlockCopied, BlockFreed, BlockReleased, BlockShared, Event


def pool_of(num_blocks: int = 4, **options: object) -> BlockPool:
    return BlockPool(CONFIG, num_blocks=num_blocks, block_size=4, **options)


def state(pool: BlockPool) -> tuple[int, int, list[int]]:
    return pool.num_free, pool.num_used, [pool.ref_count(block) for block in range(pool.num_blocks)]


def test_blocks_are_given_once_until_they_are_free_again() -> None:
    pool = pool_of()
    taken = [pool.allocate() for _ in range(4)]
    assert sorted(taken) == [0, 1, 2, 3] and state(pool) == (0, 4, [1] * 4)
    pool.release(taken[2])
    assert pool.allocate() == taken[2]


def test_a_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = pool_of()
    block = pool.allocate()
    pool.share(block)
    pool.share(block)
    for left in (2, 1, 0):
        assert pool.num_free == 3
        pool.release(block)
        assert pool.ref_count(block) == left
    assert pool.num_free == 4


@pytest.mark.parametrize("ask", [lambda pool: pool.allocate_many(3), lambda pool: pool.check_available(3)])
def test_too_few_blocks_are_refused_and_nothing_has_changed(ask: Callable[[BlockPool], object]) -> None:
    pool = pool_of()
    pool.allocate_many(2)
    before = state(pool)
    with pytest.raises(OutOfBlocks, match="3 blocks are needed; 2 to be had") as refused:
        ask(pool)
    assert (refused.value.needed, refused.value.free) == (3, 2)
    assert state(pool) == before
    assert len(pool.allocate_many(2)) == 2


def test_a_full_pool_refuses_one_more_and_a_copy() -> None:
    pool = pool_of()
    block, *_ = pool.allocate_many(4)
    for ask in (pool.allocate, lambda: pool.copy(block)):
        with pytest.raises(OutOfBlocks, match="1 block is needed; 0 to be had"):
            ask()
    assert state(pool) == (0, 4, [1] * 4)


@pytest.mark.parametrize("misuse", ["share", "release", "copy"])
def test_nothing_is_done_with_a_block_nobody_holds(misuse: str) -> None:
    pool = pool_of()
    pool.release(pool.allocate())
    done = {"share": "shared", "release": "released", "copy": "copied"}[misuse]
    with pytest.raises(ValueError, match=f"block 0 is free, so it cannot be {done}"):
        getattr(pool, misuse)(0)
    assert state(pool) == (4, 0, [0] * 4)


@pytest.mark.parametrize("ask", ["share", "release", "copy", "ref_count"])
@pytest.mark.parametrize("block", [-1, 4, 1000])
def test_unknown_blocks_are_refused(ask: str, block: int) -> None:
    with pytest.raises(ValueError, match=f"the pool has blocks 0 to 3; it was asked for block {block}"):
        getattr(pool_of(), ask)(block)


@pytest.mark.parametrize("num_free", [0, 4])
def test_a_second_prefix_cache_is_refused(num_free: int) -> None:
    class Keeps:
        num_reclaimable = 0

        def reclaim(self, count: int) -> None: ...

    pool = pool_of()
    pool.allocate_many(4 - num_free)
    pool.attach(Keeps())
    with pytest.raises(ValueError, match="a pool has one prefix cache at most"):
        pool.attach(Keeps())


def test_a_copy_belongs_to_who_asked_and_the_source_keeps_its_holders() -> None:
    pool = pool_of()
    block = pool.allocate()
    pool.share(block)
    copy = pool.copy(block)
    assert (pool.ref_count(block), pool.ref_count(copy)) == (2, 1)


def test_whole_tables_fork_and_go() -> None:
    pool = pool_of()
    table = pool.allocate_many(3)
    other = fork(pool, table)
    assert other == table and other is not table and state(pool) == (1, 3, [2, 2, 2, 0])
    release_all(pool, table)
    assert table == [] and state(pool) == (1, 3, [1, 1, 1, 0])
    release_all(pool, other)
    assert state(pool) == (4, 0, [0] * 4)


def test_every_change_is_told_in_order() -> None:
    events: list[Event] = []
    pool = pool_of(observer=events.append)
    block = pool.allocate()
    pool.share(block)
    copy = pool.copy(block)
    pool.release(block)
    pool.release(block)
    assert events == [
        BlockAllocated(block=block, ref_count=1),
        BlockShared(block=block, ref_count=2),
        BlockAllocated(block=copy, ref_count=1),
        BlockCopied(source=block, block=copy, nbytes=pool.block_nbytes),
        BlockReleased(block=block, ref_count=1),
        BlockFreed(block=block, ref_count=0),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_all_slots(dtype: torch.dtype) -> None:
    pool = pool_of(6, dtype=dtype)
    assert pool.nbytes == 6 * pool.block_nbytes == kv_bytes(CONFIG, seq_len=24, bits=8 * dtype.itemsize)


@pytest.mark.parametrize(
    ("options", "message"), [({"bits": 3}, "bits should be"), ({"bits": 8, "group_size": 0}, "group_size should be")]
)
def test_options_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_of(**options)


def test_tokens_round_up_to_blocks() -> None:
    assert [blocks_for(num_tokens, 4) for num_tokens in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
