"""A pool of blocks: memory for keys and values, who holds which piece of it, and what is free."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from llama3_edu.cache.store import make_store
from llama3_edu.config import LlamaConfig
from llama3_edu.events import BlockAllocated, BlockCopied, BlockFreed, BlockReleased, BlockShared, Observer, ignore

__all__ = ["BlockPool", "OutOfBlocks", "Reclaimer", "blocks_for", "fork", "release_all"]


class OutOfBlocks(ValueError):
    """More blocks were needed than were to be had. Nothing has been changed.

    Args:
        needed: blocks asked for.
        free: blocks that could have been given, those that nobody but a prefix cache holds included.
    """

    def __init__(self, *, needed: int, free: int) -> None:
        super().__init__(f"{_count(needed)} needed; {free} to be had")
        self.needed, self.free = needed, free


@runtime_checkable
class Reclaimer(Protocol):
    """Somebody who holds blocks that can be done without: the prefix cache."""

    @property
    def num_reclaimable(self) -> int:
        """Blocks that `reclaim` could free now."""

    def reclaim(self, count: int) -> None:
        """Release `count` blocks that nobody else holds."""


class BlockPool:
    """Memory for `num_blocks * block_size` tokens, handed out block by block.

    The pool knows how many holders each block has, and nothing of sequences. Whoever puts a block into a second table
    calls `share`; whoever takes one out of a table calls `release`; the last release frees the block. A block with several
    holders must not be written: take a `copy` of it first.

    Slots are numbered through the pool: slot s lies in block `s // block_size`.

    Args:
        config: the shape of the model.
        num_blocks: number of blocks.
        block_size: tokens per block.
        bits: 8, 4 or 2: full blocks are quantised, keys per channel over the block's tokens. None: numbers are kept as they come.
        group_size: with `bits`, channels per group of values.
        device: where the blocks are.
        dtype: the type of keys and values; torch's default type when left out.
        observer: is told `BlockAllocated`, `BlockShared`, `BlockCopied`, `BlockReleased` and `BlockFreed`.

    Raises:
        ValueError: `num_blocks` or `block_size` is below 1, or `bits` is another number.

    Source: arXiv 2309.06180, section 4.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        num_blocks: int,
        block_size: int = 16,
        bits: int | None = None,
        group_size: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        observer: Observer = ignore,
    ) -> None:
        self.config = config
        self.num_blocks, self.block_size = num_blocks, block_size
        self.store = make_store(
            config, num_blocks=num_blocks, block_size=block_size, bits=bits, group_size=group_size, device=device, dtype=dtype
        )
        self._ref_counts = [0] * num_blocks
        self._free = list(reversed(range(num_blocks)))  # the last one is given next: 0, 1, 2, … at first
        self._reclaimer: Reclaimer | None = None
        self._observer = observer

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.store.device

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - len(self._free)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give: the free ones, and those that a prefix cache alone holds."""
        return self.num_free + (self._reclaimer.num_reclaimable if self._reclaimer else 0)

    @property
    def nbytes(self) -> int:
        """Bytes really allocated for keys and values, scales and zeros included."""
        return self.store.nbytes

    @property
    def block_nbytes(self) -> int:
        """Bytes of one full block, over all layers."""
        return self.store.block_nbytes

    def ref_count(self, block: int) -> int:
        """Return how many holders a block has; 0: it is free."""
        self._check_known(block)
        return self._ref_counts[block]

    def allocate(self) -> int:
        """Take a free block; the caller is its only holder.

        Raises:
            OutOfBlocks: there is none, and no prefix cache can give one up.
        """
        return self.allocate_many(1)[0]

    def allocate_many(self, count: int) -> list[int]:
        """Take `count` free blocks, all or none. What is read from their slots is finite until they are written.

        Raises:
            OutOfBlocks: there are fewer, and no prefix cache can make up for them.
        """
        self._make_room(count)
        blocks = [self._take() for _ in range(count)]
        self.store.clear(blocks)  # 0 times what an earlier holder left is 0 only if that was finite
        return blocks

    def share(self, block: int) -> None:
        """Count one more holder of a block.

        Raises:
            ValueError: nobody holds it.
        """
        self._check_held(block, "shared")
        self._ref_counts[block] += 1
        self._observer(BlockShared(block=block, ref_count=self._ref_counts[block]))

    def release(self, block: int) -> None:
        """Count one holder less; a block without holders is free.

        Raises:
            ValueError: nobody holds it.
        """
        self._check_held(block, "released")
        self._ref_counts[block] -= 1
        if self._ref_counts[block]:
            self._observer(BlockReleased(block=block, ref_count=self._ref_counts[block]))
            return
        self._free.append(block)
        self._observer(BlockFreed(block=block, ref_count=0))

    def copy(self, block: int) -> int:
        """Return a new block that holds what `block` holds, bit for bit. The holders of `block` stay its holders.

        Raises:
            ValueError: nobody holds it.
            OutOfBlocks: there is no block to copy to.
        """
        self._check_held(block, "copied")
        self._make_room(1)
        target = self._take()
        self.store.copy(block, target)
        self._observer(BlockCopied(source=block, block=target, nbytes=self.block_nbytes))
        return target

    def check_available(self, count: int) -> None:
        """Raise OutOfBlocks unless `count` blocks could be allocated now."""
        if count > self.num_free and count > self.num_available:
            raise OutOfBlocks(needed=count, free=self.num_available)

    def attach(self, reclaimer: Reclaimer) -> None:
        """Ask `reclaimer` for blocks when none are free.

        Raises:
            ValueError: there is one already.
        """
        if self._reclaimer is not None:
            raise ValueError("a pool has one prefix cache at most; this one has one already")
        self._reclaimer = reclaimer

    def _make_room(self, count: int) -> None:
        self.check_available(count)
        if self._reclaimer is not None and count > self.num_free:
            self._reclaimer.reclaim(count - self.num_free)

    def _take(self) -> int:
        block = self._free.pop()
        self._ref_counts[block] = 1
        self._observer(BlockAllocated(block=block, ref_count=1))
        return block

    def _check_known(self, block: int) -> None:
        if not 0 <= block < self.num_blocks:
            raise ValueError(f"the pool has blocks 0 to {self.num_blocks - 1}; it was asked for block {block}")

    def _check_held(self, block: int, done: str) -> None:
        self._check_known(block)
        if not self._ref_counts[block]:
            raise ValueError(f"block {block} is free, so it cannot be {done}")


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


def release_all(pool: BlockPool, block_table: list[int]) -> None:
    """Take every block out of a table."""
    while block_table:
        pool.release(block_table.pop())


def fork(pool: BlockPool, block_table: Sequence[int]) -> list[int]:
    """Return a second table of the same blocks, each counted once more."""
    for block in block_table:
        pool.share(block)
    return list(block_table)


def _count(blocks: int) -> str:
    return "1 block is" if blocks == 1 else f"{blocks} blocks are"
