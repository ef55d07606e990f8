"""Is what came what was wanted? If not, the first thing that is wrong with it, in words."""

from typing import Any

import torch

__all__ = ["difference", "shown"]


def difference(came: Any, wanted: Any, *, tolerance: float = 0.0) -> str:
    """Return how two values differ, in one sentence; nothing where they do not.

    Args:
        came: what an answer returned.
        wanted: what it should have returned.
        tolerance: how far floating-point numbers may be apart, relative to the largest wanted. NaN is only like NaN.
    """
    if isinstance(wanted, torch.Tensor):
        return _of_tensors(came, wanted, tolerance)
    if isinstance(wanted, (list, tuple)):
        return _of_sequences(came, wanted, tolerance)
    if isinstance(wanted, dict):
        return _of_dictionaries(came, wanted, tolerance)
    if isinstance(came, torch.Tensor):
        return f"a tensor of shape {list(came.shape)} came, wanted is {shown(wanted)}"
    return _of_plain(came, wanted, tolerance)


def shown(value: Any) -> str:
    """Return a value as it stands in a message: short, and tensors by their numbers."""
    if isinstance(value, torch.Tensor):
        return shown(value.tolist()) if value.numel() <= 8 else f"a tensor of shape {list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        inside = ", ".join(shown(item) for item in value[:12]) + (", …" if len(value) > 12 else "")
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _of_tensors(came: Any, wanted: torch.Tensor, tolerance: float) -> str:
    if not isinstance(came, torch.Tensor):
        return f"{shown(came)} came, wanted is a tensor of shape {list(wanted.shape)}"
    if came.shape != wanted.shape:
        return f"a tensor of shape {list(came.shape)} came, wanted is {list(wanted.shape)}"
    if came.dtype != wanted.dtype:
        return f"a tensor of {came.dtype} came, wanted is {wanted.dtype}"
    if came.device != wanted.device:
        return f"a tensor on {came.device} came, wanted is {wanted.device}"
    wrong = ~_close(came.detach(), wanted, tolerance)
    if not wrong.any():
        return ""
    index = wrong.nonzero()[0].tolist()
    place = f"at {index}, " if index else ""
    return f"{place}{shown(came[tuple(index)].item())} came, wanted is {shown(wanted[tuple(index)].item())}"


def _close(came: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> torch.Tensor:
    if not wanted.is_floating_point():
        return came == wanted
    finite = wanted[wanted.isfinite()]
    allowed = tolerance * (finite.abs().max().item() if finite.numel() else 0.0)
    same = (came == wanted) | (came.isnan() & wanted.isnan())
    return same | ((came.double() - wanted.double()).abs() <= allowed)


def _of_sequences(came: Any, wanted: list | tuple, tolerance: float) -> str:
    kind = "list" if isinstance(wanted, list) else "tuple"
    if not isinstance(came, type(wanted)):
        return f"{shown(came)} came, wanted is a {kind}: {shown(wanted)}"
    if len(came) != len(wanted):
        return f"{shown(came)} came, of length {len(came)}, wanted is {shown(wanted)}, of length {len(wanted)}"
    for index, (one, other) in enumerate(zip(came, wanted)):
        inside = difference(one, other, tolerance=tolerance)
        if inside:
            return f"in item {index} of the {kind}, {inside}"
    return ""


def _of_dictionaries(came: Any, wanted: dict, tolerance: float) -> str:
    if not isinstance(came, dict):
        return f"{shown(came)} came, wanted is a dictionary: {shown(wanted)}"
    if came.keys() != wanted.keys():
        return f"keys {shown(list(came))} came, wanted are {shown(list(wanted))}"
    for key in wanted:
        inside = difference(came[key], wanted[key], tolerance=tolerance)
        if inside:
            return f"under {key!r}, {inside}"
    return ""


def _of_plain(came: Any, wanted: Any, tolerance: float) -> str:
    is_number = isinstance(wanted, (int, float)) and not isinstance(wanted, bool)
    if isinstance(wanted, float) and isinstance(came, (int, float)) and not isinstance(came, bool):
        near = came == wanted or abs(came - wanted) <= tolerance * abs(wanted) or (came != came and wanted != wanted)
        return "" if near else f"{shown(came)} came, wanted is {shown(wanted)}"
    if type(came) is not type(wanted) and (is_number or isinstance(wanted, (str, bool))):
        return f"{shown(came)} ({type(came).__name__}) came, wanted is {shown(wanted)} ({type(wanted).__name__})"
    return "" if came == wanted else f"{shown(came)} came, wanted is {shown(wanted)}"
