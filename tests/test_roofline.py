"""Costs against torch's own counter of operations and the bytes of real models and caches; bounds against plain arithmetic."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, SHAPES, random_model, random_tokens
from torch.utils.flop_counter import FlopCounterMode

import llama3_edu as le
from llama3_edu import roofline
from llama3_edu.config import PRESETS
from llama3_edu.roofline import MACHINES, Machine, forward_cost
from llama3_edu.sizes import CARDS

LLAMA3_8B = PRESETS["llama3-8b"]
SLOW = Machine(name="slow", flops_per_second=1000, bytes_per_second=10, memory_bytes=10**6)


def counted(config: le.LlamaConfig, *, batch: int, new_len: int, past: int, all_logits: bool = False) -> int:
    """What torch counts when the readable attention runs: whole rectangles, masked pairs included."""
    model, cache = random_model(config), le.GrowingCache(config, batch, dtype=torch.float64)
    model.use_attention(le.attend)
    tokens = random_tokens(batch, past + new_len, config=config)
    if past:
        model(tokens[:, :past], cache)
    with FlopCounterMode(display=False) as counter:
        (model if all_logits else model.next_logits)(tokens[:, past:], cache)
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batch", "past"), [(1, 9), (3, 4)])
def test_a_decode_step_is_counted_as_torch_counts_it(shape: str, batch: int, past: int) -> None:
    config = replace(SHAPES[shape], vocab_size=61)
    assert forward_cost(config, batch=batch, kv_len=past + 1).flops == counted(config, batch=batch, new_len=1, past=past)


@pytest.mark.parametrize(("new_len", "past"), [(5, 0), (5, 7)])
def test_a_prefill_is_counted_as_torch_counts_it_less_the_masked_pairs(new_len: int, past: int) -> None:
    found = forward_cost(CONFIG, batch=2, new_len=new_len, kv_len=past + new_len)
    masked = new_len * (new_len - 1) // 2
    per_pair = 4 * 2 * CONFIG.n_layers * CONFIG.n_heads * CONFIG.head_dim
    assert found.flops == counted(CONFIG, batch=2, new_len=new_len, past=past) - masked * per_pair


def test_logits_are_counted_for_the_rows_asked_for() -> None:
    every = forward_cost(CONFIG, batch=2, new_len=5, kv_len=12, logits_per_row=5)
    masked = 10 * 4 * 2 * CONFIG.n_layers * CONFIG.n_heads * CONFIG.head_dim
    assert every.flops == counted(CONFIG, batch=2, new_len=5, past=7, all_logits=True) - masked
    assert every.weight_bytes == forward_cost(CONFIG, batch=2, new_len=5, kv_len=12).weight_bytes


def test_weights_are_read_once_and_of_the_embedding_the_rows_looked_up() -> None:
    for config in (CONFIG, SHAPES["explicit head_dim"]):
        model = random_model(config)
        for batch in (1, 7, 61, 100):
            rows = min(batch, config.vocab_size)
            table = model.tok_embeddings.weight.nbytes // config.vocab_size * (config.vocab_size - rows)
            everything = sum(parameter.nbytes for parameter in model.parameters())
            assert forward_cost(config, batch=batch, kv_len=3, bits=64).weight_bytes == everything - table


def test_a_tied_table_is_read_whole_for_the_logits_and_its_rows_once_more() -> None:
    untied, tied = replace(CONFIG, tie_embeddings=False), replace(CONFIG, tie_embeddings=True)
    assert forward_cost(untied, kv_len=3) == forward_cost(tied, kv_len=3)


@pytest.mark.parametrize(("batch", "new_len", "past"), [(1, 1, 8), (3, 5, 4)])
def test_keys_and_values_are_those_a_cache_holds(batch: int, new_len: int, past: int) -> None:
    caches = [le.ContiguousCache(CONFIG, batch, max_seq_len=length, dtype=torch.float16) for length in (past + new_len, new_len)]
    found = forward_cost(CONFIG, batch=batch, new_len=new_len, kv_len=past + new_len, bits_of_weights=32)
    assert (found.kv_read_bytes, found.kv_written_bytes) == tuple(cache.nbytes for cache in caches)


def test_one_row_has_one_operation_per_byte_and_a_batch_one_per_row_until_the_cache_pulls_it_back() -> None:
    def intensity(batch: int, kv_len: int) -> float:
        return forward_cost(LLAMA3_8B, batch=batch, kv_len=kv_len).arithmetic_intensity

    assert intensity(1, 1) == pytest.approx(1, rel=1e-3)
    assert intensity(64, 1) == pytest.approx(64, rel=2e-3)
    assert intensity(64, 8192) < intensity(64, 1024) < intensity(64, 1)
    alone = forward_cost(LLAMA3_8B, batch=64, kv_len=8192)
    assert alone.attention_flops == LLAMA3_8B.n_rep * alone.kv_read_bytes, "16 bits: n_rep operations per byte"
    assert LLAMA3_8B.n_rep < intensity(1024, 2**17) < LLAMA3_8B.n_rep + 1 < intensity(64, 2**13)


@given(flops=st.integers(1, 10**9), nbytes=st.integers(1, 10**9))
def test_the_limit_is_what_takes_longer(flops: int, nbytes: int) -> None:
    cost = roofline.Cost(linear_flops=flops, attention_flops=0, weight_bytes=nbytes, kv_read_bytes=0, kv_written_bytes=0)
    computing, moving = Fraction(flops, 1000), Fraction(nbytes, 10)
    assert cost.seconds(SLOW) == pytest.approx(float(max(computing, moving)))
    assert cost.limit(SLOW) == ("memory" if moving > computing else "compute")
    assert cost.flops / cost.seconds(SLOW) == pytest.approx(SLOW.roof(cost.arithmetic_intensity))
    assert (cost.arithmetic_intensity < SLOW.ridge) == (cost.limit(SLOW) == "memory")


def test_machines_are_the_cards_of_the_calculator_with_their_own_names() -> None:
    cards = {card.name: card.memory_bytes for card in CARDS}
    assert cards.items() <= {name: machine.memory_bytes for name, machine in MACHINES.items()}.items()
    assert all(name == machine.name for name, machine in MACHINES.items())
    # None of them is the rate with sparsity: that of an A100 is 624.
    assert MACHINES["A100 80 GB"].flops_per_second == 312 * 10**12
    assert MACHINES["H100 80 GB"].flops_per_second == MACHINES["H200 141 GB"].flops_per_second == 9894 * 10**11


def test_rates_are_bytes_and_operations_over_the_time_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0.5, 0.125, 2.0))
    monkeypatch.setattr(roofline, "_least_seconds", lambda work, device, repeats: (work(), next(times))[1])
    found = le.measure_machine(nbytes=4000, size=8)
    assert found.bytes_per_second == 4000 / 0.125, "the faster of copying twice the bytes and reading them once"
    assert found.flops_per_second == 2 * 8**3 / 2


def test_this_machine_is_measured(device: torch.device) -> None:
    found = le.measure_machine(device, nbytes=2**16, size=32, repeats=3)
    assert found.flops_per_second > 0 and found.bytes_per_second > 0 and found.memory_bytes > 2**28
    assert f"torch {torch.__version__}" in found.name


def test_work_is_run_once_to_warm_up_and_then_as_often_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 9, 10, 12, 20, 25, 30, 33])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    ran = []
    assert roofline._least_seconds(lambda: ran.append(1), torch.device("cpu"), 3) == 2
    assert len(ran) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forward_cost(CONFIG, kv_len=4, new_len=5), "kv_len should be at least 5; it is 4"),
        (lambda: forward_cost(CONFIG, kv_len=4, batch=0), "batch should be at least 1; it is 0"),
        (lambda: forward_cost(CONFIG, kv_len=4, new_len=0), "new_len should be at least 1; it is 0"),
        (lambda: forward_cost(CONFIG, kv_len=4, logits_per_row=2), "new_len should be at least 2; it is 1"),
        (lambda: forward_cost(CONFIG, kv_len=4, bits=0, bits_of_weights=8), "bits should be at least 1; it is 0"),
        (lambda: forward_cost(CONFIG, kv_len=4, bits_of_weights=0), "bits_of_weights should be at least 1; it is 0"),
        (lambda: le.roofline_frames({}), "needs a model and a machine; it was given 0 and 7"),
        (lambda: le.roofline_frames(machines=()), "needs a model and a machine; it was given 7 and 0"),
        (
            lambda: le.roofline_frames(measured=[le.MeasuredPass(label="a", cost=forward_cost(CONFIG, kv_len=1), seconds=1.0)]),
            "1 passes were measured; here= should say on which machine",
        ),
    ],
)
def test_what_cannot_be_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_frames_of_a_measured_machine_ask_it_first_and_say_what_was_measured() -> None:
    cost = forward_cost(CONFIG, kv_len=9, bits=32)
    measured = [le.MeasuredPass(label="decode", cost=cost, seconds=4 * cost.seconds(SLOW))]
    frames = le.roofline_frames({"mine": CONFIG}, MACHINES.values(), here=SLOW, measured=measured, bits=32)
    assert [machine["name"] for machine in frames["machines"]] == ["slow", *MACHINES]
    assert [(step["machine"], step["model"]) for step in frames["steps"]] == [(0, 0)]
    assert "25 % of the roof" in frames["measured"][0]["words"]
    assert frames["measured"][0]["words"] in frames["steps"][0]["summary"]
    low, high = frames["axes"]["flops"]
    assert low < cost.flops / measured[0].seconds < high


def test_figures_are_rounded_half_up_from_exact_fractions() -> None:
    from llama3_edu.roofline_frames import _figures, _si

    assert [_figures(*pair) for pair in ((1, 8), (17, 8), (1, 1), (9999, 1000), (12345, 1), (205, 2))] == [
        "0.125", "2.13", "1.00", "10.00", "12,345", "103",
    ]  # fmt: skip
    assert [_si(*pair, "s") for pair in ((1, 1), (1, 2000), (3, 2 * 10**6), (5 * 10**13, 1), (1, 10**12))] == [
        "1.00 s", "500 µs", "1.50 µs", "50.0 Ts", "0.001 ns",
    ]  # fmt: skip
