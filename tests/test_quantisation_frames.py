"""What the frames say of rounding is what the cache does to real keys and values."""

import json
from typing import Any

import pytest
import torch
from tiny_models import random_model, random_tokens

import llama3_edu as le
from llama3_edu.probe import look_inside
from llama3_edu.trace import Frames

MODEL = random_model()
CONFIG = MODEL.config
SIZE = 4
TOKENS = random_tokens(1, 4 * SIZE)
LAYER, HEAD = CONFIG.n_layers - 1, CONFIG.n_kv_heads - 1


def frames_of(tokens: torch.Tensor = TOKENS, **options: Any) -> Frames:
    return le.quantisation_frames(MODEL, tokens, **{"layer": LAYER, "head": HEAD, "group_sizes": (SIZE, 2), **options})


def step_with(frames: Frames, **wanted: Any) -> dict[str, Any]:
    (step,) = [step for step in frames["steps"] if all(step[key] == value for key, value in wanted.items())]
    return step


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_keys_per_channel_and_values_per_token_are_what_the_cache_hands_back(bits: int):
    cache = le.QuantizedCache(CONFIG, bits=bits, group_size=SIZE, dtype=MODEL.dtype)
    inside = look_inside(MODEL, TOKENS)
    # Every layer is given the keys of a float run: what differs then is rounding alone.
    cache.reserve(torch.arange(TOKENS.shape[1])[None])
    for layer, (k, v) in enumerate(zip(inside.k, inside.v)):
        held = cache.update(layer, k, v)
    for name, axis, before, after in (("keys", "channel", k, held[0]), ("values", "token", v, held[1])):
        step = step_with(frames_of(), tensor=name, axis=axis, bits=bits, group_size=SIZE)
        errors = (after - before)[0, :, HEAD]
        torch.testing.assert_close(torch.tensor(step["errors"]) / 1000, errors, atol=1.1e-3, rtol=0, check_dtype=False)
        assert step["mean"] == pytest.approx(errors.abs().mean().item(), rel=0.01)
        assert step["effective_bits"] == cache.effective_bits == bits + 32 / SIZE


def test_the_other_axis_is_the_same_rounding_of_the_transpose():
    tensor = look_inside(MODEL, TOKENS).k[LAYER][0, :, HEAD]
    step = step_with(frames_of(), tensor="keys", axis="token", bits=2, group_size=SIZE)
    for group in range(tensor.shape[1] // SIZE):
        part = tensor[:, group * SIZE : (group + 1) * SIZE]
        zeros = torch.tensor(step["zeros"])[:, group]
        assert torch.allclose(zeros, part.amin(dim=1).to(zeros.dtype), atol=0.01, rtol=0.01)


def test_every_error_stays_within_half_a_scale_and_the_worst_is_the_worst():
    frames = frames_of()
    for step in frames["steps"]:
        errors = torch.tensor(step["errors"])
        along, size = (0, step["group_size"]) if step["axis"] == "channel" else (1, step["group_size"])
        scales = torch.tensor(step["scales"], dtype=torch.float64).repeat_interleave(size, dim=along)
        assert (errors.abs() <= scales * 1000 * 0.505 + 1).all()
        worst = step["worst"]
        assert worst["error"] == errors.abs().max() == errors[worst["token"], worst["channel"]].abs()
        assert worst["error"] <= frames["largest"]
    assert frames["largest"] == max(step["worst"]["error"] for step in frames["steps"])


def test_there_is_a_step_for_every_combination_and_all_of_it_is_json():
    frames = frames_of(bits=(4, 2))
    found = {(step["tensor"], step["axis"], step["bits"], step["group_size"]) for step in frames["steps"]}
    assert len(found) == len(frames["steps"]) == 2 * 2 * 2 * 2
    assert json.loads(json.dumps(frames)) == frames
    for step in frames["steps"]:
        assert f"{step['effective_bits']:g} bits in all" in step["summary"]
        assert step["tensor"].capitalize() in step["summary"]


def test_the_numbers_are_those_of_the_run():
    inside = look_inside(MODEL, TOKENS)
    for name, tensors in (("keys", inside.k), ("values", inside.v)):
        told = torch.tensor(frames_of()[name]) / 1000
        torch.testing.assert_close(told, tensors[LAYER][0, :, HEAD], atol=6e-4, rtol=0, check_dtype=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": random_tokens(2, SIZE)}, "one row of tokens; it was given 2"),
        ({"layer": CONFIG.n_layers}, f"layer should be 0 to {CONFIG.n_layers - 1}; it is {CONFIG.n_layers}"),
        ({"head": -1}, f"head should be 0 to {CONFIG.n_kv_heads - 1}; it is -1"),
        ({"group_sizes": (3,)}, "groups of 3 do not"),
        ({"group_sizes": (0,)}, "groups of 0 do not"),
    ],
)
def test_what_cannot_be_shown_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        frames_of(**options)
