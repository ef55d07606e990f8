"""Numbers in few bits: levels, packing, and what a store keeps of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounded import round_keys, round_values, rounded
from tiny_models import CONFIG, assert_same
from torch import Tensor

from llama3_edu import FloatStore, LlamaConfig, QuantizedStore
from llama3_edu.cache import dequantize, pack, quantize, unpack

EVERY_BITS = (8, 4, 2)
every_bits = pytest.mark.parametrize("bits", EVERY_BITS)
FLOATS = {torch.float16: 65_504.0, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e30}


def random_kv(num_tokens: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Keys and values, with one channel much larger than the others, as real keys have."""
    x = torch.randn(2, num_tokens, 2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, :, 1, 3] = 40 * x[:, :, 1, 3] + 100
    return x.to(dtype)


# -- Levels -----------------------------------------------------------------------------------------------------------


@every_bits
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 300.0])
@pytest.mark.parametrize("middle", [0.0, 1.0, -7.3, 1000.0])
def test_no_number_is_off_by_more_than_half_a_scale(bits: int, size: float, middle: float) -> None:
    x = middle + size * torch.randn(50, 64, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    codes, scale, zero = quantize(x, bits=bits, dim=1)
    assert codes.max().item() < 2**bits
    error = (dequantize(codes, scale, zero, dtype=x.dtype) - x).abs()
    assert (error <= scale.double() / 2 * (1 + 1e-9)).all()


@every_bits
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_scales_are_no_wider_than_they_must_be(bits: int, size: float) -> None:
    x = size * torch.randn(50, 64, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    _, scale, _ = quantize(x, bits=bits, dim=1)
    finest = (x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True)) / (2**bits - 1)
    assert (scale.double() >= finest * (1 - 1e-9)).all() and (scale.double() <= finest * 1.01 + 2.0**-24).all()


@given(
    numbers=st.lists(st.floats(-70_000, 70_000, width=32).filter(lambda x: abs(x) <= 65_504), min_size=1, max_size=9),
    bits=st.sampled_from(EVERY_BITS),
)
def test_levels_are_those_of_the_plain_definition(numbers: list[float], bits: int) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    found = dequantize(*quantize(x, bits=bits, dim=0), dtype=torch.float64)
    assert_same(found, torch.from_numpy(rounded(np.array(numbers), bits=bits)), tolerance=1e-9)


@every_bits
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.1, -3.3, 1e-9, -1e-9, 65_504.0, -65_504.0])
def test_a_group_of_one_value_comes_back(bits: int, value: float) -> None:
    x = torch.full((3, 4), value, dtype=torch.float64)
    found = dequantize(*quantize(x, bits=bits, dim=1), dtype=x.dtype)
    assert_same(found, x, tolerance=abs(value) * 2**-10 + 2**-24)


@every_bits
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("outliers", [[1.0], [-1.0], [1.0, -1.0]])
def test_numbers_too_large_for_16_bits_saturate_and_stay_finite(bits: int, dtype: torch.dtype, outliers: list[float]) -> None:
    x = torch.linspace(-1, 1, 16, dtype=dtype)
    x[: len(outliers)] = FLOATS[dtype] * torch.tensor(outliers, dtype=dtype)
    codes, scale, zero = quantize(x, bits=bits, dim=0)
    assert scale.isfinite().all() and zero.isfinite().all()
    found = dequantize(codes, scale, zero, dtype=dtype)
    assert found.isfinite().all()
    assert (found[: len(outliers)].sign() == x[: len(outliers)].sign()).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_eight_bits_keep_each_type_to_its_precision(dtype: torch.dtype) -> None:
    x = torch.linspace(-2, 2, 64, dtype=dtype)
    found = dequantize(*quantize(x, bits=8, dim=0), dtype=dtype)
    assert found.dtype == dtype
    assert_same(found, x, tolerance=4 / 255 / 2 + 2 * torch.finfo(dtype).eps + 1e-4)


# -- Packing ----------------------------------------------------------------------------------------------------------


@given(data=st.data(), bits=st.sampled_from(EVERY_BITS), length=st.integers(0, 9))
def test_codes_survive_packing_and_take_their_bits_alone(data: st.DataObject, bits: int, length: int) -> None:
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=length, max_size=length)), dtype=torch.uint8)
    packed = pack(codes.expand(3, length), bits=bits)
    assert packed.shape == (3, math.ceil(length * bits / 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits=bits, length=length), codes.expand(3, length))


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack(torch.tensor([1, 2], dtype=torch.uint8), bits=4).tolist() == [0x21]
    assert pack(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), bits=2).tolist() == [0b00_11_10_01]


# -- Stores -----------------------------------------------------------------------------------------------------------


def store_of(bits: int | None, **options: int) -> FloatStore | QuantizedStore:
    options = {"num_blocks": 5, "block_size": 4, **options}
    if bits is None:
        return FloatStore(CONFIG, dtype=torch.float64, **options)
    return QuantizedStore(CONFIG, bits=bits, group_size=8, dtype=torch.float64, **options)


def put(store: FloatStore | QuantizedStore, slots: list[int], kv: Tensor, *, closing: tuple[int, ...] = ()) -> None:
    writes = store.plan(torch.tensor(slots, dtype=torch.long), closing=closing)
    for layer in range(CONFIG.n_layers):
        store.write(layer, writes, *(kv + layer))


def found(store: FloatStore | QuantizedStore, blocks: list[int], layer: int = 0) -> Tensor:
    return torch.stack(store.read(layer, torch.tensor([blocks])))[:, 0]


@pytest.mark.parametrize("bits", [None, *EVERY_BITS])
def test_open_slots_come_back_as_they_went_in(bits: int | None) -> None:
    store, kv = store_of(bits), random_kv(5)
    put(store, [9, 8, 4, 18, 17], kv)
    for layer in range(CONFIG.n_layers):
        kept = found(store, [2, 1, 4], layer)
        assert torch.equal(kept[:, [1, 0, 4, 10, 9]], kv + layer)


@every_bits
@pytest.mark.parametrize("pieces", [[4], [1, 3], [3, 1], [1, 1, 1, 1]])
def test_a_closed_block_is_rounded_by_channel_for_keys_and_by_token_for_values(bits: int, pieces: list[int]) -> None:
    store, kv = store_of(bits), random_kv(4)
    first = 0
    for end in np.cumsum(pieces).tolist():
        put(store, list(range(12 + first, 12 + end)), kv[:, first:end], closing=(3,) if end == 4 else ())
        first = end
    for layer in range(CONFIG.n_layers):
        keys, values = found(store, [3], layer)
        assert_same(keys, round_keys(kv[0] + layer, bits=bits), tolerance=1e-12)
        assert_same(values, round_values(kv[1] + layer, bits=bits, group_size=8), tolerance=1e-12)
    assert store.open_blocks == frozenset()


@every_bits
def test_an_outlier_channel_costs_other_channels_of_the_keys_nothing(bits: int) -> None:
    kv = random_kv(4)
    quiet = kv.clone()
    quiet[:, :, 1, 3] = 0
    kept = []
    for x in (kv, quiet):
        store = store_of(bits)
        put(store, [0, 1, 2, 3], x, closing=(0,))
        kept.append(found(store, [0])[0])
    others = torch.ones(2, 8, dtype=torch.bool)
    others[1, 3] = False
    assert torch.equal(kept[0][:, others], kept[1][:, others])


@every_bits
def test_a_closed_block_is_never_rounded_again(bits: int) -> None:
    store, kv = store_of(bits), random_kv(20)
    put(store, [0, 1, 2, 3], kv[:, :4], closing=(0,))
    before = store.packed_bytes(0)
    for step in range(4, 16):
        put(store, [step], kv[:, step, None], closing=(step // 4,) if step % 4 == 3 else ())
        assert store.packed_bytes(0) == before
    assert len({store.packed_bytes(block) for block in range(4)}) == 4


@pytest.mark.parametrize("bits", [None, *EVERY_BITS])
def test_a_copy_is_equal_bit_for_bit_and_goes_its_own_way(bits: int | None) -> None:
    store, kv = store_of(bits), random_kv(6)
    put(store, [0, 1, 2, 3, 4, 5], kv, closing=(0,))
    store.copy(0, 2)
    store.copy(1, 3)
    assert torch.equal(found(store, [2]), found(store, [0]))
    assert torch.equal(found(store, [3])[:, :2], kv[:, 4:])
    if bits is not None:
        assert store.packed_bytes(2) == store.packed_bytes(0)
    put(store, [14, 15], kv[:, :2], closing=(3,))
    assert torch.equal(found(store, [1])[:, :2], kv[:, 4:])


@every_bits
def test_a_block_that_was_copied_over_forgets_what_was_open_in_it(bits: int) -> None:
    store, kv = store_of(bits), random_kv(6)
    put(store, [0, 1, 2, 3, 4, 5], kv, closing=(0,))
    store.copy(0, 1)
    assert torch.equal(found(store, [1]), found(store, [0]))
    assert store.open_blocks == frozenset()


@every_bits
def test_room_for_open_blocks_grows_and_is_used_again(bits: int) -> None:
    store, kv = store_of(bits), random_kv(4)
    empty = store.nbytes
    put(store, [0, 4, 8, 12], kv)
    full = store.nbytes
    assert full - empty == 4 * 4 * CONFIG.kv_elements_per_token * 8
    store.clear([0, 1])
    put(store, [16], kv[:, :1])
    assert store.nbytes == full and store.open_blocks == {2, 3, 4}
    assert torch.equal(found(store, [2, 3, 4])[:, [0, 4, 8]], kv[:, [2, 3, 0]])


@every_bits
def test_selected_blocks_are_what_their_sources_were(bits: int) -> None:
    store, kv = store_of(bits, open_blocks=5), random_kv(7)
    put(store, [0, 1, 2, 3, 4, 5, 8], kv, closing=(0,))
    before = {block: found(store, [block]) for block in range(5)}
    order = [1, 0, 1, 2, 0, 4, 3, 2]
    store.select(order)
    for block, source in enumerate(order):
        assert torch.equal(found(store, [block]), before[source])
    put(store, [2, 3], kv[:, :2], closing=(0,))
    assert torch.equal(found(store, [2]), before[1])


@pytest.mark.parametrize(("bits", "effective", "ratio"), [(8, 8.5, 1.88), (4, 4.5, 3.56), (2, 2.5, 6.4)])
def test_effective_bits_at_groups_of_64(bits: int, effective: float, ratio: float) -> None:
    config = LlamaConfig(dim=256, n_layers=2, n_heads=8, n_kv_heads=4, hidden_dim=8, vocab_size=8)
    store = QuantizedStore(config, num_blocks=3, block_size=64, bits=bits)
    sixteen = FloatStore(config, num_blocks=3, block_size=64, dtype=torch.float16)
    assert store.effective_bits == effective and sixteen.effective_bits == 16
    assert round(sixteen.nbytes / store.nbytes, 2) == round(16 / effective, 2) == ratio


@every_bits
@pytest.mark.parametrize("kv_heads_and_dim", [(1, 6), (3, 6), (2, 12), (1, 5 * 2)])
@pytest.mark.parametrize("group_size", [1, 8, 64])
def test_any_number_of_channels_packs(bits: int, kv_heads_and_dim: tuple[int, int], group_size: int) -> None:
    n_kv_heads, head_dim = kv_heads_and_dim
    config = LlamaConfig(
        dim=24, n_layers=1, n_heads=n_kv_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, hidden_dim=8, vocab_size=8
    )
    store = QuantizedStore(config, num_blocks=1, block_size=3, bits=bits, group_size=group_size, dtype=torch.float64)
    assert config.kv_dim % store.value_group_size == 0 and store.value_group_size <= group_size
    k, v = torch.randn(2, 3, n_kv_heads, head_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    store.write(0, store.plan(torch.arange(3), closing=[0]), k, v)
    kept_k, kept_v = store.read(0, torch.tensor([[0]]))
    assert_same(kept_k[0], round_keys(k, bits=bits), tolerance=1e-12)
    assert_same(kept_v[0], round_values(v, bits=bits, group_size=group_size), tolerance=1e-12)


@pytest.mark.parametrize("bits", [0, 1, 3, 16])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits should be 8, 4 or 2; it is {bits}"):
        store_of(bits)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", ["num_blocks", "block_size"])
def test_sizes_below_one_are_refused(bits: int | None, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} should be at least 1; it is 0"):
        store_of(bits, **{name: 0})
