"""The Triton kernels of `paged_decode`: attention of one new token per row over keys and values that lie in blocks.

One program takes one KV head of one row, and a share of that row's tokens. It walks its share a tile of tokens at a time, and
looks up in the block table where each token lies, so a tile may cross blocks and a block may have any size. The `n_rep` query
heads that share the KV head are rows of one small matrix: each key is loaded once for all of them. What a program found is left
as three numbers per query head (the largest score, the sum of exponentials, the sum of weighted values), and `join` makes one
answer of all shares.

This module needs Triton to be imported at all; `paged_decode` imports it late.

Source: arXiv 2205.14135, section 3.1 (the running softmax); arXiv 2309.06180, equation 4 (blocks); "Flash-Decoding for
long-context inference", T. Dao et al., 2023 (shares of one row side by side).
"""

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

__all__ = ["attend_to_floats", "attend_to_int8", "join", "kernel"]

LOWEST = tl.constexpr(-3.0e38)  # not -inf: where a share is empty, the difference of two of these is 0 and not NaN


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for the GPU as it is written: what a type checker wrapped around it stays behind."""
    return triton.jit(inspect.unwrap(function))


@kernel
def share_of(num_tokens, TILE: tl.constexpr):
    """Which tokens, from first up to end, this program walks: equal shares of whole tiles. The last ones may be empty."""
    tiles_each = tl.cdiv(tl.cdiv(num_tokens, TILE), tl.num_programs(1))
    first = tl.program_id(1) * tiles_each * TILE
    return first, tl.minimum(first + tiles_each * TILE, num_tokens)


@kernel
def load_queries(q, q_row, q_head, N_REP: tl.constexpr, HEAD_DIM: tl.constexpr, REPS: tl.constexpr, WIDTH: tl.constexpr):
    """The queries of the heads that share a KV head, [REPS WIDTH]; zeros where there is no head or no channel."""
    reps, channels = tl.arange(0, REPS), tl.arange(0, WIDTH)
    heads = tl.program_id(0) * N_REP + reps
    at = q + tl.program_id(2).to(tl.int64) * q_row + heads[:, None] * q_head + channels[None, :]
    return tl.load(at, mask=(reps < N_REP)[:, None] & (channels < HEAD_DIM)[None, :], other=0.0)


@kernel
def take_in(query, keys, values, visible, scale, largest, total, gathered, PRECISION: tl.constexpr):
    """Add one tile of tokens, one of them visible at least, to what was found so far, scaled down when a larger score comes."""
    scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale  # [REPS TILE]
    scores = tl.where(visible[None, :], scores, LOWEST)
    larger = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - larger[:, None])
    shrink = tl.exp2(largest - larger)
    total = total * shrink + tl.sum(weights, axis=1)
    gathered = gathered * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return larger, total, gathered


@kernel
def leave(found, largest, total, gathered, channels, N_REP: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Write what this program found: per query head and share, HEAD_DIM sums of values, the largest score, the total."""
    reps = tl.arange(0, largest.shape[0])
    heads = tl.program_id(2).to(tl.int64) * tl.num_programs(0) * N_REP + tl.program_id(0) * N_REP + reps
    at = found + (heads * tl.num_programs(1) + tl.program_id(1)) * (HEAD_DIM + 2)
    is_head = reps < N_REP
    tl.store(at[:, None] + channels[None, :], gathered, mask=is_head[:, None] & (channels < HEAD_DIM)[None, :])
    tl.store(at + HEAD_DIM, largest, mask=is_head)
    tl.store(at + HEAD_DIM + 1, total, mask=is_head)


@kernel
def attend_to_floats(
    q, keys, values, block_table, seq_lens, found, scale,
    q_row, q_head, block_stride, slot_stride, head_stride, table_row,
    N_REP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    REPS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [n_kv_heads splits batch]. `scale` carries log2(e), for exponentials are taken to base 2."""
    kv_head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    query = load_queries(q, q_row, q_head, N_REP, HEAD_DIM, REPS, WIDTH)
    largest = tl.full([REPS], LOWEST, tl.float32)
    total = tl.zeros([REPS], tl.float32)
    gathered = tl.zeros([REPS, WIDTH], tl.float32)
    channels = tl.arange(0, WIDTH)
    first, end = share_of(tl.load(seq_lens + row).to(tl.int32), TILE)
    for tile in range(first, end, TILE):
        places = tile + tl.arange(0, TILE)
        visible = places < end
        blocks = tl.load(block_table + row * table_row + places // BLOCK_SIZE, mask=visible, other=0).to(tl.int64)
        tokens = blocks * block_stride + (places % BLOCK_SIZE) * slot_stride + kv_head * head_stride
        at = tokens[:, None] + channels[None, :]
        real = visible[:, None] & (channels < HEAD_DIM)[None, :]
        k = tl.load(keys + at, mask=real, other=0.0)
        v = tl.load(values + at, mask=real, other=0.0)  # zero where hidden: 0 times what lies there might be NaN
        largest, total, gathered = take_in(query, k, v, visible, scale, largest, total, gathered, PRECISION)
    leave(found, largest, total, gathered, channels, N_REP, HEAD_DIM)


@kernel
def attend_to_int8(
    q, codes, key_levels, value_levels, staged, stage_by_block, block_table, seq_lens, found, scale,
    q_row, q_head, codes_of_values, levels_of_zeros_k, levels_of_zeros_v, staged_values, table_row,
    N_REP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    KV_DIM: tl.constexpr, GROUP: tl.constexpr, PART: tl.constexpr,
    REPS: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART_WIDTH: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same over 8-bit codes, turned into numbers in registers: key = zero + code * scale, value alike.

    A key's scale and zero belong to its block and channel, a value's to its token and group of GROUP channels. A head's channels
    are cut into PARTS of PART, none of which crosses a group, so that a value's levels are loaded once per part. A row's last
    block may be open: its tokens are staged as floats, and the program with the last share takes them.
    """
    kv_head, row = tl.program_id(0), tl.program_id(2).to(tl.int64)
    query = load_queries(q, q_row, q_head, N_REP, HEAD_DIM, REPS, WIDTH)
    largest = tl.full([REPS], LOWEST, tl.float32)
    total = tl.zeros([REPS], tl.float32)
    gathered = tl.zeros([REPS, PARTS * PART_WIDTH], tl.float32)

    channels = tl.arange(0, WIDTH)
    is_channel = (channels < HEAD_DIM)[None, :]
    parts, inside = tl.arange(0, PARTS), tl.arange(0, PART_WIDTH)
    groups = (kv_head * HEAD_DIM + parts * PART) // GROUP
    is_part = (parts < HEAD_DIM // PART)[None, :]
    value_channels = parts[None, :, None] * PART + inside[None, None, :]
    is_value = is_part[:, :, None] & (inside < PART)[None, None, :]
    columns = tl.arange(0, PARTS * PART_WIDTH)  # the parts side by side, as `gathered` holds them
    is_column = (columns % PART_WIDTH < PART) & (columns // PART_WIDTH < HEAD_DIM // PART)
    column_channels = tl.where(is_column, columns // PART_WIDTH * PART + columns % PART_WIDTH, HEAD_DIM)

    seq_len = tl.load(seq_lens + row).to(tl.int32)
    table = block_table + row * table_row
    last = tl.maximum(seq_len - 1, 0) // BLOCK_SIZE
    stage = tl.load(stage_by_block + tl.load(table + last)).to(tl.int64)
    closed = tl.where(stage >= 0, last * BLOCK_SIZE, seq_len)
    first, end = share_of(closed, TILE)
    for tile in range(first, end, TILE):
        places = tile + tl.arange(0, TILE)
        visible = places < end
        blocks = tl.load(table + places // BLOCK_SIZE, mask=visible, other=0).to(tl.int64)
        slots = blocks * BLOCK_SIZE + places % BLOCK_SIZE
        # Codes lie head by head within a block; levels and what is staged lie token by token.
        tokens = ((blocks * tl.num_programs(0) + kv_head) * BLOCK_SIZE + places % BLOCK_SIZE) * HEAD_DIM

        real = visible[:, None] & is_channel
        k = tl.load(codes + tokens[:, None] + channels[None, :], mask=real, other=0)
        levels = key_levels + (blocks * KV_DIM + kv_head * HEAD_DIM)[:, None] + channels[None, :]
        k_scale = tl.load(levels, mask=real, other=0.0).to(tl.float32)
        k_zero = tl.load(levels + levels_of_zeros_k, mask=real, other=0.0).to(tl.float32)
        k = (k_zero + k.to(tl.float32) * k_scale).to(query.dtype)

        real = visible[:, None, None] & is_value
        v = tl.load(codes + codes_of_values + tokens[:, None, None] + value_channels, mask=real, other=0)
        levels = value_levels + slots[:, None] * (KV_DIM // GROUP) + groups[None, :]
        v_scale = tl.load(levels, mask=visible[:, None] & is_part, other=0.0).to(tl.float32)
        v_zero = tl.load(levels + levels_of_zeros_v, mask=visible[:, None] & is_part, other=0.0).to(tl.float32)
        v = v_zero[:, :, None] + v.to(tl.float32) * v_scale[:, :, None]
        v = tl.reshape(v, [TILE, PARTS * PART_WIDTH]).to(query.dtype)
        largest, total, gathered = take_in(query, k, v, visible, scale, largest, total, gathered, PRECISION)

    end = tl.where(tl.program_id(1) == tl.num_programs(1) - 1, seq_len, closed)
    for tile in range(closed, end, TILE):
        places = tile + tl.arange(0, TILE)
        visible = places < end
        tokens = (stage * BLOCK_SIZE + places - closed) * KV_DIM + kv_head * HEAD_DIM
        k = tl.load(staged + tokens[:, None] + channels[None, :], mask=visible[:, None] & is_channel, other=0.0)
        at = staged + staged_values + tokens[:, None] + column_channels[None, :]
        v = tl.load(at, mask=visible[:, None] & is_column[None, :], other=0.0)
        largest, total, gathered = take_in(query, k, v, visible, scale, largest, total, gathered, PRECISION)
    leave(found, largest, total, gathered, column_channels, N_REP, HEAD_DIM)


@kernel
def join(found, out, out_row, out_head, SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr, SHARES: tl.constexpr, WIDTH: tl.constexpr):
    """Grid [n_heads batch]: make one answer of all shares of a row. A row of no tokens gets zeros."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    shares, channels = tl.arange(0, SHARES), tl.arange(0, WIDTH)
    at = found + ((row * tl.num_programs(0) + head) * SPLITS + shares) * (HEAD_DIM + 2)
    is_share, is_channel = shares < SPLITS, channels < HEAD_DIM
    gathered = tl.load(at[:, None] + channels[None, :], mask=is_share[:, None] & is_channel[None, :], other=0.0)
    largest = tl.load(at + HEAD_DIM, mask=is_share, other=LOWEST)
    total = tl.load(at + HEAD_DIM + 1, mask=is_share, other=0.0)
    weight = tl.exp2(largest - tl.max(largest, axis=0))
    total = tl.sum(weight * total, axis=0)
    answer = tl.sum(weight[:, None] * gathered, axis=0) / tl.where(total == 0, 1.0, total)
    tl.store(out + row * out_row + head * out_head + channels, answer.to(out.dtype.element_ty), mask=is_channel)
