"""How much memory is in use right now, what of it holds weights and what holds keys and values, and how that went over time.

On a CUDA GPU the allocator of torch is asked, which knows every tensor of this process, and the whole card, which other
processes use too. On Apple's GPU the allocator is asked. On a processor it is the process: the pages it really has in memory, of
which Python and its libraries take some hundred MiB before any tensor is there; a page nobody has written to yet does not count.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from llama3_edu.hardware import describe
from llama3_edu.memory import format_bytes
from llama3_edu.trace import Frames

__all__ = [
    "MemoryReading", "MemorySample", "Samples",
    "read_memory", "total_memory", "stored_bytes", "split", "indexed", "memory_frames",
]  # fmt: skip

MOST_SAMPLES = 600

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """Memory in use at one moment, in bytes.

    Args:
        used: what this process uses: live tensors on a GPU, resident pages on a processor.
        reserved: what the allocator holds for it, live tensors included; None where there is no such thing.
        card: what all processes use of the GPU together; None where that is not known.
    """

    used: int
    reserved: int | None = None
    card: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """A reading, `seconds` after the start, split into weights, keys and values, and the rest."""

    seconds: float
    weights: int
    kv: int
    rest: int
    reserved: int | None = None
    card: int | None = None

    @property
    def used(self) -> int:
        """All three parts."""
        return self.weights + self.kv + self.rest


def read_memory(device: torch.device | str = "cpu") -> MemoryReading:
    """Return how much memory is in use on a device now, without waiting for work that is under way there."""
    device = torch.device(device)
    if device.type == "cuda":
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return MemoryReading(used=allocated, reserved=reserved, card=_card_bytes(_cuda_index(device)))
    if device.type == "mps":
        return MemoryReading(used=torch.mps.current_allocated_memory(), reserved=torch.mps.driver_allocated_memory())
    return MemoryReading(used=_resident_bytes())


def total_memory(device: torch.device | str = "cpu") -> int:
    """Return how much memory a device has: the card's, or the machine's."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def stored_bytes(models: Iterable[nn.Module], device: torch.device | str) -> int:
    """Return the bytes that parameters and buffers really take on a device; storage that several share counts once."""
    device, storages = indexed(torch.device(device)), {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device == device:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def split(reading: MemoryReading, *, seconds: float, weights: int, kv: int) -> MemorySample:
    """Tell apart what a reading is made of. What is neither weights nor keys and values is the rest, and never below 0."""
    rest = max(0, reading.used - weights - kv)
    return MemorySample(seconds=seconds, weights=weights, kv=kv, rest=rest, reserved=reading.reserved, card=reading.card)


def indexed(device: torch.device) -> torch.device:
    """Return the device as tensors name it: `cuda` is the current one, `cuda:0` for example; `mps` is `mps:0`."""
    if device.index is not None or device.type not in ("cuda", "mps"):
        return device
    return torch.device(device.type, _cuda_index(device) if device.type == "cuda" else 0)


class Samples:
    """Samples in the order they came, at most `most` of them, however many there were.

    When there are too many, neighbours are merged: the one with more memory in use stays, so that no peak is lost. The first and
    the latest are always there.

    Args:
        most: how many to keep.

    Raises:
        ValueError: `most` is below 4.
    """

    def __init__(self, *, most: int = MOST_SAMPLES) -> None:
        if most < 4:
            raise ValueError(f"most should be at least 4; it is {most}")
        self.num_taken = 0
        self._room = 2 * ((most - 2) // 2)  # for groups: an even number, beside the first sample and the latest
        self._first: MemorySample | None = None
        self._latest: MemorySample | None = None
        self._largest: list[MemorySample] = []  # of each group; the last group may still be open
        self._group_size, self._in_group = 1, 0

    def add(self, sample: MemorySample) -> None:
        """Take the next sample."""
        self.num_taken += 1
        if self._first is None:
            self._first = sample
            return
        self._latest = sample
        if self._in_group:
            self._largest[-1] = max(self._largest[-1], sample, key=_used)
        else:
            self._make_room()
            self._largest.append(sample)
        self._in_group = (self._in_group + 1) % self._group_size

    def kept(self) -> list[MemorySample]:
        """Return what was kept, earliest first."""
        first = [self._first] if self._first else []
        latest = [self._latest] if self._largest and self._latest is not self._largest[-1] else []
        return [*first, *self._largest, *latest]

    def _make_room(self) -> None:
        if len(self._largest) == self._room:
            self._largest = [max(pair, key=_used) for pair in zip(self._largest[::2], self._largest[1::2])]
            self._group_size *= 2


def memory_frames(
    samples: Sequence[MemorySample], *, device: torch.device | str = "cpu", taken: int | None = None, missed: int = 0
) -> Frames:
    """Fold samples into the frames of `MemoryMonitor`.

    Args:
        samples: what was kept, earliest first.
        device: what they were read from.
        taken: how many there were before they were thinned; as many as are given where it is left out.
        missed: how many readings failed.

    Returns:
        `hardware`, `source` (what was read), `rest` (what the rest is made of), `total` (the device's memory), `taken`, `missed`
        and `steps`, one per sample: its `seconds`, the bytes of `weights`, `kv` and `rest`, and those `reserved` and used on the
        whole `card` where they are known.
    """
    device = torch.device(device)
    samples = samples or [MemorySample(seconds=0.0, weights=0, kv=0, rest=0)]
    taken = len(samples) if taken is None else taken
    peak = max(samples, key=_used)
    source, rest = _WORDS.get(device.type, _WORDS["cpu"])
    return {
        "hardware": describe(device),
        "source": source,
        "rest": rest,
        "total": total_memory(device),
        "taken": taken,
        "missed": missed,
        "steps": [_sample_step(sample, peak) for sample in samples],
    }


_WORDS = {
    "cuda": ("live tensors, as torch's CUDA allocator counts them", "activations, logits and whatever else lives on the card"),
    "mps": ("live tensors, as torch's MPS allocator counts them", "activations, logits and whatever else lives on the GPU"),
    "cpu": ("memory of this process (resident set)", "Python and its libraries, activations, logits"),
}


def _sample_step(sample: MemorySample, peak: MemorySample) -> dict[str, Any]:
    seconds = round(sample.seconds, 3)
    parts = {"weights": sample.weights, "kv": sample.kv, "rest": sample.rest}
    step = {"seconds": seconds, **parts, "reserved": sample.reserved, "card": sample.card}
    sizes = [format_bytes(size) for size in parts.values()]
    high = "This is the peak." if sample is peak else f"The peak is {format_bytes(peak.used)} at {peak.seconds:.1f} s."
    words = f"{seconds:.1f} s: {format_bytes(sample.used)} in use; weights {sizes[0]}, KV cache {sizes[1]}, the rest {sizes[2]}."
    return {**step, "summary": f"{words} {high}"}


def _used(sample: MemorySample) -> int:
    return sample.used


def _resident_bytes() -> int:
    """What the process has in memory: from Linux's own file, which takes microseconds; elsewhere psutil asks the system."""
    if sys.platform == "linux":
        return int(_STATM.read_bytes().split()[1]) * _page_size()
    return psutil.Process().memory_info().rss


@lru_cache
def _page_size() -> int:
    import resource  # there is none on Windows

    return resource.getpagesize()


def _card_bytes(index: int) -> int | None:
    """What all processes use of a card: NVML says it where nvidia-ml-py is installed, the driver's CUDA library elsewhere."""
    handle = _nvml_handle(index)
    if handle is not None:
        return int(sys.modules["pynvml"].nvmlDeviceGetMemoryInfo(handle).used)
    free, total = torch.cuda.mem_get_info(index)
    return total - free


@lru_cache
def _nvml_handle(index: int) -> Any | None:
    """Find a card by its UUID: NVML numbers all cards of the machine, CUDA those this process may see."""
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is None:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # not installed, no driver, or a slice of a card that NVML knows by another name
        return None


def _cuda_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
