"""How long a prompt takes: one forward over all its tokens into an empty cache, here and in transformers.

python -m benchmarks.prefill
"""

import contextlib
import statistics
from collections.abc import Sequence

import torch

from benchmarks import models, speed
from benchmarks.decode import OURS, REFERENCE
from benchmarks.ours import Timed
from benchmarks.timing import measure, ratios
from benchmarks.workers import Worker, peer
from benchmarks.workload import random_ids
from llama3_edu import ContiguousCache, Llama, generate


def main(arguments: Sequence[str] | None = None) -> None:
    parser = speed.options(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.NAMES, default="110m")
    parser.add_argument("--lengths", default="256,1024")
    parser.add_argument("--peers", default="transformers", help="transformers, or none")
    given = speed.parsed(parser, {"model": "rehearsal", "lengths": "16", "peers": "none"}, arguments)
    model = models.load(given.model, torch.float32)
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(peer(name, models.directory(given.model), dtype="float32", threads=given.threads))
            for name in given.peers.split(",")
            if name != "none"
        ]
        report = speed.report(
            given, name="prefill", script="prefill", versions=[worker.version for worker in workers],
            title=f"Prefill of one prompt: {models.title(given.model)}, float32",
            notes=["Milliseconds from the prompt's tokens to the first new one, greedy, into an empty cache."],
        )  # fmt: skip
        for length in map(int, given.lengths.split(",")):
            prompt = random_ids(length, vocab_size=model.config.vocab_size, generator=torch.Generator().manual_seed(length))
            contenders = list(_contenders(model, workers, prompt))
            timings = measure(contenders, rounds=given.rounds, quiet=speed.quiet(given))
            for timing in timings.values():
                times = statistics.median(ratios(timing, timings[OURS]))
                report.add(
                    tokens=length, contender=timing.name, ms=speed.spread(timing, digits=0), time_over_ours=f"{times:.2f}",
                    rejected=timing.rejected,
                )  # fmt: skip
                report.record(tokens=length, contender=timing.name, over_ours=times, **timing.figures(speed.MS))
        speed.finish(report, given)


def _contenders(model: Llama, workers: Sequence[Worker], prompt: list[int]) -> list[Timed]:
    ours = [Timed(name, lambda fast=fast: prefill(model, prompt, fast=fast)) for name, fast in ((OURS, True), (REFERENCE, False))]
    theirs = [
        Timed(worker.name, lambda worker=worker: worker.call("prefill", tokens=prompt)["seconds"], pid=worker.pid)
        for worker in workers
    ]
    return ours + theirs


def prefill(model: Llama, prompt: list[int], *, fast: bool) -> None:
    cache = ContiguousCache(model.config, max_seq_len=len(prompt), dtype=model.dtype)
    generate(model, torch.tensor([prompt]), max_new_tokens=1, cache=cache, fast=fast)


if __name__ == "__main__":
    speed.run(main)
