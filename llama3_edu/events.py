"""What the core reports while it works: frozen dataclasses of plain values, for anyone who cares to watch.

A part that does something worth watching takes `observer=`, a function of one event. The default, `ignore`, does nothing.
The core never knows who watches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Event",
    "Observer",
    "ignore",
    "TokensComputed",
    "TokenChosen",
    "KeysStored",
    "BlockAllocated",
    "BlockShared",
    "BlockCopied",
    "BlockReleased",
    "BlockFreed",
    "BlockPublished",
    "BlockEvicted",
    "PrefixReused",
]


@dataclass(frozen=True)
class Event:
    """Something that happened. Subclasses say what."""


@dataclass(frozen=True)
class TokensComputed(Event):
    """The model ran once, over the tokens at these positions.

    Args:
        positions: for each row, the position of every token the model was given, padding left out.
    """

    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TokenChosen(Event):
    """A row was given its next token.

    Args:
        row: the row of the batch.
        position: where the token will stand.
        token_id: which token it is.
    """

    row: int
    position: int
    token_id: int


@dataclass(frozen=True)
class KeysStored(Event):
    """A cache stored one layer's new keys and values.

    Args:
        layer: index of the layer.
        positions: for each row, the positions stored.
        seq_lens: tokens held per row, afterwards.
        nbytes: bytes allocated by the whole cache, afterwards.
        bytes_copied: bytes of *older* keys and values that were moved to make room for these.
    """

    layer: int
    positions: tuple[tuple[int, ...], ...]
    seq_lens: tuple[int, ...]
    nbytes: int
    bytes_copied: int


@dataclass(frozen=True)
class BlockAllocated(Event):
    """A pool took a block off its free list.

    Args:
        block: which block.
        ref_count: its holders, afterwards: 1.
    """

    block: int
    ref_count: int


@dataclass(frozen=True)
class BlockShared(Event):
    """A block gained a holder.

    Args:
        block: which block.
        ref_count: its holders, afterwards.
    """

    block: int
    ref_count: int


@dataclass(frozen=True)
class BlockCopied(Event):
    """What one block holds was copied to another that was just allocated. Holders stay where they were.

    Args:
        source: the block that was read.
        block: the block that was written.
        nbytes: bytes copied.
    """

    source: int
    block: int
    nbytes: int


@dataclass(frozen=True)
class BlockReleased(Event):
    """A block lost a holder and has others.

    Args:
        block: which block.
        ref_count: its holders, afterwards: at least 1.
    """

    block: int
    ref_count: int


@dataclass(frozen=True)
class BlockFreed(Event):
    """A block lost its last holder and went back to the free list.

    Args:
        block: which block.
        ref_count: its holders, afterwards: 0.
    """

    block: int
    ref_count: int


@dataclass(frozen=True)
class BlockPublished(Event):
    """A full block can be found by its tokens from now on, and the prefix cache holds it.

    Args:
        block: which block.
        parent: the block that comes before it; None at the start of a sequence.
        token_ids: the tokens whose keys and values it holds.
    """

    block: int
    parent: int | None
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class BlockEvicted(Event):
    """The prefix cache gave up a block that nobody else held.

    Args:
        block: which block.
    """

    block: int


@dataclass(frozen=True)
class PrefixReused(Event):
    """A sequence starts with blocks that were computed before.

    Args:
        blocks: the blocks, in order.
        num_cached: tokens that need not be computed.
        num_tokens: tokens of the whole prompt.
    """

    blocks: tuple[int, ...]
    num_cached: int
    num_tokens: int


Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that watches nothing."""
