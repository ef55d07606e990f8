"""A forward pass with everything in it that makes one fast, and nothing that makes it give another answer.

It reads like `model.py` with the classes taken away. What differs: matrices that are read together lie together, and are multiplied by
whatever reads memory fastest; the rotation of a step is one small product; a mask is made only where something is hidden; and
no list of keys and values is looked up twice.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.cache.base import KVCache, NoCache, lengths
from llama3_edu.config import LlamaConfig
from llama3_edu.kernels.attention import Attend, attention_over
from llama3_edu.kernels.packed import PackedLayer, PackedLlama
from llama3_edu.kernels.projection import make_projection
from llama3_edu.model import check_tokens
from llama3_edu.positions import PAD
from llama3_edu.rope import rope_angles, rope_frequencies, rotate

__all__ = ["FastLlama"]


class FastLlama:
    """Computes what `Llama` computes, from packed weights. No gradient flows through it.

    The results are equal up to rounding: sums are added up in another order.

    Args:
        weights: used where they lie.
        may_copy: whether 16-bit matrices may be held a second time, in the order in which this processor multiplies them.
    """

    def __init__(self, weights: PackedLlama, *, may_copy: bool = True) -> None:
        self.weights = weights
        self.config = weights.config
        self._layers = [_Layer(layer, may_copy=may_copy) for layer in weights.layers]
        self._output = make_projection(weights.output, may_copy=may_copy)
        self._rotations = _Rotations(weights)

    @property
    def nbytes_beside(self) -> int:
        """Bytes held beside the model's own weights."""
        return self._output.nbytes_beside + sum(layer.nbytes_beside for layer in self._layers)

    def forward(
        self,
        tokens: Int[Tensor, "batch new_len"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch new_len"] | None = None,
    ) -> Float[Tensor, "batch new_len vocab_size"]:
        """Return the logits that follow every token. Arguments and errors are those of `Llama.forward`."""
        x, _ = self._hidden(tokens, cache, positions)
        return self._output(self._final_norm(x)).view(*tokens.shape, -1)

    def next_logits(
        self,
        tokens: Int[Tensor, "batch new_len"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch new_len"] | None = None,
    ) -> Float[Tensor, "batch vocab_size"]:
        """Return the logits that follow each row's last real token. Arguments and errors are those of `Llama.next_logits`."""
        x, positions = self._hidden(tokens, cache, positions)
        return self._output(self._final_norm(_last_of_each_row(x, positions)))

    def _hidden(
        self, tokens: Tensor, cache: KVCache | None, positions: Tensor | None
    ) -> tuple[Float[Tensor, "tokens dim"], Int[Tensor, "batch new_len"]]:
        """Run every block; return the residual stream of all rows, one behind the other, and the positions that were used."""
        cache = NoCache() if cache is None else cache
        batch, new_len = tokens.shape
        if positions is None:
            positions = lengths(cache, batch).to(tokens.device)[:, None] + torch.arange(new_len, device=tokens.device)
        check_tokens(tokens, positions, vocab_size=self.config.vocab_size)
        attend = attention_over(cache, positions, cache.reserve(positions))
        turn = self._rotations.at(positions)
        x = self.weights.embeddings[tokens.flatten()]
        for index, layer in enumerate(self._layers):
            x = layer.attention(x, index, (batch, new_len), self.config, turn, attend)
            x = layer.feed_forward(x, self.config.norm_eps)
        return x, positions

    def _final_norm(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        return rms_norm(x, self.weights.norm, self.config.norm_eps)


class _Layer:
    """One decoder block."""

    def __init__(self, weights: PackedLayer, *, may_copy: bool) -> None:
        self._attention_norm, self._ffn_norm = weights.attention_norm, weights.ffn_norm
        self._wqkv, self._wo, self._w13, self._w2 = self._projections = tuple(
            make_projection(weight, may_copy=may_copy) for weight in (weights.wqkv, weights.wo, weights.w13, weights.w2)
        )

    @property
    def nbytes_beside(self) -> int:
        return sum(projection.nbytes_beside for projection in self._projections)

    def attention(
        self, x: Float[Tensor, "tokens dim"], layer: int, shape: tuple[int, int], config: LlamaConfig, turn: "Turn", attend: Attend
    ) -> Float[Tensor, "tokens dim"]:
        """Return the stream with this layer's attention added."""
        n_heads, n_kv_heads = config.n_heads, config.n_kv_heads
        heads = self._wqkv(rms_norm(x, self._attention_norm, config.norm_eps)).view(len(x), -1, config.head_dim)
        q, k = turn(heads[:, : n_heads + n_kv_heads]).view(*shape, -1, config.head_dim).split((n_heads, n_kv_heads), dim=2)
        v = heads[:, n_heads + n_kv_heads :].view(*shape, n_kv_heads, config.head_dim)
        out = attend(layer, q, k, v)  # [batch new_len n_heads head_dim]
        return self._wo.add_to(x, out.reshape(len(x), -1))

    def feed_forward(self, x: Float[Tensor, "tokens dim"], norm_eps: float) -> Float[Tensor, "tokens dim"]:
        """Return the stream with this layer's SwiGLU added."""
        gate, up = self._w13(rms_norm(x, self._ffn_norm, norm_eps)).chunk(2, dim=-1)
        return self._w2.add_to(x, F.silu(gate).mul_(up))


def rms_norm(x: Float[Tensor, "tokens dim"], weight: Float[Tensor, "dim"], eps: float) -> Float[Tensor, "tokens dim"]:
    """Return what `RMSNorm` returns."""
    wide = x if x.dtype.itemsize > 2 else x.float()
    if len(x) == 1 and x.device.type == "cpu":
        # One row: a dot product instead of a mean of squares, and a number of Python's, which costs nothing to divide by here.
        row = wide[0]
        normed = wide * (torch.dot(row, row).item() / row.numel() + eps) ** -0.5
    else:
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


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
        cos, sin = rope_angles(self._frequencies, positions, self._dtype)  # [batch new_len 1 half_head_dim]
        if positions.shape[1] == 1:
            matrices = self._identity * torch.cat((cos, cos), dim=-1)[:, 0] + self._swap * torch.cat((sin, sin), dim=-1)[:, 0]
            return lambda heads: torch.bmm(heads, matrices)
        cos, sin = cos.flatten(0, 1)[None], sin.flatten(0, 1)[None]
        return lambda heads: rotate(heads[None], cos, sin)[0]


def _last_of_each_row(x: Float[Tensor, "tokens dim"], positions: Int[Tensor, "batch new_len"]) -> Float[Tensor, "batch dim"]:
    """The stream of each row's last real token."""
    batch, new_len = positions.shape
    if new_len == 1:
        return x
    columns = torch.arange(new_len, device=x.device)
    last = torch.where(positions.to(x.device) == PAD, 0, columns).amax(dim=1)
    return x.view(batch, new_len, -1)[torch.arange(batch, device=x.device), last]
