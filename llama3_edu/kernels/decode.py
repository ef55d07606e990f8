"""The step that generation is made of: one new token of one row, on a CPU.

A small model's step is mostly overhead: each view that is taken and each tensor that is made costs a microsecond, as much as the work on it.
So all views of the cache are taken at once, keys and values are written where they stay, and a row is a vector, not a matrix of one row.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.cache.base import KVCache, RowCache
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.cache.paged import PagedCache
from llama3_edu.cache.store import FloatStore
from llama3_edu.kernels.attention import Attend, attention_over
from llama3_edu.kernels.packed import PackedLlama
from llama3_edu.kernels.projection import LayerProjections, Projection
from llama3_edu.kernels.scratch import Scratch
from llama3_edu.positions import PAD

__all__ = ["DecodeStep", "attention_of_one"]


class DecodeStep:
    """Computes what `FastLlama.next_logits` computes, where `applies` says so.

    Args:
        weights: of the model.
        layers: its blocks, ready to multiply.
        output: its output projection.
    """

    def __init__(self, weights: PackedLlama, layers: Sequence[LayerProjections], output: Projection) -> None:
        config = weights.config
        self._embeddings, self._layers, self._norm, self._output = weights.embeddings, layers, weights.norm, output
        self._norm_eps, self._hidden_dim = config.norm_eps, config.hidden_dim
        self._heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
        self._head_dim = config.head_dim
        self._q = torch.empty(config.n_heads, config.head_dim, dtype=weights.dtype, device=weights.device)
        self._grouped_q = self._q.view(1, config.n_kv_heads, -1, config.head_dim)

    def applies(
        self, tokens: Int[Tensor, "batch new_len"], cache: KVCache, positions: Int[Tensor, "batch new_len"] | None
    ) -> bool:
        """Whether this is one token of one row of a cache, on a CPU."""
        if tokens.shape != (1, 1) or not isinstance(cache, RowCache) or not self._q.is_cpu:
            return False
        return len(cache.seq_lens) == 1 and (positions is None or positions.shape == (1, 1) and positions.item() != PAD)

    def next_logits(
        self, tokens: Int[Tensor, "1 1"], attend: "AttendOne", rotation: Float[Tensor, "head_dim head_dim"]
    ) -> Float[Tensor, "1 vocab_size"]:
        """Return the logits that follow the token, after `cache.reserve`.

        Args:
            attend: what `attention_of_one` returned.
            rotation: what a head is multiplied by to turn it to where the token stands.
        """
        with torch.inference_mode():  # views in here need not be tracked; the logits are made outside, and may be written to
            x = self._hidden(tokens, attend, rotation)
        return self._output.of_row(self._normed(x, self._norm))[None]

    def _hidden(
        self, tokens: Int[Tensor, "1 1"], attend: "AttendOne", rotation: Float[Tensor, "head_dim head_dim"]
    ) -> Float[Tensor, "dim"]:
        x = self._embeddings[tokens[0, 0]]
        for index, layer in enumerate(self._layers):
            heads = layer.wqkv.of_row(self._normed(x, layer.attention_norm))
            q, k, v = heads.view(-1, self._head_dim).split(self._heads)
            torch.mm(q, rotation, out=self._q)
            out = attend(index, self._grouped_q, k, v, rotation)
            x = layer.wo.add_row_to(x, out.reshape(-1))
            gate, up = layer.w13.of_row(self._normed(x, layer.ffn_norm)).split(self._hidden_dim)
            x = layer.w2.add_row_to(x, F.silu(gate).mul_(up))
        return x

    def _normed(self, x: Float[Tensor, "dim"], weight: Float[Tensor, "dim"]) -> Float[Tensor, "dim"]:
        """Return what `RMSNorm` returns. A dot product takes fewer passes than a mean of squares, and Python divides for nothing."""
        wide = x.float() if x.itemsize == 2 else x
        inverse = (torch.dot(wide, wide).item() / len(x) + self._norm_eps) ** -0.5
        return torch.mul(x, weight).mul_(inverse) if wide is x else wide.mul_(inverse).to(x.dtype).mul_(weight)


AttendOne: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From a layer's index, its rotated queries in groups, its new key, its new value, and what turns the key, to the output."""


def attention_of_one(
    cache: RowCache, positions: Int[Tensor, "1 1"], key_positions: Int[Tensor, "1 kv_len"], scratch: Scratch
) -> AttendOne:
    """Return the attention of a forward of one token, after `cache.reserve` returned `key_positions`."""
    if type(cache) is ContiguousCache:
        return _over_views(cache, *cache.views())
    if type(cache) is PagedCache and isinstance(cache.store, FloatStore):
        newest = cache.store.views_of_slot(cache.slot_mapping.item())
        held = cache.store.views_of_run(cache.blocks, key_positions.shape[1])
        if held is not None:
            return _over_views(cache, newest, held)
        return _over_gathered(cache, newest, key_positions.shape[1], scratch)
    return _over_any(attention_over(cache, positions, key_positions, scratch))


def _over_views(cache: ContiguousCache | PagedCache, newest: Sequence[Tensor], held: Sequence[Tensor]) -> AttendOne:
    """Write keys and values where they stay, and read all of them where they are.

    Args:
        newest: where the new key of each layer goes, and its new value, `[n_kv_heads head_dim]`; twice as many as there are layers.
        held: each layer's keys, and its values, `[1 n_kv_heads kv_len head_dim]`.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, rotation: Tensor) -> Tensor:
        torch.mm(k, rotation, out=newest[2 * layer])
        newest[2 * layer + 1].copy_(v)
        cache.report(layer)
        return F.scaled_dot_product_attention(q, held[2 * layer], held[2 * layer + 1])

    return attend


def _over_gathered(cache: PagedCache, newest: Sequence[Tensor], kv_len: int, scratch: Scratch) -> AttendOne:
    """Write keys and values where they stay, and gather all of them, every layer to the same place."""
    store, blocks = cache.store, cache.blocks
    _, num_blocks, block_size, n_kv_heads, head_dim = store.gathered_shape(blocks)
    shape = (2, n_kv_heads, num_blocks, block_size, head_dim)
    gathered = scratch.take("blocks by head", shape, dtype=store.dtype, device=store.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, rotation: Tensor) -> Tensor:
        torch.mm(k, rotation, out=newest[2 * layer])
        newest[2 * layer + 1].copy_(v)
        cache.report(layer)
        k_all, v_all = store.gather_by_head(layer, blocks, out=gathered)
        return F.scaled_dot_product_attention(q, k_all[:, :, :kv_len], v_all[:, :, :kv_len])

    return attend


def _over_any(attend: Attend) -> AttendOne:
    """Hand the layer's one key and value to the cache as a batch."""

    def attend_one(layer: int, q: Tensor, k: Tensor, v: Tensor, rotation: Tensor) -> Tensor:
        return attend(layer, q.view(1, 1, -1, q.shape[-1]), torch.mm(k, rotation)[None, None], v[None, None])

    return attend_one
