"""What frames of a pool of blocks hold, whichever picture they are for."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema

__all__ = ["pool_fields", "pool_step"]


def pool_fields(frames: Mapping[str, Any]) -> dict[str, schema.Field]:
    """Return what stays the same throughout; check the sizes, which the steps are checked by."""
    schema.check("frames", frames, {"num_blocks": schema.count, "block_size": schema.count})
    row = {"name": schema.count, "tokens": schema.each(schema.text)}
    return {"holder": schema.text, "rows": schema.each(row), "note": schema.optional(schema.text)}


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
