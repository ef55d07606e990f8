"""Attention of one new token per row over blocks that are read where they lie: by Triton kernels, on a GPU.

`paged_attention` is the readable version and stays the reference. What is here is what one would use: nothing is gathered, no
head is repeated, 8-bit blocks are turned into numbers in registers, and lengths are read from the GPU's own memory, so that a
step can be captured once and replayed at any length. The kernels are in `paged_triton`.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.base import KVCache
from llama3_edu.cache.paged import PagedCache
from llama3_edu.cache.store import Coded, FloatStore, QuantizedStore

__all__ = [
    "Tiling",
    "applies",
    "attend_in_place",
    "attention_in_place",
    "missing",
    "paged_decode_attention",
    "paged_decode_attention_int8",
]

KINDS = (torch.float32, torch.bfloat16, torch.float16)
"""Types of number the kernels take. They add up in float32."""

LEAST_ROWS = 16
"""What a tensor core multiplies at least: fewer query heads per KV head are filled up with zeros."""


@dataclass(frozen=True)
class Tiling:
    """How the work is cut. It changes the speed and the last bits, nothing else.

    Args:
        tile: tokens per round of a program, a power of two of at least 16. None: as many as registers hold well.
        splits: programs per row and KV head. None: as many as keep every multiprocessor busy.
        warps: groups of 32 threads per program.
        stages: tiles in flight per program.
    """

    tile: int | None = None
    splits: int | None = None
    warps: int = 4
    stages: int = 3

    def tile_for(self, stored: torch.dtype, dtype: torch.dtype) -> int:
        """Return the tokens per round: 64 where half precision goes straight to the tensor cores, 32 where numbers are wider."""
        return self.tile or (64 if stored == dtype and dtype.itemsize == 2 else 32)

    def splits_for(self, tile: int, *, programs: int, longest: int, device: torch.device) -> int:
        """Return how many programs share a row's tokens, when one each would make `programs` of them."""
        if self.splits is not None:
            return self.splits
        wanted = 4 * _multiprocessors(device)  # four per multiprocessor: enough loads in flight to fill the memory's queue
        most = math.ceil(longest / (2 * tile))  # a program with less than two tiles costs more than it brings
        return max(1, min(most, wanted // programs, 64))


def missing(device: torch.device | str) -> str | None:
    """Say what is missing to run the kernels on a device; None: nothing is."""
    if importlib.util.find_spec("triton") is None:
        return "the kernels are written in Triton, which is not installed: pip install triton"
    if _interpreted():
        return None
    if torch.device(device).type != "cuda":
        return f"the kernels run on a CUDA device; the tensors are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the kernels need compute capability 8.0 (Ampere); this device has {'.'.join(map(str, capability))}"
    return None


def applies(cache: KVCache) -> bool:
    """Say whether `attend_in_place` serves a cache: it is paged, in floats or 8 bits, on a CUDA device with Triton installed."""
    if type(cache) is not PagedCache or cache.device.type != "cuda" or missing(cache.device):
        return False
    store = cache.pool.store
    is_read = isinstance(store, FloatStore) or (isinstance(store, QuantizedStore) and store.bits == 8)
    return is_read and store.dtype in KINDS


def attention_in_place(cache: PagedCache) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """Return the attention of one step, after `cache.reserve`: it stores a layer's keys and values and reads what is held."""
    seq_lens = cache.seq_lens  # once per step: every asking sends the lengths to the device anew

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(layer, k, v)
        return attend_in_place(q, cache, layer=layer, seq_lens=seq_lens)

    return attend


def attend_in_place(
    q: Float[Tensor, "batch 1 n_heads head_dim"], cache: PagedCache, *, layer: int, seq_lens: Int[Tensor, "batch"]
) -> Float[Tensor, "batch 1 n_heads head_dim"]:
    """Let each row's newest token gather from all that its row holds, itself included, after `cache.write`.

    Args:
        q: the queries, rotated.
        cache: one that `applies` said yes to.
        layer: index of the layer.
        seq_lens: `cache.seq_lens`.

    Raises:
        ValueError: see `paged_decode_attention`.
    """
    store = cache.pool.store
    if isinstance(store, QuantizedStore):
        coded = store.coded(layer, range(store.num_blocks))  # views: in 8 bits nothing is unpacked
        kept = coded, store.staged_layer(layer), store.stage_by_block
        return paged_decode_attention_int8(q[:, 0], *kept, cache.block_table, seq_lens)[:, None]
    assert isinstance(store, FloatStore)  # there is no third kind
    return paged_decode_attention(q[:, 0], *store.blocks(layer), cache.block_table, seq_lens)[:, None]


def paged_decode_attention(
    q: Float[Tensor, "batch n_heads head_dim"],
    k_blocks: Float[Tensor, "num_blocks block_size n_kv_heads head_dim"],
    v_blocks: Float[Tensor, "num_blocks block_size n_kv_heads head_dim"],
    block_table: Int[Tensor, "batch blocks_per_row"],
    seq_lens: Int[Tensor, "batch"],
    *,
    tiling: Tiling = Tiling(),
) -> Float[Tensor, "batch n_heads head_dim"]:
    """Return what `attend` returns for one query per row that sees all tokens its row holds.

    A contiguous cache is one block per row: `block_table` is then 0, 1, 2, …

    Args:
        q: the queries, rotated: one per row, float32, bfloat16 or float16.
        k_blocks: one layer's keys, of the same type. Only the numbers of one head need lie side by side.
        v_blocks: its values, laid out as the keys are.
        block_table: for each row, the blocks that hold its tokens, in order. What stands behind them is not read.
        seq_lens: tokens held, per row. A row that holds none gets zeros. Read on the device alone.
        tiling: how the work is cut.

    Raises:
        RuntimeError: Triton or a CUDA device is missing.
        ValueError: types or layouts that the kernels do not take, or tensors on several devices.
    """
    _check(q, k_blocks, v_blocks, block_table, seq_lens)
    if k_blocks.stride() != v_blocks.stride():
        strides = f"{k_blocks.stride()} and {v_blocks.stride()}"
        raise ValueError(f"keys and values should be laid out alike; their strides are {strides}")
    from llama3_edu.kernels import paged_triton  # late: it needs Triton

    batch, n_heads, head_dim = q.shape
    _, block_size, n_kv_heads, _ = k_blocks.shape
    tile = tiling.tile_for(k_blocks.dtype, q.dtype)
    splits, found = _room(q, n_kv_heads, tiling, tile, longest=block_table.shape[1] * block_size)
    if splits:
        paged_triton.attend_to_floats[n_kv_heads, splits, batch](
            q, k_blocks, v_blocks, block_table, seq_lens, found, _scale(head_dim),
            *q.stride()[:2], *k_blocks.stride()[:3], block_table.stride(0),
            N_REP=n_heads // n_kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, REPS=_rows(n_heads // n_kv_heads),
            WIDTH=_width(head_dim), TILE=tile, **_shared(q, tiling),
        )  # fmt: skip
    return _joined(q, found, splits)


def paged_decode_attention_int8(
    q: Float[Tensor, "batch n_heads head_dim"],
    coded: Coded,
    staged: Float[Tensor, "2 num_stages block_size n_kv_heads head_dim"],
    stage_by_block: Int[Tensor, "num_blocks"],
    block_table: Int[Tensor, "batch blocks_per_row"],
    seq_lens: Int[Tensor, "batch"],
    *,
    tiling: Tiling = Tiling(),
) -> Float[Tensor, "batch n_heads head_dim"]:
    """Return the same over 8-bit blocks, which stay 8-bit in memory.

    Args:
        q: the queries, rotated: one per row, of the type that open blocks are staged in.
        coded: one layer of a `QuantizedStore`, all its blocks.
        staged: the open blocks of that layer, as floats. Of a row's blocks, the last alone may be open.
        stage_by_block: where an open block is staged; -1: the block is closed.
        block_table: for each row, the blocks that hold its tokens, in order.
        seq_lens: tokens held, per row.
        tiling: how the work is cut.

    Raises:
        RuntimeError: Triton or a CUDA device is missing.
        ValueError: types or layouts that the kernels do not take, or tensors on several devices.
    """
    _check(q, *staged, block_table, seq_lens)
    from llama3_edu.kernels import paged_triton  # late: it needs Triton

    batch, n_heads, head_dim = q.shape
    _, _, block_size, n_kv_heads, _ = staged.shape
    group = n_kv_heads * head_dim // coded.value_levels.shape[3]
    part = math.gcd(head_dim, group)  # heads and groups both begin at multiples of it
    parts = _power_of_two(head_dim // part)
    tile = tiling.tile_for(coded.codes.dtype, q.dtype)
    splits, found = _room(q, n_kv_heads, tiling, tile, longest=block_table.shape[1] * block_size)
    if splits:
        paged_triton.attend_to_int8[n_kv_heads, splits, batch](
            q, coded.codes, coded.key_levels, coded.value_levels, staged, stage_by_block, block_table, seq_lens,
            found, _scale(head_dim),
            *q.stride()[:2], coded.codes.stride(0), coded.key_levels.stride(0), coded.value_levels.stride(0),
            staged.stride(0), block_table.stride(0),
            N_REP=n_heads // n_kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, KV_DIM=n_kv_heads * head_dim,
            GROUP=group, PART=part, REPS=_rows(n_heads // n_kv_heads), WIDTH=_width(head_dim),
            PARTS=parts, PART_WIDTH=max(_power_of_two(part), _width(head_dim) // parts),
            TILE=tile, **_shared(q, tiling),
        )  # fmt: skip
    return _joined(q, found, splits)


def _room(
    q: Tensor, n_kv_heads: int, tiling: Tiling, tile: int, *, longest: int
) -> tuple[int, Float[Tensor, "batch n_heads splits found"]]:
    """How many shares a row is cut into (none where there are no tokens), and room for what is found in each."""
    batch, n_heads, head_dim = q.shape
    splits = 0 if longest == 0 else tiling.splits_for(tile, programs=batch * n_kv_heads, longest=longest, device=q.device)
    return splits, torch.empty(batch, n_heads, splits, head_dim + 2, dtype=torch.float32, device=q.device)


def _joined(
    q: Tensor, found: Float[Tensor, "batch n_heads splits found"], splits: int
) -> Float[Tensor, "batch n_heads head_dim"]:
    """One answer of all shares."""
    if splits == 0:
        return torch.zeros_like(q)
    from llama3_edu.kernels import paged_triton

    batch, n_heads, head_dim = q.shape
    out = torch.empty((batch, n_heads, head_dim), dtype=q.dtype, device=q.device)
    paged_triton.join[n_heads, batch](
        found, out, *out.stride()[:2], SPLITS=splits, HEAD_DIM=head_dim, SHARES=_power_of_two(splits),
        WIDTH=_power_of_two(head_dim),
    )  # fmt: skip
    return out


def _check(q: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, seq_lens: Tensor) -> None:
    if reason := missing(q.device):
        raise RuntimeError(reason)
    kinds = {x.dtype for x in (q, keys, values)}
    if len(kinds) > 1 or q.dtype not in KINDS:
        raise ValueError(f"queries, keys and values should be of one type, one of {KINDS}; they are of {kinds}")
    if q.shape[1] % keys.shape[2]:
        raise ValueError(f"every KV head serves as many query heads; there are {q.shape[1]} and {keys.shape[2]} KV heads")
    devices = {x.device for x in (q, keys, values, block_table, seq_lens)}
    if len(devices) > 1:
        raise ValueError(f"all tensors should be on one device; they are on {devices}")
    for name, x in (("q", q), ("keys", keys), ("values", values), ("block_table", block_table), ("seq_lens", seq_lens)):
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(f"the last axis of {name} should lie side by side in memory; its stride is {x.stride(-1)}")


def _shared(q: Tensor, tiling: Tiling) -> dict[str, object]:
    """The options that both kernels take. Products of float32 are exact products, not TF32."""
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    return {"PRECISION": precision, "num_warps": tiling.warps, "num_stages": tiling.stages}


def _scale(head_dim: int) -> float:
    """What scores are multiplied by: 1/√head_dim, and log2(e), because the kernels take exponentials to base 2."""
    return math.log2(math.e) / math.sqrt(head_dim)


def _rows(n_rep: int) -> int:
    return max(LEAST_ROWS, _power_of_two(n_rep))


def _width(head_dim: int) -> int:
    return max(LEAST_ROWS, _power_of_two(head_dim))


def _power_of_two(x: int) -> int:
    """The smallest power of two that is not below x."""
    return 1 << (x - 1).bit_length()


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _interpreted() -> bool:
    """Whether Triton was asked to interpret kernels on the processor, as the tests do."""
    return os.environ.get("TRITON_INTERPRET") == "1"
