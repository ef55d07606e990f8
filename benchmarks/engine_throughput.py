"""Tokens per second of many requests at once: the engine, one request after the other, and transformers' padded batches.

python -m benchmarks.engine_throughput
"""

import argparse
import contextlib
import statistics
from collections.abc import Sequence

import torch

from benchmarks import models, speed
from benchmarks.ours import Timed
from benchmarks.timing import measure, ratios
from benchmarks.workers import Worker, peer
from benchmarks.workload import Lengths, random_ids, requests
from llama3_edu import ContiguousCache, Engine, Llama, generate

ENGINE, ONE_BY_ONE, PADDED = "the engine", "one by one", "transformers, padded batches"
SEED, LONGEST, BLOCK = 4, 256, 16
Wishes = list[tuple[list[int], Lengths]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = speed.options(__doc__.splitlines()[0], rounds=5, patience=600)
    parser.add_argument("--model", choices=models.NAMES, default="110m")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-mean", type=float, default=32.0)
    parser.add_argument("--new-mean", type=float, default=32.0)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--peers", default="transformers", help="transformers, or none")
    quick = {"model": "rehearsal", "requests": 4, "prompt_mean": 6.0, "new_mean": 5.0, "max_batch": 2, "peers": "none"}
    given = speed.parsed(parser, quick, arguments)
    model = models.load(given.model, torch.float32)
    wishes = drawn(given, model.config.vocab_size)
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(peer(name, models.directory(given.model), dtype="float32", threads=given.threads))
            for name in given.peers.split(",")
            if name != "none"
        ]
        contenders = [
            Timed(ENGINE, lambda: engine(model, wishes, given.max_batch)),
            Timed(ONE_BY_ONE, lambda: one_by_one(model, wishes)),
            *(Timed(PADDED, lambda worker=worker: padded(worker, wishes, given.max_batch), pid=worker.pid) for worker in workers),
        ]
        _finish(given, contenders, wishes, versions=[worker.version for worker in workers])


def drawn(given: argparse.Namespace, vocab_size: int) -> Wishes:
    """Return requests of mixed lengths, prompts of random tokens."""
    mix = requests(given.requests, prompt_mean=given.prompt_mean, new_mean=given.new_mean, longest=LONGEST, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    return [(random_ids(lengths.prompt, vocab_size=vocab_size, generator=generator), lengths) for lengths in mix]


def engine(model: Llama, wishes: Wishes, max_batch: int) -> list[list[int]]:
    blocks = max_batch * -(-LONGEST // BLOCK)
    made = Engine(model, num_blocks=blocks, block_size=BLOCK, max_batch=max_batch, prefix_caching=False, fast=True)
    sequences = [made.add(prompt, max_new_tokens=lengths.new) for prompt, lengths in wishes]
    made.run()
    return [sequence.token_ids for sequence in sequences]


def one_by_one(model: Llama, wishes: Wishes) -> list[list[int]]:
    texts = []
    for prompt, lengths in wishes:
        cache = ContiguousCache(model.config, max_seq_len=lengths.prompt + lengths.new, dtype=model.dtype)
        texts.append(generate(model, torch.tensor([prompt]), max_new_tokens=lengths.new, cache=cache, fast=True)[0].tolist())
    return texts


def padded(worker: Worker, wishes: Wishes, max_batch: int) -> float:
    """Return the seconds that transformers takes for all requests, in batches as they came."""
    seconds = 0.0
    for first in range(0, len(wishes), max_batch):
        prompts, lengths = zip(*wishes[first : first + max_batch])
        seconds += worker.call("generate", prompts=prompts, new_tokens=[one.new for one in lengths])["seconds"]
    return seconds


def _finish(given: argparse.Namespace, contenders: Sequence[Timed], wishes: Wishes, *, versions: Sequence[str]) -> None:
    new_tokens = sum(lengths.new for _, lengths in wishes)
    report = speed.report(
        given, name="engine_throughput", script="engine_throughput", versions=versions,
        title=f"Throughput of {len(wishes)} requests: {models.title(given.model)}, float32",
        notes=[
            f"{len(wishes)} requests that are all there at the start, lengths log-normal (standard deviation of the logarithm 1.0, "
            f"seed {SEED}): prompts of {statistics.mean(len(prompt) for prompt, _ in wishes):.0f} tokens on average, answers of "
            f"{new_tokens / len(wishes):.0f}, {new_tokens:,} new tokens in all. Greedy, nothing shared, no end-of-text token.",
            f"The engine: at most {given.max_batch} at once. One by one: `generate` with a contiguous cache. transformers: `generate` "
            f"over batches of {given.max_batch}, padded on the left, in order of arrival, each until its longest answer is done; only "
            "tokens that were asked for count. A speed's quartiles are those of its times.",
        ],
    )  # fmt: skip
    timings = measure(contenders, rounds=given.rounds, quiet=speed.quiet(given))
    for timing in timings.values():
        times = statistics.median(ratios(timing, timings[ENGINE]))
        median, low, high = (new_tokens / seconds for seconds in (timing.median, *reversed(timing.quartiles)))
        report.add(
            requests=timing.name, tokens_a_second=f"{median:.0f} ({low:.0f} to {high:.0f})",
            time_over_the_engine=f"{times:.2f}", rejected=timing.rejected,
        )  # fmt: skip
        report.record(
            requests=timing.name, over_engine=times, tokens_per_second=median, max_batch=given.max_batch, **timing.figures()
        )
    speed.finish(report, given)


if __name__ == "__main__":
    speed.run(main)
