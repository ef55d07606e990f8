"""Which attention suits the cache at hand, decided once per forward and used by every layer."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.attention import fused_attend
from llama3_edu.cache.base import KVCache
from llama3_edu.cache.paged import PagedCache
from llama3_edu.cache.quantized import QuantizedCache
from llama3_edu.cache.store import FloatStore, QuantizedStore
from llama3_edu.kernels import paged_decode
from llama3_edu.kernels.few_bits import FewBits
from llama3_edu.kernels.scratch import Scratch
from llama3_edu.positions import PAD, causal_mask

__all__ = ["Attend", "attention_over"]

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From a layer's index and its new queries, keys and values to the outputs; the keys and values are stored on the way."""


def attention_over(
    cache: KVCache, positions: Int[Tensor, "batch new_len"], key_positions: Int[Tensor, "batch kv_len"], scratch: Scratch
) -> Attend:
    """Return the attention of one forward, after `cache.reserve`.

    Args:
        positions: where the new tokens stand.
        key_positions: what `reserve` returned.
        scratch: where layers put what they need for a moment.
    """
    if positions.shape[1] == 1 and paged_decode.applies(cache):
        return paged_decode.attention_in_place(cache)
    if positions.shape[1] == 1 and type(cache) in (PagedCache, QuantizedCache) and isinstance(cache.store, QuantizedStore):
        return _in_few_bits(cache, key_positions != PAD, scratch)
    if _is_whole_prompt(positions, key_positions):
        return lambda layer, q, k, v: _causal_attend(q, *cache.update(layer, k, v))
    mask = _mask(positions, key_positions)
    if type(cache) is PagedCache and isinstance(cache.store, FloatStore) and not isinstance(cache.blocks, range):
        return _over_gathered_blocks(cache, mask, scratch)
    return lambda layer, q, k, v: fused_attend(q, *cache.update(layer, k, v), mask)


def _in_few_bits(cache: PagedCache | QuantizedCache, visible: Bool[Tensor, "batch kv_len"], scratch: Scratch) -> Attend:
    few_bits = FewBits(cache.store, cache.blocks, visible=visible, scratch=scratch)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(layer, k, v)
        return few_bits.attend(layer, q)

    return attend


def _over_gathered_blocks(cache: PagedCache, mask: Tensor | None, scratch: Scratch) -> Attend:
    """What `update` does, except that all layers gather to the same place."""
    store, blocks = cache.store, cache.blocks
    gathered = scratch.take("blocks", store.gathered_shape(blocks), dtype=store.dtype, device=store.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(layer, k, v)
        return fused_attend(q, *cache.read(layer, out=gathered), mask)

    return attend


def _mask(positions: Int[Tensor, "batch new_len"], key_positions: Int[Tensor, "batch kv_len"]) -> Tensor | None:
    """True where a query may look at a key; None where every one may look at all."""
    mask = causal_mask(positions, key_positions)
    return None if mask.all() else mask


def _is_whole_prompt(positions: Int[Tensor, "batch new_len"], key_positions: Int[Tensor, "batch kv_len"]) -> bool:
    """Whether query i of every row may look at keys 0 to i: the triangle that kernels know by name, for which no mask is made."""
    if positions.shape != key_positions.shape or positions.shape[1] == 1:
        return False
    in_order = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    return torch.equal(positions, in_order) and torch.equal(key_positions.to(positions.device), in_order)


def _causal_attend(
    q: Float[Tensor, "batch new_len n_heads head_dim"],
    k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
) -> Float[Tensor, "batch new_len n_heads head_dim"]:
    """Attention within a prompt. Of the query heads that share a key head, the first of all groups, then the second, and so on: none is repeated."""
    n_kv_heads = k.shape[2]
    grouped = q.unflatten(2, (n_kv_heads, -1))  # [batch new_len n_kv_heads n_rep head_dim]
    out = torch.empty_like(grouped)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    for rank in range(grouped.shape[3]):
        part = F.scaled_dot_product_attention(grouped[:, :, :, rank].transpose(1, 2), k, v, is_causal=True)
        out[:, :, :, rank] = part.transpose(1, 2)
    return out.flatten(2, 3)
