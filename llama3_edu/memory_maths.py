"""The memory arithmetic of a model written out line by line, factors first, as on paper."""

from llama3_edu.config import LlamaConfig
from llama3_edu.memory import format_bytes, kv_bytes, kv_bytes_per_token, max_batch, parameter_count, weight_bytes
from llama3_edu.roofline import MACHINES, Machine

__all__ = ["memory_lines"]


def memory_lines(
    config: LlamaConfig, *, name: str, seq_len: int, batch: int = 1, bits: int = 16, bits_of_weights: int = 16
) -> list[str]:
    """Return, line by line, what keys and values and weights take, and how many rows fit on each card of `MACHINES`.

    Args:
        config: the shape of the model.
        name: what to call it.
        seq_len: tokens per row.
        batch: rows.
        bits: what the cache keeps a number in: a multiple of 2, so that a token's numbers fill whole bytes.
        bits_of_weights: what a weight is stored in.

    Raises:
        ValueError: `seq_len`, `batch`, `bits` or `bits_of_weights` is below 1.
    """
    for what, value in (("seq_len", seq_len), ("batch", batch), ("bits", bits), ("bits_of_weights", bits_of_weights)):
        if value < 1:
            raise ValueError(f"{what} should be at least 1; it is {value}")
    kv = kv_bytes(config, seq_len=seq_len, batch=batch, bits=bits)
    weights = weight_bytes(config, bits=bits_of_weights)
    rows = {
        card.name: max_batch(config, seq_len=seq_len, memory_bytes=card.memory_bytes, bits=bits, bits_of_weights=bits_of_weights)
        for card in MACHINES.values()
    }
    return [
        f"{name}: {config.n_layers} layers, {config.n_heads} query heads, {config.n_kv_heads} KV heads of {config.head_dim} numbers",
        f"context: {config.max_seq_len:,} tokens",
        "",
        "A token: keys and values × layers × KV heads × numbers × bits ÷ 8",
        "",
        *_aligned(_kv_sums(config, seq_len, batch, bits) + _weight_sums(config, kv, weights, bits_of_weights)),
        *_remarks(config, seq_len, bits),
        "",
        f"Rows of {seq_len:,} tokens that fit beside the weights:",
        "",
        *(_card_line(card, rows[card.name], batch, kv + weights) for card in MACHINES.values()),
        "",
        "Memory is what a card's label says; its driver keeps some of that.",
    ]


def _kv_sums(config: LlamaConfig, seq_len: int, batch: int, bits: int) -> list[tuple[str, str, int]]:
    """Label, factors and result of each line, from one token's keys and values to those of all rows."""
    token, row = kv_bytes_per_token(config, bits=bits), kv_bytes(config, seq_len=seq_len, bits=bits)
    return [
        ("a token", f"2 × {config.n_layers} × {config.n_kv_heads} × {config.head_dim} × {bits} ÷ 8", token),
        ("a row", f"{seq_len:,} × {token:,}", row),
        (f"{batch:,} row{'s' if batch > 1 else ''}", f"{batch:,} × {row:,}", batch * row),
    ]


def _weight_sums(config: LlamaConfig, kv: int, weights: int, bits: int) -> list[tuple[str, str, int]]:
    return [
        ("weights", f"{parameter_count(config):,} × {bits} ÷ 8", weights),
        ("together", f"{kv:,} + {weights:,}", kv + weights),
    ]


def _aligned(sums: list[tuple[str, str, int]]) -> list[str]:
    label_width, factor_width = (max(len(line[column]) for line in sums) for column in (0, 1))
    number_width = max(len(f"{result:,}") for *_, result in sums)
    return [
        f"  {label:<{label_width}}  {factors:>{factor_width}} = {result:>{number_width},} bytes ({format_bytes(result)})"
        for label, factors, result in sums
    ]


def _remarks(config: LlamaConfig, seq_len: int, bits: int) -> list[str]:
    remarks = []
    if bits < 16:
        remarks.append(f"Scales and zeros come on top: {bits + 0.5} bits, where 64 numbers share two of 16.")
    if seq_len > config.max_seq_len:
        remarks.append(f"The model was made for {config.max_seq_len:,} tokens. Do not trust what it writes beyond them.")
    return ["", *remarks] if remarks else []


def _card_line(card: Machine, rows: int, batch: int, needed: int) -> str:
    left = card.memory_bytes - needed
    state = f"{format_bytes(abs(left))} {'left' if left >= 0 else 'missing'} with {batch:,}"
    return f"  {card.name:<15} {rows:>7,} row{'' if rows == 1 else 's'}{' ' if rows == 1 else ''}   {state}"
