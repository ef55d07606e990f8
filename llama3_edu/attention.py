"""Attention over grouped heads, twice: `attend` to be read, `fused_attend` to be fast. They return the same."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["repeat_kv", "attention_weights", "attend", "fused_attend", "AttentionFunction"]

AttentionFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""`attend`, `fused_attend`, or anything of the same signature: queries, keys, values and mask to outputs."""


def repeat_kv(x: Float[Tensor, "batch kv_len n_kv_heads head_dim"], n_rep: int) -> Float[Tensor, "batch kv_len n_heads head_dim"]:
    """Give every query head its own copy of the key or value head it shares: head h becomes heads h·n_rep … h·n_rep + n_rep − 1.

    Equal to `torch.repeat_interleave(x, n_rep, dim=2)`. The `expand` is free; the `reshape` copies, so the result takes
    `n_rep` times the memory. `fused_attend` shows how to do without it.

    Raises:
        ValueError: `n_rep` is below 1.
    """
    if n_rep < 1:
        raise ValueError(f"n_rep should be at least 1; it is {n_rep}")
    if n_rep == 1:
        return x
    batch, kv_len, n_kv_heads, head_dim = x.shape
    spread = x[:, :, :, None, :].expand(batch, kv_len, n_kv_heads, n_rep, head_dim)
    return spread.reshape(batch, kv_len, n_kv_heads * n_rep, head_dim)


def attention_weights(
    q: Float[Tensor, "batch new_len n_heads head_dim"],
    k: Float[Tensor, "batch kv_len n_kv_heads head_dim"],
    mask: Bool[Tensor, "batch new_len kv_len"] | None = None,
) -> Float[Tensor, "batch n_heads new_len kv_len"]:
    """Return how much of each key every query takes in: non-negative, and each query's weights add up to 1.

    A query that may see no key at all (a padding token) spreads its weight evenly instead of becoming NaN: hidden
    scores are set to the smallest finite number, not to minus infinity.

    Args:
        mask: True where a query may look at a key, as `causal_mask` returns it. None: every key is visible.
    """
    head_dim, n_rep = q.shape[-1], q.shape[2] // k.shape[2]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, repeat_kv(k, n_rep)) / math.sqrt(head_dim)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)


def attend(
    q: Float[Tensor, "batch new_len n_heads head_dim"],
    k: Float[Tensor, "batch kv_len n_kv_heads head_dim"],
    v: Float[Tensor, "batch kv_len n_kv_heads head_dim"],
    mask: Bool[Tensor, "batch new_len kv_len"] | None = None,
) -> Float[Tensor, "batch new_len n_heads head_dim"]:
    """Let every query gather from the values, weighted by how well their keys fit. The reference, written to be read.

    Args:
        mask: True where a query may look at a key. None: every key is visible.

    Source: arXiv 1706.03762, equation 1, with the grouped heads of arXiv 2305.13245.
    """
    weights = attention_weights(q, k, mask)
    return torch.einsum("bhqk,bkhd->bqhd", weights, repeat_kv(v, q.shape[2] // k.shape[2]))


def fused_attend(
    q: Float[Tensor, "batch new_len n_heads head_dim"],
    k: Float[Tensor, "batch kv_len n_kv_heads head_dim"],
    v: Float[Tensor, "batch kv_len n_kv_heads head_dim"],
    mask: Bool[Tensor, "batch new_len kv_len"] | None = None,
) -> Float[Tensor, "batch new_len n_heads head_dim"]:
    """Return what `attend` returns, from PyTorch's fused kernel, with no key or value repeated.

    The `n_rep` query heads that share a key head become `n_rep` times as many *queries* of that one head: attention does not
    mind how many queries ask.
    """
    batch, new_len, n_heads, head_dim = q.shape
    n_kv_heads = k.shape[2]
    n_rep = n_heads // n_kv_heads
    grouped = q.view(batch, new_len, n_kv_heads, n_rep, head_dim).permute(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, n_kv_heads, n_rep * new_len, head_dim)
    bias = None if mask is None else _as_bias(mask, q.dtype).repeat(1, 1, n_rep, 1)
    out = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    out = out.view(batch, n_kv_heads, n_rep, new_len, head_dim).permute(0, 3, 1, 2, 4)
    return out.reshape(batch, new_len, n_heads, head_dim)


def _as_bias(mask: Bool[Tensor, "batch new_len kv_len"], dtype: torch.dtype) -> Float[Tensor, "batch 1 new_len kv_len"]:
    """What is added to the scores: nothing where a key is visible, the smallest finite number where it is hidden."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]
