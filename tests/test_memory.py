"""Bytes, as exact integers: the published figures, and the model and caches themselves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, SHAPES, random_model

from llama3_edu import LlamaConfig, format_bytes, kv_bytes, kv_bytes_per_token, max_batch, parameter_count, weight_bytes

LLAMA3_8B = LlamaConfig.from_preset("llama3-8b")
LLAMA3_70B = LlamaConfig.from_preset("llama3-70b")
KIB, MIB, GIB = 2**10, 2**20, 2**30


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.1-70b", 70_553_706_496),
        ("llama3.1-405b", 405_853_388_800),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.2-3b", 3_212_749_824),
    ],
)
def test_released_models_have_their_published_number_of_parameters(name: str, count: int) -> None:
    config = LlamaConfig.from_preset(name)
    assert parameter_count(config) == count
    assert weight_bytes(config) == 2 * count and weight_bytes(config, bits=4) == count // 2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_count_is_that_of_the_model_itself(shape: str) -> None:
    model = random_model(SHAPES[shape])
    assert parameter_count(SHAPES[shape]) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "per_token", "at_8192"),
    [
        ("llama3-8b", 128 * KIB, GIB),
        ("llama3-70b", 320 * KIB, 2.5 * GIB),
        ("llama3.1-405b", 504 * KIB, 3.9375 * GIB),
        ("llama3.2-1b", 32 * KIB, 256 * MIB),
        ("llama3.2-3b", 112 * KIB, 896 * MIB),
    ],
)
def test_bytes_of_keys_and_values_as_tabled(name: str, per_token: int, at_8192: float) -> None:
    config = LlamaConfig.from_preset(name)
    assert kv_bytes_per_token(config) == per_token
    assert kv_bytes(config, seq_len=8192) == at_8192


def test_the_figures_the_book_starts_from() -> None:
    assert kv_bytes_per_token(LLAMA3_8B) == 32 * 8 * 128 * 2 * 2 == 131_072
    assert kv_bytes(LLAMA3_8B, seq_len=8191) == 1_073_610_752
    assert kv_bytes_per_token(LLAMA3_70B) == 80 * 8 * 128 * 2 * 2 == 327_680
    assert kv_bytes(LLAMA3_70B, seq_len=8191) == 2_684_026_880
    # "35.2 GB" for 32 rows comes from rounding to 1.1 GB first.
    assert round(kv_bytes(LLAMA3_8B, seq_len=8192, batch=32) / 1e9, 2) == 34.36
    assert round(kv_bytes(LLAMA3_8B, seq_len=8191, batch=32) / 1e9, 2) == 34.36
    assert round(kv_bytes(LLAMA3_8B, seq_len=8191) / GIB, 5) == 0.99988
    assert round(100 * kv_bytes(LLAMA3_8B, seq_len=8191) / 24e9, 2) == 4.47
    assert round(100 * kv_bytes(LLAMA3_8B, seq_len=8191) / (24 * GIB), 2) == 4.17


def test_a_model_with_as_many_kv_heads_as_heads() -> None:
    opt_13b = LlamaConfig(dim=5120, n_layers=40, n_heads=40, n_kv_heads=40, hidden_dim=20_480, vocab_size=50_272)
    assert kv_bytes_per_token(opt_13b) == 800 * KIB
    assert kv_bytes(opt_13b, seq_len=2048) == 1_677_721_600


@given(seq_len=st.integers(0, 9), batch=st.integers(0, 9), bits=st.integers(1, 64))
def test_kv_bytes_are_elements_times_bits_rounded_up(seq_len: int, batch: int, bits: int) -> None:
    total_bits = seq_len * batch * bits * CONFIG.n_layers * CONFIG.n_kv_heads * CONFIG.head_dim * 2
    found = kv_bytes(CONFIG, seq_len=seq_len, batch=batch, bits=bits)
    assert isinstance(found, int) and 8 * found - 8 < total_bits <= 8 * found


def test_an_explicit_head_dim_is_what_counts() -> None:
    assert kv_bytes_per_token(replace(CONFIG, head_dim=12)) == 2 * 2 * 12 * 2 * CONFIG.n_layers


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_largest_batch_fits_and_one_more_does_not(bits: int) -> None:
    memory_bytes = 24 * 10**9
    rows = max_batch(LLAMA3_8B, seq_len=4096, memory_bytes=memory_bytes, bits=bits)
    weights = weight_bytes(LLAMA3_8B, bits=bits)
    assert rows > 0
    assert weights + kv_bytes(LLAMA3_8B, seq_len=4096, batch=rows, bits=bits) <= memory_bytes
    assert weights + kv_bytes(LLAMA3_8B, seq_len=4096, batch=rows + 1, bits=bits) > memory_bytes


@pytest.mark.parametrize(("bits", "bits_of_weights"), [(16, 4), (4, 16), (8, 32)])
def test_weights_may_take_other_bits_than_keys_and_values(bits: int, bits_of_weights: int) -> None:
    weights, row = weight_bytes(LLAMA3_8B, bits=bits_of_weights), kv_bytes(LLAMA3_8B, seq_len=4096, bits=bits)
    for beside_weights, rows in ((-1, 0), (5 * row - 1, 4), (5 * row, 5)):
        memory_bytes = weights + beside_weights
        assert max_batch(LLAMA3_8B, seq_len=4096, memory_bytes=memory_bytes, bits=bits, bits_of_weights=bits_of_weights) == rows


def test_the_largest_batch_at_its_edges() -> None:
    weights, row = weight_bytes(LLAMA3_8B), kv_bytes(LLAMA3_8B, seq_len=8192)
    assert max_batch(LLAMA3_8B, seq_len=8192, memory_bytes=0) == 0
    for beside_weights, rows in ((-1, 0), (0, 0), (row - 1, 0), (row, 1), (7 * row - 1, 6), (7 * row, 7)):
        assert max_batch(LLAMA3_8B, seq_len=8192, memory_bytes=weights + beside_weights) == rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kv_bytes(CONFIG, seq_len=-1), "seq_len should be at least 0; it is -1"),
        (lambda: kv_bytes(CONFIG, seq_len=1, batch=-2), "batch should be at least 0; it is -2"),
        (lambda: kv_bytes(CONFIG, seq_len=1, bits=0), "bits should be at least 1; it is 0"),
        (lambda: kv_bytes_per_token(CONFIG, bits=0), "bits should be at least 1; it is 0"),
        (lambda: weight_bytes(CONFIG, bits=-8), "bits should be at least 1; it is -8"),
        (lambda: max_batch(CONFIG, seq_len=0, memory_bytes=1), "seq_len should be at least 1; it is 0"),
        (lambda: max_batch(CONFIG, seq_len=1, memory_bytes=-1), "memory_bytes should be at least 0; it is -1"),
        (lambda: max_batch(CONFIG, seq_len=1, memory_bytes=1, bits_of_weights=0), "bits should be at least 1; it is 0"),
        (lambda: format_bytes(-1), "nbytes should be at least 0; it is -1"),
    ],
)
def test_impossible_amounts_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (131_072, "128 KiB"),
        (1536, "1.500 KiB"),
        (GIB, "1 GiB"),
        (GIB - 2**17, "1.000 GiB"),
    ],
)
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


@given(nbytes=st.integers(0, 2**60))
def test_a_size_for_people_is_right_to_four_digits(nbytes: int) -> None:
    number, unit = format_bytes(nbytes).split()
    size = float(number) * {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 2**40, "PiB": 2**50}[unit]
    assert abs(size - nbytes) <= 0.0005 * nbytes
