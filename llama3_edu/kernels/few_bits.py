"""One query per row over keys and values in few bits, without ever putting the numbers together again.

A key is `zero + code * scale`, so a query's product with it is `query · zero + (query * scale) · code`: the scales of a block go into the
query, once for all its tokens, and the zeros into one number per block. A value's scale goes into its weight. What is left to be multiplied are the codes.
"""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from llama3_edu.cache.store import Blocks, Coded, QuantizedStore

__all__ = ["attend_in_few_bits"]


def attend_in_few_bits(
    q: Float[Tensor, "batch 1 n_heads head_dim"],
    store: QuantizedStore,
    *,
    layer: int,
    blocks: Blocks,
    visible: Bool[Tensor, "batch kv_len"],
) -> Float[Tensor, "batch 1 n_heads head_dim"]:
    """Let each row's newest query gather from the values of its blocks. Equal to attention over what `store.read` returns, up to rounding.

    Args:
        blocks: each row's blocks, in order.
        visible: which of their slots hold a token of the row; the newest query may look at all of these.

    Source: arXiv 2402.02750, section 3.2 (scales per channel for keys, per token for values).
    """
    batch, _, n_heads, head_dim = q.shape
    coded = store.coded(layer, blocks)
    n_kv_heads, num_slots = coded.codes.shape[-1] // head_dim, coded.codes.shape[1] // batch * store.block_size
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(wide).view(batch, n_kv_heads, n_heads // n_kv_heads, head_dim) / math.sqrt(head_dim)
    rows, columns, stages = store.opened(blocks)
    open_keys, open_values = store.staged(layer, stages).to(wide).transpose(2, 3)  # [open n_kv_heads block_size head_dim]

    scores = _scores(grouped, coded)  # [batch n_kv_heads blocks n_rep block_size]
    scores[rows, :, columns] = grouped[rows] @ open_keys.transpose(2, 3)
    in_a_row = scores.transpose(2, 3).reshape(batch, n_kv_heads, -1, num_slots)
    hidden = torch.nn.functional.pad(~visible, (0, num_slots - visible.shape[1]), value=True)
    weights = in_a_row.masked_fill_(hidden[:, None, None], torch.finfo(wide).min).softmax(dim=-1)

    per_block = weights.unflatten(-1, (-1, store.block_size))  # [batch n_kv_heads n_rep blocks block_size]
    from_open = per_block[rows, :, :, columns] @ open_values  # [open n_kv_heads n_rep head_dim]
    per_block[rows, :, :, columns] = 0
    out = _gathered(weights, coded, head_dim).index_add_(0, rows, from_open)
    return out.view(batch, 1, n_heads, head_dim).to(q.dtype)


def _scores(
    q: Float[Tensor, "batch n_kv_heads n_rep head_dim"], coded: Coded
) -> Float[Tensor, "batch n_kv_heads blocks n_rep block_size"]:
    """Return the product of every query with every key, block by block."""
    batch, n_kv_heads, _, head_dim = q.shape
    # [2 batch n_kv_heads blocks 1 head_dim]: a block's scales in one channel, for all its tokens.
    levels = coded.key_levels.to(q.dtype).view(2, batch, -1, 1, n_kv_heads, head_dim).permute(0, 1, 4, 2, 3, 5)
    scale, zero = levels
    codes = _heads_first(coded.codes[0], batch, n_kv_heads, q.dtype)  # [batch n_kv_heads blocks block_size head_dim]
    in_blocks = q[:, :, None]
    return torch.matmul(in_blocks * scale, codes.transpose(3, 4)).add_(torch.matmul(in_blocks, zero.transpose(3, 4)))


def _gathered(
    weights: Float[Tensor, "batch n_kv_heads n_rep slots"], coded: Coded, head_dim: int
) -> Float[Tensor, "batch n_kv_heads n_rep head_dim"]:
    """Return the sum of all values, each times its weight.

    A group of channels may span several heads, or a head several groups. So heads are cut into parts that lie in one group each.
    """
    batch, n_kv_heads, n_rep, slots = weights.shape
    groups = coded.value_levels.shape[3]
    group_size = n_kv_heads * head_dim // groups
    part = math.gcd(head_dim, group_size)
    group_of_part = torch.arange(0, n_kv_heads * head_dim, part, device=weights.device) // group_size
    levels = coded.value_levels.to(weights.dtype).view(2, batch, slots, groups)
    if len(group_of_part) != groups:
        levels = levels[..., group_of_part]
    scale, zero = levels.view(2, batch, slots, n_kv_heads, -1).permute(0, 1, 3, 4, 2)[..., None, :]  # [batch n_kv_heads parts 1 slots]
    codes = _heads_first(coded.codes[1], batch, n_kv_heads * head_dim // part, weights.dtype)
    codes = codes.view(batch, n_kv_heads, -1, slots, part)
    in_parts = weights[:, :, None]
    out = torch.matmul(in_parts * scale, codes) + torch.matmul(in_parts, zero.transpose(3, 4))  # [batch n_kv_heads parts n_rep part]
    return out.transpose(2, 3).reshape(batch, n_kv_heads, n_rep, head_dim)


def _heads_first(
    codes: UInt8[Tensor, "blocks block_size kv_dim"], batch: int, heads: int, dtype: torch.dtype
) -> Float[Tensor, "batch heads blocks_per_row block_size width"]:
    """Return codes as the numbers they are multiplied as, those of one head side by side: one pass over a quarter of the bytes."""
    blocks, block_size, kv_dim = codes.shape
    by_row = codes.view(batch, blocks // batch, block_size, heads, kv_dim // heads).permute(0, 3, 1, 2, 4)
    return torch.empty(by_row.shape, dtype=dtype, device=codes.device).copy_(by_row)
