"""Contenders that live in this process: this package's own paths, the loop a textbook would write, and the limit.

All decode as `benchmarks.peers` do: keys and values of a prompt are put back before every sample, one step is run that is not
timed, then `steps` are.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.workers import Worker
from llama3_edu import KVCache, Llama, NoCache, rope_angles, rope_frequencies, rotate, stream
from llama3_edu.kernels import fastest
from llama3_edu.kernels.projection import make_projection

Prepared = list[tuple[Tensor, Tensor]]
"""Keys and values of a prompt, per layer."""


class Noted(NoCache):
    """Keeps nothing and notes what it was shown: keys and values that can be put into any cache afterwards."""

    def __init__(self) -> None:
        self.layers: Prepared = []

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.layers.append((k, v))
        return k, v


@torch.no_grad()
def prepared(model: Llama, tokens: list[int]) -> Prepared:
    """Return the keys and values of all tokens but the last, which decoding starts with."""
    noted = Noted()
    fastest(model)(torch.tensor([tokens[:-1]]), noted)
    return noted.layers


def put_back(cache: KVCache, layers: Prepared) -> KVCache:
    """Fill an empty cache with what a prompt left."""
    cache.reserve(torch.arange(layers[0][0].shape[1])[None])
    for layer, (k, v) in enumerate(layers):
        cache.update(layer, k, v)
    return cache


@dataclass
class Ours:
    """This package: `stream` with a cache.

    Args:
        make: makes an empty cache for the prompt and the steps.
        fast: whether the paths of `llama3_edu.kernels` may be taken, or the readable model alone.
    """

    name: str
    model: Llama
    prompt: list[int]
    layers: Prepared
    steps: int
    make: Callable[[], KVCache]
    fast: bool
    pid: int = os.getpid()
    tokens: list[int] = field(default_factory=list)

    def sample(self) -> float:
        cache = put_back(self.make(), self.layers)
        chosen = stream(self.model, torch.tensor([self.prompt]), max_new_tokens=self.steps + 1, cache=cache, fast=self.fast)
        self.tokens = [next(chosen).item()]
        start = time.perf_counter()
        self.tokens += [token.item() for token in chosen]
        return time.perf_counter() - start


@dataclass
class Timed:
    """Anything that is timed from beginning to end.

    Args:
        work: what is timed; where it returns a number, that is the seconds that count.
        pid: of the process that does it.
    """

    name: str
    work: Callable[[], object]
    pid: int = os.getpid()

    def sample(self) -> float:
        start = time.perf_counter()
        found = self.work()
        return found if isinstance(found, float) else time.perf_counter() - start


@dataclass
class Textbook:
    """The loop that one would write after a chapter on the KV cache: plain modules' weights, a cache allocated ahead."""

    model: Llama
    prompt: list[int]
    layers: Prepared
    steps: int
    name: str = "textbook loop"
    pid: int = os.getpid()
    tokens: list[int] = field(default_factory=list)

    @torch.inference_mode()
    def sample(self) -> float:
        config, held = self.model.config, len(self.prompt) - 1
        shape = (config.n_layers, 2, 1, config.n_kv_heads, held + self.steps + 1, config.head_dim)
        cache = torch.zeros(shape, dtype=self.model.dtype)
        for kept, (k, v) in zip(cache, self.layers):
            kept[0, :, :, :held], kept[1, :, :, :held] = k.transpose(1, 2), v.transpose(1, 2)
        self.tokens = [self._step(self.prompt[-1], held, cache)]
        start = time.perf_counter()
        for position in range(held + 1, held + 1 + self.steps):
            self.tokens.append(self._step(self.tokens[-1], position, cache))
        return time.perf_counter() - start

    def _step(self, token: int, position: int, cache: Tensor) -> int:
        config = self.model.config
        cos, sin = rope_angles(rope_frequencies(config), torch.tensor([[position]]), self.model.dtype)
        x = self.model.tok_embeddings.weight[token][None]
        for block, (keys, values) in zip(self.model.layers, cache):
            attention, feed_forward = block.attention, block.feed_forward
            normed = block.attention_norm(x)
            q, k, v = (
                F.linear(normed, w.weight).view(1, 1, -1, config.head_dim) for w in (attention.wq, attention.wk, attention.wv)
            )
            q = rotate(q, cos, sin).transpose(1, 2)
            keys[:, :, position] = rotate(k, cos, sin)[:, 0]
            values[:, :, position] = v[:, 0]
            seen = slice(0, position + 1)
            out = F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen], enable_gqa=True)
            x = x + F.linear(out.reshape(1, -1), attention.wo.weight)
            normed = block.ffn_norm(x)
            gated = F.silu(F.linear(normed, feed_forward.w1.weight)) * F.linear(normed, feed_forward.w3.weight)
            x = x + F.linear(gated, feed_forward.w2.weight)
        return F.linear(self.model.norm(x), self.model.output.weight).argmax().item()


@dataclass
class Peer:
    """A worker that decodes from what it prepared."""

    worker: Worker
    steps: int
    tokens: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.worker.name

    @property
    def pid(self) -> int:
        return self.worker.pid

    def sample(self) -> float:
        found = self.worker.call("decode", steps=self.steps)
        self.tokens = found["tokens"]
        return found["seconds"]


class Limit:
    """Reads as many bytes as a decode step has to, and does nothing else: every weight once, and every key and value once.

    Several ways are tried, and the fastest is the limit: `torch.mv` over the model's own matrices, one after the other, and over
    keys and values as they lie (in float32: in 16 bits, `torch.mv` computes for longer than it reads); and over one float32 matrix of
    as many bytes in all, `torch.mv`, the product that `llama3_edu.kernels` takes, and a sum.
    """

    def __init__(self, how: str, work: Callable[[], object], *, nbytes: int, steps: int) -> None:
        self.name, self.pid, self.nbytes = f"limit: {how}", os.getpid(), nbytes
        self._work, self._steps = work, steps

    @torch.inference_mode()
    def sample(self) -> float:
        start = time.perf_counter()
        for _ in range(self._steps):
            self._work()
        return time.perf_counter() - start


def limits(model: Llama, *, context: int, steps: int) -> list[Limit]:
    """Return every way of reading what a step reads behind `context` tokens."""
    config = model.config
    kv = torch.randn(2 * config.n_layers, context, config.kv_dim).to(model.dtype)
    matrices = [*distinct_matrices(model), *kv]
    nbytes = sum(matrix.nbytes for matrix in matrices)
    vectors = {matrix.shape[1]: torch.ones(matrix.shape[1], dtype=matrix.dtype) for matrix in matrices}
    whole, vector = torch.ones(math.ceil(nbytes / 4 / 1024), 1024), torch.ones(1024)
    product = make_projection(whole)
    ways: dict[str, Callable[[], object]] = {
        "mv, one matrix": lambda: torch.mv(whole, vector),
        "product, one matrix": lambda: product.of_row(vector),
        "sum": lambda: whole.sum(),
    }
    if model.dtype == torch.float32:
        ways["mv, matrix by matrix"] = lambda: [torch.mv(matrix, vectors[matrix.shape[1]]) for matrix in matrices]
    return [Limit(how, work, nbytes=nbytes, steps=steps) for how, work in ways.items()]


def distinct_matrices(model: Llama) -> list[Tensor]:
    """Return the matrices that a decode step multiplies with: the output projection among them, tied or not, the embeddings not."""
    named = {
        name: weight for name, weight in model.named_parameters() if weight.dim() == 2 and not name.startswith("tok_embeddings")
    }
    return [weight.data for weight in {**named, "output.weight": model.output.weight}.values()]
