"""Rows in blocks: who writes where, who copies first, and attention that reads blocks where they are."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, SHAPES, assert_same, random_model, random_tokens
from torch import Tensor

from llama3_edu import (
    PAD,
    BlockPool,
    ContiguousCache,
    LlamaConfig,
    OutOfBlocks,
    PagedCache,
    attend,
    causal_mask,
    generate,
    paged_attention,
)
from llama3_edu.events import BlockCopied, Event, KeysStored

SIZE = 4
MODEL = random_model()


def pool_of(num_blocks: int = 12, config: LlamaConfig = CONFIG, **options: object) -> BlockPool:
    return BlockPool(config, num_blocks=num_blocks, block_size=SIZE, **{"dtype": torch.float64, **options})


def fill(cache: PagedCache, new_lens: Sequence[int]) -> Tensor:
    """Reserve so many tokens per row and store random keys for them."""
    width = max(new_lens)
    held = cache.seq_lens.tolist()
    positions = torch.tensor([[*range(h, h + n), *[PAD] * (width - n)] for h, n in zip(held, new_lens)])
    key_positions = cache.reserve(positions)
    generator = torch.Generator().manual_seed(sum(held))
    for layer in range(CONFIG.n_layers):
        cache.update(layer, *torch.randn(2, len(new_lens), width, 2, 8, generator=generator, dtype=torch.float64))
    return key_positions


def state(cache: PagedCache) -> tuple[object, ...]:
    pool = cache.pool
    return (
        [list(table) for table in cache.block_tables],
        cache.seq_lens.tolist(),
        [pool.ref_count(block) for block in range(pool.num_blocks)],
        pool.num_free,
    )


# -- Where tokens live ------------------------------------------------------------------------------------------------


def test_a_slot_is_the_block_of_the_table_and_the_place_in_it() -> None:
    pool = pool_of()
    tables: list[list[int]] = [[], []]
    cache = PagedCache(pool, tables)
    fill(cache, [3, 5])
    cache.reserve(torch.tensor([[3, PAD, 4, 5], [5, 6, 7, PAD]]))
    expected = [[tables[row][p // SIZE] * SIZE + p % SIZE if p != PAD else PAD for p in positions]
                for row, positions in enumerate([[3, PAD, 4, 5], [5, 6, 7, PAD]])]  # fmt: skip
    assert cache.slot_mapping.tolist() == expected
    assert [len(table) for table in tables] == [2, 2] and len({*tables[0], *tables[1]}) == 4


def test_tables_grow_in_place_and_only_when_a_block_is_full() -> None:
    table: list[int] = []
    pool = pool_of()
    for num_tokens in range(1, 14):
        fill(PagedCache(pool, [table], [num_tokens - 1]), [1])
        assert len(table) == pool.num_used == -(-num_tokens // SIZE)


def test_a_new_view_of_the_same_tables_goes_on_where_the_last_one_stopped() -> None:
    pool, tokens, table = pool_of(), random_tokens(1, 11), []
    logits = []
    for first, piece in zip((0, 5, 6), tokens.split((5, 1, 5), dim=1)):
        logits.append(MODEL(piece, PagedCache(pool, [table], [first])))
    assert_same(torch.cat(logits, dim=1), MODEL(tokens))


def test_scattered_blocks_answer_as_a_run_of_blocks_does() -> None:
    pool = pool_of()
    held = pool.allocate_many(12)
    for block in (7, 2, 9, 4):
        pool.release(held[block])
    table: list[int] = []
    tokens = random_tokens(1, 15)
    assert_same(MODEL(tokens, PagedCache(pool, [table])), MODEL(tokens))
    assert table == [4, 9, 2, 7]


def test_generation_goes_on_across_blocks() -> None:
    tokens = random_tokens(2, 3)
    paged = PagedCache(pool_of(), [[], []])
    contiguous = ContiguousCache(CONFIG, 2, dtype=torch.float64)
    assert torch.equal(
        generate(MODEL, tokens, max_new_tokens=12, cache=paged), generate(MODEL, tokens, max_new_tokens=12, cache=contiguous)
    )


# -- Copy-on-write ----------------------------------------------------------------------------------------------------


def shared_rows(num_rows: int, *, held: int = 6, num_blocks: int = 12, events: list[Event] | None = None) -> PagedCache:
    """Rows that all share one past."""
    cache = PagedCache(pool_of(num_blocks, observer=(events if events is not None else []).append), [[]])
    fill(cache, [held])
    cache.reorder(torch.zeros(num_rows, dtype=torch.long))
    return cache


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5])
def test_sharing_takes_no_block_and_writing_takes_one_less_than_there_are_rows(num_rows: int) -> None:
    events: list[Event] = []
    cache = shared_rows(num_rows, events=events)
    assert cache.pool.num_used == 2
    fill(cache, [1] * num_rows)
    assert cache.pool.num_used == 2 + num_rows - 1
    assert sum(isinstance(event, BlockCopied) for event in events) == num_rows - 1
    last = [table[-1] for table in cache.block_tables]
    assert len(set(last)) == num_rows and len({table[0] for table in cache.block_tables}) == 1


def test_a_row_that_does_not_write_keeps_the_shared_block() -> None:
    cache = shared_rows(3)
    shared = cache.block_tables[0][-1]
    fill(cache, [1, 0, 1])
    tables = cache.block_tables
    assert tables[1][-1] == shared and len({table[-1] for table in tables}) == 3
    assert cache.pool.ref_count(shared) == 1
    fill(cache, [0, 1, 0])
    assert tables[1][-1] == shared, "its last holder writes in place"


def test_full_blocks_are_shared_for_ever() -> None:
    cache = shared_rows(3, held=8)
    fill(cache, [1, 1, 1])
    assert cache.pool.num_used == 2 + 3
    assert [table[:2] for table in cache.block_tables] == [cache.block_tables[0][:2]] * 3


def test_a_holder_outside_the_batch_counts() -> None:
    cache = shared_rows(2)
    outside = cache.block_tables[1]
    inside = PagedCache(cache.pool, [cache.block_tables[0]], [6])
    before = cache.pool.store.read(0, torch.tensor([outside]))[0][:, :6].clone()
    fill(inside, [2])
    assert torch.equal(cache.pool.store.read(0, torch.tensor([outside]))[0][:, :6], before)
    assert inside.block_tables[0][-1] != outside[-1]


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_what_was_shared_reads_the_same_after_a_copy(bits: int | None) -> None:
    pool = pool_of(bits=bits)
    cache = PagedCache(pool, [[]])
    fill(cache, [6])
    before = [torch.stack(cache.read(layer))[:, 0] for layer in range(CONFIG.n_layers)]
    cache.reorder(torch.tensor([0, 0, 0]))
    fill(cache, [1, 1, 0])
    for layer, kept in enumerate(before):
        for row in torch.stack(cache.read(layer)).unbind(1):
            assert torch.equal(row[:, :6], kept)


@given(held=st.integers(1, 9), writes=st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any), outside=st.booleans())
def test_what_reserve_takes_is_what_was_announced(held: int, writes: list[int], outside: bool) -> None:
    cache = shared_rows(len(writes) + outside, held=held, num_blocks=40)
    if outside:
        cache = PagedCache(cache.pool, cache.block_tables[:-1], [held] * len(writes))
    needed, before = cache.blocks_needed(writes), cache.pool.num_used
    fill(cache, writes)
    assert cache.pool.num_used - before == needed


@pytest.mark.parametrize(
    ("num_rows", "writes", "num_blocks", "needed"), [(3, [1, 1, 1], 3, 2), (3, [3, 3, 3], 5, 5), (2, [0, 11], 4, 4)]
)
def test_too_few_blocks_for_all_rows_together_change_nothing(
    num_rows: int, writes: list[int], num_blocks: int, needed: int
) -> None:
    cache = shared_rows(num_rows, num_blocks=num_blocks)
    before = state(cache)
    free = num_blocks - 2
    with pytest.raises(OutOfBlocks) as refused:
        fill(cache, writes)
    assert (refused.value.needed, refused.value.free) == (needed, free)
    assert state(cache) == before
    fill(cache, [1, *[0] * (num_rows - 1)])


# -- Reorder and release ----------------------------------------------------------------------------------------------


def test_reorder_moves_no_key_and_drops_what_nobody_continues() -> None:
    pool = pool_of()
    tables: list[list[int]] = [[], [], []]
    cache = PagedCache(pool, tables)
    fill(cache, [5, 1, 9])
    first, _, third = ([*table] for table in tables)
    cache.reorder(torch.tensor([2, 0, 2]))
    assert tables == [third, first, third] and pool.num_used == 5
    assert all(a is b for a, b in zip(cache.block_tables, tables))


def test_fewer_rows_leave_empty_lists_and_more_rows_get_new_ones() -> None:
    tables: list[list[int]] = [[], []]
    cache = PagedCache(pool_of(), tables)
    fill(cache, [3, 3])
    kept = [*tables[1]]
    cache.reorder(torch.tensor([1]))
    assert tables == [kept, []] and cache.pool.num_used == 1
    cache.reorder(torch.tensor([0, 0, 0]))
    assert cache.block_tables == [kept] * 3 and cache.block_tables[0] is tables[0] and tables[1] == []


def test_reorder_needs_no_free_block() -> None:
    cache = PagedCache(pool_of(3), [[], [], []])
    fill(cache, [4, 4, 4])
    cache.reorder(torch.tensor([1, 1, 2]))
    assert cache.pool.num_free == 1


def test_release_gives_everything_back_and_the_rows_start_anew() -> None:
    cache = shared_rows(3)
    fill(cache, [1, 2, 3])
    cache.release()
    assert cache.pool.num_used == 0 and cache.block_tables == [[], [], []] and cache.seq_lens.tolist() == [0, 0, 0]
    fill(cache, [1, 2, 3])


# -- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_blocks", "seq_lens", "message"),
    [
        ([1, 1], [4], "there are 2 block tables and 1 lengths"),
        ([1, 0], [4, 1], "1 tokens lie in 1 blocks of 4; the block table of row 1 has 0"),
        ([2, 1], [4, 4], "4 tokens lie in 1 blocks of 4; the block table of row 0 has 2"),
        ([1], None, "0 tokens lie in 0 blocks of 4; the block table of row 0 has 1"),
    ],
)
def test_tables_that_do_not_fit_their_lengths_are_refused(
    num_blocks: list[int], seq_lens: list[int] | None, message: str
) -> None:
    pool = pool_of()
    with pytest.raises(ValueError, match=message):
        PagedCache(pool, [pool.allocate_many(count) for count in num_blocks], seq_lens)


def test_two_rows_with_one_list_are_refused() -> None:
    table: list[int] = []
    with pytest.raises(ValueError, match="every row needs a block table of its own"):
        PagedCache(pool_of(), [table, table])


# -- What is told -----------------------------------------------------------------------------------------------------


def test_copies_are_told_as_bytes_that_moved() -> None:
    events: list[Event] = []
    cache = shared_rows(3)
    watched = PagedCache(cache.pool, cache.block_tables, [6, 6, 6], observer=events.append)
    fill(watched, [1, 1, 1])
    fill(watched, [1, 1, 1])
    per_block = cache.pool.block_nbytes
    stored = [event for event in events if isinstance(event, KeysStored)]
    assert [event.bytes_copied for event in stored] == [per_block] * 2 + [0] * 2  # two copies, two layers
    assert {event.nbytes for event in stored} == {cache.pool.nbytes}


# -- Attention over blocks --------------------------------------------------------------------------------------------


class Walking(PagedCache):
    """A paged cache that gathers nothing: what it hands back is only good for counting."""

    layer = -1

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.write(layer, k, v)
        self.layer = layer
        return k, v


def walk(
    shape: str, bits: int | None, steps: list[tuple[list[list[int]], Tensor]], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Logits of each step with attention over blocks, and with gathering."""
    config = SHAPES[shape]
    batch = len(steps[0][0])
    caches = [kind(pool_of(20, config, bits=bits, dtype=dtype), [[] for _ in range(batch)]) for kind in (Walking, PagedCache)]
    walking, gathering = (random_model(config, dtype=dtype) for _ in caches)
    at: list[Tensor] = []
    walking.use_attention(lambda q, k, v, mask: paged_attention(q, caches[0], layer=caches[0].layer, positions=at[-1]))
    pairs = []
    for rows, tokens in steps:
        at.append(torch.tensor(rows))
        real = at[-1] != PAD
        pairs.append((walking(tokens, caches[0], at[-1])[real], gathering(tokens, caches[1], at[-1])[real]))
    return pairs


STEPS = {
    "chunked prefill, then decode": [[list(range(7))], [[7, 8]], [list(range(9, 15))], [[15]], [[16]]],
    "ragged": [[[0, 1, 2, 3, 4], [PAD, PAD, 0, PAD, 1]], [[5], [2]], [[PAD], [3]], [[6, 7, 8], [4, PAD, PAD]]],
    "an empty row": [[[0, 1, 2, 3, 4], [PAD] * 5], [[5, PAD], [0, 1]]],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("bits", [None, 8, 2])
def test_walking_blocks_equals_gathering_them(shape: str, steps: list[list[list[int]]], bits: int | None) -> None:
    fed = [(rows, random_tokens(len(rows), len(rows[0]), seed=index)) for index, rows in enumerate(steps)]
    for walked, gathered in walk(shape, bits, fed, torch.float64):
        assert_same(walked, gathered, tolerance=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("largest_in", [0, 1, 2])
def test_one_layer_to_the_last_digit(dtype: torch.dtype, tolerance: float, largest_in: int) -> None:
    config = replace(CONFIG, n_layers=1)
    cache = PagedCache(pool_of(20, config, dtype=dtype), [[], []])
    k, v = torch.randn(2, 2, 11, 2, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    k[:, largest_in * SIZE + 1] *= 30  # the running maximum jumps in that block
    cache.reserve(torch.arange(11).expand(2, 11))
    cache.update(0, k.to(dtype), v.to(dtype))
    q = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    positions = torch.tensor([[8, 9, 10], [0, 4, 10]])
    mask = causal_mask(positions, torch.arange(11).expand(2, 11))
    assert_same(
        paged_attention(q, cache, layer=0, positions=positions), attend(q, k.to(dtype), v.to(dtype), mask), tolerance=tolerance
    )


def test_scores_too_large_for_an_exponential_are_no_trouble() -> None:
    config = replace(CONFIG, n_layers=1)
    cache = PagedCache(pool_of(20, config), [[]])
    k, v = torch.randn(2, 1, 9, 2, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cache.reserve(torch.arange(9)[None])
    cache.update(0, 1e4 * k, v)
    q = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    out = paged_attention(q, cache, layer=0, positions=torch.tensor([[8]]))
    assert_same(out, attend(q, 1e4 * k, v), tolerance=1e-12)


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    cache = PagedCache(pool_of(), [[], []])
    fill(cache, [5, 0])
    q = torch.randn(2, 2, 4, 8, dtype=torch.float64)
    out = paged_attention(q, cache, layer=0, positions=torch.tensor([[4, PAD], [PAD, PAD]]))
    assert out.isfinite().all() and (out[0, 1] == 0).all() and (out[1] == 0).all() and (out[0, 0] != 0).any()


def test_walking_reads_one_block_per_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PagedCache(pool_of(), [[], []])
    fill(cache, [11, 3])
    read, real = [], cache.pool.store.read
    monkeypatch.setattr(cache.pool.store, "read", lambda layer, blocks: read.append(tuple(blocks.shape)) or real(layer, blocks))
    paged_attention(torch.randn(2, 1, 4, 8, dtype=torch.float64), cache, layer=0, positions=torch.tensor([[10], [2]]))
    assert read == [(2, 1)] * 3
