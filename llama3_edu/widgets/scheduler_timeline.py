"""Requests against the steps of an engine: who waits, who computes, who has to give way."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["SchedulerTimeline"]

STATES = ("absent", "attached", "waiting", "prefill", "recompute", "decode", "running", "preempted", "finished")


class SchedulerTimeline(FrameWidget):
    """A row for each request, a column for each step, and under them what each step computed; several runs one above the other.

    Args:
        frames: what `schedule_frames` returned, of one run or of several.
        step: the index of the frame to draw first: what happened up to this step is drawn.
    """

    name = "scheduler-timeline"
    title = "Who computes in which step"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        listed = {"requests": schema.each({}, least=1), "steps": schema.each({}, least=1)}
        schema.check("frames", frames, {"runs": schema.each(listed, least=1)})
        for index, run in enumerate(frames["runs"]):
            schema.check(f"frames['runs'][{index}]", run, cls._run(len(run["requests"])))
        longest = max(len(run["steps"]) for run in frames["runs"])
        return {"steps": schema.each({"step": schema.below(longest)})}

    @staticmethod
    def _run(num_requests: int) -> schema.Field:
        counts = ("step", "prompt_tokens", "decoded_tokens", "recomputed_tokens", "reused_tokens", "running", "waiting")
        a_request = schema.below(num_requests)
        pair = schema.each(schema.count, length=2)
        return {
            "name": schema.text,
            "requests": schema.each(
                {
                    **{name: schema.count for name in ("sequence", "prompt_len", "new_tokens", "arrived")},
                    "parent": schema.optional(a_request),
                    "reason": schema.optional(schema.text),
                }
            ),
            "steps": schema.each(
                {
                    **{name: schema.count for name in counts},
                    "states": schema.each(schema.one_of(*STATES), length=num_requests),
                    "num_tokens": schema.each(schema.count, length=num_requests),
                    **{name: schema.each(pair) for name in ("admitted", "forked", "preempted")},
                    "finished": schema.each(a_request),
                }
            ),
        }
