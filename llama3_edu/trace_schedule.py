"""What an engine did with its requests, step by step, folded into frames: see `trace`."""

from collections.abc import Mapping, Sequence
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


def schedule_frames(traces: Trace | Mapping[str, Trace]) -> Frames:
    """Fold what an `Engine` reported into the frames of a timeline: requests against steps. Several runs go one above the other.

    What happens between two steps belongs to the later one. A step that an error broke off is left out.

    Args:
        traces: what the engine reported from the moment it was made; for several runs, each by the name to show.

    Returns:
        `runs` and `steps`. A step has the index of the runs' `step` it is about; a run that is over by then stays as it ended.
        A run holds its `name` (empty for a single one), `requests` and `steps`. A request holds its `sequence` number,
        `prompt_len`, the `new_tokens` it has in the end, the `parent` it is forked from (or None), the index of the step it `arrived`
        for, and the `reason` it ended (None: it has not). A run's step holds, per request, its `states` and the `num_tokens`
        computed; `prompt_tokens`, `decoded_tokens`, `recomputed_tokens` and `reused_tokens` in all; how many were `running` and
        are `waiting`; those `admitted`, as `[sequence, tokens found in the prefix cache]`, `forked`, as `[sequence, parent]`,
        `preempted`, as `[sequence, tokens lost]`, and the numbers of those `finished`.
        States are `prefill`, `recompute` (some of its tokens were computed before) and `decode` (it takes part), `running` (it
        has blocks and no turn), `waiting`, `preempted` (it waits and had blocks before), `attached` (it will part from another
        one), `finished` and `absent` (not there yet).

    Raises:
        ValueError: there is no trace, or one saw no step.
    """
    named = {"": traces} if isinstance(traces, Trace) else dict(traces)
    if not named:
        raise ValueError("schedule_frames needs at least one trace; it was given none")
    timelines = {name: _timeline(name, trace) for name, trace in named.items()}
    runs = [{"name": name, "requests": timeline.all_requests(), "steps": timeline.steps} for name, timeline in timelines.items()]
    longest = max(len(run["steps"]) for run in runs)
    steps = [{"step": step, "summary": " ".join(t.told(name, step) for name, t in timelines.items())} for step in range(longest)]
    return {"runs": runs, "steps": steps}


def _timeline(name: str, trace: Trace) -> "_Timeline":
    timeline = _Timeline()
    for event in trace.events:
        timeline.fold(event)
    if not timeline.steps:
        which = f"the trace {name!r}" if name else "the trace"
        raise ValueError(f"{which} should hold a run of an engine; it saw no step")
    for step in timeline.steps:
        for per_request, missing in ((step["states"], "absent"), (step["num_tokens"], 0)):
            per_request += [missing] * (len(timeline.requests) - len(per_request))
    return timeline


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

    @property
    def new_tokens(self) -> int:
        return self.num_tokens - self.prompt_len


class _Timeline:
    """Follows every sequence through an engine."""

    def __init__(self) -> None:
        self.requests: dict[int, _Request] = {}
        self.steps: list[dict[str, Any]] = []
        self._summaries: list[str] = []
        self._moved: dict[str, list[Any]] = {"admitted": [], "forked": [], "preempted": [], "finished": []}
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
        self._moved["admitted"].append([event.sequence, event.num_cached])
        self._reused += event.num_cached

    def _fork(self, event: SequenceForked) -> None:
        child, parent = self.requests[event.sequence], self.requests[event.parent]
        _detach(child)
        child.state = "running" if event.blocks else "waiting"
        self._moved["forked"].append([event.sequence, event.parent])
        if event.blocks:
            child.num_cached = child.num_computed = parent.num_cached

    def _extend(self, event: SequenceExtended) -> None:
        self.requests[event.sequence].num_tokens += 1

    def _preempt(self, event: SequencePreempted) -> None:
        request = self.requests[event.sequence]
        if event.num_lost < request.num_cached:  # an error broke the step off before this one's tokens were computed
            request.num_computed = self._computed_before[event.sequence]
        request.state, request.num_cached = "preempted", 0
        self._moved["preempted"].append([event.sequence, event.num_lost])

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
            new = range(max(first, request.num_computed), end)
            again = "recompute" if len(new) < num_tokens else "prefill"
            self._shares[sequence] = ("decode" if is_decode and len(new) else again, num_tokens)
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
        self.steps.append(step)
        self._summaries.append(self._summary(step))
        self._moved, self._reused = {what: [] for what in self._moved}, 0

    def all_requests(self) -> list[dict[str, Any]]:
        """What stays of every request when all is over."""
        names = ("sequence", "prompt_len", "new_tokens", "parent", "arrived", "reason")
        return [{name: getattr(request, name) for name in names} for request in self.requests.values()]

    def told(self, name: str, step: int) -> str:
        """Say what a step did, or that there is no such step; with the run's name where there are several."""
        over = f"Over after {counted(len(self.steps), 'step')}."
        what = self._summaries[step] if step < len(self.steps) else over
        return f"{name}: {what[0].lower()}{what[1:]}" if name else what

    def _summary(self, step: Mapping[str, Any]) -> str:
        kinds = {"prefill": "prefill of", "recompute": "computing again for", "decode": "decode of"}
        parts = [
            f"{words} {_named(own)}"
            for kind, words in kinds.items()
            if (own := [sequence for sequence, (state, _) in self._shares.items() if state == kind])
        ]
        summary = f"Step {step['step'] + 1} computes {counted(sum(step['num_tokens']), 'token')}: {', '.join(parts)}."
        if step["reused_tokens"]:
            summary += f" {counted(step['reused_tokens'], 'token')} found in the prefix cache."
        waiting = [sequence for sequence, request in self.requests.items() if request.state in ("waiting", "preempted")]
        preempted = [sequence for sequence, _ in step["preempted"]]
        for what, sequences in (("Waiting", waiting), ("Preempted", preempted), ("Finished", step["finished"])):
            if sequences:
                summary += f" {what}: {_named(sequences)}."
        return summary


def _named(sequences: Sequence[int]) -> str:
    """Requests by their numbers, or how many they are where nobody would read them all."""
    return listed("request", sequences) if len(sequences) <= 6 else counted(len(sequences), "request")


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
