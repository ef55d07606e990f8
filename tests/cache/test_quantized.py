"""A cache in few bits: when a group is rounded, that it is rounded once, and what that costs."""

import pytest
import torch
from tiny_models import CONFIG, assert_same, random_model, random_tokens
from torch import Tensor

from llama3_edu import BlockPool, ContiguousCache, LlamaConfig, PagedCache, QuantizedCache, kv_bytes

MODEL = random_model()
GROUP = 4
every_bits = pytest.mark.parametrize("bits", [8, 4, 2])


def cache_of(bits: int, batch: int = 1, **options: int) -> QuantizedCache:
    return QuantizedCache(CONFIG, batch, **{"max_seq_len": 24, "group_size": GROUP, "dtype": torch.float64, **options}, bits=bits)


def run(cache: QuantizedCache | PagedCache, tokens: Tensor, pieces: list[int]) -> Tensor:
    return torch.cat([MODEL(piece, cache) for piece in tokens.split(pieces, dim=1)], dim=1)


# -- When groups are rounded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("residual", "expected"),
    [(0, [0, 0, 0, 4, 4, 4, 4, 8]), (1, [0, 0, 0, 0, 4, 4, 4, 4]), (3, [0] * 6 + [4, 4]), (4, [0] * 7 + [4]), (24, [0] * 8)],
)
def test_a_group_is_rounded_when_it_is_full_and_older_than_the_residual(residual: int, expected: list[int]) -> None:
    cache = cache_of(8, residual=residual)
    found = []
    for token in random_tokens(8, 1):
        MODEL(token[None], cache)
        found += cache.num_quantized
    assert found == expected


@every_bits
def test_open_tokens_are_exact_and_rounded_ones_are_near(bits: int) -> None:
    cache = cache_of(bits)
    k, v = torch.randn(2, 1, 11, 2, 8, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    cache.reserve(torch.arange(11)[None])
    k_all, v_all = cache.update(0, k, v)
    assert torch.equal(k_all[:, 8:], k[:, 8:]) and torch.equal(v_all[:, 8:], v[:, 8:])
    for group in (slice(0, 4), slice(4, 8)):
        half = (k[:, group].amax(dim=1) - k[:, group].amin(dim=1)) / (2**bits - 1) / 2  # per channel, over the group's tokens
        error = (k_all[:, group] - k[:, group]).abs().amax(dim=1)
        assert (error <= half * 1.01).all() and (error > 0).any()
    assert 0 < (v_all[:, :8] - v[:, :8]).abs().max() <= (v.max() - v.min()) / (2**bits - 1) / 2 * 1.01


@every_bits
def test_what_is_rounded_is_never_rounded_again(bits: int) -> None:
    cache = cache_of(bits)
    run(cache, random_tokens(1, 9), [9])
    before = cache.packed_bytes(0)
    for step in range(9, 24):
        MODEL(random_tokens(1, 1, seed=step), cache)
        assert cache.packed_bytes(0).startswith(before)
    assert len(cache.packed_bytes(0)) == 3 * len(before)


@every_bits
def test_a_prompt_cut_where_groups_end_leaves_the_same_bytes(bits: int) -> None:
    tokens = random_tokens(1, 20)
    whole, cut, cut_elsewhere = cache_of(bits), cache_of(bits), cache_of(bits)
    logits = run(whole, tokens, [20])
    assert_same(run(cut, tokens, [8, 4, 8]), logits, tolerance=1e-9)
    assert cut.packed_bytes(0) == whole.packed_bytes(0)
    run(cut_elsewhere, tokens, [7, 6, 7])
    assert cut_elsewhere.packed_bytes(0) != whole.packed_bytes(0), "deeper layers saw full precision for longer"


@every_bits
def test_a_pool_rounds_what_a_quantised_cache_rounds(bits: int) -> None:
    tokens = random_tokens(1, 14)
    pool = BlockPool(CONFIG, num_blocks=8, block_size=GROUP, bits=bits, group_size=GROUP, dtype=torch.float64)
    paged, own = PagedCache(pool, [[]]), cache_of(bits)
    for pieces in [[5, 1, 8]]:
        assert_same(run(paged, tokens, pieces), run(own, tokens, pieces))
    kept = b"".join(pool.store.packed_bytes(block) for block in paged.block_tables[0][:3])
    assert kept == own.packed_bytes(0)


@every_bits
def test_rounded_blocks_are_shared_and_copied_without_being_rounded_again(bits: int) -> None:
    pool = BlockPool(CONFIG, num_blocks=12, block_size=GROUP, bits=bits, group_size=GROUP, dtype=torch.float64)
    cache = PagedCache(pool, [[]])
    run(cache, random_tokens(1, 6), [6])
    full = cache.block_tables[0][0]
    before = pool.store.packed_bytes(full)
    cache.reorder(torch.tensor([0, 0]))
    MODEL(random_tokens(2, 3), cache)
    copy = pool.copy(full)
    assert pool.store.packed_bytes(full) == pool.store.packed_bytes(copy) == before
    assert [table[0] for table in cache.block_tables] == [full, full]


def test_fewer_bits_are_further_from_the_truth_and_a_residual_is_nearer() -> None:
    tokens = random_tokens(2, 20)
    truth = MODEL(tokens)
    off = {bits: (run(cache_of(bits, 2), tokens, [20]) - truth).abs().mean() for bits in (8, 4, 2)}
    assert 0 < off[8] < off[4] / 4 < off[2]
    near = (run(cache_of(2, 2, residual=12), tokens, [20]) - truth).abs().mean()
    assert near < off[2]
    assert_same(run(cache_of(2, 2, residual=20), tokens, [20]), truth)


# -- Hard numbers -----------------------------------------------------------------------------------------------------


@every_bits
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_constants_and_outliers_never_become_nan(bits: int, dtype: torch.dtype) -> None:
    cache = cache_of(bits, dtype=dtype)
    largest = min(torch.finfo(dtype).max, 1e30)
    kv = torch.zeros(2, 1, 8, 2, 8, dtype=dtype)
    kv[..., 1] = 3.5  # a channel that never changes
    kv[:, :, 2, :, 2], kv[:, :, 3, :, 3] = largest, -largest
    kv[:, :, 5, 0, 0], kv[:, :, 6, 0, 0] = largest, -largest
    cache.reserve(torch.arange(8)[None])
    k, v = cache.update(0, *kv)
    assert k.isfinite().all() and v.isfinite().all()
    assert (k[..., 1] == 3.5).all() and (k[..., 4:] == 0).all()


# -- Bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "effective", "ratio"), [(8, 8.5, 1.88), (4, 4.5, 3.56), (2, 2.5, 6.4)])
def test_a_long_cache_takes_its_effective_bits(bits: int, effective: float, ratio: float) -> None:
    config = LlamaConfig(dim=256, n_layers=1, n_heads=4, n_kv_heads=2, hidden_dim=8, vocab_size=8, max_seq_len=2**17)
    cache = QuantizedCache(config, bits=bits, dtype=torch.bfloat16)
    assert cache.effective_bits == effective
    packed, window = kv_bytes(config, seq_len=2**17) * effective / 16, kv_bytes(config, seq_len=64)
    assert cache.nbytes == packed + window
    assert kv_bytes(config, seq_len=2**17) / cache.nbytes == pytest.approx(ratio, abs=0.02)


@pytest.mark.parametrize("residual", [0, 1, 3, 5, 8, 30])
def test_memory_is_allocated_once_whatever_comes(residual: int) -> None:
    cache = cache_of(4, 3, residual=residual)
    before = cache.nbytes
    for step, columns in enumerate((3, 1, 5, 1, 1, 1, 9, 1, 2)):
        MODEL(random_tokens(3, columns, seed=step), cache)
        assert cache.nbytes == before
    assert cache.seq_lens.tolist() == [24] * 3


def test_few_bits_are_smaller_than_floats_even_when_short() -> None:
    assert cache_of(8).nbytes < ContiguousCache(CONFIG, max_seq_len=24, dtype=torch.float64).nbytes


# -- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits should be 8, 4 or 2; it is 3"),
        ({"max_seq_len": 0}, "max_seq_len should be at least 1; it is 0"),
        ({"group_size": 0}, "group_size should be at least 1; it is 0"),
        ({"residual": -1}, "residual should be at least 0; it is -1"),
        ({"batch": 0}, "batch should be at least 1; it is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cache_of(**{"bits": 8, **options})


def test_a_refused_forward_leaves_the_bytes_as_they_were() -> None:
    cache = cache_of(8)
    run(cache, random_tokens(1, 22), [22])
    before, size = cache.packed_bytes(0), cache.nbytes
    with pytest.raises(ValueError, match="room for 24 tokens per row; row 0 holds 22 and was given 3 more"):
        MODEL(random_tokens(1, 3), cache)
    assert cache.packed_bytes(0) == before and cache.nbytes == size and cache.seq_lens.tolist() == [22]
    MODEL(random_tokens(1, 2), cache)
