"""A cache filling, token by token and layer by layer."""

from collections.abc import Iterable, Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["CacheGrowth"]


class CacheGrowth(FrameWidget):
    """Layers × KV heads × tokens, filling; beside it the bytes each cache holds and has copied.

    Args:
        frames: what `growth_frames` returned.
        step: the index of the frame to draw first: 0 for the empty caches, then one per layer of every forward pass.
    """

    name = "cache-growth"
    title = "A cache, filling"

    @classmethod
    def important(cls, frames: Mapping[str, Any]) -> Iterable[int]:
        """The last step of every forward pass: all layers have stored then."""
        steps = frames["steps"]
        return [index for index, step in enumerate(steps[:-1]) if steps[index + 1]["forward"] != step["forward"]]

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        caches = {"name": schema.text, "slots": schema.optional(schema.count)}
        sizes = {
            "tokens": schema.each(schema.text, least=1),
            "prompt_len": schema.count,
            "n_layers": schema.count,
            "n_kv_heads": schema.count,
            "bytes_per_cell": schema.count,
            "caches": schema.each(caches, least=1),
        }
        schema.check("frames", frames, sizes)
        bytes_now = {"held": schema.count, "copied": schema.count, "copied_total": schema.count}
        step = {
            "forward": schema.optional(schema.count),
            "layer": schema.optional(schema.count),
            "arrived": schema.span(len(frames["tokens"])),
            "stored": schema.each(schema.count, length=frames["n_layers"]),
            "caches": schema.each(bytes_now, length=len(frames["caches"])),
        }
        return {"steps": schema.each(step)}
