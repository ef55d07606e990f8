"""Will it fit: a model's weights and its cache, in exact bytes, on a real card."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["MemoryCalculator"]


class MemoryCalculator(FrameWidget):
    """A form that asks for model, context, batch, bits and card, and answers in exact bytes.

    Args:
        frames: what `calculator_frames` returned.
        step: the index of the question to start from.
    """

    name = "memory-calculator"
    most_steps = 64
    title = "Will it fit?"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = ("parameters", "n_layers", "n_kv_heads", "head_dim", "kv_elements", "max_seq_len")
        model = {"name": schema.text, **{name: schema.count for name in sizes}}
        tables = {
            "models": schema.each(model, least=1),
            "cards": schema.each({"name": schema.text, "bytes": schema.count}, least=1),
            "weight_bits": schema.each(schema.count, least=1),
            "kv_bits": schema.each(schema.count, least=1),
        }
        schema.check("frames", frames, tables)
        step = {
            "name": schema.text,
            "model": schema.below(len(frames["models"])),
            "card": schema.below(len(frames["cards"])),
            **{name: schema.count for name in ("seq_len", "batch", "weight_bits", "kv_bits")},
        }
        return {"steps": schema.each(step)}
