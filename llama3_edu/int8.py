"""Weights in 8 bits: whole numbers from -127 to 127, and one scale for each row of a matrix.

A row holds what one output is made of, so each output has a step that fits its own weights. Zero stays zero. Only the weights are
rounded; a piece of a matrix is widened right before it is multiplied, and activations keep the type the model computes in.
"""

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Int8Linear", "Int8Embedding", "quantise_rows", "empty_int8"]

LEVELS = 127
_PIECE_ELEMENTS = 2**24
"""Most elements of a matrix that are widened at a time: 32 MiB in 16 bits."""


def quantise_rows(
    weight: Float[Tensor, "rows width"], dtype: torch.dtype
) -> tuple[Int8[Tensor, "rows width"], Float[Tensor, "rows"]]:
    """Return the nearest whole multiples of a step for each row, and the steps in `dtype`.

    The step is the row's largest number, by absolute value, over 127, rounded up to what `dtype` can hold: so no number lies
    beyond the last level, and each comes back to half a step. All NaN and infinite numbers are left to the caller to avoid.

    Source: arXiv 1712.05877, §2.1, without its zero point.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    limits = torch.finfo(dtype)
    largest = wide.abs().amax(dim=1)
    # Rounding to nearest takes at most eps / 2 away. The least step keeps a row of zeros from being divided by zero.
    least = max(limits.tiny * limits.eps, torch.finfo(torch.float32).tiny)
    scale = (largest / LEVELS * (1 + limits.eps) + least).to(dtype)
    levels = (wide / scale.to(wide.dtype)[:, None]).round_().clamp_(-LEVELS, LEVELS)
    return levels.to(torch.int8), scale


def empty_int8(rows: int, width: int, *, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return memory for a matrix of 8-bit numbers and for its rows' scales in `dtype`, values unset."""
    return torch.empty(rows, width, device=device, dtype=torch.int8), torch.empty(rows, device=device, dtype=dtype)


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights take 8 bits each.

    Args:
        weight: whole numbers from -127 to 127; each row makes one output.
        scale: what a row's numbers are multiplied with, in the type the model computes in.
    """

    def __init__(self, weight: Int8[Tensor, "out_features in_features"], scale: Float[Tensor, "out_features"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        # Scaled before it is multiplied: sums of numbers up to 127 would overflow float16.
        outputs = [F.linear(x, widened) for widened in self._widened()]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def _widened(self):
        """Yield the float matrix, some rows at a time, so that it is never whole."""
        rows, width = self.weight.shape
        together = max(1, _PIECE_ELEMENTS // width)
        for first in range(0, rows, together):
            piece = slice(first, first + together)
            yield self.weight[piece].to(self.scale.dtype).mul_(self.scale[piece, None])


class Int8Embedding(nn.Module):
    """A table of embeddings in 8 bits, each row with its scale. Tied models share it with their output projection."""

    def __init__(self, weight: Int8[Tensor, "vocab_size dim"], scale: Float[Tensor, "vocab_size"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch dim"]:
        return self.weight[tokens].to(self.scale.dtype).mul_(self.scale[tokens][..., None])
