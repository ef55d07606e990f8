"""The measuring functions of the benchmark on quantised caches: each against a plain way of computing the same."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_models import CONFIG, assert_same, random_model, random_tokens

from llama3_edu import ContiguousCache, GrowingCache, QuantizedCache, load_tiny

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from train_tiny import nats_per_character  # noqa: E402

from benchmarks.quantised import (  # noqa: E402
    SETTINGS,
    KeysPerToken,
    Setting,
    decoded_logits,
    divergence,
    nats_in_all,
    sampled_text,
    sizes,
)

MODEL = random_model()
TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"


def test_decoding_given_tokens_gives_the_logits_of_one_forward() -> None:
    tokens = random_tokens(2, 9)
    found = decoded_logits(MODEL, tokens, GrowingCache(CONFIG, 2, dtype=torch.float64))
    assert_same(found, MODEL(tokens))


def test_equal_predictions_do_not_diverge() -> None:
    logits = MODEL(random_tokens(2, 9))
    assert divergence(logits, logits + 3) == pytest.approx((0, 1), abs=1e-12)


def test_the_divergence_is_the_mean_of_what_its_definition_says() -> None:
    expected, found = MODEL(random_tokens(2, 9)), MODEL(random_tokens(2, 9, seed=4))
    p, q = expected.softmax(dim=-1), found.softmax(dim=-1)
    nats, agreement = divergence(expected, found)
    assert nats == pytest.approx((p * (p / q).log()).sum().item() / 18, rel=1e-9)
    assert nats != pytest.approx(divergence(found, expected)[0], rel=1e-3), "it matters which of the two is expected"
    assert agreement == sum(a == b for a, b in zip(p.argmax(-1).flatten().tolist(), q.argmax(-1).flatten().tolist())) / 18


@pytest.mark.parametrize("window", [8, 16, 512])
def test_through_a_float_cache_the_surprise_is_that_of_the_model_alone(window: int) -> None:
    model, tokenizer = load_tiny(dtype=torch.float32)
    nats, count = nats_in_all(model, tokenizer, TEXT, ContiguousCache, window=window)
    assert nats / len(TEXT) == pytest.approx(nats_per_character(model, tokenizer, TEXT, window=window), rel=1e-5)
    assert count == len(tokenizer.encode(TEXT)), "every token is predicted, and once"


def test_quantised_keys_are_what_later_tokens_see() -> None:
    tokens = random_tokens(1, 20)
    exact = MODEL(tokens)
    coarse = decoded_logits(MODEL, tokens, QuantizedCache(CONFIG, bits=2, group_size=8, dtype=torch.float64))
    assert_same(coarse[:, :7], exact[:, :7])
    assert (coarse - exact).abs().amax(dim=-1)[0, 7:].min() > 1e-3


def test_the_wrong_axis_rounds_keys_alone_as_values_are_rounded() -> None:
    options = {"bits": 2, "group_size": 4, "dtype": torch.float64}
    wrong, right, swapped = KeysPerToken(CONFIG, 2, **options), *(QuantizedCache(CONFIG, 2, **options) for _ in range(2))
    k, v = torch.randn(2, 2, 9, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for cache in (wrong, right, swapped):
        cache.reserve(torch.arange(9).expand(2, 9))
    keys, values = wrong.update(0, k, v)
    assert torch.equal(values, right.update(0, k, v)[1])
    assert torch.equal(keys, swapped.update(0, v, k)[1])
    assert not torch.equal(keys[:, :8], right.update(0, k, v)[0][:, :8])


def test_the_model_writes_the_same_text_every_time() -> None:
    model, tokenizer = load_tiny(dtype=torch.float32)
    first, second = (sampled_text(model, tokenizer, rows=3, length=12) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (3, 12) and len(first.unique(dim=0)) == 3


def test_sizes_are_those_of_the_caches() -> None:
    assert sizes(Setting(None), CONFIG)["smaller_at_64"] == "1.00×"
    config = load_tiny()[0].config
    bits = {(setting.bits, setting.group_size): sizes(setting, config)["effective_bits"] for setting in SETTINGS}
    # Two 16-bit numbers per group, in units of a number's share of them.
    assert bits == {(bits, size): 16 if bits is None else bits + 32 / size for bits, size in bits}
    row = sizes(Setting(2, 16, residual=64), config)
    assert (
        row["KiB_for_512_tokens"] * 1024
        == QuantizedCache(config, bits=2, group_size=16, residual=64, dtype=torch.bfloat16).nbytes
    )
