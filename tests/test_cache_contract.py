"""One contract, every cache. A new cache adds a line to `EXACT` or `ROUNDING` and is held to all of it.

Memory that nobody has written is NaN throughout this file, so a cache that lets an unused slot count shows it.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounded import RoundedCache, Rounding
from tiny_models import CONFIG, SHAPES, assert_same, random_model, random_tokens
from torch import Tensor

from llama3_edu import (
    PAD,
    BlockPool,
    ContiguousCache,
    GrowingCache,
    KVCache,
    Llama,
    LlamaConfig,
    PagedCache,
    QuantizedCache,
    kv_bytes,
)
from llama3_edu.events import Event, KeysStored, Observer, ignore
from llama3_edu.kernels import FastLlama, pack

ROOM = 24


@dataclass(frozen=True)
class Maker:
    """How a cache is made, and what its own promises are beside the contract."""

    make: Callable[..., KVCache]  # (config, batch, device=, dtype=, observer=)
    nbytes: Callable[..., int]  # (config, columns=, batch=, bits=): allocated once every row was fed so many columns
    bounded: bool = False  # whether it refuses more than ROOM tokens per row
    rounding: Rounding | None = None  # what it should make of each row; None: it keeps every number as it comes


BLOCK, NUM_BLOCKS = 4, 40


def paged(
    config: LlamaConfig, batch: int = 1, *, bits: int | None = None, observer: Observer = ignore, **options: object
) -> KVCache:
    """A paged cache in a pool that was used before: all its slots are full of NaN."""
    pool = BlockPool(config, num_blocks=NUM_BLOCKS, block_size=BLOCK, bits=bits, group_size=BLOCK, **options)
    if bits is None:
        before = PagedCache(pool, [[]])
        before.reserve(torch.arange(NUM_BLOCKS * BLOCK)[None])
        nan = torch.full((1, NUM_BLOCKS * BLOCK, config.n_kv_heads, config.head_dim), torch.nan, **options)
        for layer in range(config.n_layers):
            before.write(layer, nan, nan)
        before.release()
    return PagedCache(pool, [[] for _ in range(batch)], observer=observer)


def quantized(bits: int, *, residual: int) -> Callable[..., KVCache]:
    return partial(QuantizedCache, max_seq_len=ROOM, group_size=BLOCK, bits=bits, residual=residual)


def quantized_nbytes(config: LlamaConfig, *, residual: int, batch: int, bits: int, **_: int) -> int:
    """At 8 bits: a byte per number; 4 bytes per channel and group of keys, and per token and group of values; open groups."""
    value_groups = config.kv_dim // max(size for size in range(1, BLOCK + 1) if config.kv_dim % size == 0)
    per_token = 2 * config.kv_dim + 4 * config.kv_dim // BLOCK + 4 * value_groups
    open_slots = min(ROOM, -(-(residual + BLOCK - 1) // BLOCK) * BLOCK)
    return config.n_layers * batch * ROOM * per_token + kv_bytes(config, seq_len=open_slots, batch=batch, bits=bits)


EXACT = {
    "growing": Maker(GrowingCache, lambda config, columns, **sizes: kv_bytes(config, seq_len=columns, **sizes)),
    "contiguous": Maker(
        lambda *args, **options: ContiguousCache(*args, max_seq_len=ROOM, **options),
        lambda config, columns, **sizes: kv_bytes(config, seq_len=ROOM, **sizes),
        bounded=True,
    ),
    "paged": Maker(paged, lambda config, bits, **_: kv_bytes(config, seq_len=NUM_BLOCKS * BLOCK, bits=bits)),
    "quantised, all within the residual": Maker(
        quantized(8, residual=ROOM), partial(quantized_nbytes, residual=ROOM), bounded=True
    ),
}
"""Caches that keep every number as it comes: they answer as no cache does."""


@cache
def rounds(bits: int, *, residual: int = 0) -> Rounding:
    return partial(RoundedCache, bits=bits, group_size=BLOCK, residual=residual)


ROUNDING = {
    "quantised, 8 bits": Maker(quantized(8, residual=0), partial(quantized_nbytes, residual=0), bounded=True, rounding=rounds(8)),
    "quantised, 2 bits": Maker(quantized(2, residual=0), lambda **_: 0, bounded=True, rounding=rounds(2)),
    "quantised, 4 bits, residual": Maker(quantized(4, residual=6), lambda **_: 0, bounded=True, rounding=rounds(4, residual=6)),
    "paged, 8 bits": Maker(partial(paged, bits=8), lambda **_: 0, rounding=rounds(8)),
    "paged, 2 bits": Maker(partial(paged, bits=2), lambda **_: 0, rounding=rounds(2)),
}
"""Caches that round: they answer as a plain cache does that rounds the same groups at the same time, number by number."""

CACHES = EXACT | ROUNDING

every_cache = pytest.mark.parametrize("maker", CACHES.values(), ids=CACHES.keys())
exact_caches = pytest.mark.parametrize("maker", EXACT.values(), ids=EXACT.keys())
bounded_caches = pytest.mark.parametrize(
    "maker", [maker for maker in CACHES.values() if maker.bounded], ids=[name for name, maker in CACHES.items() if maker.bounded]
)
every_shape = pytest.mark.parametrize("shape", SHAPES)
MODELS = {shape: random_model(config) for shape, config in SHAPES.items()}
MODEL = MODELS["grouped"]


@pytest.fixture(autouse=True, scope="module")
def unwritten_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def make(maker: Maker, batch: int, model: Llama = MODEL, **options: object) -> KVCache:
    return maker.make(model.config, batch, **{"dtype": model.dtype, "device": model.device, **options})


@cache
def logits_alone(model: Llama, rounding: Rounding | None, pieces: tuple[tuple[int, ...], ...]) -> Tensor:
    """What a row gets where it is the only one; worked out once for all caches that are fed the same."""
    if rounding is None:
        (row,) = pieces
        return model(torch.tensor([row], device=model.device))[0]
    kept, on_cpu = rounding(model.config), deepcopy(model).cpu()
    return torch.cat([on_cpu(torch.tensor([piece]), kept)[0] for piece in pieces]).to(model.device)


@dataclass
class Fed:
    """A cache beside the token ids its rows have been fed. Every forward is checked against each row run alone.

    A second cache is fed the same by the fast path, and has to get the same out of it.

    Alone means without a cache; where numbers are rounded, it means with a plain cache that rounds, fed the same pieces.
    """

    model: Llama
    cache: KVCache
    rows: list[list[int]]
    rounding: Rounding | None = None
    pieces: list[list[list[int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = [[] for _ in self.rows]
        self.fast, self.fast_cache = FastLlama(pack(self.model)), deepcopy(self.cache)

    def feed(self, new: Sequence[Sequence[int]], columns: Sequence[Sequence[int]] | None = None) -> None:
        """Run `new[row]` in the given columns of one forward, padding in the others; None: padding at the end."""
        columns = [range(len(row)) for row in new] if columns is None else columns
        width = 1 + max(column for row in columns for column in row)
        tokens, positions = torch.full((len(new), width), 5), torch.full((len(new), width), PAD)
        for row, (ids, places) in enumerate(zip(new, columns)):
            held = len(self.rows[row])
            for index, (token_id, column) in enumerate(zip(ids, places)):
                tokens[row, column], positions[row, column] = token_id, held + index
        logits = self.model(tokens.to(self.model.device), self.cache, positions.to(self.model.device))
        fast_logits = self.fast.forward(tokens.to(self.model.device), self.fast_cache, positions.to(self.model.device))
        assert logits.isfinite().all() and fast_logits.isfinite().all()
        for row, (ids, places) in enumerate(zip(new, columns)):
            self.rows[row] = self.rows[row] + list(ids)
            if ids:
                self.pieces[row] = [*self.pieces[row], list(ids)]
                alone = self.alone(row)[-len(ids) :]
                assert_same(logits[row, list(places)], alone)
                assert_same(fast_logits[row, list(places)], alone)
        assert self.cache.seq_lens.tolist() == [len(row) for row in self.rows]

    def alone(self, row: int) -> Tensor:
        pieces = [self.rows[row]] if self.rounding is None else self.pieces[row]
        return logits_alone(self.model, self.rounding, tuple(map(tuple, pieces)))

    def reorder(self, parents: Sequence[int]) -> None:
        for cache in (self.cache, self.fast_cache):
            cache.reorder(torch.tensor(parents))
        self.rows = [self.rows[parent] for parent in parents]
        self.pieces = [self.pieces[parent] for parent in parents]
        assert self.cache.seq_lens.tolist() == [len(row) for row in self.rows]


def fed(maker: Maker, *rows: Sequence[int], model: Llama = MODEL) -> Fed:
    state = Fed(model, make(maker, len(rows), model), [[] for _ in rows], maker.rounding)
    if any(rows):
        state.feed(rows)
    return state


# -- The answer never changes -----------------------------------------------------------------------------------------


@every_cache
@every_shape
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=5).filter(lambda pieces: sum(pieces) <= ROOM))
def test_any_split_of_the_prompt_gives_the_logits_of_the_whole(maker: Maker, shape: str, pieces: list[int]) -> None:
    state = fed(maker, [], [], model=MODELS[shape])
    for piece in random_tokens(2, sum(pieces)).split(pieces, dim=1):
        state.feed(piece.tolist())


@every_cache
def test_cached_equals_naive_on_every_device(maker: Maker, device: torch.device) -> None:
    model = random_model(device=device)
    state = fed(maker, [1, 2, 3], [4, 5, 6, 7, 8], model=model)
    state.feed([[9], [10]])
    state.reorder([1, 1, 0])
    state.feed([[11], [12], [13, 14]])


@every_cache
@pytest.mark.parametrize(
    "columns",
    [[[0, 1], [0, 1, 2, 3, 4]], [[3, 4], [0, 1, 2, 3, 4]], [[1, 3], [0, 2, 3, 5, 6]]],
    ids=["right", "left", "between"],
)
def test_padding_anywhere_leaves_each_row_as_if_alone(maker: Maker, columns: list[list[int]]) -> None:
    state = fed(maker, [], [])
    state.feed([[7, 8], [9, 10, 11, 12, 13]], columns)
    state.feed([[14], [15]])
    state.feed([[16], [17]])


@every_cache
def test_a_prompt_and_a_single_token_share_one_forward(maker: Maker) -> None:
    state = fed(maker, [1, 2, 3, 4], [], [5])
    state.feed([[6], [7, 8, 9, 10, 11], []])
    state.feed([[12], [13], [14, 15]])


@every_cache
def test_a_row_that_pauses_goes_on_where_it_stopped(maker: Maker) -> None:
    state = fed(maker, [1, 2, 3], [4])
    for token_id in range(6):
        state.feed([[], [token_id]])
    state.feed([[20], [21]])


@every_cache
@pytest.mark.parametrize("parents", [[1, 0, 2], [2, 2, 2], [1], [0, 2], [0, 1, 2, 1, 0], [2, 0, 0, 1]])
def test_reordered_rows_continue_what_their_parents_held(maker: Maker, parents: list[int]) -> None:
    state = fed(maker, [1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11])
    state.reorder(parents)
    state.feed([[30 + row] for row in range(len(parents))])
    state.feed([[40 + row, 50] for row in range(len(parents))])


@every_cache
def test_heirs_of_one_row_do_not_share_what_comes_after(maker: Maker) -> None:
    state = fed(maker, [1, 2, 3])
    state.reorder([0, 0])
    state.feed([[4], [5]])
    state.feed([[6], [6]])


@every_cache
@settings(max_examples=100)
@given(data=st.data())
def test_any_life_of_a_cache_is_that_of_its_rows_alone(maker: Maker, data: st.DataObject) -> None:
    state = fed(maker, *[[]] * data.draw(st.integers(1, 3), "batch"))
    for _ in range(data.draw(st.integers(1, 5), "steps")):
        if any(state.rows) and data.draw(st.booleans(), "reorder"):
            state.reorder(data.draw(st.lists(st.integers(0, len(state.rows) - 1), min_size=1, max_size=4), "parents"))
        width = data.draw(st.integers(1, 4), "width")
        kept = st.lists(st.sampled_from(range(width)), unique=True, max_size=width).map(sorted)
        columns = [data.draw(kept, "columns") for _ in state.rows]
        if any(columns):
            state.feed([[data.draw(st.integers(0, 60)) for _ in places] for places in columns], columns)


@every_cache
def test_gradients_may_be_on_and_none_flow_into_the_past(maker: Maker) -> None:
    model = random_model().requires_grad_(True)
    state = fed(maker, [1, 2], model=model)
    state.feed([[3, 4]])
    state.feed([[5, 6]])
    k = torch.ones(1, 1, 2, 8, dtype=torch.float64, requires_grad=True)
    state.cache.reserve(torch.tensor([[6]]))
    assert not any(kept.requires_grad for kept in state.cache.update(0, k, k))


@exact_caches
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.4)])
def test_narrow_types_are_kept_as_they_are(maker: Maker, dtype: torch.dtype, tolerance: float) -> None:
    model = random_model(dtype=dtype)
    tokens = random_tokens(2, 8)
    cache = make(maker, 2, model)
    logits = torch.cat([model(piece, cache) for piece in tokens.split(3, dim=1)], dim=1)
    assert_same(logits, model(tokens), tolerance=tolerance)


# -- What update hands back -------------------------------------------------------------------------------------------


def random_kv(batch: int, new_len: int, *, seed: int, n_kv_heads: int = 2, head_dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, batch, new_len, n_kv_heads, head_dim, generator=generator, dtype=torch.float64)
    return k, v


@exact_caches
def test_every_key_comes_back_at_the_position_that_reserve_named(maker: Maker) -> None:
    cache = make(maker, 2)
    given: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    steps = [[[0, 1, 2], [PAD, 0, PAD]], [[3, PAD], [1, 2]], [[PAD], [3]]]
    for seed, positions in enumerate(steps):
        key_positions = cache.reserve(torch.tensor(positions))
        for layer in range(CONFIG.n_layers):
            k, v = random_kv(2, len(positions[0]), seed=10 * seed + layer)
            real = [(row, column, p) for row, held in enumerate(positions) for column, p in enumerate(held) if p != PAD]
            given |= {(layer, row, p): (k[row, column], v[row, column]) for row, column, p in real}
            k_all, v_all = cache.update(layer, k, v)
            assert k_all.shape == v_all.shape == (*key_positions.shape, 2, 8)
            assert k_all.isfinite().all() and v_all.isfinite().all()
            for row, held in enumerate(key_positions.tolist()):
                assert sorted(p for p in held if p != PAD) == list(range(cache.seq_lens[row]))
                for column, position in enumerate(held):
                    if position != PAD:
                        assert torch.equal(k_all[row, column], given[layer, row, position][0])
                        assert torch.equal(v_all[row, column], given[layer, row, position][1])


# -- What is refused, and that nothing has changed then ---------------------------------------------------------------


@every_cache
@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[3], [3]], r"row 1 of the cache holds 2 tokens, so its next position is 2; it was given positions 3"),
        ([[2], [2]], r"row 0 of the cache holds 3 tokens, so its next position is 3; it was given positions 2"),
        ([[3, 5], [2, 3]], r"row 0 .* given positions 3, 5"),
        ([[4, 3], [2, 3]], r"row 0 .* given positions 4, 3"),
        ([[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]], r"row 0 .* given positions 0, 1, 2, 3, …"),
        ([[-2], [2]], r"row 0 .* given positions -2"),
        ([[3], [2], [0]], r"the cache holds 2 rows; it was given positions for 3"),
        ([[3]], r"the cache holds 2 rows; it was given positions for 1"),
    ],
)
def test_positions_that_do_not_continue_are_refused(maker: Maker, positions: list[list[int]], message: str) -> None:
    state = fed(maker, [1, 2, 3], [4, 5])
    before = (state.cache.seq_lens.tolist(), state.cache.nbytes)
    with pytest.raises(ValueError, match=message):
        state.cache.reserve(torch.tensor(positions))
    assert (state.cache.seq_lens.tolist(), state.cache.nbytes) == before
    state.feed([[6], [7, 8]])


@bounded_caches
def test_more_tokens_than_there_is_room_for_are_refused(maker: Maker) -> None:
    state = fed(maker, list(range(ROOM - 2)), [1])
    with pytest.raises(ValueError, match=rf"room for {ROOM} tokens per row; row 0 holds {ROOM - 2} and was given 3 more"):
        state.model(random_tokens(2, 3), state.cache, torch.tensor([[ROOM - 2, ROOM - 1, ROOM], [1, 2, 3]]))
    state.feed([[3, 4], [5, 6, 7]])
    with pytest.raises(ValueError, match=rf"row 0 holds {ROOM} and was given 1 more"):
        state.model(random_tokens(2, 1), state.cache)
    state.feed([[], [8]])


@every_cache
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.float(), "2 KV heads of 8 torch.float64 each; it was given 2 of 8 torch.float32"),
        (lambda x: x[:, :, :1], "it was given 1 of 8 torch.float64"),
        (lambda x: x[..., :6], "it was given 2 of 6 torch.float64"),
    ],
    ids=["dtype", "heads", "head_dim"],
)
def test_keys_or_values_of_another_make_are_refused(
    maker: Maker, wrong: Callable[[Tensor], Tensor], message: str, unchecked: None
) -> None:
    k, v = random_kv(1, 2, seed=0)
    for wrong_k, wrong_v in ((wrong(k), wrong(v)), (k, wrong(v))):
        cache = make(maker, 1)
        cache.reserve(torch.tensor([[0, 1]]))
        with pytest.raises(ValueError, match=message):
            cache.update(0, wrong_k, wrong_v)


@every_cache
@pytest.mark.parametrize("parents", [[0, 2], [-1], [5, 0]])
def test_parents_that_are_no_rows_are_refused(maker: Maker, parents: list[int]) -> None:
    state = fed(maker, [1, 2, 3], [4])
    with pytest.raises(IndexError, match="the cache holds rows 0 to 1; one of the parents is"):
        state.cache.reorder(torch.tensor(parents))
    state.feed([[5], [6]])


@every_cache
def test_a_cache_without_rows_is_refused(maker: Maker) -> None:
    with pytest.raises(ValueError, match="batch should be at least 1; it is 0"):
        make(maker, 0)


# -- Bytes and events -------------------------------------------------------------------------------------------------


def allocated_bytes(cache: KVCache) -> int:
    """Bytes of the distinct pieces of memory behind all tensors a cache keeps, positions and indices aside."""
    storages = {}
    pending = list(vars(cache).values())
    while pending:
        thing = pending.pop()
        if isinstance(thing, Tensor) and thing.dtype != torch.long:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, (list, tuple)):
            pending += thing
        elif hasattr(thing, "__dict__") and not callable(thing):
            pending += vars(thing).values()
    return sum(storages.values())


@pytest.mark.parametrize("name", [*EXACT, "quantised, 8 bits"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nbytes_is_the_formula_and_what_is_allocated(name: str, dtype: torch.dtype) -> None:
    maker = CACHES[name]
    model = random_model(dtype=dtype)
    cache = make(maker, 3, model)
    for batch, columns in ((3, 0), (3, 5), (3, 9), (2, 10)):
        if columns:
            cache.reorder(torch.arange(batch))
            model(random_tokens(batch, columns - int(cache.seq_lens[0])), cache)
        expected = maker.nbytes(CONFIG, columns=columns, batch=batch, bits=8 * dtype.itemsize)
        assert cache.nbytes == expected == allocated_bytes(cache)


@every_cache
def test_every_layer_of_every_forward_is_reported(maker: Maker) -> None:
    events: list[Event] = []
    cache = make(maker, 2, observer=events.append)
    MODEL(random_tokens(2, 3), cache, torch.tensor([[0, 1, 2], [PAD, PAD, 0]]))
    MODEL(random_tokens(2, 1), cache)
    stored = [event for event in events if isinstance(event, KeysStored)]
    first = [(layer, ((0, 1, 2), (0,)), (3, 1)) for layer in range(CONFIG.n_layers)]
    second = [(layer, ((3,), (1,)), (4, 2)) for layer in range(CONFIG.n_layers)]
    assert [(event.layer, event.positions, event.seq_lens) for event in stored] == first + second
    assert stored[-1].nbytes == cache.nbytes


@every_cache
def test_watching_changes_nothing(maker: Maker) -> None:
    tokens = random_tokens(2, 6)
    watched, unwatched = make(maker, 2, observer=[].append), make(maker, 2)
    assert torch.equal(MODEL(tokens, watched), MODEL(tokens, unwatched))


@every_cache
def test_layers_and_batches_of_other_models_work(maker: Maker) -> None:
    config: LlamaConfig = replace(CONFIG, n_layers=5, n_heads=6, n_kv_heads=3, dim=36)
    model = random_model(config)
    state = fed(maker, [1, 2, 3, 4], [5, 6], model=model)
    state.feed([[7], [8]])
