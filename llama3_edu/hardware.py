"""What this process runs on, in a line: every figure that depends on the machine is shown beside it."""

import platform
from functools import lru_cache
from pathlib import Path

import psutil
import torch

__all__ = ["available_memory", "default_device", "describe"]

_CONTAINER = Path("/sys/fs/cgroup")


def default_device() -> torch.device:
    """Return the device chapters run on: a CUDA GPU where there is one, then Apple's, then the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def describe(device: torch.device | str = "cpu") -> str:
    """Return the processor, how much of it torch uses, and torch's version: `AMD EPYC, 2 threads, torch 2.13.0`."""
    device = torch.device(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"{name}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"


def available_memory() -> int | None:
    """Return the bytes a program can still take here before the machine swaps or a container ends it; None where unknown."""
    try:
        free = psutil.virtual_memory().available
    except (OSError, RuntimeError):  # a sandbox without /proc
        return None
    left = _left_in_container()
    return free if left is None else min(free, left)


def _left_in_container() -> int | None:
    """What a container's limit leaves, None where there is no limit. Linux drops cached files before the limit is felt.

    Source: Linux's documentation of control groups, version 2, "Memory Interface Files".
    """
    try:
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such files, or a limit that reads `max`
        return None
    return max(0, limit - used + int(parts.get("inactive_file", 0)))


@lru_cache
def _processor() -> str:
    """Return the processor's own name where the system gives it, its architecture where not."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
