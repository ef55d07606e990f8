"""Which query looks at which key in every pass, and what one replaced token changes."""

from collections.abc import Iterable, Mapping
from typing import Any

from llama3_edu.frames_mask import MOST_TOKENS
from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["CausalMask"]


class CausalMask(FrameWidget):
    """The attention matrix of every layer and head under its mask, decided in the page by comparing positions.

    With the frames of `perturbation_frames` the whole text is one pass, and each step replaces another token. With those of
    `mask_frames` each step is a pass of a prompt that is fed in chunks; the reader chooses what is cached at the start, how
    long a chunk is, where padding stands, and which token is replaced.

    Args:
        frames: what `perturbation_frames` or `mask_frames` returned.
        step: the index of the frame to draw first. Of `perturbation_frames`, 0 for the text as it is, t + 1 for the token at
            position t replaced.
    """

    name = "causal-mask"
    title = "Who looks at whom"

    @classmethod
    def important(cls, frames: Mapping[str, Any]) -> Iterable[int]:
        """The first and the last pass of every run."""
        steps = frames["steps"]
        borders = [index for index in range(1, len(steps)) if steps[index]["run"] != steps[index - 1]["run"]]
        return [*borders, *(index - 1 for index in borders)]

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        run = {
            "cached": schema.count,
            "chunk": schema.optional(schema.count),
            "padding": schema.one_of("none", "before", "after"),
        }
        sizes = {
            "tokens": schema.each(schema.text, least=1, most=MOST_TOKENS),
            "n_layers": schema.count,
            "n_heads": schema.count,
            "runs": schema.each(run, least=1),
        }
        schema.check("frames", frames, sizes)
        length, n_layers, n_heads = len(frames["tokens"]), frames["n_layers"], frames["n_heads"]
        rows = schema.flags(length)
        layer = {"q": rows, "k": rows, "v": rows, "out": rows, "scores": schema.triangle(schema.flags, length)}
        changes = {"layers": schema.each(layer, length=n_layers), "logits": rows}
        weights = schema.triangle(lambda row_len: schema.each(schema.count, length=row_len), length)
        return {
            "replacement": schema.text,
            "weights": schema.each(schema.each(weights, length=n_heads), length=n_layers),
            "changes": schema.each(changes, length=length),
            "steps": schema.each(_step(length, len(frames["runs"]))),
        }


def _step(length: int, runs: int) -> schema.Field:
    fields = {
        "run": schema.below(runs),
        "replaced": schema.optional(schema.below(length)),
        "positions": schema.each(schema.position(length), least=1),
        "key_positions": schema.each(schema.position(length), least=1, most=2 * MOST_TOKENS),
    }

    def check_step(name: str, value: Any) -> None:
        schema.check(name, value, fields)
        asked, keys = value["positions"], value["key_positions"]
        if keys[-len(asked) :] != asked:
            raise ValueError(f"{name}['key_positions'] should end in the positions asked, {asked}; it is {schema.short(keys)}")

    return check_step
