"""How far rounding moves each number of real keys and values."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["QuantisationError"]


class QuantisationError(FrameWidget):
    """Tokens down, channels across: a square for every number, as large as its error, and the outlines of the groups.

    Args:
        frames: what `quantisation_frames` returned.
        step: the index of the frame to draw first.
    """

    name = "quantisation-error"
    title = "What rounding does to keys and values"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = {"tokens": schema.each(schema.text, least=1), "num_channels": schema.count}
        schema.check("frames", frames, sizes)
        length, channels = len(frames["tokens"]), frames["num_channels"]
        matrix = schema.each(schema.each(schema.number, length=channels), length=length)
        levels = schema.each(schema.each(schema.number, least=1), least=1)
        worst = {"token": schema.below(length), "channel": schema.below(channels), "error": schema.count}
        step = {
            "tensor": schema.text,
            "axis": schema.text,
            "bits": schema.count,
            "group_size": schema.count,
            "effective_bits": schema.number,
            "errors": matrix,
            "zeros": levels,
            "scales": levels,
            "mean": schema.number,
            "worst": worst,
        }
        return {
            "layer": schema.count,
            "head": schema.count,
            "keys": matrix,
            "values": matrix,
            "largest": schema.count,
            "steps": schema.each(step),
        }
