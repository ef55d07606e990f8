"""Weights in 8 bits: how far they may be off, what they take, and what they do to the model's answers."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, SHAPES, random_model, random_tokens
from torch.nn import functional as F

from llama3_edu import (
    CheckpointError,
    ContiguousCache,
    Int8Embedding,
    Int8Linear,
    Llama,
    LlamaConfig,
    NoCache,
    format_bytes,
    generate,
    int8_weight_bytes,
    kv_bytes,
    load_checkpoint,
    load_tiny,
    max_batch,
    sampler,
    save_checkpoint,
    weight_bytes,
)
from llama3_edu import int8 as int8_module
from llama3_edu.int8 import quantise_rows
from llama3_edu.memory_use import stored_bytes

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@given(rows=st.integers(1, 5), width=st.integers(1, 40), power=st.integers(-12, 4), seed=st.integers(0, 99))
def test_every_number_comes_back_to_half_a_step(dtype, rows, width, power, seed):
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2.0**power
    levels, scale = quantise_rows(weight, dtype)
    assert levels.abs().max() <= 127 and scale.dtype == dtype
    step = scale.double()[:, None]
    assert torch.all((weight - levels.double() * step).abs() <= step / 2 * (1 + 1e-9))
    # And a step is no longer than it must be: the row's largest over 127, rounded up in the type.
    limits = torch.finfo(dtype)
    needed = weight.abs().amax(dim=1) / 127
    assert torch.all(scale.double() <= needed * (1 + 2 * limits.eps) + 2 * limits.tiny * limits.eps + 1e-37)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_stays_zero_and_a_row_knows_nothing_of_its_neighbours(dtype):
    weight = torch.tensor([[0.0, 0.0, 0.0], [1e-6, 0.0, -1e-6], [3.0, 0.0, -1.5], [1e4, 1.0, 0.0]])
    levels, scale = quantise_rows(weight, dtype)
    assert torch.equal(levels[weight == 0], torch.zeros(6, dtype=torch.int8)) and scale.isfinite().all()
    for row in range(4):
        alone, step = quantise_rows(weight[row : row + 1], dtype)
        assert torch.equal(alone[0], levels[row]) and step[0] == scale[row]


@pytest.mark.parametrize("piece", [1, 7, 64, 2**24])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_the_layer_multiplies_with_what_it_holds(piece, shape, generator, monkeypatch):
    monkeypatch.setattr(int8_module, "_PIECE_ELEMENTS", piece)
    levels, scale = quantise_rows(torch.randn(11, 6, generator=generator, dtype=torch.float64), torch.float64)
    layer, table = Int8Linear(levels, scale), Int8Embedding(levels, scale)
    x = torch.randn(*shape, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, levels * scale[:, None]), rtol=0, atol=1e-12)
    tokens = torch.randint(11, shape, generator=generator)
    assert torch.equal(table(tokens), F.embedding(tokens, levels * scale[:, None]))


def test_no_more_than_a_piece_is_ever_widened(monkeypatch):
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, weight: seen.append(weight.numel()) or linear(x, weight))
    monkeypatch.setattr(int8_module, "_PIECE_ELEMENTS", 100)
    Int8Linear(*quantise_rows(torch.ones(50, 30), torch.float32))(torch.ones(30))
    assert sum(seen) == 50 * 30 and max(seen) <= 100


def test_large_activations_do_not_overflow_half_precision():
    layer = Int8Linear(*quantise_rows(torch.full((1, 4096), 0.01), torch.float16))
    found = layer(torch.full((4096,), 10.0, dtype=torch.float16))  # 10 · 127 · 4096 is far beyond float16
    assert found.isfinite().all() and abs(found.item() - 409.6) < 2


def rounded(model: Llama, dtype: torch.dtype) -> Llama:
    """The model in floats whose matrices hold what 8 bits can say."""
    copy = Llama(model.config).to(dtype)
    state = {}
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:
            levels, scale = quantise_rows(weight, dtype)
            state[name] = levels.to(dtype) * scale[:, None]
        else:
            state[name] = weight.to(dtype)
    copy.load_state_dict(state)
    return copy.requires_grad_(False).eval()


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_the_model_is_the_float_model_with_rounded_matrices(shape, tmp_path, device):
    model, tokens = random_model(SHAPES[shape]), random_tokens(2, 20).to(device)
    save_checkpoint(model, tmp_path, shards=3)
    found = load_checkpoint(tmp_path, device=device, weight_bits=8)
    expected = rounded(model, torch.float64).to(device)(tokens)
    for cache in (NoCache(), ContiguousCache(model.config, batch=2, device=device, dtype=torch.float64)):
        torch.testing.assert_close(found(tokens, cache), expected, rtol=0, atol=1e-10)
    assert found.dtype == torch.float64 and found.device.type == device.type and not found.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bytes_held_are_those_foretold(shape, dtype, tmp_path):
    config = SHAPES[shape]
    save_checkpoint(random_model(config), tmp_path)
    model = load_checkpoint(tmp_path, dtype=dtype, weight_bits=8)
    assert stored_bytes([model], "cpu") == int8_weight_bytes(config, bits=8 * dtype.itemsize)


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-70b", "llama3.1-405b", "llama3.2-1b", "llama3.2-3b"])
def test_scales_and_norms_add_little(name):
    config = LlamaConfig.from_preset(name)
    with_scales, without = int8_weight_bytes(config), weight_bytes(config, bits=8)
    assert without < with_scales < 1.002 * without, format_bytes(with_scales - without)


def test_8b_fits_a_t4_with_its_cache_in_8_bits_and_in_no_more():
    config, card = LlamaConfig.from_preset("llama3-8b"), 15 * 10**9
    widened = 2 * 2**24  # the piece of a matrix that is in 16 bits while it is multiplied
    assert int8_weight_bytes(config) == 8_033_793_024
    assert kv_bytes(config, seq_len=8192) == 2**30
    assert weight_bytes(config, bits=16) == 16_060_522_496 > card
    assert int8_weight_bytes(config) + widened + 4 * kv_bytes(config, seq_len=8192) == 12_362_314_752 < card
    assert max_batch(config, seq_len=8192, memory_bytes=card, bits=16, bits_of_weights=8) == 6


@torch.inference_mode()
def test_the_bundled_model_answers_nearly_the_same():
    model, tokenizer = load_tiny()
    rough, _ = load_tiny(weight_bits=8)
    prompt = torch.tensor([tokenizer.encode("ROMEO:\n", bos=True)]).repeat(4, 1)
    dice = torch.Generator().manual_seed(5)
    text = generate(
        model, prompt, max_new_tokens=120, cache=ContiguousCache(model.config, batch=4), choose=sampler(temperature=1.0, generator=dice)
    )
    expected, found = model(text).log_softmax(-1), rough(text).log_softmax(-1)
    divergence = F.kl_div(found, expected, log_target=True, reduction="none").sum(-1)  # nats per token
    agreement = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    assert 0 < divergence.mean() < 2e-3 and divergence.max() < 0.05 and agreement > 0.97, (divergence.mean(), divergence.max(), agreement)


def test_what_is_not_offered_is_refused(tmp_path):
    save_checkpoint(random_model(), tmp_path)
    for bits in (4, 16, 0):
        with pytest.raises(ValueError, match=f"weight_bits should be 8, or left out .* it is {bits}"):
            Llama.from_pretrained(tmp_path, weight_bits=bits)
    with pytest.raises(ValueError, match="rounded to 8 bits.*save the one it was read from"):
        save_checkpoint(load_checkpoint(tmp_path, weight_bits=8), tmp_path)


def test_a_tied_model_holds_its_embeddings_once_and_refuses_another_projection(tmp_path):
    from safetensors.torch import load_file, save_file

    save_checkpoint(random_model(replace(CONFIG, tie_embeddings=True)), tmp_path)
    found = load_checkpoint(tmp_path, weight_bits=8)
    assert found.output.weight is found.tok_embeddings.weight and found.output.scale is found.tok_embeddings.scale
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": -tensors["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head.weight in .* is not model.embed_tokens.weight"):
        load_checkpoint(tmp_path, weight_bits=8)


def test_loading_never_holds_the_model_in_floats(tmp_path):
    from test_checkpoint import MEASURE

    config = LlamaConfig(dim=512, n_layers=4, n_heads=8, n_kv_heads=8, hidden_dim=2048, vocab_size=192_000, tie_embeddings=True)
    save_checkpoint(Llama(config), tmp_path, dtype=torch.bfloat16)
    program = MEASURE.replace("dtype=getattr", "weight_bits=8, dtype=getattr")
    run = subprocess.run([sys.executable, "-c", program, tmp_path, "bfloat16"], check=True, capture_output=True, text=True)
    peak, held = map(int, run.stdout.split())
    assert held >= 0.95 * int8_weight_bytes(config), "the weights are not in memory: the measurement proves nothing"
    # Rounding needs some 32 MiB of code and pieces once, whatever the model's size. In 16 bits the model alone would be 230 MB.
    assert peak <= int8_weight_bytes(config) + 48 * 10**6 < weight_bytes(config, bits=16) - 60 * 10**6
