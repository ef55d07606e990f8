"""The Triton kernels of a decode step, and the operations made of them.

With one row, a matrix is read once and used once: how fast depends on how many loads are under way, and nothing else may stand in
their way. So the norm before a matrix and the gate or the sum behind it happen inside the kernel that reads the matrix. With
several rows cuBLAS multiplies, and norm and gate are small kernels of their own.

This module needs Triton to be imported at all; `graphs` imports it late.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.kernels.paged_decode import Tiling, paged_decode_attention
from llama3_edu.kernels.paged_triton import kernel
from llama3_edu.kernels.step import Operations

__all__ = ["Reading", "TritonOperations"]


@dataclass(frozen=True)
class Reading:
    """How a matrix is read for one row.

    Args:
        rows: of the matrix per program, a power of two.
        columns: per round of a program, a power of two.
        warps: groups of 32 threads per program.
        own: False: cuBLAS reads it instead.
    """

    rows: int = 4
    columns: int = 1024
    warps: int = 4
    own: bool = True


@dataclass(frozen=True)
class TritonOperations(Operations):
    """The five operations of a step, on a GPU.

    Args:
        reading: how matrices are read where there is one row.
        tiling: how attention is cut.
    """

    reading: Reading = Reading()
    tiling: Tiling = Tiling()

    def project(self, x: Tensor, norm: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        if self._reads(x):
            return self._read(x, weight, len(weight), norm=norm, eps=eps)
        return F.linear(_normed(x, norm, eps), weight)

    def project_gated(self, x: Tensor, norm: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        if self._reads(x):
            return self._read(x, weight, len(weight) // 2, norm=norm, eps=eps, gated=True)
        return _gated(F.linear(_normed(x, norm, eps), weight))

    def project_and_add(self, stream: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if self._reads(x):
            return self._read(x, weight, len(weight), added=stream)
        return torch.addmm(stream, x, weight.T)

    def rotate_and_store(self, heads: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, all_heads, head_dim = heads.shape
        n_kv_heads = keys.shape[2]
        q = heads.new_empty(batch, all_heads - 2 * n_kv_heads, head_dim)
        rotate_and_store[all_heads, batch](
            heads, cos, sin, slots, q, keys, values, keys.stride(1), keys.stride(2),
            N_HEADS=q.shape[1], N_KV_HEADS=n_kv_heads, HALF=head_dim // 2, WIDTH=triton.next_power_of_2(head_dim // 2),
            num_warps=1,
        )  # fmt: skip
        return q

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, seq_lens: Tensor) -> Tensor:
        return paged_decode_attention(q, keys, values, block_table, seq_lens, tiling=self.tiling)

    def _reads(self, x: Tensor) -> bool:
        return self.reading.own and len(x) == 1

    def _read(
        self,
        x: Tensor,
        weight: Tensor,
        num_rows: int,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        gated: bool = False,
        added: Tensor | None = None,
    ) -> Tensor:
        out = x.new_empty(1, num_rows)
        read_matrix[triton.cdiv(num_rows, self.reading.rows),](
            x, weight, out, x if norm is None else norm, x if added is None else added, eps, num_rows,
            WIDTH=x.shape[1], ROWS=self.reading.rows, COLUMNS=self.reading.columns,
            NORMED=norm is not None, GATED=gated, ADDED=added is not None, num_warps=self.reading.warps,
        )  # fmt: skip
        return out


@kernel
def read_matrix(
    x, matrix, out, norm, added, eps, num_rows,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NORMED: tl.constexpr, GATED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Grid [num_rows / ROWS]: ROWS rows of a matrix times one vector.

    The vector's norm is one number, so it is taken on the way and multiplied in at the end. GATED: the matrix holds as many rows
    again, and what the first ones give decides how much of the others gets through.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    columns = tl.arange(0, COLUMNS)
    at = matrix + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    below = num_rows.to(tl.int64) * WIDTH
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    others = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        is_column = first + columns < WIDTH
        real = is_row[:, None] & is_column[None, :]
        part = tl.load(x + first + columns, mask=is_column, other=0.0).to(tl.float32)
        if NORMED:
            squares += part * part
            part *= tl.load(norm + first + columns, mask=is_column, other=0.0).to(tl.float32)
        # Each number of the matrix is used once: it should push nothing else out of the cache.
        numbers = tl.load(at + first, mask=real, other=0.0, eviction_policy="evict_first").to(tl.float32)
        products += numbers * part[None, :]
        if GATED:
            numbers = tl.load(at + below + first, mask=real, other=0.0, eviction_policy="evict_first").to(tl.float32)
            others += numbers * part[None, :]
    answer = tl.sum(products, axis=1)
    if NORMED:
        shrink = tl.rsqrt(tl.sum(squares, axis=0) / WIDTH + eps)
        answer *= shrink
        if GATED:
            answer *= tl.sigmoid(answer) * (tl.sum(others, axis=1) * shrink)
    if ADDED:
        answer += tl.load(added + rows, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out + rows, answer.to(out.dtype.element_ty), mask=is_row)


@kernel
def rotate_and_store(
    heads, cos, sin, slots, q, keys, values, slot_stride, head_stride,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Grid [all_heads batch]: one head of one row. Query heads go to `q`, key and value heads to their row's slot."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, WIDTH)
    real = channels < HALF
    at = heads + (row * tl.num_programs(0) + head) * 2 * HALF + channels
    first = tl.load(at, mask=real, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=real, other=0.0).to(tl.float32)
    c = tl.load(cos + row * HALF + channels, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + row * HALF + channels, mask=real, other=0.0).to(tl.float32)
    turned, partner = first * c - second * s, second * c + first * s

    slot = tl.load(slots + row).to(tl.int64)
    stored = real & (slot >= 0)
    if head < N_HEADS:
        to = q + (row * N_HEADS + head) * 2 * HALF + channels
        tl.store(to, turned.to(q.dtype.element_ty), mask=real)
        tl.store(to + HALF, partner.to(q.dtype.element_ty), mask=real)
    elif head < N_HEADS + N_KV_HEADS:
        to = keys + slot * slot_stride + (head - N_HEADS) * head_stride + channels
        tl.store(to, turned.to(keys.dtype.element_ty), mask=stored)
        tl.store(to + HALF, partner.to(keys.dtype.element_ty), mask=stored)
    else:
        to = values + slot * slot_stride + (head - N_HEADS - N_KV_HEADS) * head_stride + channels
        tl.store(to, first.to(values.dtype.element_ty), mask=stored)
        tl.store(to + HALF, second.to(values.dtype.element_ty), mask=stored)


def _normed(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    norm_rows[len(x),](x, norm, out, eps, DIM=x.shape[1], WIDTH=triton.next_power_of_2(x.shape[1]))
    return out


@kernel
def norm_rows(x, norm, out, eps, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Grid [batch]: RMSNorm of one row."""
    columns = tl.arange(0, WIDTH)
    real = columns < DIM
    at = tl.program_id(0).to(tl.int64) * DIM + columns
    row = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    row *= tl.rsqrt(tl.sum(row * row, axis=0) / DIM + eps)
    row *= tl.load(norm + columns, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, row.to(out.dtype.element_ty), mask=real)


def _gated(x: Tensor) -> Tensor:
    batch, hidden = len(x), x.shape[1] // 2
    out = x.new_empty(batch, hidden)
    gate_rows[triton.cdiv(hidden, 1024), batch](x, out, hidden, COLUMNS=1024)
    return out


@kernel
def gate_rows(x, out, hidden, COLUMNS: tl.constexpr):
    """Grid [hidden / COLUMNS, batch]: SiLU of a row's first half times its second half."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1).to(tl.int64)
    real = columns < hidden
    gate = tl.load(x + row * 2 * hidden + columns, mask=real, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * hidden + hidden + columns, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * hidden + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=real)
