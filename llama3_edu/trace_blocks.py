"""What happens to the blocks of a pool, and to beams that share them, folded into frames: see `trace`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama3_edu.events import BeamFinished, BeamsPruned, BlockCopied, BlockFreed, Event, TablesChanged, TokensComputed
from llama3_edu.trace import Frames, HasPieces, Trace, counted, listed, quoted, token_texts
from llama3_edu.trace_pool import Pool, Told, apply_changes, holder_of, makes_step, taken_together

__all__ = ["block_frames", "block_state", "block_states", "beam_frames", "counted", "listed"]


def block_frames(
    trace: Trace,
    *,
    num_blocks: int,
    block_size: int,
    token_ids: Mapping[int, Sequence[int]] | None = None,
    tokenizer: HasPieces | None = None,
    most: int = 1_000,
) -> Frames:
    """Fold all that a pool, its caches, its prefix cache and its engine reported into the frames of `BlockStepper`.

    There is one step before the first event, and one for every event that changes what is known of the blocks;
    that a block is given up and that it is free makes one.

    Args:
        trace: what was reported from the moment the pool was made, by everybody who uses it.
        num_blocks: blocks of the pool.
        block_size: tokens per block.
        token_ids: for each row or sequence, its tokens, so that blocks can show what they hold. A row that is reordered holds
            other tokens before than after; leave it out.
        tokenizer: turns token ids into text.
        most: steps at most. Of a longer run, several are taken together, and `note` says how many.

    Returns:
        `num_blocks`, `block_size`, the `holder` (`sequence` or `row`), `rows` (`name` and `tokens`, for every one in
        `token_ids`), a `note` where not every step is shown, and `steps`. A step holds `what` happened, to which `blocks` and
        `names` of holders, the `source` of a copy (else None), and the `changes` since the step before it, as `Pool.changes`
        lists them; `block_state` puts them together. Tables are as they were last told: a change shows with the next forward
        pass, reorder, admission or end.

    Raises:
        ValueError: an event does not follow from those before it: the trace is not all that was reported.
    """
    pool = Pool(num_blocks, block_size, holder_of(trace.events))
    num_steps = sum(map(makes_step, trace.events))
    every, note = taken_together(num_steps, most)
    empty = f"All {num_blocks} blocks are free; each has room for {counted(block_size, 'token')}."
    steps = [Told("start", empty).frame({})]
    number = 0
    for event in trace.events:
        told = pool.fold(event)
        number += told is not None
        if told is not None and (number % every == 0 or number == num_steps):
            steps.append(told.frame(pool.changes()))
    rows = [{"name": name, "tokens": token_texts(list(ids), tokenizer)} for name, ids in (token_ids or {}).items()]
    sizes = {"num_blocks": num_blocks, "block_size": block_size, "holder": pool.holder}
    return {**sizes, "rows": rows, "steps": steps} | note


def block_states(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield, for every step of `block_frames` or `prefix_frames`, what `block_state` returns."""
    known = _all_free(frames["num_blocks"])
    for step in frames["steps"]:
        apply_changes(known, step["changes"])
        yield _state(known)


def block_state(frames: Frames, step: int) -> dict[str, Any]:
    """Put the changes of `block_frames` or `prefix_frames` together, up to a step.

    Returns:
        Per block its `ref_counts`, the slots `filled`, and its `owners`; the block `tables` (`name`, `blocks`, `num_tokens`);
        `free` blocks in the order they will be taken, blocks `shared` by several holders, those `published`, and how many were
        evicted so far (`num_evicted`).
    """
    known = _all_free(frames["num_blocks"])
    for earlier in frames["steps"][: range(len(frames["steps"]))[step] + 1]:
        apply_changes(known, earlier["changes"])
    return _state(known)


def _all_free(num_blocks: int) -> dict[str, Any]:
    counts, free = {"ref_counts": [0] * num_blocks, "filled": [0] * num_blocks}, list(reversed(range(num_blocks)))
    return {**counts, "tables": {}, "free": free, "published": [], "num_evicted": 0}


def _state(known: Mapping[str, Any]) -> dict[str, Any]:
    owners: list[list[int]] = [[] for _ in known["ref_counts"]]
    for name, table in sorted(known["tables"].items()):
        for block in table["blocks"]:
            owners[block].append(name)
    return {
        "ref_counts": [*known["ref_counts"]],
        "filled": [*known["filled"]],
        "owners": owners,
        "tables": [{"name": name, **table} for name, table in sorted(known["tables"].items())],
        "free": known["free"][::-1],
        "shared": [block for block, count in enumerate(known["ref_counts"]) if count > 1],
        "published": [*known["published"]],
        "num_evicted": known["num_evicted"],
    }


def beam_frames(trace: Trace, *, prompt: Sequence[int] = (), tokenizer: HasPieces | None = None) -> Frames:
    """Fold what `beam_search`, its `PagedCache` and the pool reported into the frames of a tree of beams over their blocks.

    There is one step for every forward pass, of which the tree has a column. A search over another cache, or one that nobody watches, has no blocks to show.

    Args:
        trace: what one search reported, and its cache and pool, in the order in which it came.
        prompt: the tokens the search continued, to be shown before what it found.
        tokenizer: turns token ids into text.

    Returns:
        `prompt` (the texts of its tokens), `prompt_len`, `forwards` and `steps`. A step has the index of its `forward`. A forward
        pass holds the `position` of the new tokens; the `beams` that go on (`parent`, the row they
        continue, `token`, `score`, and the `blocks` they hold then), the rows `closed`, and the beams that `ended` (`parent`,
        `token`, `score`); the tables of the rows as they were `written` in the forward pass, the blocks `copied` for it as
        `[source, block]`, the blocks `freed` by what was closed; and of the blocks held at the end of the step, how many
        (`num_blocks`), how many there would be `without_sharing`, and which are `shared`.

    Raises:
        ValueError: the trace saw no beam end, so no whole search; or the prompt is of another length.
    """
    if not trace.of(BeamFinished):
        raise ValueError("the trace should hold a run of beam_search; it saw no beam end")
    forwards = [_beam_forward(events, tokenizer) for events in _forwards(trace)]
    prompt_len = forwards[0]["position"]
    if len(prompt) not in (0, prompt_len):
        raise ValueError(f"the search continued a prompt of {counted(prompt_len, 'token')}; it was given as {len(prompt)}")
    steps = [{"forward": index, "summary": _beam_summary(index, forward)} for index, forward in enumerate(forwards)]
    return {"prompt": token_texts(list(prompt), tokenizer), "prompt_len": prompt_len, "forwards": forwards, "steps": steps}


def _forwards(trace: Trace) -> Iterator[list[Event]]:
    """Yield what was reported from each forward pass to the next."""
    starts = [index for index, event in enumerate(trace.events) if isinstance(event, TokensComputed)]
    for start, end in zip(starts, [*starts[1:], len(trace.events)]):
        yield trace.events[start:end]


def _beam_forward(events: list[Event], tokenizer: HasPieces | None) -> dict[str, Any]:
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
    return {
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


def _beam_summary(index: int, forward: Mapping[str, Any]) -> str:
    tokens = ", ".join(quoted(beam["token"]) for beam in forward["beams"])
    summary = f"Step {index + 1}: "
    summary += f"{counted(len(forward['beams']), 'beam')} kept, with {tokens}. " if forward["beams"] else "The search ends. "
    if forward["ended"]:
        summary += f"{counted(len(forward['ended']), 'beam')} ended. "
    if forward["closed"]:
        summary += f"Nothing continues {listed('row', forward['closed'])}. "
    if forward["num_blocks"]:
        summary += f"{counted(forward['num_blocks'], 'block')} held, {forward['without_sharing']} if nothing were shared; "
        summary += f"{len(forward['copied'])} copied, {len(forward['freed'])} freed."
    return summary.rstrip()
