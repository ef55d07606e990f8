"""Who looks at whom, and what one replaced token changes."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["CausalMask"]


class CausalMask(FrameWidget):
    """The attention matrix of every layer and head under its mask; each step replaces another token and marks what changed.

    Args:
        frames: what `perturbation_frames` returned.
        step: the index of the frame to draw first: 0 for the text as it is, t + 1 for the token at position t replaced.
    """

    name = "causal-mask"
    title = "What one token changes"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = {"tokens": schema.each(schema.text, least=1), "n_layers": schema.count, "n_heads": schema.count}
        schema.check("frames", frames, sizes)
        length, n_layers, n_heads = len(frames["tokens"]), frames["n_layers"], frames["n_heads"]
        rows = schema.flags(length)
        layer = {"q": rows, "k": rows, "v": rows, "out": rows, "scores": schema.triangle(schema.flags, length)}
        weights = schema.triangle(lambda row_len: schema.each(schema.count, length=row_len), length)
        step = {"position": schema.optional(schema.count), "layers": schema.each(layer, length=n_layers), "logits": rows}
        return {
            "replacement": schema.text,
            "weights": schema.each(schema.each(weights, length=n_heads), length=n_layers),
            "steps": schema.each(step),
        }
