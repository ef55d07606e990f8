"""Which tokens each step computes, without a cache and with one."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["RecomputeTriangle"]


class RecomputeTriangle(FrameWidget):
    """Two grids of steps and positions: what is computed anew, what is computed again, what is read from the cache.

    Args:
        frames: what `recompute_frames` returned.
        step: the index of the frame to draw first.
    """

    name = "recompute-triangle"
    most_steps = 64
    title = "What each step computes"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        schema.check("frames", frames, {"tokens": schema.each(schema.text, least=1)})
        inside = schema.span(len(frames["tokens"]))
        step = {
            "naive": inside,
            "cached": inside,
            "chosen": schema.count,
            "naive_total": schema.count,
            "cached_total": schema.count,
        }
        return {"prompt_len": schema.count, "steps": schema.each(step)}
