"""Which bug is this? What a trial found in a cache, and the names to choose from."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["BugHunt"]


class BugHunt(FrameWidget):
    """Each step is a case: the error by position, the keys in every layer, their number and the memory. The reader names the bug.

    Args:
        frames: what `bug_frames` returned.
        step: the index of the case to draw first.
    """

    name = "bug-hunt"
    most_steps = 64
    title = "Which bug is this?"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = {
            "names": schema.each(schema.text, least=1),
            "seq_len": schema.count,
            "n_layers": schema.count,
            "rounding": schema.number,
            "lowest": schema.number,
            "highest": schema.number,
        }
        schema.check("frames", frames, sizes)
        seq_len, names = frames["seq_len"], len(frames["names"])
        step = {
            "answer": schema.below(names),
            "errors": schema.each(schema.number, length=seq_len),
            "keys": schema.each(schema.flags(seq_len), length=frames["n_layers"]),
            "surplus": schema.count,
            "nbytes": schema.count,
            "allocated": schema.count,
            "replies": schema.each(schema.text, length=names),
        }
        return {
            "cuts": schema.each(schema.below(seq_len)),
            "swap_at": schema.below(seq_len),
            "steps": schema.each(step),
        }
