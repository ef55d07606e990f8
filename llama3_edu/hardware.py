"""What this process runs on, in a line: every figure that depends on the machine is shown beside it."""

import platform
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["default_device", "describe"]


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


@lru_cache
def _processor() -> str:
    """Return the processor's own name where the system gives it, its architecture where not."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
