"""What one forward pass costs, counted exactly, and the least time a machine needs for it: the roofline.

What is counted: the multiplications and additions of every matrix product, two operations per pair of numbers. That is the
linear layers, the output projection for the rows whose logits are asked for, queries times keys, and attention weights times
values. A query is counted against the keys it may see and against no others. Bytes: every weight once, of the embedding table
the rows looked up, the keys and values of all tokens read once, those of the new tokens written once.

What is left out: softmax, norms, RoPE, SiLU and the residual additions, which take a few operations per number where a matrix
product takes thousands; and the bytes of activations, scores and logits, much of which a fused kernel never writes to memory.
So the operations are those of the products alone, and the bytes are the fewest that memory has to move.

Source of the model: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from llama3_edu.config import LlamaConfig
from llama3_edu.hardware import describe
from llama3_edu.memory import kv_bytes

__all__ = ["Cost", "Machine", "MACHINES", "forward_cost", "measure_machine"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a processor or a card can do at most.

    Args:
        name: as its maker's label has it.
        flops_per_second: the most operations on 16-bit numbers its matrix units do in a second.
        bytes_per_second: the most bytes its memory moves in a second.
        memory_bytes: how much memory it has.
    """

    name: str
    flops_per_second: int
    bytes_per_second: int
    memory_bytes: int

    @property
    def ridge(self) -> float:
        """Operations per byte from which on computing is the limit, and below which memory is."""
        return self.flops_per_second / self.bytes_per_second

    def roof(self, intensity: float) -> float:
        """Return the most operations per second that work of `intensity` operations per byte can reach."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)


def _card(name: str, gib: int, teraflops: float, gigabytes_per_second: int) -> tuple[str, Machine]:
    name = f"{name} {gib} GB"
    flops = round(teraflops * 10) * 10**11
    return name, Machine(
        name=name, flops_per_second=flops, bytes_per_second=gigabytes_per_second * 10**9, memory_bytes=gib * 2**30
    )


MACHINES: dict[str, Machine] = dict(
    (
        _card("T4", 16, 65.0, 320),
        _card("L4", 24, 121.0, 300),
        _card("RTX 4090", 24, 165.2, 1008),
        _card("A100", 40, 312.0, 1555),
        _card("A100", 80, 312.0, 2039),
        _card("H100", 80, 989.4, 3350),
        _card("H200", 141, 989.4, 4800),
    )
)
"""Cards by name, smallest first: tensor cores on dense 16-bit numbers with 32-bit sums, and memory.

A label says GB and means 2^30 bytes; a driver reports somewhat less, 14.75 of 16 on a T4. Many data sheets print the rate "with
sparsity", which is twice the dense one and needs weights half of which are zero; here it is halved.

Source: NVIDIA's data sheets and architecture papers. T4: Turing architecture paper (65 TFLOPS, 320 GB/s: 256 lines at twice
5,001 MHz). L4: data sheet (242 TFLOPS with sparsity, 300 GB/s). RTX 4090: Ada architecture paper, appendix A (165.2 TFLOPS with
FP32 sums, 1,008 GB/s). A100 SXM: data sheet (312 TFLOPS; 1,555 and 2,039 GB/s). H100 SXM: Hopper architecture paper (989.4
TFLOPS) and data sheet (3.35 TB/s). H200 SXM: the processor of the H100; data sheet (1,979 TFLOPS with sparsity, 4.8 TB/s).
"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one forward pass computes and moves; the module says what is counted."""

    linear_flops: int
    attention_flops: int
    weight_bytes: int
    kv_read_bytes: int
    kv_written_bytes: int

    @property
    def flops(self) -> int:
        """Additions and multiplications of all matrix products."""
        return self.linear_flops + self.attention_flops

    @property
    def nbytes(self) -> int:
        """Bytes of weights, keys and values, read or written."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_written_bytes

    @property
    def arithmetic_intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.nbytes

    def seconds(self, machine: Machine) -> float:
        """Return the least time the pass takes: nothing computes or moves faster than the machine can."""
        return max(self.flops / machine.flops_per_second, self.nbytes / machine.bytes_per_second)

    def limit(self, machine: Machine) -> str:
        """Return what that time is spent on: `compute`, or `memory` where moving the bytes takes longer."""
        waits = self.nbytes * machine.flops_per_second > self.flops * machine.bytes_per_second
        return "memory" if waits else "compute"


def forward_cost(
    config: LlamaConfig,
    *,
    kv_len: int,
    new_len: int = 1,
    batch: int = 1,
    bits: int = 16,
    bits_of_weights: int | None = None,
    logits_per_row: int = 1,
) -> Cost:
    """Count what one forward pass with a cache computes and moves.

    A decode step of a text of n tokens is `kv_len=n`, a prefill of n tokens `new_len=n, kv_len=n`.

    Args:
        config: the shape of the model.
        kv_len: keys per row, those of the new tokens included.
        new_len: new tokens per row.
        batch: rows.
        bits: what the cache keeps a number in; the weights too, unless `bits_of_weights` says otherwise.
        bits_of_weights: what a weight is stored in.
        logits_per_row: tokens per row whose logits are asked for: 1 for `next_logits`, `new_len` for `forward`.

    Raises:
        ValueError: a number is below 1, or `kv_len` or `new_len` is too small for what it should hold.
    """
    bits_of_weights = bits if bits_of_weights is None else bits_of_weights
    _check(1, batch=batch, new_len=new_len, bits_of_weights=bits_of_weights, logits_per_row=logits_per_row)
    _check(new_len, kv_len=kv_len)
    _check(logits_per_row, new_len=new_len)
    tokens, rows = batch * new_len, batch * logits_per_row
    per_token = config.n_layers * _linear_weights(config)
    output = config.vocab_size * config.dim
    looked_up = min(tokens, config.vocab_size) * config.dim
    norms = (2 * config.n_layers + 1) * config.dim
    # Query i of the new ones sees all that was there before, itself, and the new ones before it.
    pairs = new_len * (kv_len - new_len) + new_len * (new_len + 1) // 2
    return Cost(
        linear_flops=2 * (tokens * per_token + rows * output),
        attention_flops=4 * batch * config.n_layers * config.n_heads * config.head_dim * pairs,
        weight_bytes=-(-(per_token + output + looked_up + norms) * bits_of_weights // 8),
        kv_read_bytes=kv_bytes(config, seq_len=kv_len, batch=batch, bits=bits),
        kv_written_bytes=kv_bytes(config, seq_len=new_len, batch=batch, bits=bits),
    )


def measure_machine(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    nbytes: int | None = None,
    size: int | None = None,
    repeats: int = 5,
) -> Machine:
    """Measure the machine this runs on: how fast its memory moves bytes and how fast it multiplies matrices.

    Memory: a large buffer is copied to another, which moves it twice, and summed up, which reads it once; the faster of the two
    counts. Computing: two square matrices are multiplied. Each is run once to warm up; the fastest of `repeats` runs counts: a roof is
    what the machine can do, and whatever else it does meanwhile only takes from that. What is measured is what torch reaches with
    the threads it has; other libraries may get closer to what the hardware can do.

    Args:
        device: what to measure.
        dtype: of the matrices; float32 on a processor, 16 bits on a GPU, where it is left out.
        nbytes: size of the buffer. It has to be much larger than the caches of the processor.
        size: rows and columns of the matrices.
        repeats: runs to take the fastest of.
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    nbytes = nbytes or (2**28 if on_cpu else 2**30)
    size = size or (1536 if on_cpu else 8192)
    source = torch.ones(nbytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copying = _least_seconds(lambda: target.copy_(source), device, repeats)
    summing = _least_seconds(source.sum, device, repeats)
    left, right = torch.ones(2, size, size, dtype=dtype or _matrix_dtype(device), device=device)
    multiplying = _least_seconds(lambda: left @ right, device, repeats)
    return Machine(
        name=describe(device),
        flops_per_second=round(2 * size**3 / multiplying),
        bytes_per_second=round(max(2 * source.nbytes / copying, source.nbytes / summing)),
        memory_bytes=_memory_bytes(device),
    )


def _linear_weights(config: LlamaConfig) -> int:
    """Weights of one layer that a token is multiplied with."""
    attention = 2 * config.dim * config.n_heads * config.head_dim + 2 * config.dim * config.kv_dim
    return attention + 3 * config.dim * config.hidden_dim


def _matrix_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bfloat16 else torch.float16


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _least_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Run once to warm up, then return the time of the fastest of `repeats` runs, each waited for."""

    def timed() -> float:
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        return time.perf_counter() - start

    timed()
    return min(timed() for _ in range(repeats))


def _check(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} should be at least {least}; it is {value}")
