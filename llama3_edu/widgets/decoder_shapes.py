"""The way from token ids to the next token, shape by shape."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["DecoderShapes"]


class DecoderShapes(FrameWidget):
    """The decoder's stages; each step stands at one of them and shows what it does and the tensor it results in.

    Args:
        frames: what `shape_frames` returned.
        step: the index of the frame to draw first.
    """

    name = "decoder-shapes"
    most_steps = 64
    title = "From token to token"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        numbers = schema.each(schema.each(schema.each(schema.number)), least=1)
        step = {
            **{name: schema.text for name in ("name", "module", "group", "does")},
            "axes": schema.each(schema.text, least=1),
            "shape": schema.each(schema.count, least=1),
            "parameters": schema.count,
            "preview": schema.optional({"largest": schema.number, "rows": numbers}),
        }
        return {
            "tokens": schema.each(schema.text, least=1),
            "token_ids": schema.each(schema.count, least=1),
            "n_layers": schema.count,
            "next": schema.each({"text": schema.text, "percent": schema.number}, least=1),
            "steps": schema.each(step),
        }
