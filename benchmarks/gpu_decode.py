"""How close decoding comes to the limit on a GPU: every weight and every key read once per token, as fast as memory is copied.

    python -m benchmarks.gpu_decode
    python -m benchmarks.gpu_decode --model llama3.2-1b --contexts 128 1024 8192    # on a smaller GPU

A model of random numbers, one row. Ours in several ways, and transformers in the same run over weights of the same shape.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import TOY, Place, options, place, random_llama
from benchmarks.report import Report
from llama3_edu import ContiguousCache, Llama, LlamaConfig, kv_bytes, stream, weight_bytes
from llama3_edu.config import PRESETS
from llama3_edu.kernels import pack
from llama3_edu.kernels.graphs import Steps, cuda_graph


@dataclass(frozen=True)
class Wish:
    """What is decoded: `new_tokens` behind a prompt of `context - new_tokens / 2`, so that `context` is the middle."""

    config: LlamaConfig
    context: int
    new_tokens: int
    repeats: int

    @property
    def prompt_len(self) -> int:
        return self.context - self.new_tokens // 2

    @property
    def bytes_per_token(self) -> int:
        """All weights but the embeddings, of which a step reads one row, and all keys and values."""
        embeddings = 0 if self.config.tie_embeddings else self.config.vocab_size * self.config.dim * 2
        return weight_bytes(self.config) - embeddings + kv_bytes(self.config, seq_len=self.context)

    def prompt(self, here: Place) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(self.config.vocab_size, (1, self.prompt_len), generator=generator).to(here.device)


Decode = Callable[[Wish], Iterator[object]]
"""Yields once for the prompt, then once per new token."""


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="llama3-8b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 8000])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-transformers", action="store_true")
    given = parser.parse_args()
    config = TOY if given.rehearse else PRESETS[given.model]
    if given.rehearse:
        given.model, given.contexts, given.new_tokens, given.repeats = "toy", [8], 4, 1
    config = replace(config, max_seq_len=max(given.contexts) + given.new_tokens)
    here = place(rehearse=given.rehearse, memory_bytes=weight_bytes(config) * 5 // 4)
    copy = here.copy_bandwidth()
    report = Report(
        name="gpu_decode",
        title=f"Decoding on a GPU: {given.model}, random weights, one row",
        device=str(here.device),
        notes=[
            f"Milliseconds per token: wall clock of {given.new_tokens} greedy tokens around the context named, the prompt's own"
            f" time not counted, median of {given.repeats} runs (smallest to largest), everything between the tokens included.",
            "Bandwidth: weights in 16 bits and keys and values, each counted once per token (of an embedding matrix of its own,"
            f" nothing), / time. A copy within this memory reads and writes {copy / 1e9:,.0f} GB/s; MBU is the share of it.",
            "Graph: one captured step, with our Triton kernels for matrix times vector or with cuBLAS. No graph: the same loop,"
            " kernels launched one by one. model.py: `fast=False`. Replayed alone: the captured step without the loop around it.",
        ],
    )
    for context in given.contexts:
        wish = Wish(config, context, given.new_tokens, given.repeats)
        for name, times in [*ours(wish, here), *(() if given.without_transformers else theirs(wish, here))]:
            median = statistics.median(times)
            report.add(
                way=name, context=context, ms_per_token=f"{1e3 * median:.3f} ({1e3 * min(times):.3f} to {1e3 * max(times):.3f})",
                tokens_per_second=1 / median, gigabytes_per_second=wish.bytes_per_token / median / 1e9,
                MBU=wish.bytes_per_token / median / copy,
            )  # fmt: skip
    here.finish(report)


def timed(decode: Decode, wish: Wish, here: Place) -> list[float]:
    """Seconds per token of several runs; the first one, which compiles and captures, is not counted."""
    runs = []
    for _ in range(wish.repeats + 1):
        steps = decode(wish)
        next(steps)  # the prompt, and the first token of its logits
        next(steps)  # the first step: a capture, if there is one
        _wait(here)
        start = time.perf_counter()
        count = sum(1 for _ in steps)
        _wait(here)
        runs.append((time.perf_counter() - start) / count)
    return runs[1:]


def _wait(here: Place) -> None:
    if not here.rehearsed:
        torch.cuda.synchronize()


# -- Ours -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def ours(wish: Wish, here: Place) -> Iterator[tuple[str, list[float]]]:
    """Every way of ours."""
    from llama3_edu.kernels.step_triton import Reading, TritonOperations

    model = random_llama(wish.config, here)
    for name, own in (("graph, Triton", True), ("graph, cuBLAS", False)):
        operations = TritonOperations(reading=Reading(own=own))
        steps = Steps(pack(model), operations=operations, capture=_run_again if here.rehearsed else cuda_graph)
        yield name, timed(partial(captured, model, steps, here), wish, here)
        yield f"{name}, replayed alone", replayed(model, steps, wish, here)
    yield "generate, as it comes", timed(partial(generated, model, here, fast=True), wish, here)
    yield "no graph", timed(partial(launched, model, here), wish, here)
    yield "model.py", timed(partial(generated, model, here, fast=False), wish, here)


def _cache(model: Llama, wish: Wish, here: Place) -> ContiguousCache:
    return ContiguousCache(model.config, max_seq_len=wish.prompt_len + wish.new_tokens, device=here.device, dtype=here.dtype)


def generated(model: Llama, here: Place, wish: Wish, *, fast: bool) -> Iterator[Tensor]:
    return stream(model, wish.prompt(here), max_new_tokens=wish.new_tokens, cache=_cache(model, wish, here), fast=fast)


def captured(model: Llama, steps: Steps, here: Place, wish: Wish) -> Iterator[Tensor]:
    """The loop of `generate` around captured steps with the operations asked for."""
    return _loop(model, steps.next_logits, here, wish)


def launched(model: Llama, here: Place, wish: Wish) -> Iterator[Tensor]:
    """The same loop around steps whose kernels are launched one by one."""
    steps = Steps(pack(model), capture=_run_again)
    return _loop(model, steps.next_logits, here, wish)


def _loop(model: Llama, next_logits: Callable[..., Tensor], here: Place, wish: Wish) -> Iterator[Tensor]:
    cache, tokens = _cache(model, wish, here), wish.prompt(here)
    chosen = model.next_logits(tokens, cache).argmax(dim=-1)
    yield chosen
    for position in range(wish.prompt_len, wish.prompt_len + wish.new_tokens - 1):
        chosen = next_logits(chosen[:, None], cache, torch.full((1, 1), position, device=here.device)).argmax(dim=-1)
        yield chosen


def replayed(model: Llama, steps: Steps, wish: Wish, here: Place) -> list[float]:
    """Seconds of the step alone, the same one again and again."""
    cache, tokens = _cache(model, wish, here), wish.prompt(here)
    logits = model.next_logits(tokens, cache)
    steps.next_logits(logits.argmax(dim=-1)[:, None], cache, torch.full((1, 1), wish.prompt_len, device=here.device))
    return here.seconds(steps.captured(cache, 1).replay, repeats=20)


def _run_again(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """No capture: launch everything anew."""
    return step


# -- transformers -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def theirs(wish: Wish, here: Place) -> Iterator[tuple[str, list[float]]]:
    """transformers, as it comes and compiled over a static cache, with weights of the same shape."""
    import transformers

    version, model = transformers.__version__, _their_model(wish.config, here)
    yield f"transformers {version}, eager", timed(partial(_their_loop, model, model.forward, here, static=False), wish, here)
    compiled = torch.compile(model.forward, **({"backend": "eager"} if here.rehearsed else {"mode": "reduce-overhead"}))
    yield (
        f"transformers {version}, compiled, static cache",
        timed(partial(_their_loop, model, compiled, here, static=True), wish, here),
    )


def _their_model(config: LlamaConfig, here: Place) -> torch.nn.Module:
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM

    shape = TheirConfig(
        hidden_size=config.dim, num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads, head_dim=config.head_dim, intermediate_size=config.hidden_dim,
        vocab_size=config.vocab_size, max_position_embeddings=config.max_seq_len, tie_word_embeddings=config.tie_embeddings,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.set_default_dtype(here.dtype)
    try:
        with here.device:
            model = LlamaForCausalLM(shape).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    return model


def _their_loop(
    model: torch.nn.Module, step: Callable[..., object], here: Place, wish: Wish, *, static: bool
) -> Iterator[Tensor]:
    from transformers import DynamicCache, StaticCache

    room = wish.prompt_len + wish.new_tokens
    cache = StaticCache(config=model.config, max_cache_len=room) if static else DynamicCache(config=model.config)
    # The prompt is not run by what is compiled: its shape is another one.
    chosen = model(wish.prompt(here), past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(dim=-1)
    yield chosen
    for position in range(wish.prompt_len, room - 1):
        places = torch.full((1, 1), position, device=here.device)
        if static and not here.rehearsed:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            chosen = step(chosen[:, None], past_key_values=cache, position_ids=places).logits[:, -1].argmax(dim=-1)
        yield chosen


if __name__ == "__main__":
    main()
