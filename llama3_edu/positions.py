"""Where each token stands in its sequence, and what follows from that: which keys a query may see."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["PAD", "causal_mask", "right_pad", "left_pad"]

PAD = -1
"""The position of what is no token: padding in a batch, an empty slot in a cache."""


def causal_mask(
    positions: Int[Tensor, "batch new_len"], key_positions: Int[Tensor, "batch kv_len"]
) -> Bool[Tensor, "batch new_len kv_len"]:
    """Return True where a query may look at a key: where `0 <= key_position <= query_position`.

    The lower triangle of the textbooks is this comparison for one row without padding or cache. Chunked prefill, ragged
    batches and empty slots need nothing more. A query at `PAD` sees nothing.
    """
    keys = key_positions[:, None, :]
    return (keys >= 0) & (keys <= positions[:, :, None])


def right_pad(
    rows: Sequence[Sequence[int]], *, pad_id: int = 0, device: torch.device | str | None = None
) -> tuple[Int[Tensor, "batch new_len"], Int[Tensor, "batch new_len"]]:
    """Pack token ids of different lengths into one batch, padding at the end.

    Args:
        rows: the token ids of each sequence; none may be empty.
        pad_id: the token id written where there is no token. It is computed and never seen, so any id serves.
        device: where the tensors are made.

    Returns:
        The tokens, and the position of each: 0, 1, 2, … for tokens and `PAD` for padding.

    Raises:
        ValueError: there are no rows, or a row is empty.
    """
    return _pad(rows, pad_id, device, left=False)


def left_pad(
    rows: Sequence[Sequence[int]], *, pad_id: int = 0, device: torch.device | str | None = None
) -> tuple[Int[Tensor, "batch new_len"], Int[Tensor, "batch new_len"]]:
    """Pack token ids of different lengths into one batch, padding at the start, so that every row ends in the same column.

    Arguments, result and errors are those of `right_pad`.
    """
    return _pad(rows, pad_id, device, left=True)


def _pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None, *, left: bool) -> tuple[Tensor, Tensor]:
    if len(rows) == 0:
        raise ValueError("a batch needs at least one row; it was given none")
    for index, row in enumerate(rows):
        if len(row) == 0:
            raise ValueError(f"every row needs at least one token; row {index} is empty")
    longest = max(len(row) for row in rows)
    tokens, positions = [], []
    for row in rows:
        gap = longest - len(row)
        before, after = (gap, 0) if left else (0, gap)
        tokens.append([pad_id] * before + list(row) + [pad_id] * after)
        positions.append([PAD] * before + list(range(len(row))) + [PAD] * after)
    return torch.tensor(tokens, device=device), torch.tensor(positions, device=device)
