"""Rotary position embedding: turn each pair of a head's numbers by an angle that grows with the token's position."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.config import LlamaConfig, RopeScaling

__all__ = ["rope_frequencies", "rope_angles", "rotate"]


def rope_frequencies(config: LlamaConfig, device: torch.device | str | None = None) -> Float[Tensor, "half_head_dim"]:
    """Return how far each pair turns per position, in radians, fastest first: float32, `head_dim / 2` of them.

    Source: arXiv 2104.09864, §3.2.2, and for the scaling `RopeScaling`.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    return frequencies if config.rope_scaling is None else _stretch(frequencies, config.rope_scaling)


def _stretch(frequencies: Float[Tensor, "half_head_dim"], scaling: RopeScaling) -> Float[Tensor, "half_head_dim"]:
    """Divide the slow frequencies by the factor, keep the fast ones, and blend in between."""
    # How many full turns a pair makes within the original context: few turns mean a slow pair.
    turns = scaling.original_max_seq_len * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rope_angles(
    frequencies: Float[Tensor, "half_head_dim"], positions: Int[Tensor, "batch new_len"], dtype: torch.dtype
) -> tuple[Float[Tensor, "batch new_len 1 half_head_dim"], Float[Tensor, "batch new_len 1 half_head_dim"]]:
    """Return the cosine and sine of every angle, ready to be used on all heads at once. Angles are taken in float32."""
    angles = positions[:, :, None, None].float() * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(
    x: Float[Tensor, "batch new_len heads head_dim"],
    cos: Float[Tensor, "batch new_len 1 half_head_dim"],
    sin: Float[Tensor, "batch new_len 1 half_head_dim"],
) -> Float[Tensor, "batch new_len heads head_dim"]:
    """Turn every pair of every head by its angle.

    A pair is one number of the head's first half and its partner in the second half: the order of Hugging Face
    checkpoints. (Meta's own files keep partners side by side.)
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
