"""Caches for an exercise of chapter 5: wrong ones that its chapter does not show, and right ones that look unusual.

Like those of `llama3_edu.bugs`, the wrong ones never fail: shapes fit and numbers are finite. Each is wrong under one circumstance.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.cache.growing import GrowingCache
from llama3_edu.positions import PAD

__all__ = [
    "ValuesStay", "OneRowAfterAnother", "MovesBackwards", "RoundsToSingle", "ForgetsTheOldest", "ShowsPadding", "FirstRowForAll",
    "SwapsInDecode", "CountsKeysOnly", "Backwards", "SpareSlot",
]  # fmt: skip


class ValuesStay(GrowingCache):
    """Moves its keys and leaves its values where they are."""

    def reorder(self, parents: Tensor) -> None:
        values = self._values
        is_same_size = len(parents) == len(self.seq_lens)
        super().reorder(parents)
        if is_same_size:
            self._values = values


class OneRowAfterAnother(GrowingCache):
    """Moves rows in place, the first one first: what a later row should continue may be overwritten by then."""

    def reorder(self, parents: Tensor) -> None:
        if len(parents) == len(self.seq_lens):
            sources = list(range(len(parents)))
            for row, parent in enumerate(parents.tolist()):
                sources[row] = sources[parent]
            parents = torch.tensor(sources)
        super().reorder(parents)


class MovesBackwards(GrowingCache):
    """Moves each row to where it should have come from. For two rows that change places it is the same."""

    def reorder(self, parents: Tensor) -> None:
        super().reorder(parents.argsort(stable=True) if len(parents) == len(self.seq_lens) else parents)


class RoundsToSingle(GrowingCache):
    """Keeps 32 bits of every number, whatever came."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return super().update(layer, k.float().to(k.dtype), v.float().to(v.dtype))


class ForgetsTheOldest(GrowingCache):
    """Shows the newest 16 keys alone."""

    def reserve(self, positions: Tensor) -> Tensor:
        key_positions = super().reserve(positions)
        return torch.where(key_positions + 16 > key_positions.amax(dim=1, keepdim=True), key_positions, PAD)


class ShowsPadding(GrowingCache):
    """Says that padding stands at position 0, where everybody sees it."""

    def reserve(self, positions: Tensor) -> Tensor:
        return super().reserve(positions).clamp(min=0)


class FirstRowForAll(GrowingCache):
    """Keeps the first row's keys and values in every row."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return super().update(layer, k[:1].expand_as(k), v[:1].expand_as(v))


class SwapsInDecode(GrowingCache):
    """Has a path of its own for a single token, and takes its key for its value there."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return super().update(layer, v, k) if k.shape[1] == 1 else super().update(layer, k, v)


class CountsKeysOnly(GrowingCache):
    """Reports the bytes of its keys."""

    @property
    def nbytes(self) -> int:
        return super().nbytes // 2


class Backwards(GrowingCache):
    """Right: hands its keys back in another order, and says so by their positions."""

    def reserve(self, positions: Tensor) -> Tensor:
        return super().reserve(positions).flip(1)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k_all, v_all = super().update(layer, k, v)
        return k_all.flip(1), v_all.flip(1)


class SpareSlot(GrowingCache):
    """Right: has a slot that nobody writes, and says that there is no key in it."""

    def reserve(self, positions: Tensor) -> Tensor:
        return F.pad(super().reserve(positions), (1, 0), value=PAD)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k_all, v_all = super().update(layer, k, v)
        return F.pad(k_all, (0, 0, 0, 0, 1, 0)), F.pad(v_all, (0, 0, 0, 0, 1, 0))
