"""A forward pass with everything in it that makes one fast, and nothing that makes it give another answer.

It reads like `model.py` with the classes taken away. What differs: matrices that are read together lie together, and are multiplied by
whatever reads memory fastest; the rotation of a step is one small product; a mask is made only where something is hidden; and
no list of keys and values is looked up twice.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.cache.base import KVCache, NoCache
from llama3_edu.kernels import graphs
from llama3_edu.kernels.attention import attention_over
from llama3_edu.kernels.decode import DecodeStep, attention_of_one
from llama3_edu.kernels.packed import PackedLlama
from llama3_edu.kernels.projection import LayerProjections, make_projection
from llama3_edu.kernels.scratch import Scratch
from llama3_edu.model import checked_positions
from llama3_edu.positions import PAD
from llama3_edu.rope import rope_angles, rope_frequencies, rotate

__all__ = ["FastLlama"]


class FastLlama:
    """Computes what `Llama` computes, from packed weights. No gradient flows through it.

    The results are equal up to rounding: sums are added up in another order.

    Args:
        weights: used where they lie.
        may_copy: whether matrices may be held a second time, in the order in which this processor reads them fastest. What is written
            into the weights later is not seen in the copy.
    """

    def __init__(self, weights: PackedLlama, *, may_copy: bool = True) -> None:
        self.weights = weights
        self.config = weights.config
        self.layers = [LayerProjections.of(layer, may_copy=may_copy) for layer in weights.layers]
        self.output = make_projection(weights.output, may_copy=may_copy)
        self._rotations = _Rotations(weights)
        self._scratch = Scratch()
        self._decode = DecodeStep(weights, self.layers, self.output)
        self._steps = graphs.Steps(weights)

    @property
    def nbytes_beside(self) -> int:
        """Bytes held beside the model's own weights."""
        return self._scratch.nbytes + self.output.nbytes_beside + sum(layer.nbytes_beside for layer in self.layers)

    def forward(
        self,
        tokens: Int[Tensor, "batch new_len"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch new_len"] | None = None,
    ) -> Float[Tensor, "batch new_len vocab_size"]:
        """Return the logits that follow every token. Arguments and errors are those of `Llama.forward`."""
        x, _ = self._hidden(tokens, cache, positions)
        return self.output(self._final_norm(x)).view(*tokens.shape, -1)

    def next_logits(
        self,
        tokens: Int[Tensor, "batch new_len"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch new_len"] | None = None,
    ) -> Float[Tensor, "batch vocab_size"]:
        """Return the logits that follow each row's last real token. Arguments and errors are those of `Llama.next_logits`."""
        if positions is not None and graphs.applies(self.weights, cache, positions):
            return self._steps.next_logits(tokens, cache, positions)
        if cache is not None and self._decode.applies(tokens, cache, positions):
            return self._decode_one(tokens, cache, positions)
        x, positions = self._hidden(tokens, cache, positions)
        return self.output(self._final_norm(_last_of_each_row(x, positions)))

    def _decode_one(
        self, tokens: Int[Tensor, "1 1"], cache: KVCache, positions: Int[Tensor, "1 1"] | None
    ) -> Float[Tensor, "1 vocab_size"]:
        positions = checked_positions(tokens, cache, positions, vocab_size=self.config.vocab_size)
        attend = attention_of_one(cache, positions, cache.reserve(positions), self._scratch)
        return self._decode.next_logits(tokens, attend, self._rotations.matrices(positions)[0])

    def _hidden(
        self, tokens: Tensor, cache: KVCache | None, positions: Tensor | None
    ) -> tuple[Float[Tensor, "tokens dim"], Int[Tensor, "batch new_len"]]:
        """Run every block; return the residual stream of all rows, one behind the other, and the positions that were used."""
        cache = NoCache() if cache is None else cache
        batch, new_len = tokens.shape
        positions = checked_positions(tokens, cache, positions, vocab_size=self.config.vocab_size)
        attend = attention_over(cache, positions, cache.reserve(positions), self._scratch)
        turn = self._rotations.at(positions)
        x = self.weights.embeddings[tokens.flatten()]
        for index, layer in enumerate(self.layers):
            x = self._attention(x, (batch, new_len), layer, turn, partial(attend, index))
            x = self._feed_forward(x, layer)
        return x, positions

    def _attention(
        self,
        x: Float[Tensor, "tokens dim"],
        shape: tuple[int, int],
        layer: LayerProjections,
        turn: "Turn",
        attend: "Callable[..., Tensor]",
    ) -> Float[Tensor, "tokens dim"]:
        """Return the stream with a layer's attention added."""
        n_heads, n_kv_heads, head_dim = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        heads = layer.wqkv(rms_norm(x, layer.attention_norm, self.config.norm_eps)).view(len(x), -1, head_dim)
        q, k = turn(heads[:, : n_heads + n_kv_heads]).view(*shape, -1, head_dim).split((n_heads, n_kv_heads), dim=2)
        v = heads[:, n_heads + n_kv_heads :].view(*shape, n_kv_heads, head_dim)
        out = attend(q, k, v)  # [batch new_len n_heads head_dim]
        return layer.wo.add_to(x, out.reshape(len(x), -1))

    def _feed_forward(self, x: Float[Tensor, "tokens dim"], layer: LayerProjections) -> Float[Tensor, "tokens dim"]:
        """Return the stream with a layer's SwiGLU added."""
        gate, up = layer.w13(rms_norm(x, layer.ffn_norm, self.config.norm_eps)).chunk(2, dim=-1)
        return layer.w2.add_to(x, F.silu(gate).mul_(up))

    def _final_norm(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        return rms_norm(x, self.weights.norm, self.config.norm_eps)


def rms_norm(x: Float[Tensor, "tokens dim"], weight: Float[Tensor, "dim"], eps: float) -> Float[Tensor, "tokens dim"]:
    """Return what `RMSNorm` returns."""
    wide = x if x.dtype.itemsize > 2 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight


Turn: TypeAlias = Callable[[Float[Tensor, "tokens heads head_dim"]], Float[Tensor, "tokens heads head_dim"]]
"""Rotates queries and keys, all heads at once, by where their tokens stand."""


class _Rotations:
    """Makes the rotation of a forward from its positions.

    With one token per row, all of a row's heads turn alike: the rotation is one matrix, `identity · cos + swap · sin`, and takes one
    product for queries and keys together, in every layer the same.
    """

    def __init__(self, weights: PackedLlama) -> None:
        config, device = weights.config, weights.device
        self._dtype = weights.dtype
        self._frequencies = rope_frequencies(config, device)
        half = torch.eye(config.head_dim // 2, dtype=self._dtype, device=device)
        none = torch.zeros_like(half)
        self._identity = torch.eye(config.head_dim, dtype=self._dtype, device=device)
        self._swap = torch.cat((torch.cat((none, half), dim=1), torch.cat((-half, none), dim=1)))

    def at(self, positions: Int[Tensor, "batch new_len"]) -> Turn:
        """Return what rotates queries and keys at these positions."""
        if positions.shape[1] == 1:
            matrices = self.matrices(positions)
            return lambda heads: torch.bmm(heads, matrices)
        cos, sin = rope_angles(self._frequencies, positions, self._dtype)  # [batch new_len 1 half_head_dim]
        cos, sin = cos.flatten(0, 1)[None], sin.flatten(0, 1)[None]
        return lambda heads: rotate(heads[None], cos, sin)[0]

    def matrices(self, positions: Int[Tensor, "batch 1"]) -> Float[Tensor, "batch head_dim head_dim"]:
        """Return what the heads of each row are multiplied by."""
        cos, sin = rope_angles(self._frequencies, positions, self._dtype)
        return self._identity * torch.cat((cos, cos), dim=-1)[:, 0] + self._swap * torch.cat((sin, sin), dim=-1)[:, 0]


def _last_of_each_row(x: Float[Tensor, "tokens dim"], positions: Int[Tensor, "batch new_len"]) -> Float[Tensor, "batch dim"]:
    """The stream of each row's last real token."""
    batch, new_len = positions.shape
    if new_len == 1:
        return x
    columns = torch.arange(new_len, device=x.device)
    last = torch.where(positions.to(x.device) == PAD, 0, columns).amax(dim=1)
    return x.view(batch, new_len, -1)[torch.arange(batch, device=x.device), last]
