"""A pool of blocks, step by step."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.pool import PoolWidget, pool_fields, pool_step

__all__ = ["BlockStepper"]


class BlockStepper(PoolWidget):
    """A pool's blocks beside the tables that name them: taken, shared, copied on write, let go, published and given up.

    Args:
        frames: what `block_frames` returned.
        step: the index of the frame to draw first: 0 for the empty pool.
    """

    name = "block-stepper"
    title = "Blocks of a pool, and who holds them"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = pool_fields(frames)
        return {**sizes, "steps": schema.each(pool_step(frames["num_blocks"], frames["block_size"]))}
