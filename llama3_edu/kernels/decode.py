"""The step that generation is made of: one new token of one row, on a CPU, over a cache whose slots stay where they are.

A small model's step is mostly overhead: each view that is taken and each tensor that is made costs a microsecond, as much as the work on it.
So all views of the cache are taken at once, keys and values are written where they stay, and a row is a vector, not a matrix of one row.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.cache.base import KVCache
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.kernels.packed import PackedLlama
from llama3_edu.kernels.projection import LayerProjections, Projection
from llama3_edu.positions import PAD

__all__ = ["DecodeStep"]


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
        """Whether this is one token of one row, for a cache that hands back views, and in more than 16 bits."""
        if tokens.shape != (1, 1) or type(cache) is not ContiguousCache or not self._q.is_cpu or self._q.itemsize == 2:
            return False
        return len(cache.seq_lens) == 1 and (positions is None or positions.shape == (1, 1) and positions.item() != PAD)

    def next_logits(
        self, tokens: Int[Tensor, "1 1"], cache: ContiguousCache, rotation: Float[Tensor, "head_dim head_dim"]
    ) -> Float[Tensor, "1 vocab_size"]:
        """Return the logits that follow the token, after `cache.reserve`.

        Args:
            rotation: what a head is multiplied by to turn it to where the token stands.
        """
        with (
            torch.inference_mode()
        ):  # views in here need not be tracked; the logits are made outside, where they may be written to
            x = self._hidden(tokens, cache, rotation)
        return self._output.of_row(self._normed(x, self._norm))[None]

    def _hidden(self, tokens: Int[Tensor, "1 1"], cache: ContiguousCache, rotation: Tensor) -> Float[Tensor, "dim"]:
        x = self._embeddings[tokens[0, 0]]
        for index, (layer, (k_new, v_new, k_all, v_all)) in enumerate(zip(self._layers, cache.newest_and_all())):
            heads = layer.wqkv.of_row(self._normed(x, layer.attention_norm))
            q, k, v = heads.view(-1, self._head_dim).split(self._heads)
            torch.mm(q, rotation, out=self._q)
            torch.mm(k, rotation, out=k_new)
            v_new.copy_(v)
            cache.report(index)
            out = F.scaled_dot_product_attention(self._grouped_q, k_all, v_all)
            x = layer.wo.add_row_to(x, out.reshape(-1))
            gate, up = layer.w13.of_row(self._normed(x, layer.ffn_norm)).split(self._hidden_dim)
            x = layer.w2.add_row_to(x, F.silu(gate).mul_(up))
        return x

    def _normed(self, x: Float[Tensor, "dim"], weight: Float[Tensor, "dim"]) -> Float[Tensor, "dim"]:
        """Return what `RMSNorm` returns. A dot product takes fewer passes than a mean of squares, and Python divides for nothing."""
        return torch.mul(x, weight).mul_((torch.dot(x, x).item() / len(x) + self._norm_eps) ** -0.5)
