"""What frames of a pool of blocks hold, whichever picture they are for."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.thinning import with_steps
from llama3_edu.trace import Frames
from llama3_edu.trace_pool import joined_changes
from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["PoolWidget", "pool_fields", "pool_step"]


class PoolWidget(FrameWidget):
    """What the pictures of a pool share: their steps hold changes, so that those left out go into the next one that is kept."""

    scripts = ("pool.js",)

    @classmethod
    def only(cls, frames: Mapping[str, Any], steps: list[int]) -> Frames:
        own, last = [], -1
        for step in steps:
            changes: dict[str, Any] = {}
            for passed in frames["steps"][last + 1 : step + 1]:
                changes = joined_changes(changes, passed["changes"])
            own.append({**frames["steps"][step], "changes": changes})
            last = step
        kept = with_steps(frames, steps)
        return {**kept, "steps": own} if len(steps) < len(frames["steps"]) else kept


def pool_fields(frames: Mapping[str, Any]) -> dict[str, schema.Field]:
    """Return what stays the same throughout; check the sizes, which the steps are checked by."""
    schema.check("frames", frames, {"num_blocks": schema.count, "block_size": schema.count})
    row = {"name": schema.count, "tokens": schema.each(schema.text)}
    return {"holder": schema.text, "rows": schema.each(row)}


def pool_step(num_blocks: int, block_size: int, **more: schema.Field) -> dict[str, schema.Field]:
    """Return what a step holds; `more` is what its changes may hold beside those of the pool."""
    block = schema.below(num_blocks)
    blocks = schema.each(block)
    changes = {
        "blocks": schema.each(schema.row(block, schema.count, schema.below(block_size + 1))),
        "tables": schema.each(schema.row(schema.count, schema.count, blocks, schema.count)),
        "free": schema.row(schema.below(num_blocks + 1), blocks),
        "published": blocks,
        "evicted": blocks,
    }
    return {
        "what": schema.text,
        "blocks": blocks,
        "source": schema.optional(block),
        "names": schema.each(schema.count),
        "changes": schema.some_of({**changes, **more}),
    }
