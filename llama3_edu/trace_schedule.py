"""What an engine did with its requests, step by step, folded into frames: see `trace`."""

from dataclasses import dataclass, field
from typing import Any

from llama3_edu.events import (
    Event,
    SequenceAdded,
    SequenceAdmitted,
    SequenceExtended,
    SequenceFinished,
    SequenceForked,
    SequencePreempted,
    StepFinished,
    StepScheduled,
)
from llama3_edu.trace import Frames, Trace
from llama3_edu.trace_blocks import counted, listed

__all__ = ["schedule_frames"]


def schedule_frames(trace: Trace) -> Frames:
    """Fold what an `Engine` reported into the frames of a timeline: requests against steps.

    What happens between two steps belongs to the later one. A step that an error broke off is left out.

    Args:
        trace: what the engine reported from the moment it was made.

    Returns:
        `requests` and `steps`. A request holds its `sequence` number, `prompt_len`, the `parent` it is forked from (or None), the
        index of the step it `arrived` for, and the `reason` it ended (None: it has not). A step holds, per request, its `states`
        and the `num_tokens` computed; `prompt_tokens`, `decoded_tokens`, `recomputed_tokens` and `reused_tokens` in all; how many
        were `running` and are `waiting`; and the numbers of those `admitted`, `preempted` and `finished`.
        States are `prefill` and `decode` (it takes part), `running` (it has blocks and no turn), `waiting`, `preempted` (it waits
        and had blocks before), `attached` (it will part from another one), `finished` and `absent` (not there yet).

    Raises:
        ValueError: the trace saw no step.
    """
    timeline = _Timeline()
    for event in trace.events:
        timeline.fold(event)
    if not timeline.steps:
        raise ValueError("the trace should hold a run of an engine; it saw no step")
    for step in timeline.steps:
        for per_request, missing in ((step["states"], "absent"), (step["num_tokens"], 0)):
            per_request += [missing] * (len(timeline.requests) - len(per_request))
    requests = [
        {"sequence": r.sequence, "prompt_len": r.prompt_len, "parent": r.parent, "arrived": r.arrived, "reason": r.reason}
        for r in timeline.requests.values()
    ]
    return {"requests": requests, "steps": timeline.steps}


@dataclass(eq=False)
class _Request:
    """What is known of a sequence from what was reported so far."""

    sequence: int
    prompt_len: int
    num_tokens: int
    parent: int | None
    arrived: int
    state: str = "waiting"
    reason: str | None = None
    num_cached: int = 0
    num_computed: int = 0  # the most tokens that were ever held
    host: "_Request | None" = None
    forks: list["_Request"] = field(default_factory=list)


class _Timeline:
    """Follows every sequence through an engine."""

    def __init__(self) -> None:
        self.requests: dict[int, _Request] = {}
        self.steps: list[dict[str, Any]] = []
        self._moved: dict[str, list[int]] = {"admitted": [], "preempted": [], "finished": []}
        self._reused = 0
        self._shares: dict[int, tuple[str, int]] = {}
        self._counts: dict[str, int] = {}
        self._computed_before: dict[int, int] = {}

    def fold(self, event: Event) -> None:
        """Take in one event."""
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    def _add(self, event: SequenceAdded) -> None:
        request = _Request(event.sequence, event.num_tokens, event.num_tokens, event.parent, arrived=len(self.steps))
        self.requests[event.sequence] = request
        if event.parent is not None:
            parent = self.requests[event.parent]
            request.prompt_len, request.state = parent.prompt_len, "attached"
            _attach(request, parent.host or parent)

    def _admit(self, event: SequenceAdmitted) -> None:
        request = self.requests[event.sequence]
        request.state, request.num_cached = "running", event.num_cached
        self._moved["admitted"].append(event.sequence)
        self._reused += event.num_cached

    def _fork(self, event: SequenceForked) -> None:
        child, parent = self.requests[event.sequence], self.requests[event.parent]
        _detach(child)
        child.state = "running" if event.blocks else "waiting"
        if event.blocks:
            child.num_cached = child.num_computed = parent.num_cached

    def _extend(self, event: SequenceExtended) -> None:
        self.requests[event.sequence].num_tokens += 1

    def _preempt(self, event: SequencePreempted) -> None:
        request = self.requests[event.sequence]
        if event.num_lost < request.num_cached:  # an error broke the step off before this one's tokens were computed
            request.num_computed = self._computed_before[event.sequence]
        request.state, request.num_cached = "preempted", 0
        self._moved["preempted"].append(event.sequence)

    def _finish(self, event: SequenceFinished) -> None:
        request = self.requests[event.sequence]
        request.state, request.reason = "finished", event.reason
        self._moved["finished"].append(event.sequence)
        _detach(request)
        if request.forks:  # the first of them computes what they have in common
            heir, *others = request.forks
            for fork in (heir, *others):
                _detach(fork)
            heir.state = "waiting"
            for fork in others:
                _attach(fork, heir)

    def _begin(self, event: StepScheduled) -> None:
        self._shares, self._counts = {}, dict.fromkeys(("prompt_tokens", "decoded_tokens", "recomputed_tokens"), 0)
        self._computed_before = {sequence: self.requests[sequence].num_computed for sequence in event.sequences}
        for sequence, num_tokens in zip(event.sequences, event.num_tokens):
            request = self.requests[sequence]
            first, end = request.num_cached, request.num_cached + num_tokens
            is_decode = first >= request.prompt_len and first == request.num_tokens - 1
            self._shares[sequence] = ("decode" if is_decode else "prefill", num_tokens)
            new = range(max(first, request.num_computed), end)
            of_prompt = max(0, min(end, request.prompt_len) - new.start)
            self._counts["prompt_tokens"] += of_prompt
            self._counts["decoded_tokens"] += len(new) - of_prompt
            self._counts["recomputed_tokens"] += num_tokens - len(new)
            request.num_cached, request.num_computed = end, max(end, request.num_computed)
        self._counts["running"] = sum(request.state == "running" for request in self.requests.values())

    def _end(self, event: StepFinished) -> None:
        shares = [self._shares.get(sequence, (request.state, 0)) for sequence, request in self.requests.items()]
        step: dict[str, Any] = {
            "step": event.step,
            "states": [state for state, _ in shares],
            "num_tokens": [num_tokens for _, num_tokens in shares],
            **self._counts,
            "waiting": sum(request.state in ("waiting", "preempted") for request in self.requests.values()),
            "reused_tokens": self._reused,
            **self._moved,
        }
        self.steps.append(step | {"summary": self._summary(step)})
        self._moved, self._reused = {what: [] for what in self._moved}, 0

    def _summary(self, step: dict[str, Any]) -> str:
        parts = [
            f"{kind} of {listed('sequence', own)}"
            for kind in ("prefill", "decode")
            if (own := [sequence for sequence, (state, _) in self._shares.items() if state == kind])
        ]
        summary = f"Step {step['step'] + 1} computes {counted(sum(step['num_tokens']), 'token')}: {', '.join(parts)}."
        if step["reused_tokens"]:
            summary += f" {counted(step['reused_tokens'], 'token')} found in the prefix cache."
        waiting = [sequence for sequence, request in self.requests.items() if request.state in ("waiting", "preempted")]
        for what, sequences in (("Waiting", waiting), ("Preempted", step["preempted"]), ("Finished", step["finished"])):
            if sequences:
                summary += f" {what}: {listed('sequence', sequences)}."
        return summary


_HANDLERS: dict[type[Event], Any] = {
    SequenceAdded: _Timeline._add,
    SequenceAdmitted: _Timeline._admit,
    SequenceForked: _Timeline._fork,
    SequenceExtended: _Timeline._extend,
    SequencePreempted: _Timeline._preempt,
    SequenceFinished: _Timeline._finish,
    StepScheduled: _Timeline._begin,
    StepFinished: _Timeline._end,
}


def _attach(request: _Request, host: _Request) -> None:
    request.host = host
    host.forks.append(request)


def _detach(request: _Request) -> None:
    if request.host is not None:
        request.host.forks.remove(request)
        request.host = None
