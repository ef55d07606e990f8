"""What happens to the blocks of a pool, and to beams that share them, folded into frames: see `trace`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama3_edu.events import (
    BeamFinished,
    BeamsPruned,
    BlockAllocated,
    BlockCopied,
    BlockEvicted,
    BlockFreed,
    BlockPublished,
    BlockReleased,
    BlockShared,
    Event,
    PrefixReused,
    SequenceAdmitted,
    SequenceFinished,
    SequenceForked,
    SequencePreempted,
    TablesChanged,
    TokensComputed,
)
from llama3_edu.trace import Frames, HasPieces, Trace, quoted, token_texts

__all__ = ["block_frames", "beam_frames", "counted", "listed"]


def block_frames(
    trace: Trace,
    *,
    num_blocks: int,
    block_size: int,
    token_ids: Mapping[int, Sequence[int]] | None = None,
    tokenizer: HasPieces | None = None,
) -> Frames:
    """Fold all that a pool, its caches, its prefix cache and its engine reported into the frames of a block stepper.

    There is one step before the first event, and one for every event that changes what is known of the blocks.

    Args:
        trace: what was reported from the moment the pool was made, by everybody who uses it.
        num_blocks: blocks of the pool.
        block_size: tokens per block.
        token_ids: for each row or sequence, its tokens, so that blocks can show what they hold.
        tokenizer: turns token ids into text.

    Returns:
        `num_blocks`, `block_size`, `rows` (`name` and `tokens`, for every one in `token_ids`) and `steps`. A step holds `what`
        happened, to which `block` (None where it is no single one) and from which `source`; per block its `ref_counts`, the slots
        `filled`, and its `owners`; the block `tables` (`name`, `blocks`, `num_tokens`); `free` blocks in the order they will be
        taken, blocks `shared` by several holders, `published` and, so far, `evicted`. Tables, and with them owners, are as they
        were last told: a change shows with the next forward pass, reorder, admission or end.

    Raises:
        ValueError: an event does not follow from those before it: the trace is not all that was reported.
    """
    pool = _Pool(num_blocks, block_size)
    empty = f"All {num_blocks} blocks are free; each has room for {counted(block_size, 'token')}."
    steps = [pool.frame("start", None, None, empty)]
    for event in trace.events:
        told = pool.fold(event)
        if told is not None:
            steps.append(pool.frame(*told))
    rows = [{"name": name, "tokens": token_texts(list(ids), tokenizer)} for name, ids in (token_ids or {}).items()]
    return {"num_blocks": num_blocks, "block_size": block_size, "rows": rows, "steps": steps}


_Told = tuple[str, int | None, int | None, str]
"""What a step says: what happened, the block, the block it was copied from, and the summary."""


class _Pool:
    """What can be known of a pool from what was reported so far."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.ref_counts, self.filled = [0] * num_blocks, [0] * num_blocks
        self.free = list(reversed(range(num_blocks)))  # the last one is taken next
        self.published: list[int] = []
        self.evicted: list[int] = []
        self.tables: dict[int, list[int]] = {}
        self.seq_lens: dict[int, int] = {}
        self._reused: tuple[int, ...] = ()

    def fold(self, event: Event) -> _Told | None:
        """Take in one event; return what its step says, None where it changes nothing here."""
        if isinstance(event, (BlockAllocated, BlockShared, BlockReleased, BlockFreed)):
            return self._count_holders(event)
        if isinstance(event, BlockCopied):
            self.filled[event.block] = self.filled[event.source]
            return "copied", event.block, event.source, f"What block {event.source} holds is copied to block {event.block}."
        if isinstance(event, (BlockPublished, BlockEvicted)):
            return self._publish(event) if isinstance(event, BlockPublished) else self._evict(event)
        if isinstance(event, PrefixReused):
            self._reused = event.blocks
            begins = f"A prompt of {counted(event.num_tokens, 'token')} begins with {listed('block', event.blocks)}"
            return "reused", None, None, f"{begins}: {counted(event.num_cached, 'token')} need not be computed."
        if isinstance(event, TablesChanged):
            return self._set_tables(event)
        return self._move_sequence(event)

    def frame(self, what: str, block: int | None, source: int | None, summary: str) -> dict[str, Any]:
        held = {name: [b for b in table if self.ref_counts[b]] for name, table in self.tables.items()}
        return {
            "what": what,
            "block": block,
            "source": source,
            "ref_counts": [*self.ref_counts],
            "filled": [*self.filled],
            "owners": [[name for name, table in held.items() if b in table] for b in range(len(self.ref_counts))],
            "tables": [{"name": n, "blocks": [*table], "num_tokens": self.seq_lens[n]} for n, table in self.tables.items()],
            "free": self.free[::-1],
            "shared": [b for b, count in enumerate(self.ref_counts) if count > 1],
            "published": [*self.published],
            "evicted": [*self.evicted],
            "summary": summary,
        }

    def _count_holders(self, event: BlockAllocated | BlockShared | BlockReleased | BlockFreed) -> _Told:
        block, change = event.block, -1 if isinstance(event, (BlockReleased, BlockFreed)) else 1
        if self.ref_counts[block] + change != event.ref_count:
            raise ValueError(
                f"the trace should hold all that happened to the pool; block {block} is told to have {event.ref_count} holders "
                f"after it had {self.ref_counts[block]}"
            )
        self.ref_counts[block] = event.ref_count
        if isinstance(event, BlockAllocated):
            self.free.remove(block)
            self.filled[block] = 0
            return "allocated", block, None, f"Block {block} is taken from the free list. Free blocks left: {len(self.free)}."
        if isinstance(event, BlockFreed):
            self.free.append(block)
            self.filled[block] = 0
            return "freed", block, None, f"Block {block} loses its last holder and is free again. Free blocks: {len(self.free)}."
        what, does = ("shared", "gains") if isinstance(event, BlockShared) else ("released", "loses")
        return what, block, None, f"Block {block} {does} a holder and has {event.ref_count}."

    def _publish(self, event: BlockPublished) -> _Told:
        self.published.append(event.block)
        after = "the start of a prompt" if event.parent is None else f"block {event.parent}"
        return "published", event.block, None, f"Block {event.block} is full and can be found by its tokens, behind {after}."

    def _evict(self, event: BlockEvicted) -> _Told:
        self.published.remove(event.block)
        self.evicted.append(event.block)
        return "evicted", event.block, None, f"The prefix cache gives up block {event.block}, which nobody else holds."

    def _set_tables(self, event: TablesChanged) -> _Told:
        for name, table, held in zip(event.names, event.block_tables, event.seq_lens):
            self._set_table(name, table, held)
        rows = [
            f"{name} holds {counted(held, 'token')} in {listed('block', table)}" if table else f"{name} holds nothing"
            for name, table, held in zip(event.names, event.block_tables, event.seq_lens)
        ]
        return "tables", None, None, f"Block tables: {'; '.join(rows)}."

    def _set_table(self, name: int, table: Sequence[int], num_tokens: int) -> None:
        self.tables[name], self.seq_lens[name] = list(table), num_tokens
        if not table:
            del self.tables[name], self.seq_lens[name]
        for index, block in enumerate(table):
            self.filled[block] = min(self.block_size, num_tokens - index * self.block_size)

    def _move_sequence(self, event: Event) -> _Told | None:
        if isinstance(event, SequenceAdmitted):
            self._set_table(event.sequence, self._reused if event.num_cached else (), event.num_cached)
            return "admitted", None, None, f"Sequence {event.sequence} is let in with {counted(event.num_cached, 'token')} held."
        if isinstance(event, SequenceForked):
            self._set_table(event.sequence, event.blocks, self.seq_lens.get(event.parent, 0))
            shared = f"both hold {listed('block', event.blocks)}" if event.blocks else "it has to wait"
            return "forked", None, None, f"Sequence {event.sequence} goes on from where sequence {event.parent} is; {shared}."
        if isinstance(event, (SequencePreempted, SequenceFinished)):
            self._set_table(event.sequence, (), 0)
            what, ends = ("preempted", "has to wait") if isinstance(event, SequencePreempted) else ("finished", "has ended")
            return what, None, None, f"Sequence {event.sequence} {ends} and holds no blocks any more."
        return None


def beam_frames(trace: Trace, *, prompt: Sequence[int] = (), tokenizer: HasPieces | None = None) -> Frames:
    """Fold what `beam_search`, its `PagedCache` and the pool reported into the frames of a tree of beams over their blocks.

    There is one step for every forward pass. A search over another cache, or one that nobody watches, has no blocks to show.

    Args:
        trace: what one search reported, and its cache and pool, in the order in which it came.
        prompt: the tokens the search continued, to be shown before what it found.
        tokenizer: turns token ids into text.

    Returns:
        `prompt` (the texts of its tokens), `prompt_len` and `steps`. A step holds the `position` of the new tokens; the `beams` that go on (`parent`, the row they
        continue, `token`, `score`, and the `blocks` they hold then), the rows `closed`, and the beams that `ended` (`parent`,
        `token`, `score`); the tables of the rows as they were `written` in the forward pass, the blocks `copied` for it as
        `[source, block]`, the blocks `freed` by what was closed; and of the blocks held at the end of the step, how many
        (`num_blocks`), how many there would be `without_sharing`, and which are `shared`.

    Raises:
        ValueError: the trace saw no beam end, so no whole search; or the prompt is of another length.
    """
    if not trace.of(BeamFinished):
        raise ValueError("the trace should hold a run of beam_search; it saw no beam end")
    steps = [_beam_step(index, events, tokenizer) for index, events in enumerate(_forwards(trace))]
    prompt_len = steps[0]["position"]
    if len(prompt) not in (0, prompt_len):
        raise ValueError(f"the search continued a prompt of {counted(prompt_len, 'token')}; it was given as {len(prompt)}")
    return {"prompt": token_texts(list(prompt), tokenizer), "prompt_len": prompt_len, "steps": steps}


def _forwards(trace: Trace) -> Iterator[list[Event]]:
    """Yield what was reported from each forward pass to the next."""
    starts = [index for index, event in enumerate(trace.events) if isinstance(event, TokensComputed)]
    for start, end in zip(starts, [*starts[1:], len(trace.events)]):
        yield trace.events[start:end]


def _beam_step(index: int, events: list[Event], tokenizer: HasPieces | None) -> dict[str, Any]:
    before, pruned, after = _around_pruning(events)
    written = _tables(before)
    position = [event.position for event in events if isinstance(event, (BeamFinished, BeamsPruned))][0]
    ended = [
        {"parent": event.parent, "token": _text(event.token_id, tokenizer), "score": event.score}
        for event in events
        if isinstance(event, BeamFinished)
    ]
    beams = [] if pruned is None else _beams(pruned, _tables(after), tokenizer)
    held = Counter(block for blocks in ([beam["blocks"] for beam in beams] if beams else written) for block in blocks)
    step = {
        "position": position,
        "beams": beams,
        "closed": [] if pruned is None else list(pruned.closed),
        "ended": ended,
        "written": written,
        "copied": [[event.source, event.block] for event in before if isinstance(event, BlockCopied)],
        "freed": [event.block for event in after if isinstance(event, BlockFreed)],
        "num_blocks": len(held),
        "without_sharing": held.total(),
        "shared": sorted(block for block, count in held.items() if count > 1),
    }
    return step | {"summary": _beam_summary(index, step)}


def _around_pruning(events: list[Event]) -> tuple[list[Event], BeamsPruned | None, list[Event]]:
    """Divide a forward's events: up to the choice of beams, the choice, and what the cache did to follow it."""
    for index, event in enumerate(events):
        if isinstance(event, BeamsPruned):
            return events[:index], event, events[index + 1 :]
    return events, None, []


def _tables(events: list[Event]) -> list[list[int]]:
    """The first tables told, or none."""
    for event in events:
        if isinstance(event, TablesChanged):
            return [list(table) for table in event.block_tables]
    return []


def _beams(pruned: BeamsPruned, tables: list[list[int]], tokenizer: HasPieces | None) -> list[dict[str, Any]]:
    tables = tables or [[] for _ in pruned.parents]
    return [
        {"parent": parent, "token": _text(token_id, tokenizer), "score": score, "blocks": blocks}
        for parent, token_id, score, blocks in zip(pruned.parents, pruned.token_ids, pruned.scores, tables)
    ]


def _text(token_id: int, tokenizer: HasPieces | None) -> str:
    return token_texts([token_id], tokenizer)[0]


def _beam_summary(index: int, step: Mapping[str, Any]) -> str:
    tokens = ", ".join(quoted(beam["token"]) for beam in step["beams"])
    summary = f"Step {index + 1}: "
    summary += f"{counted(len(step['beams']), 'beam')} kept, with {tokens}. " if step["beams"] else "The search ends. "
    if step["ended"]:
        summary += f"{counted(len(step['ended']), 'beam')} ended. "
    if step["closed"]:
        summary += f"Nothing continues {listed('row', step['closed'])}. "
    if step["num_blocks"]:
        summary += f"{counted(step['num_blocks'], 'block')} held, {step['without_sharing']} if nothing were shared; "
        summary += f"{len(step['copied'])} copied, {len(step['freed'])} freed."
    return summary.rstrip()


def counted(number: int, noun: str) -> str:
    """Return a number of things: `1 block`, `3 blocks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(noun: str, numbers: Sequence[int]) -> str:
    """Return things by their numbers: `block 3`, `blocks 3, 5 and 7`."""
    *first, last = map(str, numbers)
    return f"{noun}s {', '.join(first)} and {last}" if first else f"{noun} {last}"
