"""What keys and values of few bits cost a decode step, and what they save: beside a float cache, at a long context.

python -m benchmarks.quantised_decode
"""

import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks import models, speed
from benchmarks.ours import Ours, prepared
from benchmarks.timing import measure, ratios
from benchmarks.workload import random_ids
from llama3_edu import ContiguousCache, KVCache, Llama, QuantizedCache

FLOAT = "float"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = speed.options(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.NAMES, default="110m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--bits", type=int, nargs="+", default=[8])
    parser.add_argument("--steps", type=int, default=16)
    given = speed.parsed(parser, {"model": "rehearsal", "context": 70, "steps": 2}, arguments)
    model = models.load(given.model, getattr(torch, given.dtype))
    prompt = random_ids(given.context, vocab_size=model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    layers, slots = prepared(model, prompt), given.context + given.steps + 1
    makers = caches(model, slots, given.bits)
    report = speed.report(
        given, name="quantised_decode", script="quantised_decode", versions=[],
        title=f"Decoding with few bits per key and value: {models.title(given.model)}, {given.dtype}",
        notes=[
            f"Milliseconds per token of {given.steps} greedy steps behind {given.context:,} tokens. MB (10^6 bytes): what "
            f"the cache has allocated for {slots:,} tokens, scales and zeros included.",
        ],
    )  # fmt: skip
    contenders = [Ours(name, model, prompt, layers, given.steps, make, fast=True) for name, make in makers.items()]
    timings = measure(contenders, rounds=given.rounds, quiet=speed.quiet(given))
    float_bytes = makers[FLOAT]().nbytes
    for name, timing in timings.items():
        times, nbytes = statistics.median(ratios(timing, timings[FLOAT])), makers[name]().nbytes
        scale = speed.MS / given.steps
        report.add(
            keys_and_values=name, ms_per_token=speed.spread(timing, scale), time_over_float=f"{times:.3f}",
            MB=f"{nbytes / 1e6:.1f}", smaller=f"{float_bytes / nbytes:.2f}×", rejected=timing.rejected,
        )  # fmt: skip
        report.record(
            cache=name, over_float=times, nbytes=nbytes, float_nbytes=float_bytes, context=given.context, **timing.figures(scale)
        )
    speed.finish(report, given)


def caches(model: Llama, slots: int, bits: Sequence[int]) -> dict[str, Callable[[], KVCache]]:
    """Return what makes an empty cache of each kind."""

    def quantised(bits: int) -> QuantizedCache:
        return QuantizedCache(model.config, max_seq_len=slots, bits=bits, dtype=model.dtype)

    makers: dict[str, Callable[[], KVCache]] = {
        FLOAT: lambda: ContiguousCache(model.config, max_seq_len=slots, dtype=model.dtype)
    }
    return makers | {f"int{count}": lambda count=count: quantised(count) for count in bits}


if __name__ == "__main__":
    speed.run(main)
