"""Watch a run and fold what happened into frames: plain values that a widget draws step by step.

A frame maker takes traces of real runs and returns one dictionary: what stays the same throughout (the tokens' text, the sizes)
and under `steps` one dictionary per step. Everything in it can be written as JSON, and each step carries a `summary`,
one or two sentences that say what its picture shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from llama3_edu.config import LlamaConfig
from llama3_edu.events import Event, KeysStored, TokenChosen, TokensComputed
from llama3_edu.memory import format_bytes

__all__ = ["Trace", "Frames", "HasPieces", "token_texts", "quoted", "counted", "listed", "recompute_frames", "growth_frames"]

Frames: TypeAlias = dict[str, Any]
"""What a frame maker returns and a widget draws."""

SomeEvent = TypeVar("SomeEvent", bound=Event)


@runtime_checkable
class HasPieces(Protocol):
    """Anything that can show tokens one by one, as `Tokenizer` does."""

    def pieces(self, token_ids: Sequence[int]) -> list[str]: ...


class Trace:
    """An observer that keeps every event, in order. Hand it to `observer=` and read `events` afterwards."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def __len__(self) -> int:
        return len(self.events)

    def __repr__(self) -> str:
        return f"Trace(events={len(self.events)})"

    def of(self, kind: type[SomeEvent]) -> list[SomeEvent]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


def token_texts(token_ids: list[int], tokenizer: HasPieces | None = None) -> list[str]:
    """Return each token so that all of it can be seen, or `#17` for token 17 where there is no tokenizer."""
    if tokenizer is None:
        return [f"#{token_id}" for token_id in token_ids]
    return tokenizer.pieces(token_ids)


def quoted(piece: str) -> str:
    """Return a token as a sentence would quote it: the space it begins with left out, unless it is all there is."""
    return f"“{piece.lstrip('␣') or piece}”"


def counted(number: int, noun: str) -> str:
    """Return a number of things: `1 block`, `3 blocks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(noun: str, numbers: Sequence[int], *, most: int = 8) -> str:
    """Return things by their numbers: `block 3`, `blocks 3, 5 and 7`; of more than `most`, the first, and how many more."""
    shown = list(map(str, numbers))
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{len(shown) - most + 1} more"]
    *first, last = shown
    return f"{noun}s {', '.join(first)} and {last}" if first else f"{noun} {last}"


def recompute_frames(
    naive: Trace,
    cached: Trace,
    *,
    tokens: Int[Tensor, "batch total_len"],
    tokenizer: HasPieces | None = None,
    row: int = 0,
) -> Frames:
    """Fold two runs of `generate`, without a cache and with one, into the frames of `RecomputeTriangle`.

    Args:
        naive: what `generate` reported without a cache.
        cached: what it reported with one.
        tokens: what `generate` returned, the prompt included.
        tokenizer: turns token ids into text.
        row: which row of the batch to follow.

    Returns:
        `tokens`, `prompt_len` and `steps`; a step holds the positions computed as `[first, end)` for `naive` and `cached`,
        the position that was `chosen`, and the totals so far.

    Raises:
        ValueError: a trace saw no forward pass, the runs chose different tokens, or the positions computed are no unbroken run.
    """
    chosen = _same_choices(naive, cached, row)
    steps: list[dict[str, Any]] = []
    totals = {"naive": 0, "cached": 0}
    spans = {"naive": _spans_computed(naive, row, len(chosen)), "cached": _spans_computed(cached, row, len(chosen))}
    texts = token_texts(tokens[row].tolist(), tokenizer)
    for index, event in enumerate(chosen):
        step: dict[str, Any] = {"chosen": event.position}
        for run, per_step in spans.items():
            step[run] = per_step[index]
            totals[run] += _length(per_step[index])
            step[f"{run}_total"] = totals[run]
        step["summary"] = _recompute_summary(index, step, texts)
        steps.append(step)
    return {"tokens": texts, "prompt_len": chosen[0].position, "steps": steps}


def growth_frames(
    traces: Mapping[str, Trace],
    *,
    config: LlamaConfig,
    tokens: Int[Tensor, "batch total_len"],
    tokenizer: HasPieces | None = None,
    bits: int = 32,
    row: int = 0,
) -> Frames:
    """Fold what caches reported while the same tokens went into each of them into the frames of `CacheGrowth`.

    There is one step before the first token and then one for every layer of every forward pass.

    Args:
        traces: for each cache, by the name to show, what it reported; the caches have one row.
        config: the shape of the model.
        tokens: what `generate` returned, the prompt included.
        tokenizer: turns token ids into text.
        bits: what the caches keep a number in.
        row: which row of `tokens` the caches followed.

    Returns:
        `tokens`, the sizes, `bytes_per_cell` (one token's key and value in one KV head of one layer), `caches` (`name`, and
        `slots` where slots are allocated ahead, else None) and `steps`; a step holds the `forward` and `layer` it belongs to
        (None before the first), the positions that `arrived` as `[first, end)`, the tokens `stored` per layer, and for each
        cache the bytes `held`, `copied` now, and `copied_total`.

    Raises:
        ValueError: there is no trace, a trace saw nothing stored or a cache of several rows, the caches were given different
            tokens, or `bits`
            does not fit the bytes they report.
    """
    stored = {name: _keys_stored(name, trace) for name, trace in traces.items()}
    _check_same_tokens(stored)
    events = next(iter(stored.values()))
    seen = events[-1].seq_lens[0]
    cell = 2 * config.head_dim * bits // 8
    caches = [{"name": name, "slots": _slots(name, own, config, cell)} for name, own in stored.items()]
    texts = token_texts(tokens[row].tolist(), tokenizer)[:seen]
    steps = [_before_the_first(stored, caches, config)]
    for index in range(len(events)):
        steps.append(_growth_step(steps[-1], [own[index] for own in stored.values()], list(stored), texts))
    return {
        "tokens": texts,
        "prompt_len": _length(steps[1]["arrived"]),
        "n_layers": config.n_layers,
        "n_kv_heads": config.n_kv_heads,
        "bytes_per_cell": cell,
        "caches": caches,
        "steps": steps,
    }


def _same_choices(naive: Trace, cached: Trace, row: int) -> list[TokenChosen]:
    ours, theirs = ([event for event in trace.of(TokenChosen) if event.row == row] for trace in (naive, cached))
    for name, events in (("naive", ours), ("cached", theirs)):
        if not events:
            raise ValueError(f"the trace {name!r} should hold a run of generate; it saw no token chosen for row {row}")
    if ours != theirs:
        raise ValueError(
            "both runs should choose the same tokens; "
            f"one chose {[event.token_id for event in ours]}, the other {[event.token_id for event in theirs]}"
        )
    return ours


def _spans_computed(trace: Trace, row: int, count: int) -> list[list[int]]:
    spans = [_span(event.positions[row]) for event in trace.of(TokensComputed)][:count]
    if len(spans) < count:
        raise ValueError(f"a run that chose {count} tokens should report {count} forward passes; it reported {len(spans)}")
    return spans


def _span(positions: tuple[int, ...]) -> list[int]:
    """Write an unbroken run of positions as its first and one past its last."""
    if not positions or positions != tuple(range(positions[0], positions[0] + len(positions))):
        raise ValueError(f"positions should be an unbroken run; they are {list(positions)}")
    return [positions[0], positions[-1] + 1]


def _length(span: list[int]) -> int:
    return span[1] - span[0]


def _recompute_summary(index: int, step: Mapping[str, Any], texts: list[str]) -> str:
    return (
        f"Step {index + 1} chooses {quoted(texts[step['chosen']])}. "
        f"Without a cache it computes {counted(_length(step['naive']), 'token')}, {step['naive_total']} so far; "
        f"with a cache {counted(_length(step['cached']), 'token')}, {step['cached_total']} so far."
    )


def _keys_stored(name: str, trace: Trace) -> list[KeysStored]:
    events = trace.of(KeysStored)
    if not events:
        raise ValueError(f"the trace {name!r} should hold what a cache reported; it saw no keys stored")
    if len(events[0].seq_lens) != 1:
        raise ValueError(f"growth_frames follows a cache of one row; {name!r} has {len(events[0].seq_lens)}")
    return events


def _check_same_tokens(stored: Mapping[str, list[KeysStored]]) -> None:
    if not stored:
        raise ValueError("growth_frames needs at least one trace; it was given none")
    orders = {name: [(event.layer, event.positions) for event in events] for name, events in stored.items()}
    (first, order), *others = orders.items()
    for name, other in others:
        if other != order:
            raise ValueError(f"all caches should be given the same tokens; {name!r} was not given those of {first!r}")


def _slots(name: str, events: list[KeysStored], config: LlamaConfig, cell: int) -> int | None:
    """How many tokens fit without another allocation; None where every token is one."""
    first = events[0]
    if first.nbytes == first.seq_lens[0] * config.n_kv_heads * cell:
        return None
    slots, rest = divmod(first.nbytes, config.n_layers * config.n_kv_heads * cell)
    if rest:
        raise ValueError(f"{name!r} holds {first.nbytes} bytes, no whole number of tokens of {cell} bytes per layer and head")
    return slots


def _before_the_first(
    stored: Mapping[str, list[KeysStored]], caches: list[dict[str, Any]], config: LlamaConfig
) -> dict[str, Any]:
    held = [events[0].nbytes if cache["slots"] else 0 for events, cache in zip(stored.values(), caches)]
    holds = "; ".join(f"{name} holds {format_bytes(size)}" for name, size in zip(stored, held))
    return {
        "forward": None,
        "layer": None,
        "arrived": [0, 0],
        "stored": [0] * config.n_layers,
        "caches": [{"held": size, "copied": 0, "copied_total": 0} for size in held],
        "summary": f"Before the first token: {holds}.",
    }


def _growth_step(before: Mapping[str, Any], events: list[KeysStored], names: list[str], texts: list[str]) -> dict[str, Any]:
    layer, arrived = events[0].layer, _span(events[0].positions[0])
    previous = -1 if before["forward"] is None else before["forward"]
    stored = list(before["stored"])
    stored[layer] = arrived[1]
    caches = [
        {"held": event.nbytes, "copied": event.bytes_copied, "copied_total": old["copied_total"] + event.bytes_copied}
        for old, event in zip(before["caches"], events)
    ]
    what = quoted(texts[arrived[0]]) if _length(arrived) == 1 else f"{_length(arrived)} tokens"
    forward = previous + (layer == 0)
    summary = f"Forward pass {forward + 1}, layer {layer + 1} of {len(stored)}: the keys and values of {what} are stored. "
    summary += " ".join(
        f"{name} holds {format_bytes(cache['held'])} and has copied {format_bytes(cache['copied_total'])}."
        for name, cache in zip(names, caches)
    )
    return {
        "forward": forward,
        "layer": layer,
        "arrived": arrived,
        "stored": stored,
        "caches": caches,
        "summary": summary,
    }
