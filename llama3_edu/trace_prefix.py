"""What a prefix cache did with the prompts that came in, folded into frames of a tree of published blocks: see `trace`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llama3_edu.events import (
    BlockAllocated,
    BlockEvicted,
    BlockFreed,
    BlockPublished,
    Event,
    PrefixReused,
    PrefixTouched,
    SequenceAdmitted,
    SequenceFinished,
    SequenceForked,
    SequencePreempted,
    TablesChanged,
)
from llama3_edu.trace import Frames, HasPieces, Trace, counted, listed, token_texts
from llama3_edu.trace_pool import Pool, Told, holder_of, taken_together

__all__ = ["prefix_frames"]


def prefix_frames(
    trace: Trace,
    *,
    num_blocks: int,
    block_size: int,
    token_ids: Mapping[int, Sequence[int]] | None = None,
    tokenizer: HasPieces | None = None,
    most: int = 1_000,
) -> Frames:
    """Fold what a pool, its prefix cache and those who use them reported into the frames of `PrefixTree`.

    There is one step before the first event; then one for every prompt that comes in, for blocks taken for what is left of it,
    for every block published or given up, and for everyone who leaves.

    Args:
        trace: what was reported from the moment the pool was made, by everybody who uses it.
        num_blocks: blocks of the pool.
        block_size: tokens per block.
        token_ids: for each row or sequence, its tokens, so that a prompt can show what it asks for.
        tokenizer: turns token ids into text.
        most: steps at most. Of a longer run, several are taken together, and `note` says how many.

    Returns:
        The `num_blocks`, `block_size`, `holder`, `rows` and `note` of `block_frames`; `nodes`, one for every time a block was
        published (its `block`, its `tokens`, and the node that is its `parent`, None at the start of a prompt); and `steps`.
        A step is one of `block_frames`, and holds the nodes it is about in `nodes`, the `prompt` it is about (`name`,
        `num_cached`, `num_tokens`; else None), and in `changes` also the nodes `added`, then those `touched` (counted as just
        used, in this order), then those `removed`.

    Raises:
        ValueError: an event does not follow from those before it: the trace is not all that was reported.
    """
    events = trace.events
    holder = holder_of(events)
    num_steps = sum(told is not None for told in _Tree(events, Pool(num_blocks, block_size, holder)).steps())
    every, note = taken_together(num_steps, most)
    tree = _Tree(events, Pool(num_blocks, block_size, holder))
    empty = f"All {num_blocks} blocks are free, and nothing can be found by its tokens."
    steps = [_frame(Told("start", empty), tree, {})]
    number = 0
    for told in tree.steps():
        number += told is not None
        if told is not None and (number % every == 0 or number == num_steps):
            steps.append(_frame(told, tree, tree.changes()))
    nodes = [{**node, "tokens": token_texts(list(node["tokens"]), tokenizer)} for node in tree.nodes]
    rows = [{"name": name, "tokens": token_texts(list(ids), tokenizer)} for name, ids in (token_ids or {}).items()]
    sizes = {"num_blocks": num_blocks, "block_size": block_size, "holder": holder}
    return {**sizes, "nodes": nodes, "rows": rows, "steps": steps} | note


def _frame(told: Told, tree: "_Tree", changes: Mapping[str, Any]) -> dict[str, Any]:
    frame = told.frame(changes)
    summary = frame.pop("summary")
    return {**frame, "nodes": [*tree.meant], "prompt": tree.prompt, "summary": summary}


class _Tree:
    """The published blocks as a tree, beside what is known of the pool."""

    def __init__(self, events: Sequence[Event], pool: Pool) -> None:
        self.events, self.pool = events, pool
        self.nodes: list[dict[str, Any]] = []
        self.meant: list[int] = []  # the nodes the step is about
        self.prompt: dict[str, int] | None = None
        self._node_of: dict[int, int] = {}  # for each published block, its node
        self._taken: set[int] = set()  # the blocks allocated since tables were last told
        self._here: set[int] = set()  # those who may hold blocks
        self._begin_changes()

    def steps(self) -> Iterator[Told | None]:
        """Fold all events one after another; yield what the step of each says, None where it makes none."""
        for index, event in enumerate(self.events):
            told = self.pool.fold(event)
            self.meant, self.prompt = [], None
            yield self._tell(index, event, told)

    def changes(self) -> dict[str, Any]:
        """Return what changed since this was last called: in the pool, and in the tree."""
        own = {"added": self._added, "touched": self._touched, "removed": self._removed}
        self._begin_changes()
        return {**self.pool.changes(), **{field: nodes for field, nodes in own.items() if nodes}}

    def _begin_changes(self) -> None:
        self._added: list[int] = []
        self._touched: list[int] = []
        self._removed: list[int] = []

    def _tell(self, index: int, event: Event, told: Told | None) -> Told | None:
        if isinstance(event, BlockAllocated):
            self._taken.add(event.block)
            return None
        if isinstance(event, BlockPublished) and told:
            self._add(event)
            return told
        if isinstance(event, BlockEvicted):
            self._removed.append(self._node_of[event.block])
            return None
        if isinstance(event, BlockFreed):
            return self._remove(event, told) if told and told.what == "evicted" else None
        if isinstance(event, PrefixTouched):
            self._touch([self._node_of[block] for block in reversed(event.blocks)])
            return None
        if isinstance(event, PrefixReused) and told:
            return self._reuse(index, event, told)
        if isinstance(event, SequenceAdmitted):
            self._here.add(event.sequence)
            return None if event.num_cached else self._miss(event)
        if isinstance(event, TablesChanged):
            return self._compute(event)
        if isinstance(event, SequenceForked) and event.blocks:
            self._here.add(event.sequence)
            return told
        if isinstance(event, (SequenceFinished, SequencePreempted)) and event.sequence in self._here:
            self._here.remove(event.sequence)
            return told
        return None

    def _add(self, event: BlockPublished) -> None:
        parent = None if event.parent is None else self._node_of[event.parent]
        self._node_of[event.block] = len(self.nodes)
        self._added.append(len(self.nodes))
        if self._touched:  # later than those
            self._touched.append(len(self.nodes))
        self.meant = [len(self.nodes)]
        self.nodes.append({"block": event.block, "parent": parent, "tokens": list(event.token_ids)})

    def _remove(self, event: BlockFreed, told: Told) -> Told:
        self.meant = [self._node_of.pop(event.block)]
        oldest = f"Of the blocks that nobody else holds, block {event.block} was used longest ago"
        return replace(told, summary=f"{oldest}: the prefix cache gives it up, and it is free.")

    def _touch(self, nodes: list[int]) -> None:
        self._touched = [*(node for node in self._touched if node not in nodes), *nodes]

    def _reuse(self, index: int, event: PrefixReused, told: Told) -> Told:
        self.meant = [self._node_of[block] for block in event.blocks]
        name = self._asker(index, event.blocks)
        if name is None:
            return told
        self.prompt = {"name": name, "num_cached": event.num_cached, "num_tokens": event.num_tokens}
        left = counted(event.num_tokens - event.num_cached, "token")
        finds = f"{self._who(name)} comes with {counted(event.num_tokens, 'token')} and finds {listed('block', event.blocks)}"
        return replace(told, names=(name,), summary=f"{finds}; it has {left} left to compute.")

    def _miss(self, event: SequenceAdmitted) -> Told:
        self.prompt = {"name": event.sequence, "num_cached": 0, "num_tokens": event.num_tokens}
        comes = f"Sequence {event.sequence} comes with {counted(event.num_tokens, 'token')}"
        return Told("missed", f"{comes}; no published block begins like it.", names=(event.sequence,))

    def _compute(self, event: TablesChanged) -> Told | None:
        """A step only where blocks were taken, or somebody left."""
        tables = dict(zip(event.names, event.block_tables))
        taken = {name: [block for block in table if block in self._taken] for name, table in tables.items()}
        taken = {name: blocks for name, blocks in taken.items() if blocks}
        gone = [name for name, table in tables.items() if not table and name in self._here]
        self._taken.clear()
        self._here = self._here.difference(gone).union(name for name, table in tables.items() if table)
        said = [f"{self._who(name)} takes {listed('block', blocks)} for what it computes." for name, blocks in taken.items()]
        said += [f"{self._who(name)} holds nothing any more." for name in gone]
        if not said:
            return None
        if len(said) > 3:
            said = [*said[:3], f"So do {len(said) - 3} more."]
        blocks = tuple(block for blocks in taken.values() for block in blocks)
        return Told("computed" if taken else "finished", " ".join(said), blocks, names=(*taken, *gone))

    def _asker(self, index: int, blocks: tuple[int, ...]) -> int | None:
        """Who came with the prompt that was found: the next one that is let in, or whose table begins with its blocks."""
        for event in self.events[index + 1 :]:
            if isinstance(event, SequenceAdmitted):
                return event.sequence
            if isinstance(event, TablesChanged):
                known = self.pool.tables
                begin = [n for n, t in zip(event.names, event.block_tables) if t[: len(blocks)] == blocks and n not in known]
                return begin[0] if begin else None
            if isinstance(event, PrefixReused):
                return None
        return None

    def _who(self, name: int) -> str:
        return f"{self.pool.holder.capitalize()} {name}"
