"""What a token costs where the model itself costs next to nothing: `generate` here and in transformers, on the bundled model.

    python -m benchmarks.overhead

The model's 4 million parameters stay in the processor's cache, so much of the time is what the code around the products takes. The
products alone are timed, too: what is above them is overhead.
"""

import argparse
import statistics
from collections.abc import Sequence

import torch

from benchmarks import models, speed
from benchmarks.decode import OURS, REFERENCE
from benchmarks.ours import Timed
from benchmarks.timing import measure, ratios
from benchmarks.workers import peer
from benchmarks.workload import random_ids
from llama3_edu import ContiguousCache, Llama, generate
from llama3_edu.kernels import FastLlama, pack

PRODUCTS = "the products alone"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = speed.options(__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--peers", default="transformers", help="transformers, or none")
    given = speed.parsed(parser, {"new_tokens": 4, "peers": "none"}, arguments)
    model = models.load("tiny", torch.float32)
    prompt = random_ids(given.prompt, vocab_size=model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    contenders = [
        Timed(OURS, lambda: ours(model, prompt, given.new_tokens, fast=True)),
        Timed(REFERENCE, lambda: ours(model, prompt, given.new_tokens, fast=False)),
        Timed(PRODUCTS, lambda: products(FastLlama(pack(model)), given.new_tokens)),
    ]
    if given.peers == "none":
        _finish(given, contenders, versions=[])
        return
    with peer("transformers", models.directory("tiny"), dtype="float32", threads=given.threads) as worker:

        def theirs() -> float:
            return worker.call("generate", prompts=[prompt], new_tokens=[given.new_tokens])["seconds"]

        _finish(given, [*contenders, Timed("transformers", theirs, pid=worker.pid)], versions=[worker.version])


def ours(model: Llama, prompt: list[int], new_tokens: int, *, fast: bool) -> None:
    cache = ContiguousCache(model.config, max_seq_len=len(prompt) + new_tokens, dtype=model.dtype)
    generate(model, torch.tensor([prompt]), max_new_tokens=new_tokens, cache=cache, fast=fast)


@torch.inference_mode()
def products(model: FastLlama, times: int) -> None:
    """Multiply a row by every matrix of the model, as often as there are tokens."""
    config = model.config
    of_stream, of_heads, of_hidden = (
        torch.ones(width) for width in (config.dim, config.n_heads * config.head_dim, config.hidden_dim)
    )
    for _ in range(times):
        for layer in model.layers:
            layer.wqkv.of_row(of_stream)
            layer.wo.of_row(of_heads)
            layer.w13.of_row(of_stream)
            layer.w2.of_row(of_hidden)
        model.output.of_row(of_stream)


def _finish(given: argparse.Namespace, contenders: Sequence[Timed], *, versions: Sequence[str]) -> None:
    report = speed.report(
        given, name="overhead", script="overhead", versions=versions,
        title="The cost of a token around the model: `generate` with the bundled model",
        notes=[
            f"Microseconds per token: the time of `generate`, {given.prompt} prompt tokens and {given.new_tokens} new ones, "
            "greedy, batch 1, over the number of new tokens. The bundled model in float32, the same weights in all.",
            f"{PRODUCTS}: a row times every matrix, nothing else. Overhead is the time above that, in the same round.",
        ],
    )  # fmt: skip
    timings = measure(contenders, rounds=given.rounds, quiet=speed.quiet(given))
    scale = 1e6 / given.new_tokens
    for timing in timings.values():
        times = statistics.median(ratios(timing, timings[OURS]))
        rounds = zip(timing.seconds, timings[OURS].seconds, timings[PRODUCTS].seconds)
        above = 0.0 if timing.name == PRODUCTS else statistics.median((it - floor) / (own - floor) for it, own, floor in rounds)
        report.add(
            contender=timing.name, us_per_token=speed.spread(timing, scale, digits=0), time_over_ours=f"{times:.2f}",
            overhead_over_ours=f"{above:.2f}" if above else "–",
            rejected=timing.rejected,
        )  # fmt: skip
        report.record(contender=timing.name, over_ours=times, overhead_over_ours=above, **timing.figures(scale))
    speed.finish(report, given)


if __name__ == "__main__":
    speed.run(main)
