"""Which query head reads which KV head, from one KV head each to one for all."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["HeadGroups"]


class HeadGroups(FrameWidget):
    """Query heads above, the KV heads they read below; each step has fewer KV heads, and beside them the bytes that are left.

    Args:
        frames: what `head_group_frames` returned.
        step: the index of the frame to draw first: 0 for as many KV heads as query heads, the last for a single one.
    """

    name = "head-groups"
    most_steps = 64
    title = "Who reads which KV head"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = {
            "model": schema.text,
            **{name: schema.count for name in ("n_layers", "n_heads", "head_dim", "bits", "own")},
        }
        schema.check("frames", frames, sizes)
        heads = frames["n_heads"]
        step = {
            "n_kv_heads": schema.count,
            "n_rep": schema.count,
            "kind": schema.text,
            "groups": schema.each(schema.below(heads), length=heads),
            "bytes_per_token": schema.count,
        }
        return {"steps": schema.each(step)}
