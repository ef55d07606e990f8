"""What a token costs where the model itself costs next to nothing: `generate` here and in transformers, on the bundled model.

    python -m benchmarks.overhead

The model's 4 million parameters stay in the processor's cache, so the time is what the code around the products takes.
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


def _finish(given: argparse.Namespace, contenders: Sequence[Timed], *, versions: Sequence[str]) -> None:
    report = speed.report(
        given, name="overhead", script="overhead", versions=versions,
        title="The cost of a token around the model: `generate` with the bundled model",
        notes=[
            f"Microseconds per token: the time of `generate`, {given.prompt} prompt tokens and {given.new_tokens} new ones, "
            "greedy, batch 1, over the number of new tokens. The bundled model in float32, the same weights in all.",
        ],
    )  # fmt: skip
    timings = measure(contenders, rounds=given.rounds, quiet=speed.quiet(given))
    scale = 1e6 / given.new_tokens
    for timing in timings.values():
        times = statistics.median(ratios(timing, timings[OURS]))
        report.add(
            contender=timing.name, us_per_token=speed.spread(timing, scale, digits=0), time_over_ours=f"{times:.2f}",
            rejected=timing.rejected,
        )  # fmt: skip
        report.record(contender=timing.name, over_ours=times, **timing.figures(scale))
    speed.finish(report, given)


if __name__ == "__main__":
    speed.run(main)
