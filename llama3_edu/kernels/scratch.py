"""Memory for what one layer needs for a moment, the same for every layer of every step."""

import math

import torch
from jaxtyping import Shaped
from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """Buffers by name. A large tensor made anew in every layer costs more than what is written into it: each time, the operating system
    hands out its pages one by one, and clears them.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def take(self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "*shape"]:
        """Return a buffer of this shape, with whatever was last written to the buffer of this name."""
        numbers = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.numel() < numbers or held.dtype != dtype or held.device != device:
            # A little more than asked for: what is asked for grows by a token or a block at a time.
            held = self._buffers[name] = torch.empty(numbers + numbers // 4, dtype=dtype, device=device)
        return held[:numbers].view(shape)
