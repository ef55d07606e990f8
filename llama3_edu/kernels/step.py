"""One decode step with nothing in it that the host must decide: what a CUDA graph can hold.

A graph replays the same kernels on the same addresses. So the newest tokens, their positions and the block tables lie in buffers
that stay where they are; the lengths follow from the positions on the device; and a row that rests stands at `PAD`: it stores
nothing and sees nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.attention import attend
from llama3_edu.kernels.packed import PackedLayer, PackedLlama
from llama3_edu.positions import PAD
from llama3_edu.rope import rope_angles, rope_frequencies, rotate

__all__ = ["StaticStep", "Operations", "PlainOperations"]


class Operations(ABC):
    """The five things a step does, over one token per row."""

    @abstractmethod
    def project(
        self, x: Float[Tensor, "batch dim"], norm: Float[Tensor, "dim"], weight: Float[Tensor, "out dim"], *, eps: float
    ) -> Float[Tensor, "batch out"]:
        """Norm the stream and multiply it by a matrix."""

    @abstractmethod
    def project_gated(
        self, x: Float[Tensor, "batch dim"], norm: Float[Tensor, "dim"], weight: Float[Tensor, "two_hidden dim"], *, eps: float
    ) -> Float[Tensor, "batch hidden"]:
        """Norm the stream, multiply it by the gate and by what is gated, and let through what the gate says."""

    @abstractmethod
    def project_and_add(
        self, stream: Float[Tensor, "batch dim"], x: Float[Tensor, "batch inner"], weight: Float[Tensor, "dim inner"]
    ) -> Float[Tensor, "batch dim"]:
        """Multiply by a matrix and add the stream."""

    @abstractmethod
    def rotate_and_store(
        self,
        heads: Float[Tensor, "batch all_heads head_dim"],
        cos: Float[Tensor, "batch half_head_dim"],
        sin: Float[Tensor, "batch half_head_dim"],
        slots: Int[Tensor, "batch"],
        keys: Float[Tensor, "num_blocks block_size n_kv_heads head_dim"],
        values: Float[Tensor, "num_blocks block_size n_kv_heads head_dim"],
    ) -> Float[Tensor, "batch n_heads head_dim"]:
        """Rotate queries and keys, store keys and values at their slots (none at `PAD`), and return the queries.

        Args:
            heads: all query heads, then all key heads, then all value heads.
        """

    @abstractmethod
    def attend(
        self,
        q: Float[Tensor, "batch n_heads head_dim"],
        keys: Float[Tensor, "num_blocks block_size n_kv_heads head_dim"],
        values: Float[Tensor, "num_blocks block_size n_kv_heads head_dim"],
        block_table: Int[Tensor, "batch blocks_per_row"],
        seq_lens: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch n_heads head_dim"]:
        """Let each query gather from all tokens its row holds."""


class PlainOperations(Operations):
    """What the five mean, in plain PyTorch: for every device and type. They ask the host, so no graph can hold them."""

    def project(self, x: Tensor, norm: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        return F.linear(F.rms_norm(x, norm.shape, norm, eps), weight)

    def project_gated(self, x: Tensor, norm: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        gate, up = self.project(x, norm, weight, eps=eps).chunk(2, dim=-1)
        return F.silu(gate) * up

    def project_and_add(self, stream: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return stream + F.linear(x, weight)

    def rotate_and_store(self, heads: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        n_kv_heads = keys.shape[2]
        n_heads = heads.shape[1] - 2 * n_kv_heads
        q, k, v = heads.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
        q, k = (rotate(x[:, None], cos[:, None, None], sin[:, None, None])[:, 0] for x in (q, k))
        real = slots != PAD
        keys.flatten(0, 1)[slots[real]] = k[real]
        values.flatten(0, 1)[slots[real]] = v[real]
        return q

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, seq_lens: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for row, held in enumerate(seq_lens.tolist()):
            if held:
                k, v = (x[block_table[row]].flatten(0, 1)[None, :held] for x in (keys, values))
                out[row] = attend(q[row, None, None], k, v)[0, 0]
        return out


class StaticStep:
    """The buffers of a step, and the step itself: call it to compute the logits that follow the tokens in the buffers.

    Args:
        weights: of the model.
        blocks: for each layer, keys and values where they lie.
        batch: rows.
        blocks_per_row: width of the block table.
        operations: how each thing is done.
    """

    def __init__(
        self,
        weights: PackedLlama,
        blocks: Sequence[tuple[Tensor, Tensor]],
        *,
        batch: int,
        blocks_per_row: int,
        operations: Operations,
    ) -> None:
        self.weights, self.blocks, self._operations = weights, tuple(blocks), operations
        self._frequencies = rope_frequencies(weights.config, weights.device)
        self.tokens = torch.zeros(batch, dtype=torch.long, device=weights.device)
        self.positions = torch.full((batch,), PAD, device=weights.device)
        self.block_table = torch.zeros(batch, blocks_per_row, dtype=torch.long, device=weights.device)

    def fill(
        self, tokens: Int[Tensor, "rows"], positions: Int[Tensor, "rows"], block_table: Int[Tensor, "rows used_blocks"]
    ) -> None:
        """Put the newest token of every row into the buffers. Where there are fewer rows than buffers, the others rest."""
        rows, used = block_table.shape
        self.tokens[:rows].copy_(tokens, non_blocking=True)
        self.positions[:rows].copy_(positions, non_blocking=True)
        self.positions[rows:].fill_(PAD)
        self.block_table[:rows, :used].copy_(block_table, non_blocking=True)

    def __call__(self) -> Float[Tensor, "batch vocab_size"]:
        weights, do = self.weights, self._operations
        cos, sin = rope_angles(self._frequencies, self.positions.clamp(min=0)[:, None], weights.dtype)
        turn = cos[:, 0, 0], sin[:, 0, 0]
        seq_lens, slots = self.positions + 1, self._slots()
        x = weights.embeddings[self.tokens]
        for layer, blocks in zip(weights.layers, self.blocks, strict=True):
            x = self._attention(x, layer, blocks, turn, slots, seq_lens)
            hidden = do.project_gated(x, layer.ffn_norm, layer.w13, eps=weights.config.norm_eps)
            x = do.project_and_add(x, hidden, layer.w2)
        return do.project(x, weights.norm, weights.output, eps=weights.config.norm_eps)

    def _attention(
        self,
        x: Float[Tensor, "batch dim"],
        layer: PackedLayer,
        blocks: tuple[Tensor, Tensor],
        turn: tuple[Tensor, Tensor],
        slots: Int[Tensor, "batch"],
        seq_lens: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the stream with one layer's attention added."""
        do, config = self._operations, self.weights.config
        heads = do.project(x, layer.attention_norm, layer.wqkv, eps=config.norm_eps)
        q = do.rotate_and_store(heads.unflatten(1, (-1, config.head_dim)), *turn, slots, *blocks)
        out = do.attend(q, *blocks, self.block_table, seq_lens)
        return do.project_and_add(x, out.flatten(1), layer.wo)

    def _slots(self) -> Int[Tensor, "batch"]:
        """Where each row's new token goes; `PAD` where the row rests."""
        block_size = self.blocks[0][0].shape[1]
        at = self.positions.clamp(min=0)
        block = self.block_table.gather(1, (at // block_size)[:, None])[:, 0]
        slots = block * block_size + at % block_size
        return slots.masked_fill(self.positions == PAD, PAD)  # `where` would send PAD over from the host
