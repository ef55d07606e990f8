"""What the grader and a sandboxed kernel say to each other.

Down to the kernel go pickles, made by the grader. Up come JSON texts, written by a process that a submission controls: they are
read by `json` and by `decoded`, which makes numbers, strings, containers and tensors of them and nothing else.
"""

import base64
import json
import os
import struct
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Closed", "Opaque", "NotPlain", "encoded", "decoded", "read_frame", "read_json", "write_frame", "LARGEST_MESSAGE"]

LARGEST_MESSAGE = 64 * 2**20
"""Bytes in one message, at most. A longer one comes from a kernel that has something else in mind."""

LENGTH = struct.Struct(">I")

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    )
}  # fmt: skip


class Closed(Exception):
    """The other side is gone, or does not keep to the protocol."""


class NotPlain(Exception):
    """A value is none of those that go over the wire."""


class Opaque:
    """Stands for a value that did not come over the wire: all that is known of it is how it looked."""

    def __init__(self, look: str) -> None:
        self._look = look

    def __repr__(self) -> str:
        return self._look


def encoded(value: Any, *, depth: int = 0) -> Any:
    """Return a value as something `json` can write.

    Raises:
        NotPlain: it is, or holds, something else than numbers, strings, lists, tuples, dictionaries and tensors.
    """
    if depth > 20:
        raise NotPlain("containers more than 20 deep")
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        return value if abs(value) < 2**53 else {"int": hex(value)}
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) in (list, tuple):
        return {type(value).__name__: [encoded(item, depth=depth + 1) for item in value]}
    if type(value) is dict:
        return {"dict": [[encoded(key, depth=depth + 1), encoded(item, depth=depth + 1)] for key, item in value.items()]}
    if isinstance(value, torch.Tensor):
        return _encoded_tensor(value)
    raise NotPlain(type(value).__name__)


def decoded(value: Any) -> Any:
    """Return what `encoded` was given.

    Raises:
        Closed: nothing that `encoded` returns looks like that.
    """
    if not isinstance(value, dict):
        return value
    try:
        ((kind, inside),) = value.items()
        return READERS[kind](inside)
    except (KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise Closed(f"the kernel sent a value that cannot be read ({type(error).__name__})") from None


READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "float": float.fromhex,
    "list": lambda items: [decoded(item) for item in items],
    "tuple": lambda items: tuple(decoded(item) for item in items),
    "dict": lambda pairs: {decoded(key): decoded(item) for key, item in pairs},
    "tensor": lambda fields: _decoded_tensor(*fields),
    "opaque": lambda look: Opaque(str(look)[:200]),
}


def _encoded_tensor(value: torch.Tensor) -> dict[str, Any]:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES or value.layout is not torch.strided:
        raise NotPlain(f"a tensor of {value.dtype}, {value.layout}")
    flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data = base64.b64encode(flat.view(torch.uint8).numpy().tobytes()).decode() if value.numel() else ""
    return {"tensor": [dtype, list(value.shape), data]}


def _decoded_tensor(dtype: str, shape: list[int], data: str) -> torch.Tensor:
    raw = bytearray(base64.b64decode(data, validate=True))
    if not raw:
        if 0 not in shape:
            raise ValueError("numbers are missing")
        return torch.empty(shape, dtype=DTYPES[dtype])
    return torch.frombuffer(raw, dtype=DTYPES[dtype]).reshape(shape)


def write_frame(descriptor: int, payload: bytes) -> None:
    """Send one message.

    Raises:
        Closed: nobody reads.
    """
    left = memoryview(LENGTH.pack(len(payload)) + payload)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError as error:
        raise Closed(f"the kernel is gone ({error.strerror})") from None


def read_frame(descriptor: int) -> bytes:
    """Wait for one message and return it.

    Raises:
        Closed: the other side is gone, or announces more than `LARGEST_MESSAGE`.
    """
    (length,) = LENGTH.unpack(_read(descriptor, LENGTH.size))
    if length > LARGEST_MESSAGE:
        raise Closed(f"the kernel announced a message of {length} bytes")
    return _read(descriptor, length)


def _read(descriptor: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length:
        part = os.read(descriptor, min(length, 2**20))
        if not part:
            raise Closed("the kernel is gone")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def read_json(descriptor: int) -> dict[str, Any]:
    """Wait for one message from a kernel and return its fields.

    Raises:
        Closed: the kernel is gone, or what it wrote is no message.
    """
    try:
        message = json.loads(read_frame(descriptor))
    except (ValueError, RecursionError):
        raise Closed("the kernel wrote something that is no message") from None
    if not isinstance(message, dict):
        raise Closed("the kernel wrote something that is no message")
    return message
