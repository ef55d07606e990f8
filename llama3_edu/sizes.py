"""Frames made from a model's shape alone: which query head reads which KV head, and what the memory calculator starts from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import torch

from llama3_edu.attention import repeat_kv
from llama3_edu.config import PRESETS, LlamaConfig
from llama3_edu.memory import format_bytes, kv_bytes, kv_bytes_per_token, max_batch, parameter_count, weight_bytes
from llama3_edu.trace import Frames

__all__ = ["Card", "CARDS", "head_group_frames", "calculator_frames", "model_name"]


@dataclass(frozen=True)
class Card:
    """A graphics card, as its label names it, and the bytes of memory on it."""

    name: str
    memory_bytes: int


# The labels are those of the maker's data sheets (nvidia.com: T4, GeForce RTX 4090, A100, H100 SXM, H200). A label says GB and
# means 2^30 bytes: `nvidia-smi` shows 24,564 MiB on an RTX 4090, and to CUDA an A100 of 80 GB has 85,198,045,184 bytes, both more
# than the label times 10^9. What the card or the driver keeps for itself is not taken off here.
CARDS = tuple(
    Card(f"{name} {size} GB", size * 2**30)
    for name, size in (("T4", 16), ("RTX 4090", 24), ("A100", 40), ("A100", 80), ("H100", 80), ("H200", 141))
)
"""Cards the memory calculator offers, smallest first."""

WEIGHT_BITS = (32, 16, 8, 4)
KV_BITS = (16, 8, 4, 2)


@dataclass(frozen=True)
class _Start:
    """A question the memory calculator opens with."""

    name: str
    model: str
    seq_len: int
    batch: int
    weight_bits: int
    kv_bits: int
    card: str


_STARTS = (
    _Start("one long chat", "llama3-8b", 8191, 1, 16, 16, "RTX 4090 24 GB"),
    _Start("a batch of 32", "llama3-8b", 8191, 32, 16, 16, "H100 80 GB"),
    _Start("a small free card", "llama3.2-3b", 8192, 4, 16, 16, "T4 16 GB"),
    _Start("70B, fewer bits", "llama3.1-70b", 131_072, 1, 8, 8, "H200 141 GB"),
)


def model_name(config: LlamaConfig) -> str | None:
    """Return what people call a shape: `Llama 3 8B` for that preset, `the bundled model` for `load_tiny()`'s, None for others."""
    for preset, released in PRESETS.items():
        if config == released:
            return _preset_name(preset)
    bundled = resources.files("llama3_edu").joinpath("tiny", "config.json")
    with resources.as_file(bundled) as path:
        return "the bundled model" if config == LlamaConfig.from_json(path) else None


def head_group_frames(config: LlamaConfig, *, bits: int = 16, name: str | None = None) -> Frames:
    """Give a model every possible number of KV heads and note which query head reads which: the frames of `HeadGroups`.

    The groups are what `repeat_kv` makes of them: it is handed KV heads that hold nothing but their own index, and the index that
    arrives at a query head is the KV head it reads.

    Args:
        config: the shape of the model.
        bits: what the cache keeps a number in.
        name: what to call the model; what `model_name` knows, or `this model`, where it is left out.

    Returns:
        `model` (its name), `n_layers`, `n_heads`, `head_dim`, `bits`, `own` (the model's own number of KV heads) and `steps`, one
        per divisor of `n_heads`, most KV heads first; a step holds `n_kv_heads`, `n_rep`, its `kind` (MHA, GQA or MQA), `groups`
        (for each query head, the KV head it reads) and the `bytes_per_token` of its cache.
    """
    name = name or model_name(config) or "this model"
    divisors = [heads for heads in range(config.n_heads, 0, -1) if config.n_heads % heads == 0]
    return {
        "model": name,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "head_dim": config.head_dim,
        "bits": bits,
        "own": config.n_kv_heads,
        "steps": [_group_step(config, heads, bits, name) for heads in divisors],
    }


def calculator_frames(models: Mapping[str, LlamaConfig] = PRESETS, cards: tuple[Card, ...] = CARDS) -> Frames:
    """Gather what `MemoryCalculator` computes with: models, cards, numbers of bits, and questions to start from.

    Args:
        models: the shapes to choose from, by preset name; those that questions to start from use must be among them.
        cards: the cards to choose from.

    Returns:
        `models` (`name`, `parameters`, `n_layers`, `n_kv_heads`, `head_dim`, `kv_elements` per token and `max_seq_len`),
        `cards` (`name` and `bytes`), `weight_bits`, `kv_bits` and `steps`, one per question: its `name`, the values it starts
        from (`model` and `card` as indices), and a `summary` that `llama3_edu.memory` worked out.

    Raises:
        ValueError: no question to start from has its model and its card among those given.
    """
    names = [card.name for card in cards]
    starts = [start for start in _STARTS if start.model in models and start.card in names]
    if not starts:
        wanted = ", ".join(f"{start.model} on {start.card}" for start in _STARTS)
        given = f"{', '.join(models)} and {', '.join(names)}"
        raise ValueError(f"the calculator starts from one of {wanted}; it was given {given}")
    return {
        "models": [_model_row(preset, config) for preset, config in models.items()],
        "cards": [{"name": card.name, "bytes": card.memory_bytes} for card in cards],
        "weight_bits": list(WEIGHT_BITS),
        "kv_bits": list(KV_BITS),
        "steps": [_start_step(start, models, cards) for start in starts],
    }


def _preset_name(preset: str) -> str:
    """`llama3.1-8b` becomes `Llama 3.1 8B`."""
    family, size = preset.removeprefix("llama").split("-")
    return f"Llama {family} {size.upper()}"


def _group_step(config: LlamaConfig, n_kv_heads: int, bits: int, name: str) -> dict[str, Any]:
    variant = replace(config, n_kv_heads=n_kv_heads)
    heads = torch.arange(n_kv_heads, dtype=torch.float64).view(1, 1, n_kv_heads, 1)
    groups = [int(head) for head in repeat_kv(heads, variant.n_rep).flatten().tolist()]
    kind = "MHA" if n_kv_heads == config.n_heads else "MQA" if n_kv_heads == 1 else "GQA"
    step = {
        "n_kv_heads": n_kv_heads,
        "n_rep": variant.n_rep,
        "kind": kind,
        "groups": groups,
        "bytes_per_token": kv_bytes_per_token(variant, bits=bits),
    }
    return {**step, "summary": _group_summary(step, config, bits, name)}


def _group_summary(step: dict[str, Any], config: LlamaConfig, bits: int, name: str) -> str:
    n_heads, n_kv_heads, n_rep = config.n_heads, step["n_kv_heads"], step["n_rep"]
    size = step["bytes_per_token"]
    shared = "each query head has its own" if n_rep == 1 else f"each is read by {n_rep} query heads"
    share = "" if n_rep == 1 else f", 1/{n_rep} of what MHA keeps"
    own = f" This is what {name} does." if n_kv_heads == config.n_kv_heads else ""
    query_heads, kv_heads = _count(n_heads, "query head"), _count(n_kv_heads, "KV head")
    kept = f"The cache keeps {size:,} bytes per token ({format_bytes(size)}){share}."
    return f"{step['kind']}: {query_heads}, {kv_heads}; {shared}. {kept}{own}"


def _model_row(preset: str, config: LlamaConfig) -> dict[str, Any]:
    return {
        "name": _preset_name(preset),
        "parameters": parameter_count(config),
        "n_layers": config.n_layers,
        "n_kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "kv_elements": config.kv_elements_per_token,
        "max_seq_len": config.max_seq_len,
    }


def _start_step(start: _Start, models: Mapping[str, LlamaConfig], cards: tuple[Card, ...]) -> dict[str, Any]:
    card = next(index for index, card in enumerate(cards) if card.name == start.card)
    return {
        "name": start.name,
        "model": list(models).index(start.model),
        "seq_len": start.seq_len,
        "batch": start.batch,
        "weight_bits": start.weight_bits,
        "kv_bits": start.kv_bits,
        "card": card,
        "summary": _start_summary(start, models[start.model], cards[card]),
    }


def _start_summary(start: _Start, config: LlamaConfig, card: Card) -> str:
    weights = weight_bytes(config, bits=start.weight_bits)
    kv = kv_bytes(config, seq_len=start.seq_len, batch=start.batch, bits=start.kv_bits)
    rows = max_batch(
        config, seq_len=start.seq_len, memory_bytes=card.memory_bytes, bits=start.kv_bits, bits_of_weights=start.weight_bits
    )
    left = card.memory_bytes - weights - kv
    verdict = f"Both fit on the {card.name}" if left >= 0 else f"Together they do not fit on the {card.name}"
    spare = f"{_sized(left)} are left" if left >= 0 else f"{_sized(-left)} are missing"
    largest = f"The largest batch is {_count(rows, 'row')}." if rows else "Not one row fits."
    return (
        f"{_preset_name(start.model)}: the weights take {_sized(weights)} at {start.weight_bits} bits; the keys and values of "
        f"{_count(start.batch, 'row')} of {_count(start.seq_len, 'token')} take {_sized(kv)} at {start.kv_bits} bits. "
        f"{verdict}: {spare}. {largest}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _sized(nbytes: int) -> str:
    """`1,073,610,752 bytes (1.074 GB, 1.000 GiB)`."""
    return f"{_count(nbytes, 'byte')} ({_decimal(nbytes, 10**9)} GB, {_decimal(nbytes, 2**30)} GiB)"


def _decimal(nbytes: int, unit: int) -> str:
    """A size in a unit: three decimals below 10, two below 1,000, none from there on, rounded half up from the exact integer."""
    digits = 3 if nbytes < 10 * unit else 2 if nbytes < 1000 * unit else 0
    whole, rest = divmod((2 * nbytes * 10**digits + unit) // (2 * unit), 10**digits)
    return f"{whole:,}.{rest:0{digits}d}" if digits else f"{whole:,}"
