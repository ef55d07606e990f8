"""What a quantised cache should hand back, computed number by number with NumPy: slow, and plain enough to be believed."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llama3_edu import KVCache, LlamaConfig
from llama3_edu.cache.base import continued


def rounded(group: np.ndarray, *, bits: int) -> np.ndarray:
    """One group of numbers, each moved to the nearest of 2^bits levels that a 16-bit zero and scale span."""
    levels = 2**bits - 1
    zero = np.float16(group.min())
    if float(zero) > group.min():
        zero = np.nextafter(zero, np.float16(-np.inf))
    wanted = (group.max() - float(zero)) / levels
    scale = np.float16(wanted)
    if float(scale) < wanted:
        scale = np.nextafter(scale, np.float16(np.inf))
    if scale == 0:
        return np.full_like(group, float(zero))
    return float(zero) + np.clip(np.round((group - float(zero)) / float(scale)), 0, levels) * float(scale)


def in_groups(x: np.ndarray, size: int, axis: int, *, bits: int) -> np.ndarray:
    """Round x, `size` neighbours along an axis at a time."""
    parts = np.split(x, x.shape[axis] // size, axis=axis)
    return np.concatenate([np.apply_along_axis(rounded, axis, part, bits=bits) for part in parts], axis=axis)


def round_keys(keys: Tensor, *, bits: int) -> Tensor:
    """All tokens given are one group; each channel of each head has its own scale."""
    flat = keys.flatten(1).numpy()
    return torch.from_numpy(in_groups(flat, len(flat), 0, bits=bits)).view_as(keys)


def round_values(values: Tensor, *, bits: int, group_size: int) -> Tensor:
    """Each token is rounded by itself, some of its channels at a time."""
    flat = values.flatten(1).numpy()
    size = max(size for size in range(1, group_size + 1) if flat.shape[1] % size == 0)
    return torch.from_numpy(in_groups(flat, size, 1, bits=bits)).view_as(values)


class RoundedCache(KVCache):
    """One row, held as floats; whenever a group is full and no longer among the `residual` newest, it is rounded in place."""

    def __init__(self, config: LlamaConfig, *, bits: int, group_size: int, residual: int = 0) -> None:
        empty = torch.empty(0, config.n_kv_heads, config.head_dim, dtype=torch.float64)
        self.kv = [[empty, empty] for _ in range(config.n_layers)]
        self.bits, self.group_size, self.residual = bits, group_size, residual
        self.held = 0

    @property
    def seq_lens(self) -> Tensor:
        return torch.tensor([self.held])

    @property
    def nbytes(self) -> int:
        return 0

    def reserve(self, positions: Tensor) -> Tensor:
        self.before, self.held = self.held, self.held + len(continued(positions, [self.held])[0])
        return torch.arange(self.held)[None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = (torch.cat((old, new[0].detach())) for old, new in zip(self.kv[layer], (k, v)))
        size = self.group_size
        for first in range(self._closed(self.before) * size, self._closed(self.held) * size, size):
            here = slice(first, first + size)
            keys[here] = round_keys(keys[here], bits=self.bits)
            values[here] = round_values(values[here], bits=self.bits, group_size=size)
        self.kv[layer] = [keys, values]
        return keys[None], values[None]

    def reorder(self, parents: Tensor) -> None:
        assert parents.tolist() == [0]

    def _closed(self, held: int) -> int:
        return max(0, held - self.residual) // self.group_size


Rounding = Callable[[LlamaConfig], RoundedCache]
