"""Tensors on disk: where each lies in its safetensors file, and how it is read a few rows at a time.

A safetensors file is a JSON header that says where each tensor's bytes lie, and then the bytes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["CheckpointError", "DTYPES", "StoredTensor", "read_header"]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types we read, by the name a safetensors file gives them."""

_PIECE_BYTES = 2**20
_LARGEST_HEADER_BYTES = 100 * 10**6  # the format's own limit
_GIT_LFS = b"version "  # what a clone holds in place of a file that Git LFS has not fetched starts with this
_ANEW = "Copy or download it anew"


class CheckpointError(ValueError):
    """A checkpoint cannot be read as a Llama 3; the message names the file and all that is wrong with it."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies on disk."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def width(self) -> int:
        """Elements in one row: one of a vector, all but the first axis of anything else."""
        return math.prod(self.shape[1:])

    @property
    def rows_per_piece(self) -> int:
        """How many rows make a piece of about one MiB; at least one."""
        return max(1, _PIECE_BYTES // max(1, self.width * DTYPES[self.dtype].itemsize))

    def pieces(self, rows_per_piece: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield the tensor `[rows width]`, some rows at a time, with the index of the first; each piece overwrites the last.

        Raises:
            CheckpointError: the file has become shorter since its header was read.
        """
        dtype, rows = DTYPES[self.dtype], self.shape[0] if self.shape else 1
        together = min(rows_per_piece or self.rows_per_piece, rows)
        buffer = bytearray(max(1, together * self.width) * dtype.itemsize)
        piece = torch.frombuffer(buffer, dtype=dtype)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            for first in range(0, rows, max(1, together)):
                count = min(together, rows - first)
                wanted = count * self.width * dtype.itemsize
                if file.readinto(memoryview(buffer)[:wanted]) != wanted:
                    raise CheckpointError(f"{self.path} became shorter while it was read")
                yield first, piece[: count * self.width].view(count, self.width)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return where each tensor of one safetensors file lies, once the file is known to be whole.

    Raises:
        CheckpointError: the file is cut short, too long, or no safetensors file.

    Source: the format's description in the README of the safetensors project.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes.to_bytes(8, "little") == _GIT_LFS:
            raise CheckpointError(
                f"{path} is not a safetensors file but a note of Git LFS that stands for one: run `git lfs pull` where it was "
                f"cloned, or load the model by its name, owner/name"
            )
        if header_bytes > _LARGEST_HEADER_BYTES:
            raise CheckpointError(f"{path} is not a safetensors file: it starts with {header_bytes} as the length of its header")
        data_start = 8 + header_bytes
        if size < max(data_start, 10):
            raise CheckpointError(
                f"{path} is cut short: it needs {max(data_start, 10)} bytes for its header alone; it has {size}. {_ANEW}"
            )
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        stored = {name: _stored(path, entry, data_start) for name, entry in header.items()}
        expected = data_start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header cannot be read ({error!r})") from None
    if size != expected:
        state = "is cut short" if size < expected else "is too long"
        raise CheckpointError(f"{path} {state}: its header describes {expected} bytes; it has {size}. {_ANEW}")
    return stored


def _stored(path: Path, entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    dtype = DTYPES.get(entry["dtype"])  # a type we do not read is reported later, with all else that does not fit
    if begin < 0 or end < begin or (dtype and end - begin != math.prod(shape) * dtype.itemsize):
        raise ValueError(f"bytes {begin} to {end} do not hold {entry['dtype']} of shape {list(shape)}")
    return StoredTensor(path=path, dtype=entry["dtype"], shape=shape, start=data_start + begin)
