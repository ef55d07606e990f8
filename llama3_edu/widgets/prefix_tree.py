"""The tree of published blocks, prompt by prompt."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.pool import PoolWidget, pool_fields, pool_step

__all__ = ["PrefixTree"]


class PrefixTree(PoolWidget):
    """Blocks that can be found by their tokens, as a tree, beside the pool they lie in: who finds, adds and loses which.

    Args:
        frames: what `prefix_frames` returned.
        step: the index of the frame to draw first: 0 for the empty tree.
    """

    name = "prefix-tree"
    title = "Prompts that begin alike"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        sizes = pool_fields(frames)
        num_blocks, block_size = frames["num_blocks"], frames["block_size"]
        tokens = schema.each(schema.text, length=block_size)
        node = {"block": schema.below(num_blocks), "parent": schema.optional(schema.count), "tokens": tokens}
        schema.check("frames", frames, {"nodes": schema.each(node)})
        for index, node in enumerate(frames["nodes"]):
            if node["parent"] is not None:  # a parent was published before its children
                schema.check(f"frames['nodes'][{index}]['parent']", node["parent"], schema.below(index))
        nodes = schema.each(schema.below(len(frames["nodes"])))
        prompt = {"name": schema.count, "num_cached": schema.count, "num_tokens": schema.count}
        step = pool_step(num_blocks, block_size, added=nodes, touched=nodes, removed=nodes)
        return {**sizes, "steps": schema.each({**step, "nodes": nodes, "prompt": schema.optional(prompt)})}
