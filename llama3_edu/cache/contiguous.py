"""The cache that is allocated once: each token has its slot from the start."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.base import RowCache, check_fits, checked_parents, continued
from llama3_edu.config import LlamaConfig
from llama3_edu.events import Observer, ignore
from llama3_edu.positions import PAD

__all__ = ["ContiguousCache"]


class ContiguousCache(RowCache):
    """Keeps keys and values in one tensor of `max_seq_len` slots per row; the token at position p of a row lives in slot p.

    Nothing is moved when a token arrives, and `update` hands back views: nothing is gathered either. What it costs is
    that every row's slots are allocated from the start, whether they fill or not. Padding is never stored.

    Args:
        config: the shape of the model.
        batch: number of rows.
        max_seq_len: slots per row; the model's own limit when left out.
        device: where keys and values are kept.
        dtype: their type; torch's default type when left out.
        observer: is told `KeysStored` for every layer of every forward.

    Raises:
        ValueError: `batch` or `max_seq_len` is below 1.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int = 1,
        *,
        max_seq_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        observer: Observer = ignore,
    ) -> None:
        super().__init__([0] * batch, observer=observer)
        slots = config.max_seq_len if max_seq_len is None else max_seq_len
        if slots < 1:
            raise ValueError(f"max_seq_len should be at least 1; it is {slots}")
        shape = (config.n_layers, 2, batch, slots, config.n_kv_heads, config.head_dim)
        self._keep(torch.empty(shape, device=device, dtype=dtype))
        self._destination: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return self._storage.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of keys and values."""
        return self._storage.dtype

    @property
    def nbytes(self) -> int:
        return self._storage.nbytes

    @property
    def max_seq_len(self) -> int:
        """Slots per row."""
        return self._storage.shape[3]

    def blocks(
        self, layer: int
    ) -> tuple[Float[Tensor, "batch max_seq_len n_kv_heads head_dim"], Float[Tensor, "batch max_seq_len n_kv_heads head_dim"]]:
        """One layer's keys and values where they lie, a row being one block: views, for whoever reads and writes them in place."""
        return self._by_layer[layer]

    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch kv_len"]:
        new = continued(positions, self._seq_lens)
        self._check_room(new, self.max_seq_len)
        self._grow(new)
        kv_len = max(self._seq_lens)
        slots = torch.arange(kv_len, device=self._storage.device)
        if min(self._seq_lens) == kv_len and min(map(len, new)) == positions.shape[1]:
            self._destination = None  # every row writes the same run of slots: a slice will do
            return slots.expand(len(new), kv_len)
        self._destination = self._scatter(positions.to(self._storage.device))
        self._clear_beyond(kv_len)
        return torch.where(slots < self.seq_lens[:, None], slots, PAD)

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_len n_kv_heads head_dim"], Float[Tensor, "batch kv_len n_kv_heads head_dim"]]:
        keys, values = self._by_layer[layer]
        check_fits(keys, k, v)
        k, v = k.detach(), v.detach()
        kv_len = max(self._seq_lens)
        if self._destination is None:
            start = kv_len - k.shape[1]
            keys[:, start:kv_len] = k
            values[:, start:kv_len] = v
        else:
            rows, columns, slots = self._destination
            keys[rows, slots] = k[rows, columns]
            values[rows, slots] = v[rows, columns]
        self.report(layer)
        return keys[:, :kv_len], values[:, :kv_len]

    def views(
        self,
    ) -> tuple[tuple[Float[Tensor, "n_kv_heads head_dim"], ...], tuple[Float[Tensor, "1 n_kv_heads kv_len head_dim"], ...]]:
        """Return where the newest key and value go, and all keys and values: a layer's keys, its values, the next layer's keys, and so on.

        It stands in for `update` where one token of one row was reserved: who writes into the first has updated the cache.
        """
        kv_len = self._seq_lens[0]
        both = self._storage.flatten(0, 1)  # [2 * layers 1 max_seq_len n_kv_heads head_dim]
        return both[:, 0, kv_len - 1].unbind(), both[:, :, :kv_len].transpose(2, 3).unbind()

    def reorder(self, parents: Int[Tensor, "new_batch"]) -> None:
        heirs = checked_parents(parents, len(self._seq_lens))
        self._seq_lens = [self._seq_lens[parent] for parent in heirs]
        self._keep(self._storage.index_select(2, parents.to(self._storage.device)))

    def _keep(self, storage: Float[Tensor, "layers 2 batch max_seq_len n_kv_heads head_dim"]) -> None:
        self._storage = storage
        self._by_layer = [(layer[0], layer[1]) for layer in storage]  # views, looked up once and not at every step

    def _scatter(self, positions: Int[Tensor, "batch new_len"]) -> tuple[Tensor, Tensor, Tensor]:
        """Where each real token comes from, row and column, and the slot it goes to."""
        rows, columns = (positions != PAD).nonzero(as_tuple=True)
        return rows, columns, positions[rows, columns]

    def _clear_beyond(self, kv_len: int) -> None:
        # Shorter rows are handed back as long as the longest. Their weight there is 0, but 0 times a leftover NaN is NaN.
        for row, held in enumerate(self._seq_lens):
            self._storage[:, :, row, held:kv_len] = 0
