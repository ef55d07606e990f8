"""A decode step as a CUDA graph: captured once per cache and batch size, replayed for every token at any length.

A step of an 8B model launches some two hundred kernels, many of a few microseconds. Launched one by one they leave the GPU
waiting for Python; a graph is launched once. What may change from step to step lies in the step's buffers (see `step`), and the
lengths are read on the device, so nothing is captured anew as rows grow. The first capture in a process also compiles the
kernels, which takes some seconds; Triton keeps what it compiled.
"""

from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.base import KVCache
from llama3_edu.cache.blocks import BlockPool, blocks_for
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.cache.paged import PagedCache
from llama3_edu.cache.store import FloatStore
from llama3_edu.kernels.packed import PackedLlama
from llama3_edu.kernels.paged_decode import KINDS, missing
from llama3_edu.kernels.step import StaticStep, Operations
from llama3_edu.model import checked_positions

__all__ = ["Capture", "Steps", "applies", "cuda_graph"]

Capture: TypeAlias = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a step to what replays it. Every replay returns the same tensor, with new numbers in it."""

LARGEST_BATCH = 256
"""Rows of a step at most. Beyond, a step takes so long that launching it costs nothing beside."""


def applies(weights: PackedLlama, cache: KVCache | None, positions: Int[Tensor, "batch new_len"]) -> bool:
    """Say whether `Steps` serves a forward: one new token per row, on a CUDA device, in a cache of floats that nobody watches."""
    if weights.device.type != "cuda" or missing(weights.device) or weights.dtype not in KINDS:
        return False
    batch, new_len = positions.shape
    return new_len == 1 and batch <= LARGEST_BATCH and _can_hold(weights, cache)


def _can_hold(weights: PackedLlama, cache: KVCache | None) -> bool:
    """Whether a step can read and write a cache in place, now and after one more token. One of another class may do otherwise."""
    if type(cache) is ContiguousCache:
        return not cache.is_watched and (cache.dtype, cache.device) == (weights.dtype, weights.device)
    if type(cache) is not PagedCache or cache.is_watched or not isinstance(cache.pool.store, FloatStore):
        return False
    store = cache.pool.store
    return (store.dtype, store.device) == (weights.dtype, weights.device) and cache.num_blocks < blocks_per_row(cache)


def blocks_per_row(cache: ContiguousCache | PagedCache) -> int:
    """Return how many blocks a row of a step's block table has room for."""
    if isinstance(cache, ContiguousCache):
        return 1
    pool = cache.pool
    return min(pool.num_blocks, blocks_for(pool.config.max_seq_len, pool.block_size)) + 1


def cuda_graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a step. It is run twice before, for what happens at first calls alone: kernels are compiled, cuBLAS makes room."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


class Steps:
    """A model's captured steps, one per cache (or pool) and size of batch.

    Args:
        weights: of the model.
        operations: how each thing in a step is done. None: with the Triton kernels.
        capture: what makes a step quick to repeat.
    """

    def __init__(self, weights: PackedLlama, *, operations: Operations | None = None, capture: Capture = cuda_graph) -> None:
        self._weights, self._operations, self._capture = weights, operations, capture
        self._known: WeakKeyDictionary[ContiguousCache | BlockPool, dict[int, _Captured]] = WeakKeyDictionary()

    def next_logits(
        self, tokens: Int[Tensor, "batch 1"], cache: ContiguousCache | PagedCache, positions: Int[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch vocab_size"]:
        """Return what `Llama.next_logits` returns, and leave the cache as it does. Errors are those of `Llama.next_logits`."""
        checked_positions(tokens, cache, positions, vocab_size=self._weights.config.vocab_size)
        cache.reserve(positions)
        captured = self.captured(cache, _next_power_of_two(len(tokens)))
        captured.step.fill(tokens[:, 0], positions[:, 0], _block_table(cache))
        return captured.replay()[: len(tokens)].clone()  # the next replay writes over it

    def captured(self, cache: ContiguousCache | PagedCache, batch: int) -> "_Captured":
        """The step for a cache's rows: captured before, or now. A cache whose memory was moved is captured anew."""
        owner = cache if isinstance(cache, ContiguousCache) else cache.pool
        blocks = _blocks(cache, self._weights.config.n_layers)
        known = self._known.setdefault(owner, {})
        if batch not in known or known[batch].step.blocks[0][0].data_ptr() != blocks[0][0].data_ptr():
            operations = self._operations or _triton_operations()
            with torch.inference_mode(False), torch.no_grad():  # buffers made in inference mode could be written in it alone
                step = StaticStep(self._weights, blocks, batch=batch, blocks_per_row=blocks_per_row(cache), operations=operations)
                known[batch] = _Captured(step, self._capture)
        return known[batch]


class _Captured:
    """A step and what replays it."""

    def __init__(self, step: StaticStep, capture: Capture) -> None:
        self.step = step
        self.replay = capture(step)


def _blocks(cache: ContiguousCache | PagedCache, n_layers: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer where they lie. In a contiguous cache each row is one block."""
    if isinstance(cache, ContiguousCache):
        return [cache.blocks(layer) for layer in range(n_layers)]
    assert isinstance(cache.pool.store, FloatStore)  # as `applies` has seen
    return [cache.pool.store.blocks(layer) for layer in range(n_layers)]


def _block_table(cache: ContiguousCache | PagedCache) -> Int[Tensor, "batch used_blocks"]:
    if isinstance(cache, PagedCache):
        return cache.block_table
    return torch.arange(len(cache.seq_lens), device=cache.device)[:, None]


def _triton_operations() -> Operations:
    from llama3_edu.kernels.step_triton import TritonOperations  # late: it needs Triton

    return TritonOperations()


def _next_power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length()
