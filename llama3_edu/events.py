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
    "PrefixTouched",
    "TablesChanged",
    "BeamsPruned",
    "BeamFinished",
    "StepScheduled",
    "StepFinished",
    "SequenceAdded",
    "SequenceAdmitted",
    "SequenceForked",
    "SequenceExtended",
    "SequencePreempted",
    "SequenceFinished",
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


@dataclass(frozen=True)
class PrefixTouched(Event):
    """The prefix cache counts a chain of blocks as just used: of all published blocks, these are given up last.

    Args:
        blocks: the chain from the start of the sequence on. The last one would be given up before the one it follows.
    """

    blocks: tuple[int, ...]


@dataclass(frozen=True)
class TablesChanged(Event):
    """A paged cache made room for new tokens, reordered its rows, or gave them back.

    Args:
        names: what each row is called: its number, or that of the sequence it belongs to. Rows that are no more come last.
        block_tables: for each row, the blocks that hold its tokens, in order.
        seq_lens: for each row, the tokens it has room for from now on.
    """

    names: tuple[int, ...]
    block_tables: tuple[tuple[int, ...], ...]
    seq_lens: tuple[int, ...]


@dataclass(frozen=True)
class BeamsPruned(Event):
    """Of all beams with one token more, these go on.

    Args:
        position: where the new tokens stand.
        parents: for every beam that goes on, the row it continues.
        token_ids: for every beam that goes on, its new token.
        scores: for every beam that goes on, the sum of its tokens' log-probabilities.
        closed: the rows that no beam continues.
    """

    position: int
    parents: tuple[int, ...]
    token_ids: tuple[int, ...]
    scores: tuple[float, ...]
    closed: tuple[int, ...]


@dataclass(frozen=True)
class BeamFinished(Event):
    """A beam ended among the best of its step.

    Args:
        position: where its last token stands.
        parent: the row it continued.
        token_id: its last token.
        score: its final score, length penalty included.
    """

    position: int
    parent: int
    token_id: int
    score: float


@dataclass(frozen=True)
class StepScheduled(Event):
    """An engine decided what its next step computes.

    Args:
        step: which step, from 0.
        sequences: the sequences that take part.
        num_tokens: for each of them, how many of its tokens are computed.
    """

    step: int
    sequences: tuple[int, ...]
    num_tokens: tuple[int, ...]


@dataclass(frozen=True)
class StepFinished(Event):
    """An engine's step is over: its tokens are computed, and whoever got a next token has it.

    Args:
        step: which step, from 0.
    """

    step: int


@dataclass(frozen=True)
class SequenceAdded(Event):
    """An engine was given a request, or a sequence was told to go on in two ways.

    Args:
        sequence: its number, in order of arrival.
        num_tokens: tokens of its prompt; of a fork, all the tokens it starts from.
        parent: the sequence it is forked from, if it is.
    """

    sequence: int
    num_tokens: int
    parent: int | None = None


@dataclass(frozen=True)
class SequenceAdmitted(Event):
    """A sequence takes part in the steps from now on.

    Args:
        sequence: its number.
        num_cached: tokens that were found in the prefix cache.
        num_tokens: tokens it has so far.
    """

    sequence: int
    num_cached: int
    num_tokens: int


@dataclass(frozen=True)
class SequenceForked(Event):
    """A sequence goes on in two ways.

    Args:
        sequence: the new one.
        parent: the one it shares its past with.
        blocks: the blocks they share; none where the new one has to wait.
    """

    sequence: int
    parent: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class SequenceExtended(Event):
    """A sequence was given its next token.

    Args:
        sequence: its number.
        position: where the token stands.
        token_id: which token it is.
    """

    sequence: int
    position: int
    token_id: int


@dataclass(frozen=True)
class SequencePreempted(Event):
    """A sequence gave its blocks back and waits; what they held is computed again later.

    Args:
        sequence: its number.
        num_lost: tokens whose keys and values are given up.
    """

    sequence: int
    num_lost: int


@dataclass(frozen=True)
class SequenceFinished(Event):
    """A sequence ended and gave its blocks back.

    Args:
        sequence: its number.
        reason: why, as `Sequence.finish_reason` has it.
        num_tokens: tokens it has, its prompt included.
    """

    sequence: int
    reason: str
    num_tokens: int


Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that watches nothing."""
