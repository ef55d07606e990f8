"""What is known of a pool of blocks from what was reported, and how that changes from step to step: see `trace`.

Frames of a pool hold changes, not the whole pool at every step: thousands of blocks at each of thousands of events would be
hundreds of megabytes. Whoever draws them starts from a pool that is all free and applies the `changes` of one step after another.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama3_edu.events import (
    BlockAllocated,
    BlockCopied,
    BlockEvicted,
    BlockFreed,
    BlockPublished,
    BlockReleased,
    BlockShared,
    Event,
    PrefixReused,
    SequenceAdded,
    SequenceAdmitted,
    SequenceFinished,
    SequenceForked,
    SequencePreempted,
    TablesChanged,
)
from llama3_edu.trace import counted, listed

__all__ = ["Pool", "Told", "apply_changes", "holder_of", "joined_changes", "makes_step", "taken_together"]

_OF_BLOCKS = (
    BlockAllocated, BlockShared, BlockReleased, BlockFreed, BlockCopied, BlockPublished, PrefixReused, TablesChanged,
)  # fmt: skip
_OF_SEQUENCES = (SequenceAdmitted, SequenceForked, SequencePreempted, SequenceFinished)


@dataclass(frozen=True)
class Told:
    """What one step says.

    Args:
        what: what happened, in one word.
        summary: the same in a sentence or two.
        blocks: the blocks it happened to.
        source: the block that was copied, if one was.
        names: the rows or sequences it happened to.
    """

    what: str
    summary: str
    blocks: tuple[int, ...] = ()
    source: int | None = None
    names: tuple[int, ...] = ()

    def frame(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the step, with what changed since the one before it."""
        return {
            "what": self.what,
            "blocks": list(self.blocks),
            "source": self.source,
            "names": list(self.names),
            "changes": dict(changes),
            "summary": self.summary,
        }


def makes_step(event: Event) -> bool:
    """Say whether an event makes a step. That a block is given up does so when the block is freed, which comes next."""
    return isinstance(event, (*_OF_BLOCKS, *_OF_SEQUENCES))


def holder_of(events: Iterable[Event]) -> str:
    """Return what holds blocks in a run: `sequence` where an engine ran, else `row`."""
    kinds = (SequenceAdded, SequenceAdmitted)
    return "sequence" if any(isinstance(event, kinds) for event in events) else "row"


def taken_together(num_steps: int, most: int) -> tuple[int, dict[str, str]]:
    """Return how many steps to take together so that at most `most` are left, and a `note` that says so, where it is more than one.

    Raises:
        ValueError: `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most should be at least 1; it is {most}")
    every = max(1, math.ceil(num_steps / most))
    if every == 1:
        return 1, {}
    return every, {"note": f"One in {every} of {num_steps:,} steps is shown; what happened between two is taken together."}


class Pool:
    """What can be known of a pool from what was reported so far.

    Tables are as they were last told. In between, a block that is freed leaves the table it was in; one that only lost a holder
    leaves a table where no other can be meant.

    Args:
        num_blocks: blocks of the pool.
        block_size: tokens per block.
        holder: what to call those who hold blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, holder: str) -> None:
        self.num_blocks, self.block_size, self.holder = num_blocks, block_size, holder
        self.ref_counts, self.filled = [0] * num_blocks, [0] * num_blocks
        self.free = list(reversed(range(num_blocks)))  # the last one is taken next
        self.published: dict[int, None] = {}
        self.tables: dict[int, list[int]] = {}
        self.seq_lens: dict[int, int] = {}
        self._named: dict[int, set[int]] = {}  # for each block, whose tables it is in
        self._reused: tuple[int, ...] = ()
        self._just_shared: int | None = None
        self._given_up: int | None = None
        self._begin_changes()

    def fold(self, event: Event) -> Told | None:
        """Take in one event; return what its step says, None where it changes nothing here.

        Raises:
            ValueError: the event does not follow from those before it.
        """
        told = self._fold(event)
        self._just_shared = event.block if isinstance(event, BlockShared) else None
        self._given_up = event.block if isinstance(event, BlockEvicted) else None
        return told

    def changes(self) -> dict[str, Any]:
        """Return what changed since this was last called; what did not change is left out.

        Returns:
            `blocks` (the block, its holders, its slots filled), `tables` (the name, how many blocks at the start stayed, the
            blocks behind those, the tokens held; no tokens and no blocks: the table is gone), `free` (how many at the bottom of
            the free list stayed, and what lies on top of those; the last is taken next), and the blocks `evicted` first and
            `published` then.
        """
        bottom, top = self._free_kept, self.free[self._free_kept :]
        changed: dict[str, Any] = {
            "blocks": [[block, self.ref_counts[block], self.filled[block]] for block in sorted(self._touched)],
            "tables": [
                [name, kept, self.tables.get(name, [])[kept:], self.seq_lens.get(name, 0)] for name, kept in self._told.items()
            ],
            "free": [bottom, top] if self._free_moved else [],
            "published": [*self._now_published],
            "evicted": self._now_evicted,
        }
        self._begin_changes()
        return {field: value for field, value in changed.items() if value}

    # -- What happened --

    def _fold(self, event: Event) -> Told | None:
        if isinstance(event, (BlockAllocated, BlockShared, BlockReleased, BlockFreed)):
            return self._count_holders(event)
        if isinstance(event, BlockCopied):
            self._fill(event.block, self.filled[event.source])
            copied = f"What block {event.source} holds is copied to block {event.block}."
            return Told("copied", copied, (event.block,), event.source)
        if isinstance(event, BlockPublished):
            return self._publish(event)
        if isinstance(event, BlockEvicted):
            self._evict(event)
            return None
        if isinstance(event, PrefixReused):
            self._reused = event.blocks
            begins = f"A prompt of {counted(event.num_tokens, 'token')} begins with {listed('block', event.blocks)}"
            return Told("reused", f"{begins}: {counted(event.num_cached, 'token')} need not be computed.", event.blocks)
        if isinstance(event, TablesChanged):
            return self._set_tables(event)
        return self._move_sequence(event)

    def _count_holders(self, event: BlockAllocated | BlockShared | BlockReleased | BlockFreed) -> Told:
        block, change = event.block, -1 if isinstance(event, (BlockReleased, BlockFreed)) else 1
        if self.ref_counts[block] + change != event.ref_count:
            raise ValueError(
                f"the trace should hold all that happened to the pool; block {block} is told to have {event.ref_count} holders "
                f"after it had {self.ref_counts[block]}"
            )
        self.ref_counts[block] = event.ref_count
        self._touched.add(block)
        if isinstance(event, BlockAllocated):
            self._take()
            return Told("allocated", f"Block {block} is taken from the free list. Free blocks left: {len(self.free)}.", (block,))
        if isinstance(event, BlockFreed):
            self._leave_tables(block)
            self._give_back(block)
            if block == self._given_up:
                gives_up = f"The prefix cache gives up block {block}, which nobody else holds. Free blocks: {len(self.free)}."
                return Told("evicted", gives_up, (block,))
            loses = f"Block {block} loses its last holder and is free again. Free blocks: {len(self.free)}."
            return Told("freed", loses, (block,))
        if isinstance(event, BlockReleased):
            self._leave_a_table(block)
        what, does = ("shared", "gains") if isinstance(event, BlockShared) else ("released", "loses")
        return Told(what, f"Block {block} {does} a holder and has {event.ref_count}.", (block,))

    def _publish(self, event: BlockPublished) -> Told:
        self.published[event.block] = None
        self._now_published[event.block] = None
        after = "as the start of a prompt" if event.parent is None else f"behind block {event.parent}"
        return Told("published", f"Block {event.block} is full and can be found by its tokens, {after}.", (event.block,))

    def _evict(self, event: BlockEvicted) -> None:
        del self.published[event.block]
        self._now_published.pop(event.block, None)
        self._now_evicted.append(event.block)

    def _set_tables(self, event: TablesChanged) -> Told:
        now = list(zip(event.names, event.block_tables, event.seq_lens))
        moved = [(name, table, held) for name, table, held in now if self._differs(name, table, held)]
        for name, table, held in now:
            self._set_table(name, table, held)
        rows = [
            f"{self.holder} {name} holds {counted(held, 'token')} in {listed('block', table)}"
            if table
            else f"{self.holder} {name} holds nothing"
            for name, table, held in moved[:3]
        ]
        if len(moved) > len(rows):
            rows.append(f"{len(moved) - len(rows)} more change")
        said = f"Block tables: {'; '.join(rows)}." if rows else "Block tables stay as they are."
        return Told("tables", said, names=tuple(name for name, _, _ in moved))

    def _move_sequence(self, event: Event) -> Told | None:
        if isinstance(event, SequenceAdmitted):
            self._set_table(event.sequence, self._reused if event.num_cached else (), event.num_cached)
            admitted = f"Sequence {event.sequence} is let in with {counted(event.num_cached, 'token')} held."
            return Told("admitted", admitted, names=(event.sequence,))
        if isinstance(event, SequenceForked):
            self._set_table(event.sequence, event.blocks, self.seq_lens.get(event.parent, 0) if event.blocks else 0)
            shared = f"both hold {listed('block', event.blocks)}" if event.blocks else "it has to wait"
            forked = f"Sequence {event.sequence} goes on from where sequence {event.parent} is; {shared}."
            return Told("forked", forked, names=(event.parent, event.sequence))
        if isinstance(event, (SequencePreempted, SequenceFinished)):
            self._set_table(event.sequence, (), 0)
            what, ends = ("preempted", "has to wait") if isinstance(event, SequencePreempted) else ("finished", "has ended")
            return Told(what, f"Sequence {event.sequence} {ends} and holds no blocks any more.", names=(event.sequence,))
        return None

    # -- What is changed by it --

    def _begin_changes(self) -> None:
        self._touched: set[int] = set()
        self._told: dict[int, int] = {}  # for each table that changed, how many of its first blocks stayed
        self._free_kept, self._free_moved = len(self.free), False
        self._now_published: dict[int, None] = {}
        self._now_evicted: list[int] = []

    def _take(self) -> None:
        block = self.free.pop()
        self._free_kept, self._free_moved = min(self._free_kept, len(self.free)), True
        self._fill(block, 0)

    def _give_back(self, block: int) -> None:
        self.free.append(block)
        self._free_moved = True
        self._fill(block, 0)

    def _fill(self, block: int, tokens: int) -> None:
        if self.filled[block] != tokens:
            self.filled[block] = tokens
            self._touched.add(block)

    def _differs(self, name: int, table: Sequence[int], num_tokens: int) -> bool:
        return self.tables.get(name, []) != list(table) or self.seq_lens.get(name, 0) != num_tokens

    def _set_table(self, name: int, table: Sequence[int], num_tokens: int) -> None:
        if not self._differs(name, table, num_tokens):
            return
        before, now = self.tables.get(name, []), list(table)
        kept = _common(before, now)
        full = min(kept, self.seq_lens.get(name, 0) // self.block_size)
        for block in before[kept:]:
            self._named[block].discard(name)
        for block in now[kept:]:
            self._named.setdefault(block, set()).add(name)
        for index in range(full, len(now)):
            self._fill(now[index], max(0, min(self.block_size, num_tokens - index * self.block_size)))
        self._told[name] = min(self._told.get(name, kept), kept)
        if now:
            self.tables[name], self.seq_lens[name] = now, num_tokens
        else:
            self.tables.pop(name, None)
            self.seq_lens.pop(name, None)

    def _leave_tables(self, block: int) -> None:
        """Take a block that nobody holds any more out of the tables it is still in."""
        for name in sorted(self._named.get(block, ())):
            table = self.tables[name]
            place = table.index(block)
            instead = self._just_shared
            if instead in self.published and instead not in table:  # an equal block was found, and takes its place
                self._set_table(name, [*table[:place], instead, *table[place + 1 :]], self.seq_lens[name])
            else:
                self._set_table(name, table[:place], place * self.block_size)

    def _leave_a_table(self, block: int) -> None:
        """Take a block that lost a holder out of the one table that ends with it, if there are more tables than holders."""
        named = self._named.get(block, set())
        if len(named) + (block in self.published) > self.ref_counts[block]:
            ending = [name for name in named if self.tables[name][-1] == block]
            if len(ending) == 1:
                place = len(self.tables[ending[0]]) - 1
                self._set_table(ending[0], self.tables[ending[0]][:place], place * self.block_size)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many items two tables have in common from the start on."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    return next(index for index, (a, b) in enumerate(zip(one, other)) if a != b)


def joined_changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes of two steps, one after the other, as those of a single step."""
    tables = {name: [name, *rest] for name, *rest in one.get("tables", [])}
    for name, kept, blocks, num_tokens in other.get("tables", []):
        first = tables.get(name, [name, kept, [], 0])
        tables[name] = [name, *_joined_tails(first[1], first[2], kept, blocks), num_tokens]
    joined: dict[str, Any] = {
        "blocks": list({block: [block, *rest] for block, *rest in [*one.get("blocks", []), *other.get("blocks", [])]}.values()),
        "tables": list(tables.values()),
        "published": [block for block in one.get("published", []) if block not in other.get("evicted", [])],
        "touched": [
            *one.get("touched", []),
            *(other.get("added", []) if one.get("touched") else []),
        ],  # later ones are used later
    }
    joined["published"] += other.get("published", [])
    joined["touched"] += other.get("touched", [])
    joined |= {name: [*one.get(name, []), *other.get(name, [])] for name in ("evicted", "added", "removed")}
    frees = [changes["free"] for changes in (one, other) if "free" in changes]
    if frees:
        joined["free"] = frees[0] if len(frees) == 1 else list(_joined_tails(*frees[0], *frees[1]))
    return {name: change for name, change in joined.items() if change}


def _joined_tails(kept: int, tail: list[int], kept_then: int, tail_then: list[int]) -> tuple[int, list[int]]:
    """Return how much of a list is kept and what follows it, when its tail is replaced twice."""
    return min(kept, kept_then), [*tail[: max(0, kept_then - kept)], *tail_then]


def apply_changes(state: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Bring what is known of a pool to the next step, as a widget does; see `block_states`."""
    for block, ref_count, filled in changes.get("blocks", []):
        state["ref_counts"][block], state["filled"][block] = ref_count, filled
    for name, kept, blocks, num_tokens in changes.get("tables", []):
        old = state["tables"].pop(name, {"blocks": []})
        if kept or blocks:
            state["tables"][name] = {"blocks": [*old["blocks"][:kept], *blocks], "num_tokens": num_tokens}
    if changes.get("free"):
        kept, top = changes["free"]
        state["free"] = [*state["free"][:kept], *top]
    state["published"] = [block for block in state["published"] if block not in changes.get("evicted", [])]
    state["published"] += changes.get("published", [])
    state["num_evicted"] += len(changes.get("evicted", []))
