"""How a token's keys and values are kept in the slot it was given: as floats, or in a few bits each.

A store is `num_blocks` blocks of `block_size` slots. It knows nothing of rows, sequences or positions: a cache says which slot.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Float16, Int, Shaped, UInt8
from torch import Tensor

from llama3_edu.cache.base import check_fits
from llama3_edu.config import LlamaConfig

__all__ = [
    "Store", "FloatStore", "QuantizedStore", "Coded", "Blocks", "Writes", "as_table", "run_of", "make_store",
    "quantize", "dequantize", "pack", "unpack",
]  # fmt: skip


Blocks: TypeAlias = Int[Tensor, "batch blocks_per_row"] | range
"""The blocks of several rows, or those of one row that lie one behind the other in the store."""


def as_table(tables: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "rows blocks_per_row"]:
    """Return the blocks of rows that have equally many."""
    return torch.tensor(tables, dtype=torch.long, device=device).reshape(len(tables), len(tables[0]) if tables else 0)


def run_of(tables: Sequence[Sequence[int]]) -> range | None:
    """Return the blocks of the only row as a range, where they are one: what lies in one piece need not be gathered."""
    if len(tables) != 1 or not tables[0]:
        return None
    (table,) = tables
    run = range(table[0], table[0] + len(table))
    return run if list(run) == list(table) else None


def _at(kept: Shaped[Tensor, "2 num_blocks *block"], blocks: Blocks) -> Shaped[Tensor, "2 blocks *block"]:
    """Return some of a layer's blocks, those of all rows one behind the other: gathered, or in their places where they are a run."""
    if isinstance(blocks, range):
        return kept[:, blocks.start : blocks.stop]
    return kept.index_select(1, blocks.flatten())


def _shape(blocks: Blocks) -> tuple[int, int]:
    """Rows, and blocks per row."""
    return (1, len(blocks)) if isinstance(blocks, range) else tuple(blocks.shape)


@dataclass(frozen=True)
class Writes:
    """Where one forward's new tokens go: settled once by `Store.plan`, then used for every layer.

    Args:
        slots: the slot of each new token.
    """

    slots: Int[Tensor, "tokens"]


class Store(ABC):
    """Slots for tokens, in blocks, once per layer.

    Args:
        config: the shape of the model.
        num_blocks: number of blocks.
        block_size: slots per block; slot s lies in block `s // block_size`.

    Raises:
        ValueError: `num_blocks` or `block_size` is below 1.
    """

    def __init__(self, config: LlamaConfig, *, num_blocks: int, block_size: int) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if value < 1:
                raise ValueError(f"{name} should be at least 1; it is {value}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._elements_per_block = block_size * config.kv_elements_per_token

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the slots are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of the numbers that come and go."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes really allocated for keys and values, scales and zeros included."""

    @property
    @abstractmethod
    def block_nbytes(self) -> int:
        """Bytes of one full block, over all layers."""

    @property
    def effective_bits(self) -> float:
        """Bits that one number of a full block really takes, its share of scales and zeros included."""
        return 8 * self.block_nbytes / self._elements_per_block

    @abstractmethod
    def clear(self, blocks: Sequence[int]) -> None:
        """Forget what blocks held. What is read from their slots is finite from now on."""

    @abstractmethod
    def copy(self, source: int, target: int) -> None:
        """Let block `target` hold bit for bit what block `source` holds."""

    @abstractmethod
    def plan(self, slots: Int[Tensor, "tokens"], closing: Sequence[int] = ()) -> Writes:
        """Settle where a forward's new tokens go.

        Args:
            slots: the slot of each new token. They all differ.
            closing: blocks that are full afterwards, to be written no more.
        """

    @abstractmethod
    def write(
        self,
        layer: int,
        writes: Writes,
        k: Float[Tensor, "tokens n_kv_heads head_dim"],
        v: Float[Tensor, "tokens n_kv_heads head_dim"],
    ) -> None:
        """Keep one layer's keys and values of the planned tokens."""

    @abstractmethod
    def read(
        self, layer: int, blocks: Blocks
    ) -> tuple[Float[Tensor, "batch slots n_kv_heads head_dim"], Float[Tensor, "batch slots n_kv_heads head_dim"]]:
        """Return one layer's keys and values of whole blocks, side by side: `blocks_per_row * block_size` slots per row.

        What is kept as it came, in blocks that lie one behind the other, is returned where it lies.
        """

    @abstractmethod
    def check_fits(self, k: Float[Tensor, "batch new_len heads width"], v: Float[Tensor, "batch new_len heads2 width2"]) -> None:
        """Raise ValueError unless keys and values have the heads and the type of number that the store was made for."""


def make_store(
    config: LlamaConfig,
    *,
    num_blocks: int,
    block_size: int,
    bits: int | None = None,
    group_size: int = 64,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Store:
    """Return a `FloatStore`, or a `QuantizedStore` where `bits` are given."""
    if bits is None:
        return FloatStore(config, num_blocks=num_blocks, block_size=block_size, device=device, dtype=dtype)
    return QuantizedStore(
        config, num_blocks=num_blocks, block_size=block_size, bits=bits, group_size=group_size, device=device, dtype=dtype
    )


class FloatStore(Store):
    """Keeps every number as it comes.

    Args:
        config: the shape of the model.
        num_blocks: number of blocks.
        block_size: slots per block.
        device: where the slots are.
        dtype: the type of a number; torch's default type when left out.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        num_blocks: int,
        block_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, num_blocks=num_blocks, block_size=block_size)
        shape = (config.n_layers, 2, num_blocks, block_size, config.n_kv_heads, config.head_dim)
        self._blocks = torch.empty(shape, device=device, dtype=dtype)
        self._by_layer = self._blocks.unbind()  # views, looked up once and not at every step
        self._slots = self._blocks.flatten(2, 3).unbind()  # [2 slots n_kv_heads head_dim] each

    @property
    def device(self) -> torch.device:
        return self._blocks.device

    @property
    def nbytes(self) -> int:
        return self._blocks.nbytes

    @property
    def block_nbytes(self) -> int:
        return self._blocks.nbytes // self.num_blocks

    def blocks(
        self, layer: int
    ) -> tuple[
        Float[Tensor, "num_blocks block_size n_kv_heads head_dim"], Float[Tensor, "num_blocks block_size n_kv_heads head_dim"]
    ]:
        """One layer's keys and values where they lie: views, for whoever reads them in place."""
        k, v = self._blocks[layer]
        return k, v

    def clear(self, blocks: Sequence[int]) -> None:
        self._blocks.index_fill_(2, torch.tensor(list(blocks), dtype=torch.long, device=self.device), 0)

    def copy(self, source: int, target: int) -> None:
        self._blocks[:, :, target] = self._blocks[:, :, source]

    def plan(self, slots: Int[Tensor, "tokens"], closing: Sequence[int] = ()) -> Writes:
        return Writes(slots.to(self.device))

    def write(
        self,
        layer: int,
        writes: Writes,
        k: Float[Tensor, "tokens n_kv_heads head_dim"],
        v: Float[Tensor, "tokens n_kv_heads head_dim"],
    ) -> None:
        keys, values = self._slots[layer]
        keys.index_copy_(0, writes.slots, k.detach())
        values.index_copy_(0, writes.slots, v.detach())

    @property
    def dtype(self) -> torch.dtype:
        """The type of a number."""
        return self._blocks.dtype

    def views_of_slot(self, slot: int) -> tuple[Float[Tensor, "n_kv_heads head_dim"], ...]:
        """Return a slot's key and value of the first layer, of the second, and so on, where they are."""
        return self._blocks.flatten(0, 1)[:, slot // self.block_size, slot % self.block_size].unbind()

    def views_of_run(self, blocks: Blocks, kv_len: int) -> tuple[Float[Tensor, "1 n_kv_heads kv_len head_dim"], ...] | None:
        """Return all keys of one row's first layer, all values, those of the second layer, and so on, where they are.

        None: the row's blocks do not lie one behind the other.
        """
        if not isinstance(blocks, range):
            return None
        held = self._blocks[:, :, blocks.start : blocks.stop].flatten(0, 1).flatten(1, 2)[:, None, :kv_len]
        return held.transpose(2, 3).unbind()

    def gather_by_head(
        self, layer: int, blocks: Int[Tensor, "1 blocks"], *, out: Float[Tensor, "2 n_kv_heads blocks block_size head_dim"]
    ) -> tuple[Float[Tensor, "1 n_kv_heads slots head_dim"], Float[Tensor, "1 n_kv_heads slots head_dim"]]:
        """Gather one row's keys and values of one layer to `out`, head by head: the core that gathers a head can also attend with it."""
        torch.index_select(self._by_layer[layer].permute(0, 3, 1, 2, 4), 2, blocks[0], out=out)
        k, v = out.flatten(2, 3)[:, None]
        return k, v

    def gathered_shape(self, blocks: Blocks) -> tuple[int, ...]:
        """Return the shape of what `read` gathers to."""
        batch, per_row = _shape(blocks)
        return 2, batch * per_row, *self._blocks.shape[3:]

    def read(
        self, layer: int, blocks: Blocks, *, out: Float[Tensor, "2 blocks block_size n_kv_heads head_dim"] | None = None
    ) -> tuple[Float[Tensor, "batch slots n_kv_heads head_dim"], Float[Tensor, "batch slots n_kv_heads head_dim"]]:
        """See `Store.read`. Where blocks have to be gathered, `out` is where to."""
        (batch, per_row), (*_, block_size, n_kv_heads, head_dim) = _shape(blocks), self._blocks.shape
        kept = self._by_layer[layer]
        if isinstance(blocks, range):
            found = kept[:, blocks.start : blocks.stop]
        else:
            found = kept.new_empty(self.gathered_shape(blocks)) if out is None else out
            for kind in range(2):  # in two, because blocks along the first axis are copied in one piece each
                torch.index_select(kept[kind], 0, blocks.flatten(), out=found[kind])
        k, v = found.view(2, batch, per_row * block_size, n_kv_heads, head_dim)
        return k, v

    def check_fits(self, k: Float[Tensor, "batch new_len heads width"], v: Float[Tensor, "batch new_len heads2 width2"]) -> None:
        check_fits(self._blocks[0, 0], k, v)


# -- Few bits ---------------------------------------------------------------------------------------------------------

_LARGEST_HALF = torch.finfo(torch.float16).max


def quantize(
    x: Float[Tensor, "*shape"], *, bits: int, dim: int
) -> tuple[UInt8[Tensor, "*shape"], Float16[Tensor, "*groups"], Float16[Tensor, "*groups"]]:
    """Round numbers to `2 ** bits` evenly spaced levels per group.

    The numbers along `dim` form one group. Its lowest level is `zero`, its levels are `scale` apart. Both are rounded outwards
    to 16 bits before they are used, so the levels span the group and no number is off by more than half a scale. Beyond
    what 16 bits can hold (65,504) numbers saturate.

    Args:
        x: finite numbers.
        bits: 1 to 8.
        dim: the axis that is one group.

    Returns:
        The level of every number, and the scales and zeros, in which `dim` has length 1.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    low, high = wide.aminmax(dim=dim, keepdim=True)
    zero = -_half_at_least(-low)
    levels = 2**bits - 1
    scale = _half_at_least((high - zero.to(wide.dtype)) / levels)
    step = torch.where(scale == 0, 1, scale).to(wide.dtype)  # a group of one value has one level: its zero
    codes = ((wide - zero.to(wide.dtype)) / step).round_().clamp_(0, levels)
    return codes.to(torch.uint8), scale, zero


def dequantize(
    codes: UInt8[Tensor, "*shape"], scale: Float16[Tensor, "*groups"], zero: Float16[Tensor, "*groups"], *, dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """Return the numbers that the levels stand for: `zero + code * scale`."""
    wide = torch.promote_types(dtype, torch.float32)
    x = zero.to(wide) + codes.to(wide) * scale.to(wide)
    largest = torch.finfo(dtype).max
    return x.clamp_(-largest, largest).to(dtype)


def pack(codes: UInt8[Tensor, "*rows codes_per_row"], *, bits: int) -> UInt8[Tensor, "*rows bytes_per_row"]:
    """Put 8-bit, 4-bit or 2-bit codes side by side: one, two or four to a byte, the first in the lowest bits.

    A last byte that is not full is filled up with zeros.
    """
    per_byte = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte)).unflatten(-1, (-1, per_byte))
    packed = torch.zeros_like(codes[..., 0])
    for place in range(per_byte):
        packed |= codes[..., place] << (bits * place)
    return packed


def unpack(packed: UInt8[Tensor, "*rows bytes_per_row"], *, bits: int, length: int) -> UInt8[Tensor, "*rows codes_per_row"]:
    """Return the first `length` codes of each row: what `pack` was given."""
    if bits == 8:
        return packed[..., :length]
    places = [(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)]
    return torch.stack(places, dim=-1).flatten(-2)[..., :length]


def _half_at_least(x: Float[Tensor, "*shape"]) -> Float16[Tensor, "*shape"]:
    """The nearest 16-bit number that is not below x, as far as there is one."""
    x = x.clamp(-_LARGEST_HALF, _LARGEST_HALF)
    near = x.to(torch.float16) + 0  # so that no zero is negative
    bits = near.view(torch.int16)
    above = torch.where(near >= 0, bits + 1, bits - 1).view(torch.float16)  # neighbours in value are neighbours in bits
    return torch.where(near.to(x.dtype) < x, above, near)


def _with_more(staged: Float[Tensor, "layers 2 blocks *block"], more: int) -> Float[Tensor, "layers 2 longer *block"]:
    """The same blocks, and so many empty ones behind them."""
    return torch.cat((staged, staged.new_zeros(*staged.shape[:2], more, *staged.shape[3:])), dim=2)


@dataclass(frozen=True)
class Coded:
    """One layer's keys and values of some blocks, in few bits. Blocks that are open have scale 1 and zero 0, and their codes mean nothing.

    Args:
        codes: of keys, then of values.
        key_levels: scales, then zeros: one of each per block and channel.
        value_levels: scales, then zeros: one of each per token and group of channels.
    """

    codes: UInt8[Tensor, "2 blocks n_kv_heads block_size head_dim"]
    key_levels: Float16[Tensor, "2 blocks 1 kv_dim"]
    value_levels: Float16[Tensor, "2 blocks block_size groups 1"]

    def decoded(self, dtype: torch.dtype) -> Float[Tensor, "2 blocks block_size kv_dim"]:
        """Return the numbers."""
        keys, values = self.codes.transpose(2, 3).flatten(3)
        in_groups = values.unflatten(2, (self.value_levels.shape[3], -1))
        return torch.stack(
            (dequantize(keys, *self.key_levels, dtype=dtype), dequantize(in_groups, *self.value_levels, dtype=dtype).flatten(2))
        )


@dataclass(frozen=True)
class _StagedWrites(Writes):
    """Where new tokens meet the older ones of their blocks.

    Args:
        places: for each new token, its place among the slots of the blocks at hand.
        held: which of the blocks at hand hold tokens already, and where those are staged.
        stay: which of them stay open, and where they are staged.
        close: which of them are quantised now, and the blocks they are.
    """

    num_blocks: int
    places: Int[Tensor, "tokens"]
    held: Int[Tensor, "2 num_held"]
    stay: Int[Tensor, "2 num_open"]
    close: Int[Tensor, "2 num_closing"]


@dataclass(frozen=True)
class _OpenWrites(Writes):
    """Where new tokens go when all their blocks stay open.

    Args:
        staged: for each new token, its slot among all that are staged.
    """

    staged: Int[Tensor, "tokens"]


class QuantizedStore(Store):
    """Keeps full blocks in 8, 4 or 2 bits per number, and blocks that are still filling as floats.

    Keys are quantised per channel: the keys of one block's tokens in one channel share a scale and a zero, because some
    channels are large in every token. Values are quantised per token, in groups of channels. A block is quantised once, when
    it is closed; before that its tokens are staged in full precision. So nothing is ever rounded twice.

    Args:
        config: the shape of the model.
        num_blocks: number of blocks.
        block_size: slots per block, and tokens per group of keys.
        bits: 8, 4 or 2.
        group_size: channels per group of values, at most: the largest that divides a token's channels evenly is taken.
        open_blocks: how many open blocks to make room for at once. Where there are more, the room grows.
        device: where the slots are.
        dtype: the type of numbers that come and go, and of open blocks; torch's default type when left out.

    Raises:
        ValueError: `bits` is another number, or a size is below 1.

    Source: arXiv 2402.02750 (keys per channel, values per token, a window in full precision).
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        num_blocks: int,
        block_size: int,
        bits: int,
        group_size: int = 64,
        open_blocks: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, num_blocks=num_blocks, block_size=block_size)
        if bits not in (8, 4, 2):
            raise ValueError(f"bits should be 8, 4 or 2; it is {bits}")
        if group_size < 1:
            raise ValueError(f"group_size should be at least 1; it is {group_size}")
        self.bits = bits
        self.value_group_size = max(
            size for size in range(1, config.kv_dim + 1) if config.kv_dim % size == 0 and size <= group_size
        )
        outer, groups = (config.n_layers, 2, num_blocks), config.kv_dim // self.value_group_size
        # Zeros, not empty: what has never been written reads as 0, not as whatever a scale of NaN makes of it.
        # Each head's codes side by side, as attention wants them.
        bytes_per_head = -(-config.head_dim * bits // 8)
        self._codes = torch.zeros(*outer, config.n_kv_heads, block_size, bytes_per_head, dtype=torch.uint8, device=device)
        self._key_levels = torch.zeros(*outer, 1, config.kv_dim, dtype=torch.float16, device=device)  # scale and zero
        self._value_levels = torch.zeros(*outer, block_size, groups, 1, dtype=torch.float16, device=device)
        shape = (config.n_layers, 2, open_blocks, block_size, config.n_kv_heads, config.head_dim)
        self._staged = torch.zeros(shape, dtype=dtype, device=device)
        self._stage_of: dict[int, int] = {}  # open blocks alone
        self._stage_by_block = torch.full((num_blocks,), -1, device=device)  # the same, where the keys are
        self._free_stages = list(reversed(range(open_blocks)))

    @property
    def device(self) -> torch.device:
        return self._codes.device

    @property
    def dtype(self) -> torch.dtype:
        return self._staged.dtype

    @property
    def nbytes(self) -> int:
        return self._packed_nbytes + self._staged.nbytes

    @property
    def block_nbytes(self) -> int:
        return self._packed_nbytes // self.num_blocks

    @property
    def open_blocks(self) -> frozenset[int]:
        """The blocks that hold tokens in full precision."""
        return frozenset(self._stage_of)

    @property
    def stage_by_block(self) -> Int[Tensor, "num_blocks"]:
        """Where each block is staged, for `staged_layer`; -1: it is closed."""
        return self._stage_by_block

    def packed_bytes(self, block: int) -> bytes:
        """Return all that is kept of a closed block: its codes, scales and zeros in every layer."""
        kept = (self._codes[:, :, block], self._key_levels[:, :, block], self._value_levels[:, :, block])
        return b"".join(part.contiguous().view(torch.uint8).cpu().numpy().tobytes() for part in kept)

    def clear(self, blocks: Sequence[int]) -> None:
        open_ones = [block for block in blocks if block in self._stage_of]
        self._free_stages += [self._stage_of.pop(block) for block in open_ones]
        self._note_stages(open_ones)

    def copy(self, source: int, target: int) -> None:
        self.clear([target])
        if source in self._stage_of:
            self._open([target])
            self._staged[:, :, self._stage_of[target]] = self._staged[:, :, self._stage_of[source]]
            return
        for kept in (self._codes, self._key_levels, self._value_levels):
            kept[:, :, target] = kept[:, :, source]

    def select(self, blocks: Sequence[int]) -> None:
        """Hold `len(blocks)` blocks from now on: block i is what block `blocks[i]` was. A block may become several or none."""
        index = torch.tensor(list(blocks), dtype=torch.long, device=self.device)
        self._codes, self._key_levels, self._value_levels = (
            kept.index_select(2, index) for kept in (self._codes, self._key_levels, self._value_levels)
        )
        stages = [(block, self._stage_of[old]) for block, old in enumerate(blocks) if old in self._stage_of]
        room = -(-self._staged.shape[2] * len(blocks) // self.num_blocks)
        kept_stages = torch.tensor([stage for _, stage in stages], dtype=torch.long, device=self.device)
        staged = self._staged.index_select(2, kept_stages)
        self._staged = _with_more(staged, max(0, room - len(stages)))
        self.num_blocks = len(blocks)
        self._stage_of = {block: stage for stage, (block, _) in enumerate(stages)}
        self._free_stages = list(reversed(range(len(stages), self._staged.shape[2])))
        self._stage_by_block = torch.full((len(blocks),), -1, device=self.device)
        self._note_stages(list(self._stage_of))

    def plan(self, slots: Int[Tensor, "tokens"], closing: Sequence[int] = ()) -> Writes:
        per_slot, closing = (slots // self.block_size).tolist(), set(closing)
        if not closing:
            return self._plan_open(slots.to(self.device), per_slot)
        at_hand = sorted({*per_slot, *closing})
        held = [(index, self._stage_of[block]) for index, block in enumerate(at_hand) if block in self._stage_of]
        close = [(index, block) for index, block in enumerate(at_hand) if block in closing]
        # A stage that is given up here may be taken here: write() reads all stages before it writes any.
        self.clear([block for _, block in close])
        self._open([block for block in at_hand if block not in self._stage_of and block not in closing])
        stay = [(index, self._stage_of[block]) for index, block in enumerate(at_hand) if block not in closing]
        index_of = {block: index for index, block in enumerate(at_hand)}
        firsts = torch.tensor([index_of[block] * self.block_size for block in per_slot], dtype=torch.long, device=slots.device)
        places = (firsts + slots % self.block_size).to(self.device)
        pairs = (self._pairs(held), self._pairs(stay), self._pairs(close))
        return _StagedWrites(slots.to(self.device), len(at_hand), places, *pairs)

    def write(
        self,
        layer: int,
        writes: Writes,
        k: Float[Tensor, "tokens n_kv_heads head_dim"],
        v: Float[Tensor, "tokens n_kv_heads head_dim"],
    ) -> None:
        staged = self._staged[layer]
        if isinstance(writes, _OpenWrites):
            staged.flatten(1, 2).index_copy_(1, writes.staged, torch.stack((k.detach(), v.detach())))
            return
        at_hand = staged.new_zeros(2, writes.num_blocks, *staged.shape[2:])
        (index, stage) = writes.held
        at_hand[:, index] = staged[:, stage]
        slots = at_hand.flatten(1, 2)
        slots[:, writes.places] = torch.stack((k.detach(), v.detach()))
        (index, stage) = writes.stay
        staged[:, stage] = at_hand[:, index]
        (index, blocks) = writes.close
        self._quantize(layer, blocks, at_hand[:, index].flatten(3))

    def read(
        self, layer: int, blocks: Blocks
    ) -> tuple[Float[Tensor, "batch slots n_kv_heads head_dim"], Float[Tensor, "batch slots n_kv_heads head_dim"]]:
        batch, per_row = _shape(blocks)
        found = self.coded(layer, blocks).decoded(self._staged.dtype)
        rows, columns, stages = self.opened(blocks)
        if len(rows):
            found.view(2, batch, per_row, *found.shape[2:])[:, rows, columns] = self._staged[layer][:, stages].flatten(3)
        k, v = found.view(2, batch, per_row * self.block_size, *self._staged.shape[4:])
        return k, v

    def coded(self, layer: int, blocks: Blocks) -> "Coded":
        """Return what one layer of some blocks is kept as."""
        codes = unpack(_at(self._codes[layer], blocks), bits=self.bits, length=self._staged.shape[-1])
        return Coded(codes, _at(self._key_levels[layer], blocks), _at(self._value_levels[layer], blocks))

    def opened(self, blocks: Blocks) -> tuple[Int[Tensor, "open"], Int[Tensor, "open"], Int[Tensor, "open"]]:
        """Return which of some blocks are open: each one's row, its place in the row, and where it is staged."""
        stages = (
            self._stage_by_block[blocks.start : blocks.stop][None] if isinstance(blocks, range) else self._stage_by_block[blocks]
        )
        rows, columns = (stages >= 0).nonzero(as_tuple=True)
        return rows, columns, stages[rows, columns]

    def staged_layer(self, layer: int) -> Float[Tensor, "2 stages block_size n_kv_heads head_dim"]:
        """Return one layer's keys and values of open blocks, where they are staged."""
        return self._staged[layer]

    def check_fits(self, k: Float[Tensor, "batch new_len heads width"], v: Float[Tensor, "batch new_len heads2 width2"]) -> None:
        check_fits(self._staged[0, 0], k, v)

    @property
    def _packed_nbytes(self) -> int:
        return self._codes.nbytes + self._key_levels.nbytes + self._value_levels.nbytes

    def _quantize(self, layer: int, blocks: Int[Tensor, "blocks"], kv: Float[Tensor, "2 blocks block_size kv_dim"]) -> None:
        keys, values = kv
        key_codes, *key_levels = quantize(keys, bits=self.bits, dim=1)  # one group: a channel of all the block's tokens
        in_groups = values.unflatten(2, (-1, self.value_group_size))
        value_codes, *value_levels = quantize(in_groups, bits=self.bits, dim=3)  # one group: some channels of one token
        codes = torch.stack((key_codes, value_codes.flatten(2))).unflatten(3, self._staged.shape[4:]).transpose(2, 3)
        self._codes[layer][:, blocks] = pack(codes, bits=self.bits)
        self._key_levels[layer][:, blocks] = torch.stack(key_levels)
        self._value_levels[layer][:, blocks] = torch.stack(value_levels)

    def _plan_open(self, slots: Int[Tensor, "tokens"], per_slot: list[int]) -> _OpenWrites:
        fresh = sorted({*per_slot} - self._stage_of.keys())
        self._open(fresh)
        self._staged[:, :, [self._stage_of[block] for block in fresh]] = 0
        firsts = torch.tensor(
            [self._stage_of[block] * self.block_size for block in per_slot], dtype=torch.long, device=self.device
        )
        return _OpenWrites(slots, firsts + slots % self.block_size)

    def _open(self, blocks: Sequence[int]) -> None:
        """Give blocks a place in full precision. Whoever asks for one fills all of it."""
        missing = len(blocks) - len(self._free_stages)
        if missing > 0:
            held = self._staged.shape[2]
            more = max(missing, held)  # doubling: what is moved in all stays in proportion to what is there
            self._staged = _with_more(self._staged, more)
            self._free_stages = [*reversed(range(held, held + more)), *self._free_stages]
        for block in blocks:
            self._stage_of[block] = self._free_stages.pop()
            # As if it were quantised, with numbers for codes: who reads both kinds of block alike need not tell them apart.
            for levels in (self._key_levels, self._value_levels):
                levels[:, 0, block], levels[:, 1, block] = 1, 0
        self._note_stages(blocks)

    def _note_stages(self, blocks: Sequence[int]) -> None:
        index = torch.tensor(list(blocks), dtype=torch.long, device=self.device)
        stages = [self._stage_of.get(block, -1) for block in blocks]
        self._stage_by_block[index] = torch.tensor(stages, dtype=torch.long, device=self.device)

    def _pairs(self, pairs: list[tuple[int, int]]) -> Int[Tensor, "2 count"]:
        return torch.tensor(pairs, dtype=torch.long, device=self.device).reshape(-1, 2).T
