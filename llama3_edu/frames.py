"""Frames made from a look inside the model: every shape on the way to the next token."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from llama3_edu.config import LlamaConfig
from llama3_edu.model import Llama
from llama3_edu.probe import Inside, look_inside
from llama3_edu.trace import Frames, HasPieces, quoted, token_texts

__all__ = ["shape_frames"]


def shape_frames(model: Llama, tokens: Int[Tensor, "1 new_len"], *, tokenizer: HasPieces | None = None, top: int = 8) -> Frames:
    """Run the model once and note what every stage makes of the tokens: the frames of `DecoderShapes`.

    Args:
        model: the model to run.
        tokens: one text; 6 to 10 tokens are easy to look at.
        tokenizer: turns token ids into text.
        top: how many of the likeliest next tokens to list.

    Returns:
        `tokens`, `token_ids`, `n_layers`, `next` (`text` and `percent` of the likeliest next tokens) and `steps`, one per
        stage: its `name`, its `module` in the code, `does` (what it does, in a sentence), the `axes` and `shape` of its result,
        how many `parameters` it took, the `group` it belongs to, and a `preview` of its numbers in hundredths of the largest.

    Raises:
        ValueError: `tokens` is not one row.
    """
    if tokens.shape[0] != 1:
        raise ValueError(f"shape_frames takes one row of tokens; it was given {tokens.shape[0]}")
    with _watched(model) as seen:
        inside = look_inside(model, tokens)
    pieces = token_texts(tokens[0].tolist(), tokenizer)
    probs, ids = inside.logits[0, -1].float().softmax(dim=-1).topk(top)
    likeliest = [
        {"text": text, "percent": round(100 * prob, 1)}
        for text, prob in zip(token_texts(ids.tolist(), tokenizer), probs.tolist())
    ]
    results = _results(model, tokens, inside, seen)
    return {
        "tokens": pieces,
        "token_ids": tokens[0].tolist(),
        "n_layers": model.config.n_layers,
        "next": likeliest,
        "steps": [_stage_frame(_STAGES[name], model.config, *result, likeliest) for name, result in results.items()],
    }


@dataclass(frozen=True)
class _Stage:
    """One stage on the way from token ids to the next token, in words; `{…}` stands for a size of the model."""

    name: str
    module: str
    group: str
    axes: str
    does: str


_STREAM = "batch new_len dim"
_Q_HEADS, _KV_HEADS = "batch new_len n_heads head_dim", "batch new_len n_kv_heads head_dim"

_STAGES = {
    "tokens": _Stage("Token ids", "tokens", "in", "batch new_len", "The text, as numbers the model knows."),
    "embedding": _Stage("Embedding", "tok_embeddings", "in", _STREAM, "Each id picks its own row of a table."),
    "attention_norm": _Stage(
        "RMSNorm", "attention_norm", "attention", _STREAM, "Each token's vector is brought to a common size."
    ),
    "q": _Stage(
        "Queries", "attention.wq, rotate", "attention", _Q_HEADS,
        "What each token asks, in {n_heads} heads, turned by its position.",
    ),
    "k": _Stage(
        "Keys", "attention.wk, rotate", "attention", _KV_HEADS,
        "What each token can be found by, in {n_kv_heads} heads, turned by its position.",
    ),
    "v": _Stage("Values", "attention.wv", "attention", _KV_HEADS, "What each token hands on, in {n_kv_heads} heads, not turned."),
    "weights": _Stage(
        "Attention weights", "attention_weights", "attention", "batch n_heads new_len kv_len",
        "How much each query takes from each key at or before its position.",
    ),
    "mixed": _Stage(
        "Mixed values", "attend", "attention", "batch new_len n_heads·head_dim",
        "Each head's weighted sum of values, heads side by side.",
    ),
    "attention": _Stage(
        "Back to the stream", "attention.wo, +", "attention", _STREAM,
        "The heads are mixed to the stream's width and added to it.",
    ),
    "ffn_norm": _Stage("RMSNorm", "ffn_norm", "feed-forward", _STREAM, "Each vector is brought to a common size again."),
    "gated": _Stage(
        "SwiGLU", "feed_forward.w1, w3", "feed-forward", "batch new_len hidden_dim",
        "One projection decides how much of another gets through.",
    ),
    "feed_forward": _Stage(
        "Back to the stream", "feed_forward.w2, +", "feed-forward", _STREAM,
        "The result is brought to the stream's width and added to it.",
    ),
    "layers": _Stage(
        "The other layers", "layers[1:]", "out", _STREAM,
        "The same again, with weights of their own, up to layer {n_layers}.",
    ),
    "norm": _Stage("Last norm", "norm", "out", _STREAM, "Every vector is brought to a common size once more."),
    "logits": _Stage(
        "Logits", "output", "out", "batch new_len vocab_size", "Every vector is compared with each word of the vocabulary."
    ),
    "next": _Stage("Next token", "next_logits", "next", "batch vocab_size", "The last row alone says what comes next."),
}  # fmt: skip


def _stage_frame(
    stage: _Stage, config: LlamaConfig, result: Tensor, parameters: int, likeliest: list[dict[str, Any]]
) -> dict[str, Any]:
    axes, shape, does = stage.axes.split(), list(result.shape), stage.does.format(**asdict(config))
    sizes = ", ".join(f"{axis} {size}" for axis, size in zip(axes, shape))
    summary = f"{stage.name}: {does} Shape: {sizes}."
    if stage.group == "next":
        summary += f" Likeliest: {quoted(likeliest[0]['text'])}, {likeliest[0]['percent']} %."
    return {
        "name": stage.name,
        "module": stage.module,
        "group": stage.group,
        "does": does,
        "axes": axes,
        "shape": shape,
        "parameters": parameters,
        "preview": _preview(result.transpose(1, 2) if axes[1] == "n_heads" else result),
        "summary": summary,
    }


@contextmanager
def _watched(model: Llama) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Note what goes into every module and what comes out, by the module's name, for as long as this lasts."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen[name] = (inputs[0], output)

    handles = [
        module.register_forward_hook(lambda _, inputs, output, name=name: note(name, inputs, output))
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.ModuleList)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _results(
    model: Llama, tokens: Tensor, inside: Inside, seen: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[Tensor, int]]:
    """What every stage resulted in, and how many parameters that took; of the layers after the first, all in one."""
    block, last = model.layers[0], model.config.n_layers - 1
    attention, feed_forward = block.attention, block.feed_forward
    tied = model.output.weight is model.tok_embeddings.weight
    results = {
        "tokens": (tokens, 0),
        "embedding": (seen["tok_embeddings"][1], _size(model.tok_embeddings)),
        "attention_norm": (seen["layers.0.attention_norm"][1], _size(block.attention_norm)),
        "q": (inside.q[0], _size(attention.wq)),
        "k": (inside.k[0], _size(attention.wk)),
        "v": (inside.v[0], _size(attention.wv)),
        "weights": (inside.weights[0], 0),
        "mixed": (seen["layers.0.attention.wo"][0], 0),
        "attention": (seen["layers.0.ffn_norm"][0], _size(attention.wo)),
        "ffn_norm": (seen["layers.0.ffn_norm"][1], _size(block.ffn_norm)),
        "gated": (seen["layers.0.feed_forward.w2"][0], _size(feed_forward.w1, feed_forward.w3)),
        "feed_forward": (seen["layers.0"][1], _size(feed_forward.w2)),
        "layers": (seen[f"layers.{last}"][1], _size(*model.layers[1:])),
        "norm": (seen["norm"][1], _size(model.norm)),
        "logits": (inside.logits, 0 if tied else _size(model.output)),
        "next": (inside.logits[:, -1], 0),
    }
    return results if last else {name: result for name, result in results.items() if name != "layers"}


def _size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _preview(result: Tensor, *, columns: int = 24, most_groups: int = 4) -> dict[str, Any] | None:
    """A corner of a result as rows of groups of whole numbers, each in hundredths of the largest; None for token ids.

    A row is a token, a group a head.
    """
    if not result.is_floating_point():
        return None
    x = result[0].float()
    x = x[None, :] if x.dim() == 1 else x
    x = x[:, None, :] if x.dim() == 2 else x
    x = x[:, :most_groups, : max(x.shape[0], columns // min(x.shape[1], most_groups))]
    largest = x.abs().max().clamp_min(1e-30)
    return {"largest": float(f"{largest.item():.3g}"), "rows": (x / largest * 100).round().int().tolist()}
