"""What rounding does to real keys and values, folded into frames: every axis, number of bits and size of group, side by side."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.store import dequantize, quantize
from llama3_edu.model import Llama
from llama3_edu.probe import look_inside
from llama3_edu.trace import Frames, HasPieces, quoted, token_texts

__all__ = ["quantisation_frames"]

_UNIT = 1000  # numbers are told in whole thousandths


def quantisation_frames(
    model: Llama,
    tokens: Int[Tensor, "batch new_len"],
    *,
    layer: int,
    head: int = 0,
    bits: Sequence[int] = (8, 4, 2),
    group_sizes: Sequence[int] = (32, 8),
    tokenizer: HasPieces | None = None,
) -> Frames:
    """Run the model once, round one head's keys and values in every way, and note how far each number moves.

    The frames of `QuantisationError`. A group is `group_size` tokens of one channel, or `group_size` channels of one token; the
    numbers of a group share a scale and a zero, as in `QuantizedStore`.

    Args:
        model: the model to run.
        tokens: one text, a batch of one row; 32 tokens are easy to look at.
        layer: whose keys and values.
        head: which KV head.
        bits: per number, most first.
        group_sizes: numbers per group; each must divide the tokens and `head_dim` evenly.
        tokenizer: turns token ids into text.

    Returns:
        `tokens`, `num_channels`, `layer`, `head`, the numbers themselves as `keys` and `values` (a row of channels per token, in
        thousandths), `largest` (the worst error of all steps, in thousandths) and `steps`, one for every combination. A step holds
        what is rounded (`tensor`), the `axis` of its groups (`channel`: tokens of one channel; `token`: channels of one token),
        `bits`, `group_size`, `effective_bits`, the signed `errors` in thousandths, the `zeros` (lowest levels) and `scales`
        (gaps between levels) of all groups, row by row, the `mean` error and the `worst` (`token`, `channel`, `error`).

    Raises:
        ValueError: `tokens` is not one row, there is no such layer or head, or a group size does not divide evenly.
    """
    _check(model, tokens, layer, head, group_sizes)
    inside = look_inside(model, tokens)
    tensors = {"keys": inside.k[layer][0, :, head], "values": inside.v[layer][0, :, head]}
    texts = token_texts(tokens[0].tolist(), tokenizer)
    steps = [
        _step(tensor, name, axis, num_bits, group_size, texts)
        for name, tensor in tensors.items()
        for group_size in group_sizes
        for num_bits in bits
        for axis in ("channel", "token")
    ]
    return {
        "tokens": texts,
        "num_channels": model.config.head_dim,
        "layer": layer,
        "head": head,
        **{name: _thousandths(tensor) for name, tensor in tensors.items()},
        "largest": max(abs(error) for step in steps for row in step["errors"] for error in row),
        "steps": steps,
    }


def _check(model: Llama, tokens: Int[Tensor, "batch new_len"], layer: int, head: int, group_sizes: Sequence[int]) -> None:
    config, (rows, length) = model.config, tokens.shape
    if rows != 1:
        raise ValueError(f"quantisation_frames takes one row of tokens; it was given {rows}")
    for name, index, count in (("layer", layer, config.n_layers), ("head", head, config.n_kv_heads)):
        if not 0 <= index < count:
            raise ValueError(f"{name} should be 0 to {count - 1}; it is {index}")
    for size in group_sizes:
        if size < 1 or length % size or config.head_dim % size:
            raise ValueError(
                f"groups should divide {length} tokens and {config.head_dim} channels evenly; groups of {size} do not"
            )


def _step(
    tensor: Float[Tensor, "tokens channels"], name: str, axis: str, bits: int, group_size: int, texts: list[str]
) -> dict[str, Any]:
    groups_along = 0 if axis == "channel" else 1
    in_groups = tensor.unflatten(groups_along, (-1, group_size))
    codes, scales, zeros = quantize(in_groups, bits=bits, dim=groups_along + 1)
    rounded = dequantize(codes, scales, zeros, dtype=tensor.dtype).flatten(groups_along, groups_along + 1)
    before = torch.tensor(_thousandths(tensor))
    errors = torch.tensor(_thousandths(rounded)) - before  # so that a number and its error add up to what is shown
    token, channel = divmod(int(errors.abs().argmax()), tensor.shape[1])
    step = {
        "tensor": name,
        "axis": axis,
        "bits": bits,
        "group_size": group_size,
        "effective_bits": bits + 2 * 16 / group_size,
        "errors": errors.tolist(),
        "zeros": _short(zeros.squeeze(groups_along + 1)),
        "scales": _short(scales.squeeze(groups_along + 1)),
        "mean": float(f"{(rounded - tensor).abs().mean().item():.3g}"),
        "worst": {"token": token, "channel": channel, "error": abs(int(errors[token, channel]))},
    }
    return step | {"summary": _summary(step, texts)}


def _thousandths(x: Float[Tensor, "rows columns"]) -> list[list[int]]:
    return (x.double() * _UNIT).round().long().tolist()


def _short(x: Tensor) -> list[list[float]]:
    return [[float(f"{number:.3g}") for number in row] for row in x.tolist()]


def _summary(step: dict[str, Any], texts: list[str]) -> str:
    size, worst = step["group_size"], step["worst"]
    group = f"{size} tokens of one channel" if step["axis"] == "channel" else f"{size} channels of one token"
    where = f"at token {worst['token']}, {quoted(texts[worst['token']])}, channel {worst['channel']}"
    return (
        f"{step['tensor'].capitalize()} in {step['bits']} bits; {group} share a scale and a zero. "
        f"A number takes {step['effective_bits']:g} bits in all and is off by {step['mean']:g} on average, "
        f"by {worst['error'] / _UNIT:.3f} at most, {where}."
    )
