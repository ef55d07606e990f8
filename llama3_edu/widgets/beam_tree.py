"""The tree of beams of a search, and the blocks that hold them."""

from collections.abc import Mapping
from typing import Any

from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["BeamTree"]


class BeamTree(FrameWidget):
    """A column for each forward pass, a node for each beam that was kept in it, and below them the block tables of its beams.

    Args:
        frames: what `beam_frames` returned.
        step: the index of the frame to draw first: the tree up to this forward pass.
    """

    name = "beam-tree"
    title = "Beams over their blocks"

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        blocks = schema.each(schema.count)
        ended = {"parent": schema.count, "token": schema.text, "score": schema.number}
        forward = {
            "position": schema.count,
            "beams": schema.each({**ended, "blocks": blocks}),
            "closed": blocks,
            "ended": schema.each(ended),
            "written": schema.each(blocks),
            "copied": schema.each(schema.each(schema.count, length=2)),
            "freed": blocks,
            "num_blocks": schema.count,
            "without_sharing": schema.count,
            "shared": blocks,
        }
        fields = {"prompt": schema.each(schema.text), "prompt_len": schema.count, "forwards": schema.each(forward, least=1)}
        schema.check("frames", frames, fields)
        cls._check_parents(frames["forwards"])
        return {"steps": schema.each({"forward": schema.below(len(frames["forwards"]))})}

    @staticmethod
    def _check_parents(forwards: list[dict[str, Any]]) -> None:
        """A beam continues a row of the forward pass before; the first ones continue the prompt."""
        rows = 1
        for index, forward in enumerate(forwards):
            for what in ("beams", "ended"):
                for place, beam in enumerate(forward[what]):
                    schema.check(f"frames['forwards'][{index}]['{what}'][{place}]['parent']", beam["parent"], schema.below(rows))
            rows = len(forward["beams"])
