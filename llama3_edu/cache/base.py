"""What every cache promises, and the cache that keeps nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.events import KeysStored, Observer, ignore
from llama3_edu.positions import PAD

__all__ = ["KVCache", "NoCache", "RowCache", "lengths"]


class KVCache(ABC):
    """Keys and values of the tokens a batch has seen.

    A forward pass calls `reserve` once, then `update` once per layer. Keys come in after their rotation and before
    `repeat_kv`. The cache alone knows how many tokens it holds. What is kept is detached: no gradient flows into the past.
    """

    @property
    @abstractmethod
    def seq_lens(self) -> Int[Tensor, "batch"]:
        """Tokens held, per row."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes really allocated for keys and values, used or not."""

    @abstractmethod
    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch kv_len"]:
        """Make room for new tokens, once per forward.

        Args:
            positions: where the new tokens stand. Each row continues where it stopped: `seq_lens[row]`,
                `seq_lens[row] + 1`, …, with `PAD` before, after or between.

        Returns:
            The position of every key that the next `update` of each layer will hand back; `PAD` where there is none.

        Raises:
            ValueError: a row does not continue where it stopped, the batch has another size, or there is no room. Nothing
                is changed then.
        """

    @abstractmethod
    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_len n_kv_heads head_dim"], Float[Tensor, "batch kv_len n_kv_heads head_dim"]]:
        """Store one layer's new keys and values at the places reserved; return all that the layer holds.

        What is handed back at a `PAD` position is finite and means nothing.
        """

    @abstractmethod
    def reorder(self, parents: Int[Tensor, "new_batch"]) -> None:
        """Let row i continue what row `parents[i]` held. A row may have several heirs or none.

        Raises:
            IndexError: a parent is not a row of this cache. Nothing is changed then.
        """


class NoCache(KVCache):
    """The cache that keeps nothing: it hands keys and values straight back.

    The model then attends to the tokens it was just given and to no others, so all of them must be given every time.
    """

    @property
    def seq_lens(self) -> Int[Tensor, "1"]:
        """Zero, once: it stands for every row of any batch."""
        return torch.zeros(1, dtype=torch.long)

    @property
    def nbytes(self) -> int:
        return 0

    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch new_len"]:
        return positions

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> tuple[Float[Tensor, "batch new_len n_kv_heads head_dim"], Float[Tensor, "batch new_len n_kv_heads head_dim"]]:
        return k, v

    def reorder(self, parents: Int[Tensor, "new_batch"]) -> None:
        pass


class RowCache(KVCache):
    """What all caches that keep something share: the rows' lengths, on the host, and the report of what was stored.

    Args:
        seq_lens: tokens held at the start, per row.
        observer: is told `KeysStored` for every layer of every forward.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(self, seq_lens: Sequence[int], *, observer: Observer) -> None:
        if not seq_lens:
            raise ValueError("batch should be at least 1; it is 0 or less")
        self._seq_lens = list(seq_lens)
        self._new: list[list[int]] = [[] for _ in seq_lens]
        self._observer = observer

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where keys and values are kept."""

    @property
    def seq_lens(self) -> Int[Tensor, "batch"]:
        return torch.tensor(self._seq_lens, dtype=torch.long, device=self.device)

    @property
    def is_watched(self) -> bool:
        """Whether somebody is told what is stored."""
        return self._observer is not ignore

    def _check_room(self, new: list[list[int]], max_seq_len: int) -> None:
        for row, (held, more) in enumerate(zip(self._seq_lens, new)):
            if held + len(more) > max_seq_len:
                raise ValueError(
                    f"the cache has room for {max_seq_len} tokens per row; row {row} holds {held} and was given {len(more)} more"
                )

    def _grow(self, new: list[list[int]]) -> None:
        """Count new tokens as held."""
        self._new = new
        self._seq_lens = [held + len(row) for held, row in zip(self._seq_lens, new)]

    def report(self, layer: int, *, bytes_copied: int = 0) -> None:
        """Tell that a layer's new keys and values are stored."""
        if not self.is_watched:
            return  # once per layer and token: what nobody is told is not written down
        self._observer(
            KeysStored(
                layer=layer,
                positions=tuple(map(tuple, self._new)),
                seq_lens=tuple(self._seq_lens),
                nbytes=self.nbytes,
                bytes_copied=bytes_copied,
            )
        )


def lengths(cache: KVCache, batch: int) -> Int[Tensor, "batch"]:
    """Return how many tokens the cache holds for each row of a batch.

    Raises:
        ValueError: the cache has another number of rows.
    """
    seq_lens = cache.seq_lens
    if len(seq_lens) not in (1, batch):
        raise ValueError(f"the cache holds {len(seq_lens)} rows; the batch has {batch}")
    return seq_lens.expand(batch)


def continued(positions: Int[Tensor, "batch new_len"], seq_lens: list[int]) -> list[list[int]]:
    """Return each row's new positions without padding, after checking that they continue what the rows hold.

    Raises:
        ValueError: another number of rows, or a row that does not continue at its length.
    """
    rows = [[position for position in row if position != PAD] for row in positions.tolist()]
    if len(rows) != len(seq_lens):
        raise ValueError(f"the cache holds {len(seq_lens)} rows; it was given positions for {len(rows)}")
    for row, (new, held) in enumerate(zip(rows, seq_lens)):
        if new != list(range(held, held + len(new))):
            raise ValueError(
                f"row {row} of the cache holds {held} tokens, so its next position is {held}; "
                f"it was given positions {_short(new)}"
            )
    return rows


def check_fits(
    stored: Float[Tensor, "rows slots n_kv_heads head_dim"], *given: Float[Tensor, "batch new_len heads width"]
) -> None:
    """Raise ValueError unless keys and values have the heads and the type of number that the cache was made for."""
    for x in given:
        if x.shape[2:] != stored.shape[2:] or x.dtype != stored.dtype:
            raise ValueError(
                f"the cache was made for {stored.shape[2]} KV heads of {stored.shape[3]} {stored.dtype} each; "
                f"it was given {x.shape[2]} of {x.shape[3]} {x.dtype}"
            )


def real_tokens(
    x: Float[Tensor, "batch new_len heads width"], real: tuple[Int[Tensor, "tokens"], Int[Tensor, "tokens"]]
) -> Float[Tensor, "tokens heads width"]:
    """Return what belongs to tokens, at the rows and columns `real`, and not to padding: as it lies, where all does."""
    rows, columns = real
    batch, new_len, _, _ = x.shape
    return x.flatten(0, 1) if len(rows) == batch * new_len else x[rows, columns]


def checked_parents(parents: Int[Tensor, "new_batch"], rows: int) -> list[int]:
    """Return `parents` as a list; raise IndexError if one of them is not a row of a cache of `rows` rows."""
    for parent in parents.tolist():
        if not 0 <= parent < rows:
            raise IndexError(f"the cache holds rows 0 to {rows - 1}; one of the parents is {parent}")
    return parents.tolist()


def _short(positions: list[int]) -> str:
    shown = ", ".join(map(str, positions[:4]))
    return f"{shown}, …" if len(positions) > 4 else shown
