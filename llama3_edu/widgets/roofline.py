"""Is memory the limit, or computing: prefill and decode under the roof of a machine."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["Roofline"]


class Roofline(FrameWidget):
    """A roofline with sliders for batch and context: where decode and prefill stand, and what was measured.

    Args:
        frames: what `roofline_frames` returned.
        step: the index of the question to start from.
    """

    name = "roofline"
    title = "What is the limit?"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = ("parameters", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "max_seq_len")
        rates = ("flops_per_second", "bytes_per_second", "memory_bytes")
        measured = {
            "label": schema.text,
            "words": schema.text,
            "flops": schema.count,
            "bytes": schema.count,
            "seconds": schema.number,
        }
        tables = {
            "models": schema.each({"name": schema.text, **{name: schema.count for name in sizes}}, least=1),
            "machines": schema.each({"name": schema.text, **{name: schema.count for name in rates}}, least=1),
            "measured": schema.each(measured),
            "axes": {name: schema.each(schema.number, length=2) for name in ("intensity", "flops")},
            **{name: schema.count for name in ("bits", "bits_of_weights", "max_batch_power", "max_context_power")},
        }
        schema.check("frames", frames, tables)
        step = {
            "name": schema.text,
            "model": schema.below(len(frames["models"])),
            "machine": schema.below(len(frames["machines"])),
            "batch_power": schema.below(frames["max_batch_power"] + 1),
            "context_power": schema.below(frames["max_context_power"] + 1),
        }
        return {"steps": schema.each(step)}
