"""The cache that keeps older tokens in a few bits per number."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.base import RowCache, checked_parents, continued, real_tokens
from llama3_edu.cache.store import Blocks, QuantizedStore, as_table, run_of
from llama3_edu.config import LlamaConfig
from llama3_edu.events import Observer, ignore
from llama3_edu.positions import PAD

__all__ = ["QuantizedCache"]


class QuantizedCache(RowCache):
    """Keeps each row's tokens in groups of `group_size`, and rounds a group to `bits` bits once it is full.

    Keys share a scale and a zero per channel and group of tokens; values per token and group of channels: see
    `QuantizedStore`. The newest tokens stay in full precision: those of the group that is still filling, and at least the last
    `residual`. What is handed back is what is held. So a query already sees the rounded keys of groups that its own forward
    filled, and a prompt leaves the same bytes behind whether it comes at once or in pieces that end with a group (with
    `residual=0`; with more, earlier pieces are seen in full precision for longer).

    Args:
        config: the shape of the model.
        batch: number of rows.
        max_seq_len: tokens per row; the model's own limit when left out.
        bits: 8, 4 or 2.
        group_size: tokens per group of keys, and channels per group of values at most.
        residual: the newest tokens of a row that are kept in full precision at least.
        device: where keys and values are kept.
        dtype: the type of keys and values that come and go; torch's default type when left out.
        observer: is told `KeysStored` for every layer of every forward.

    Raises:
        ValueError: `bits` is another number, a size is below 1, or `residual` below 0.

    Source: arXiv 2402.02750.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int = 1,
        *,
        max_seq_len: int | None = None,
        bits: int = 8,
        group_size: int = 64,
        residual: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        observer: Observer = ignore,
    ) -> None:
        super().__init__([0] * batch, observer=observer)
        max_seq_len = config.max_seq_len if max_seq_len is None else max_seq_len
        for name, value, least in (("max_seq_len", max_seq_len, 1), ("group_size", group_size, 1), ("residual", residual, 0)):
            if value < least:
                raise ValueError(f"{name} should be at least {least}; it is {value}")
        self.max_seq_len, self.group_size, self.residual = max_seq_len, group_size, residual
        self._groups_per_row = -(-max_seq_len // group_size)
        # The oldest token in full precision may be the first of its group: group_size - 1 more than the residual.
        open_per_row = min(self._groups_per_row, -(-(residual + group_size - 1) // group_size))
        self.store = QuantizedStore(
            config, num_blocks=batch * self._groups_per_row, block_size=group_size, bits=bits, group_size=group_size,
            open_blocks=batch * open_per_row, device=device, dtype=dtype,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def nbytes(self) -> int:
        return self.store.nbytes

    @property
    def bits(self) -> int:
        """Bits per number of a full group, its share of scales and zeros not counted."""
        return self.store.bits

    @property
    def effective_bits(self) -> float:
        """Bits that one number of a full group really takes: 8.5, 4.5 or 2.5 where groups are 64 long."""
        return self.store.effective_bits

    @property
    def num_quantized(self) -> list[int]:
        """Tokens held in few bits, per row. The others are held in full precision."""
        return [self._groups_closed(held) * self.group_size for held in self._seq_lens]

    def packed_bytes(self, row: int) -> bytes:
        """Return all that is kept of a row's full groups: codes, scales and zeros, group after group."""
        first = row * self._groups_per_row
        return b"".join(self.store.packed_bytes(first + group) for group in range(self._groups_closed(self._seq_lens[row])))

    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch kv_len"]:
        new = continued(positions, self._seq_lens)
        self._check_room(new, self.max_seq_len)
        before = self._seq_lens
        self._grow(new)
        positions = positions.to(self.store.device)
        rows, columns = self._real = (positions != PAD).nonzero(as_tuple=True)
        slots = rows * self._groups_per_row * self.group_size + positions[rows, columns]
        self._writes = self.store.plan(slots, closing=self._closing(before, self._seq_lens))
        kv_len = max(self._seq_lens)
        num_groups, per_row = -(-kv_len // self.group_size), self._groups_per_row
        groups = [range(row * per_row, row * per_row + num_groups) for row in range(len(new))]
        self.blocks: Blocks = run_of(groups) or as_table(groups, slots.device)
        """What `read` reads: the groups of all rows, as many of each as the longest has."""
        keys = torch.arange(kv_len, device=slots.device)
        return torch.where(keys < self.seq_lens[:, None], keys, PAD)

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_len n_kv_heads head_dim"], Float[Tensor, "batch kv_len n_kv_heads head_dim"]]:
        self.write(layer, k, v)
        return self.read(layer)

    def write(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> None:
        """Store one layer's new keys and values: the first half of `update`."""
        self.store.check_fits(k, v)
        self.store.write(layer, self._writes, real_tokens(k, self._real), real_tokens(v, self._real))
        self.report(layer)

    def read(
        self, layer: int
    ) -> tuple[Float[Tensor, "batch kv_len n_kv_heads head_dim"], Float[Tensor, "batch kv_len n_kv_heads head_dim"]]:
        """Return one layer's keys and values of all rows, as they are held: the second half of `update`."""
        k_all, v_all = self.store.read(layer, self.blocks)
        kv_len = max(self._seq_lens)
        return k_all[:, :kv_len], v_all[:, :kv_len]

    def reorder(self, parents: Int[Tensor, "new_batch"]) -> None:
        heirs = checked_parents(parents, len(self._seq_lens))
        self._seq_lens = [self._seq_lens[parent] for parent in heirs]
        per_row = self._groups_per_row
        self.store.select([group for parent in heirs for group in range(parent * per_row, (parent + 1) * per_row)])

    def _groups_closed(self, held: int) -> int:
        return max(0, held - self.residual) // self.group_size

    def _closing(self, before: list[int], after: list[int]) -> list[int]:
        """The groups that leave full precision when rows grow from one length to another."""
        return [
            row * self._groups_per_row + group
            for row, (old, new) in enumerate(zip(before, after))
            for group in range(self._groups_closed(old), self._groups_closed(new))
        ]
