"""Triton's paged attention against the readable one and against `attend`, and what it asks for where it cannot run."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_models import CONFIG, assert_same, random_model, random_tokens
from torch import Tensor

from llama3_edu import PAD, BlockPool, ContiguousCache, Engine, LlamaConfig, PagedCache, attend, generate, paged_attention
from llama3_edu.kernels import paged_decode
from llama3_edu.kernels.paged_decode import Tiling, paged_decode_attention, paged_decode_attention_int8

triton = pytest.mark.triton
CLOSE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""How far a sum of numbers around 1 may be off: some rounding steps of the type."""


@pytest.fixture
def device() -> torch.device:
    """Where kernels run here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """Rows of random keys in scattered blocks. What no row holds is NaN, so whoever looks there shows it."""

    seq_lens: tuple[int, ...]
    block_size: int = 5
    n_kv_heads: int = 2
    n_rep: int = 3
    head_dim: int = 12
    splits: int = 3
    shared: int = 0
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def tiling(self) -> Tiling:
        return Tiling(tile=16, splits=self.splits)

    def tables(self) -> list[list[int]]:
        """Blocks in random order. Rows that are long enough hold their first `shared` blocks in common."""
        counts = [-(-length // self.block_size) for length in self.seq_lens]
        order = torch.randperm(sum(counts) + 3, generator=self.generator()).tolist()
        common, tables = order[: self.shared], []
        rest = iter(order[self.shared :])
        for count in counts:
            beginning = common if count > self.shared else []  # a shared block is full in every row
            tables.append(beginning + [next(rest) for _ in range(count - len(beginning))])
        return tables

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values, block table and lengths, as the kernel is given them."""
        tables = self.tables()
        num_blocks = 4 + sum(map(len, tables)) + self.shared
        shape = (2, num_blocks, self.block_size, self.n_kv_heads, self.head_dim)
        blocks = torch.full(shape, torch.nan)
        for table, length in zip(tables, self.seq_lens):
            for index, block in enumerate(table):
                held = min(self.block_size, length - index * self.block_size)
                generator = torch.Generator().manual_seed(1000 * self.seed + block)
                blocks[:, block, :held] = torch.randn(2, held, *shape[3:], generator=generator)
        q = torch.randn(len(tables), self.n_kv_heads * self.n_rep, self.head_dim, generator=self.generator())
        width = max(map(len, tables), default=0)
        table = torch.tensor([row + [num_blocks - 1] * (width - len(row)) for row in tables]).reshape(len(tables), width).long()
        floats = (x.to(device, self.dtype) for x in (q, *blocks))
        return *floats, table.to(device), torch.tensor(self.seq_lens, device=device)


def expected(q: Tensor, k: Tensor, v: Tensor, table: Tensor, seq_lens: Tensor) -> Tensor:
    """Each row alone, gathered and attended to in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for row, held in enumerate(seq_lens.tolist()):
        if held:
            keys, values = (x[table[row]].flatten(0, 1)[None, :held].double().cpu() for x in (k, v))
            out[row] = attend(q[row, None, None].double().cpu(), keys, values)[0, 0]
    return out


def check(case: Case, device: torch.device) -> None:
    given = case.tensors(device)
    found = paged_decode_attention(*given, tiling=case.tiling)
    assert found.dtype == case.dtype
    assert_same(found.cpu().double(), expected(*given), tolerance=CLOSE[case.dtype])


cases = st.builds(
    Case,
    seq_lens=st.lists(st.integers(0, 70), min_size=1, max_size=4).map(tuple),
    block_size=st.integers(1, 40),
    n_kv_heads=st.integers(1, 3),
    n_rep=st.sampled_from([1, 2, 3, 4, 8, 17]),
    head_dim=st.sampled_from([2, 12, 32, 64, 80, 128]),
    splits=st.integers(1, 5),
    shared=st.integers(0, 2),
    dtype=st.sampled_from(list(CLOSE)),
    seed=st.integers(0, 99),
)


@triton
@given(cases)
@example(Case((0,)))
@example(Case((0, 0, 0)))
@example(Case((1, 64, 16, 17), block_size=16, splits=4))
def test_scattered_blocks_of_any_size_are_attended_to_as_one_run_is(case: Case) -> None:
    check(case, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@triton
@pytest.mark.parametrize("splits", [1, 2, 7, None])
@pytest.mark.parametrize("tile", [16, 64, None])
def test_how_the_work_is_cut_changes_nothing(splits: int | None, tile: int | None, device: torch.device) -> None:
    given = Case((150, 3, 64)).tensors(device)
    found = paged_decode_attention(*given, tiling=Tiling(tile=tile, splits=splits))
    assert_same(found.cpu().double(), expected(*given), tolerance=CLOSE[torch.float32])


@triton
def test_a_contiguous_cache_is_one_block_per_row(device: torch.device) -> None:
    cache = ContiguousCache(CONFIG, 3, max_seq_len=40, dtype=torch.float32, device=device)
    cache.reserve(torch.arange(37).expand(3, 37))
    k, v = torch.randn(2, 3, 37, 2, 8, generator=torch.Generator().manual_seed(1)).to(device)
    cache.update(1, k, v)
    q = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(2)).to(device)
    found = paged_decode_attention(q, *cache.blocks(1), torch.arange(3, device=device)[:, None], cache.seq_lens)
    assert_same(found[:, None], attend(q[:, None], k, v), tolerance=CLOSE[torch.float32])


@triton
def test_numbers_need_lie_side_by_side_within_a_head_alone(device: torch.device) -> None:
    q, k, v, table, seq_lens = Case((33, 8)).tensors(device)
    spread = [torch.stack((x, torch.full_like(x, torch.nan)), dim=2).flatten(1, 2)[:, ::2] for x in (k, v)]
    heads_first = [x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for x in (k, v)]
    wide_q = torch.cat((q, q), dim=1)[:, : q.shape[1]]
    for keys, values in (spread, heads_first):
        assert_same(
            paged_decode_attention(wide_q, keys, values, table, seq_lens, tiling=Tiling(16, 2)),
            paged_decode_attention(q, k, v, table, seq_lens, tiling=Tiling(16, 2)),
            tolerance=0,
        )


@triton
def test_scores_too_large_for_an_exponential_are_no_trouble(device: torch.device) -> None:
    q, k, v, table, seq_lens = Case((40, 9)).tensors(device)
    found = paged_decode_attention(q, 1e4 * k, v, table, seq_lens, tiling=Tiling(16, 3))
    assert_same(found.cpu().double(), expected(q, 1e4 * k, v, table, seq_lens), tolerance=1e-4)


@triton
def test_addresses_beyond_31_bits(device: torch.device) -> None:
    # Block number and stride each fit into 32 bits, their product does not. What lies between is never touched: no memory is taken.
    far = 2**30
    memory = torch.empty(2 * far + 64, dtype=torch.float16, device=device)
    k, v = (memory[start:].as_strided((3, 2, 1, 16), (far, 16, 16, 1)) for start in (0, 32))
    for index in (0, 2):
        k[index], v[index] = torch.randn(2, 2, 1, 16, generator=torch.Generator().manual_seed(index))
    q = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(3)).to(device, torch.float16)
    given = (q, k, v, torch.tensor([[2, 0]], dtype=torch.int32, device=device), torch.tensor([4], device=device))
    assert_same(paged_decode_attention(*given).cpu().double(), expected(*given), tolerance=CLOSE[torch.float16])


# -- Behind a paged cache ---------------------------------------------------------------------------------------------


def filled(config: LlamaConfig, new_lens: Sequence[Sequence[int]], device: torch.device, **options: object) -> PagedCache:
    """A cache fed in several forwards; its rows were once one row, so their first blocks are shared and later ones copied."""
    pool = BlockPool(config, num_blocks=64, device=device, **{"dtype": torch.float32, **options})
    cache = PagedCache(pool, [[]])
    generator = torch.Generator().manual_seed(5)
    for step, lens in enumerate(new_lens):
        if step == 1:
            cache.reorder(torch.zeros(len(lens), dtype=torch.long))
        held, width = cache.seq_lens.tolist(), max(lens)
        cache.reserve(torch.tensor([[*range(h, h + n), *[PAD] * (width - n)] for h, n in zip(held, lens)]))
        for layer in range(config.n_layers):
            k, v = torch.randn(2, len(lens), width, config.n_kv_heads, config.head_dim, generator=generator)
            cache.write(layer, k.to(device, pool.store.dtype), v.to(device, pool.store.dtype))
    return cache


@dataclass(frozen=True)
class Held:
    """A paged cache's shape and how it was filled."""

    config: LlamaConfig
    new_lens: Sequence[Sequence[int]]
    block_size: int = 4
    group_size: int = 64
    bits: int | None = None
    dtype: torch.dtype = torch.float32
    splits: int = 2

    def check(self, device: torch.device) -> None:
        cache = filled(
            self.config,
            self.new_lens,
            device,
            block_size=self.block_size,
            group_size=self.group_size,
            bits=self.bits,
            dtype=self.dtype,
        )
        batch = len(cache.block_tables)
        q = torch.randn(batch, 1, self.config.n_heads, self.config.head_dim, generator=torch.Generator().manual_seed(8))
        q, tiling, store = q.to(device, self.dtype), Tiling(16, self.splits), cache.pool.store
        newest = cache.seq_lens[:, None] - 1
        reference = paged_attention(q.float(), cache, layer=1, positions=newest)[:, 0]
        if self.bits is None:
            found = paged_decode_attention(q[:, 0], *store.blocks(1), cache.block_table, cache.seq_lens, tiling=tiling)
        else:
            kept = store.coded(1, range(store.num_blocks)), store.staged_layer(1), store.stage_by_block
            found = paged_decode_attention_int8(q[:, 0], *kept, cache.block_table, cache.seq_lens, tiling=tiling)
        assert_same(found.float(), reference, tolerance=CLOSE[self.dtype])


configs = st.builds(
    lambda n_kv_heads, n_rep, head_dim: replace(CONFIG, n_heads=n_kv_heads * n_rep, n_kv_heads=n_kv_heads, head_dim=head_dim),
    st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from([4, 12, 32, 64, 96]),
)  # fmt: skip
new_lens = st.tuples(st.integers(1, 30), st.lists(st.integers(0, 14), min_size=1, max_size=3).filter(any)).map(
    lambda drawn: [[drawn[0]], drawn[1]]
)


@triton
@given(
    st.builds(
        Held, configs, new_lens, block_size=st.integers(1, 21), group_size=st.sampled_from([1, 6, 8, 32, 64]),
        bits=st.sampled_from([None, 8, 8]), dtype=st.sampled_from(list(CLOSE)), splits=st.integers(1, 4),
    )
)  # fmt: skip
def test_blocks_of_a_pool_are_read_as_they_lie(held: Held) -> None:
    held.check(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def test_blocks_are_handed_over_where_they_lie() -> None:
    floats = BlockPool(CONFIG, num_blocks=3, block_size=4).store
    coded = BlockPool(CONFIG, num_blocks=3, block_size=4, bits=8).store
    codes = coded.coded(1, range(3)).codes
    assert codes.data_ptr() - coded.coded(0, range(3)).codes.data_ptr() == codes.nbytes
    assert floats.blocks(1)[0].data_ptr() - floats.blocks(0)[0].data_ptr() == 2 * floats.blocks(0)[0].nbytes


@triton
@pytest.mark.parametrize("bits", [None, 8])
def test_the_engine_writes_the_same_text_with_the_kernel(bits: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(dtype=torch.float32)
    layers = []
    in_place = paged_decode.attend_in_place
    monkeypatch.setattr(
        paged_decode, "attend_in_place", lambda *args, **named: layers.append(named["layer"]) or in_place(*args, **named)
    )
    monkeypatch.setattr(paged_decode, "applies", lambda cache: isinstance(cache, PagedCache))
    texts = []
    for fast in (False, True):
        engine = Engine(model, num_blocks=40, block_size=4, max_batch=3, bits=bits, fast=fast)
        rows = [engine.add(random_tokens(length, seed=length).tolist(), max_new_tokens=5) for length in (3, 9, 14, 1)]
        engine.run()
        texts.append([row.token_ids for row in rows])
        assert bool(layers) is fast
    assert texts[0] == texts[1]


# -- Where it cannot run ----------------------------------------------------------------------------------------------


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    given = Case((3,)).tensors(torch.device("cpu"))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else found(name))
    with pytest.raises(RuntimeError, match="pip install triton"):
        paged_decode_attention(*given)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there it is")
    with pytest.raises(RuntimeError, match="the tensors are on cpu"):
        paged_decode_attention(*given)


def test_the_processor_keeps_its_own_ways() -> None:
    cache = PagedCache(BlockPool(CONFIG, num_blocks=4, block_size=4), [[]])
    assert not paged_decode.applies(cache) and not paged_decode.applies(ContiguousCache(CONFIG))


@triton
def test_what_does_not_fit_is_refused(device: torch.device, unchecked: None) -> None:
    q, k, v, table, seq_lens = Case((3, 9), n_rep=2).tensors(device)
    for wrong, why in (
        ((q.double(), k.double(), v.double(), table, seq_lens), "of one type"),
        ((q.half(), k, v, table, seq_lens), "of one type"),
        ((q[:, :3], k, v, table, seq_lens), "serves as many"),
        ((q, k, v.transpose(1, 2).contiguous().transpose(1, 2), table, seq_lens), "laid out alike"),
        ((q, k.mT.contiguous().mT, v.mT.contiguous().mT, table, seq_lens), "keys should lie side by side"),
    ):
        with pytest.raises(ValueError, match=why):
            paged_decode_attention(*wrong)


def test_generation_on_the_processor_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_decode, "attend_in_place", None)
    model, tokens = random_model(), random_tokens(2, 5)
    cache = PagedCache(BlockPool(CONFIG, num_blocks=20, block_size=4, dtype=torch.float64), [[], []])
    assert torch.equal(generate(model, tokens, max_new_tokens=4, cache=cache), generate(model, tokens, max_new_tokens=4))
