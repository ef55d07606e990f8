"""From a row of logits to one token."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Choose", "greedy", "sampler"]

Choose: TypeAlias = Callable[[Float[Tensor, "batch vocab_size"]], Int[Tensor, "batch"]]
"""What turns logits into tokens: `greedy`, what `sampler` returns, or a function of yours."""


def greedy(logits: Float[Tensor, "batch vocab_size"]) -> Int[Tensor, "batch"]:
    """Choose the most likely token of each row; of equals, the one with the lowest id."""
    return logits.argmax(dim=-1)


def sampler(
    *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, generator: torch.Generator
) -> Choose:
    """Return a function that draws each row's token at random.

    Args:
        temperature: logits are divided by it; below 1 sharpens, above 1 flattens.
        top_k: keep the k most likely tokens only. None: all.
        top_p: keep the smallest set of most likely tokens whose probabilities add up to at least this much. None: all.
        generator: where the randomness comes from, on the device of the logits.

    Raises:
        ValueError: `temperature` is not above 0 (use `greedy` for the limit at 0), `top_k` is below 1, or `top_p` is
            outside (0, 1].
    """
    if not temperature > 0:
        raise ValueError(f"temperature should be above 0; it is {temperature} (for no randomness, choose=greedy)")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k should be at least 1; it is {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p should be above 0 and at most 1; it is {top_p}")

    def choose(logits: Float[Tensor, "batch vocab_size"]) -> Int[Tensor, "batch"]:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        ranked, token_ids = (wide / temperature).sort(dim=-1, descending=True, stable=True)
        probs = _keep_top(ranked.softmax(dim=-1), top_k, top_p)
        drawn = probs.multinomial(1, generator=generator)
        return token_ids.gather(-1, drawn)[:, 0]

    return choose


def _keep_top(
    probs: Float[Tensor, "batch vocab_size"], top_k: int | None, top_p: float | None
) -> Float[Tensor, "batch vocab_size"]:
    """Zero the unlikely tail of probabilities that are sorted in descending order; the first always stays."""
    if top_k is not None:
        probs = probs.clone()
        probs[:, top_k:] = 0
        probs = probs / probs.sum(dim=-1, keepdim=True)
    if top_p is not None:
        # A token goes when those before it already reach top_p.
        reached_before = probs.cumsum(dim=-1) - probs
        probs = probs.masked_fill(reached_before >= top_p, 0)
    return probs
