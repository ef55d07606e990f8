"""The cache everyone writes first: one longer tensor per step."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.base import RowCache, check_fits, checked_parents, continued
from llama3_edu.config import LlamaConfig
from llama3_edu.events import Observer, ignore

__all__ = ["GrowingCache"]


class GrowingCache(RowCache):
    """Keeps keys and values in tensors that are concatenated with what is new, and so copied whole at every step.

    Nothing is ever allocated ahead. Padding columns are kept like tokens and cost as much.

    Args:
        config: the shape of the model.
        batch: number of rows.
        device: where keys and values are kept.
        dtype: their type; torch's default type when left out.
        observer: is told `KeysStored` for every layer of every forward.

    Raises:
        ValueError: `batch` is below 1.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        observer: Observer = ignore,
    ) -> None:
        super().__init__([0] * batch, observer=observer)
        empty = torch.empty(batch, 0, config.n_kv_heads, config.head_dim, device=device, dtype=dtype)
        self._keys = [empty] * config.n_layers
        self._values = [empty] * config.n_layers
        self._key_positions = torch.empty(batch, 0, dtype=torch.long, device=device)

    @property
    def device(self) -> torch.device:
        return self._key_positions.device

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch kv_len"]:
        self._grow(continued(positions, self._seq_lens))
        self._key_positions = torch.cat((self._key_positions, positions.to(self._key_positions.device)), dim=1)
        return self._key_positions

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_len n_kv_heads head_dim"], Float[Tensor, "batch kv_len n_kv_heads head_dim"]]:
        old_k, old_v = self._keys[layer], self._values[layer]
        check_fits(old_k, k, v)
        self._keys[layer] = torch.cat((old_k, k.detach()), dim=1)
        self._values[layer] = torch.cat((old_v, v.detach()), dim=1)
        self.report(layer, bytes_copied=old_k.nbytes + old_v.nbytes)
        return self._keys[layer], self._values[layer]

    def reorder(self, parents: Int[Tensor, "new_batch"]) -> None:
        heirs = checked_parents(parents, len(self._seq_lens))
        parents = parents.to(self._key_positions.device)
        self._seq_lens = [self._seq_lens[parent] for parent in heirs]
        self._key_positions = self._key_positions.index_select(0, parents)
        self._keys = [k.index_select(0, parents) for k in self._keys]
        self._values = [v.index_select(0, parents) for v in self._values]
