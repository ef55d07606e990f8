"""What the GPU's benchmarks share: what they ask of a machine, its clock and its bandwidth, and models of random numbers."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.report import Report
from llama3_edu import Llama, LlamaConfig, format_bytes
from llama3_edu.kernels.graphs import cuda_graph
from llama3_edu.kernels.paged_decode import missing

__all__ = ["TOY", "Place", "options", "place", "random_llama"]

TOY = LlamaConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=64, max_seq_len=128)
"""The model of a rehearsal."""


@dataclass(frozen=True)
class Place:
    """Where a benchmark runs: on a GPU or, in a rehearsal, on the processor, with kernels interpreted and times of no meaning."""

    device: torch.device
    dtype: torch.dtype
    rehearsed: bool

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what repeats some work without the time of launching it; in a rehearsal, the work itself."""
        return work if self.rehearsed else cuda_graph(work)

    def seconds(self, work: Callable[[], object], *, repeats: int) -> list[float]:
        """Return how long each of so many calls took, after a first one that is not counted."""
        work()
        return [self._once(work) for _ in range(1 if self.rehearsed else repeats)]

    def copy_bandwidth(self) -> float:
        """Return the bytes per second that a copy within the device's memory reads and writes together: the median of twenty."""
        source = torch.empty(2**12 if self.rehearsed else 2**30, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / statistics.median(self.seconds(lambda: target.copy_(source), repeats=20))

    def live_bytes(self, model: Llama, *caches: object) -> int:
        """Return the bytes that live tensors take on the device; in a rehearsal, those of the model and the caches."""
        if self.rehearsed:
            unique = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
            return sum(unique.values()) + sum(cache.nbytes for cache in caches)
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(self.device)

    def finish(self, report: Report) -> None:
        """Print a report; write it, too, unless this was a rehearsal."""
        if self.rehearsed:
            print(report.markdown())
        else:
            report.finish()

    def _once(self, work: Callable[[], object]) -> float:
        if self.rehearsed:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the option that all have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rehearse", action="store_true", help="run all of it at toy size on the processor; nothing is written")
    return parser


def place(*, rehearse: bool, memory_bytes: int) -> Place:
    """Return where to run.

    Args:
        rehearse: on the processor. Nothing may have imported Triton before.
        memory_bytes: what the device needs to have.

    Raises:
        SystemExit: there is no such device; its message says what would be needed.
    """
    if rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
        return Place(torch.device("cpu"), torch.float32, rehearsed=True)
    device = torch.device("cuda", 0)
    reason = "this machine has none" if not torch.cuda.is_available() else missing(device)
    if reason is None and (has := torch.cuda.get_device_properties(device).total_memory) < memory_bytes:
        reason = f"this one has {format_bytes(has)}"
    if reason is not None:
        needed = f"a CUDA GPU of compute capability 8.0 or more with {format_bytes(memory_bytes)}, and Triton"
        raise SystemExit(f"This benchmark needs {needed}: {reason}. With --rehearse all of it runs at toy size on the processor.")
    return Place(device, torch.bfloat16, rehearsed=False)


def random_llama(config: LlamaConfig, place: Place) -> Llama:
    """Return a model of random numbers, made where it stays: what it computes means nothing, how long it takes does."""
    with torch.device("meta"):
        model = Llama(config).to(place.dtype)
    model = model.to_empty(device=place.device).requires_grad_(False).eval()
    generator = torch.Generator(place.device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1)
        else:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return model
