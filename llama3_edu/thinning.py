"""Long runs, made short enough to be drawn: some of the steps stand for all, and a note says so."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from llama3_edu.trace import Frames

__all__ = ["MOST_STEPS", "evenly", "kept_steps", "thinned", "with_steps"]

MOST_STEPS = 1000
"""More steps than a slider as wide as a page can be set to."""

Item = TypeVar("Item")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of the items, as evenly spread as can be: of two or more the first and the last are among them."""
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[len(items) // 2 :][:most])
    return [items[(2 * index * (len(items) - 1) + most - 1) // (2 * (most - 1))] for index in range(most)]


def kept_steps(num_steps: int, *, most: int = MOST_STEPS, important: Iterable[int] = ()) -> list[int]:
    """Choose which steps stand for all: the first, the last and the important ones, then others evenly between them.

    Args:
        num_steps: steps there are.
        most: steps that may be kept, 2 or more.
        important: steps that are kept before any other; where even these are too many, they are thinned evenly.

    Returns:
        The indices of the steps to keep, rising. All of them, where there are no more than `most`.

    Raises:
        ValueError: `most` is below 2, or there is no such step as an important one.
    """
    if most < 2:
        raise ValueError(f"most should be at least 2, to keep the first and the last step; it is {most}")
    first = sorted({*important, *([0, num_steps - 1] if num_steps else [])})
    if first and not 0 <= first[0] <= first[-1] < num_steps:
        raise ValueError(f"the steps go from 0 to {num_steps - 1}; important names {first[0] if first[0] < 0 else first[-1]}")
    if num_steps <= most:
        return list(range(num_steps))
    if len(first) >= most:
        return evenly(first, most)
    named = set(first)
    others = [step for step in range(num_steps) if step not in named]
    room = most - len(first)
    return sorted(first + [others[(2 * index + 1) * len(others) // (2 * room)] for index in range(room)])


def with_steps(frames: Mapping[str, Any], steps: Sequence[int]) -> Frames:
    """Return frames with these of their steps alone, and a `note` that says how many there were; as they are if all are kept.

    Each step has to say all that its picture needs. Frames whose steps hold what changed since the step before need a way of
    their own to leave some out.
    """
    own = frames["steps"]
    if len(steps) == len(own):
        return dict(frames)
    all_steps = frames.get("all_steps", len(own))
    note = f"{len(steps):,} of {all_steps:,} steps are shown."
    return {**frames, "steps": [own[step] for step in steps], "all_steps": all_steps, "note": note}


def thinned(frames: Mapping[str, Any], *, most: int = MOST_STEPS, important: Iterable[int] = ()) -> Frames:
    """Return frames with at most `most` of their steps, chosen by `kept_steps`, and a `note` where some are left out.

    Args:
        frames: what a frame maker returned.
        most: steps that may be kept, 2 or more.
        important: steps that are kept before any other, besides the first and the last.

    Raises:
        ValueError: as `kept_steps` does.
    """
    return with_steps(frames, kept_steps(len(frames["steps"]), most=most, important=important))
