"""One query per row over keys and values in few bits, without ever putting the numbers together again.

A key is `zero + code * scale`, so a query's product with it is `query · zero + (query * scale) · code`: a block's scales go into the query,
once for all its tokens, and its zeros into one number. A value's scale goes into its weight. What is left to be multiplied are the codes.
"""

import math

import torch
from jaxtyping import Bool, Float, Float16, UInt8
from torch import Tensor

from llama3_edu.cache.store import Blocks, QuantizedStore
from llama3_edu.kernels.scratch import Scratch

__all__ = ["FewBits"]


class FewBits:
    """Attention of each row's newest token over the blocks of its row, for all layers of one forward.

    Every block is multiplied by itself, heads and all: its codes lie in the order in which they are read.
    Equal to attention over what `store.read` returns, up to rounding.

    Args:
        blocks: each row's blocks, in order.
        visible: which of their slots hold a token of the row; the newest query may look at all of these.
        scratch: where codes are unpacked to.

    Source: arXiv 2402.02750, section 3.2 (scales per channel for keys, per token for values).
    """

    def __init__(self, store: QuantizedStore, blocks: Blocks, *, visible: Bool[Tensor, "batch kv_len"], scratch: Scratch) -> None:
        self._store, self._blocks, self._scratch = store, blocks, scratch
        self._opened = list(zip(*(index.tolist() for index in store.opened(blocks))))
        beyond = -visible.shape[1] % store.block_size
        hidden = torch.nn.functional.pad(~visible, (0, beyond), value=True)
        self._hidden = hidden.unflatten(1, (-1, 1, 1, store.block_size))  # [batch blocks 1 1 block_size]

    def attend(self, layer: int, q: Float[Tensor, "batch 1 n_heads head_dim"]) -> Float[Tensor, "batch 1 n_heads head_dim"]:
        """Let the queries of one layer gather, after its new keys and values were written."""
        batch, _, n_heads, head_dim = q.shape
        coded, staged = self._store.coded(layer, self._blocks), self._store.staged_layer(layer)
        n_kv_heads = coded.codes.shape[2]
        wide = torch.promote_types(q.dtype, torch.float32)
        grouped = q.to(wide).view(batch, 1, n_kv_heads, n_heads // n_kv_heads, head_dim) / math.sqrt(head_dim)
        scores = _scores(grouped, self._unpacked("keys", coded.codes[0], staged[0], batch, wide), coded.key_levels)
        weights = _softmax_over_blocks(scores.masked_fill_(self._hidden, torch.finfo(wide).min))
        out = _gathered(weights, self._unpacked("values", coded.codes[1], staged[1], batch, wide), coded.value_levels)
        return out.view(batch, 1, n_heads, head_dim).to(q.dtype)

    def _unpacked(
        self,
        name: str,
        codes: UInt8[Tensor, "all_blocks n_kv_heads block_size head_dim"],
        staged: Float[Tensor, "stages block_size n_kv_heads head_dim"],
        batch: int,
        dtype: torch.dtype,
    ) -> Float[Tensor, "batch blocks n_kv_heads block_size head_dim"]:
        """Return codes as the numbers they are multiplied as: one pass over a quarter of the bytes, or less.

        What is kept as it came has scale 1 and zero 0: its codes are the numbers themselves.
        """
        by_row = codes.unflatten(0, (batch, -1))
        unpacked = self._scratch.take(name, tuple(by_row.shape), dtype=dtype, device=codes.device).copy_(by_row)
        for row, column, stage in self._opened:
            unpacked[row, column] = staged[stage].transpose(0, 1)
        return unpacked


def _scores(
    q: Float[Tensor, "batch 1 n_kv_heads n_rep head_dim"],
    keys: Float[Tensor, "batch blocks n_kv_heads block_size head_dim"],
    levels: Float16[Tensor, "2 all_blocks 1 kv_dim"],
) -> Float[Tensor, "batch blocks n_kv_heads n_rep block_size"]:
    """Return the product of every query with every key."""
    batch, blocks, n_kv_heads, _, head_dim = keys.shape
    scale, zero = levels.to(q.dtype).view(2, batch, blocks, n_kv_heads, 1, head_dim)
    of_zeros = (q * zero).sum(dim=-1, keepdim=True)
    return torch.matmul(q * scale, keys.transpose(3, 4)).add_(of_zeros)


def _softmax_over_blocks(
    scores: Float[Tensor, "batch blocks n_kv_heads n_rep block_size"],
) -> Float[Tensor, "batch blocks n_kv_heads n_rep block_size"]:
    """Return weights that add up to 1 over all slots of all blocks."""
    weights = (scores - scores.amax(dim=(1, 4), keepdim=True)).exp_()
    return weights.div_(weights.sum(dim=(1, 4), keepdim=True))


def _gathered(
    weights: Float[Tensor, "batch blocks n_kv_heads n_rep block_size"],
    values: Float[Tensor, "batch blocks n_kv_heads block_size head_dim"],
    levels: Float16[Tensor, "2 all_blocks block_size groups 1"],
) -> Float[Tensor, "batch n_kv_heads n_rep head_dim"]:
    """Return the sum of all values, each times its weight.

    A group of channels may span several heads, or a head several groups. So heads are cut into parts that lie in one group each.
    """
    batch, blocks, n_kv_heads, block_size, head_dim = values.shape
    groups = levels.shape[3]
    group_size = n_kv_heads * head_dim // groups
    part = math.gcd(head_dim, group_size)
    by_token = levels.squeeze(4) if part == group_size else levels.squeeze(4).repeat_interleave(group_size // part, dim=3)
    # [2 parts batch blocks n_kv_heads 1 block_size]
    by_part = by_token.unflatten(3, (n_kv_heads, 1, -1)).unflatten(1, (batch, blocks)).permute(0, 6, 1, 2, 4, 5, 3)
    scales, zeros = by_part.to(weights.dtype, memory_format=torch.contiguous_format)
    of_parts = [
        torch.matmul(weights * scale, values_of_part).add_((weights * zero).sum(dim=-1, keepdim=True)).sum(dim=1)
        for scale, zero, values_of_part in zip(scales, zeros, values.split(part, dim=4))
    ]
    return torch.cat(of_parts, dim=-1)
