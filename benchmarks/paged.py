"""What blocks cost a decode step: a paged cache beside a contiguous one, its blocks in one run or all over the pool.

python -m benchmarks.paged
"""

import random
import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks import models, speed
from benchmarks.ours import Ours, prepared
from benchmarks.timing import measure, ratios
from benchmarks.workload import random_ids
from llama3_edu import BlockPool, ContiguousCache, KVCache, Llama, PagedCache

CONTIGUOUS, IN_A_RUN, SHUFFLED = "contiguous", "paged, blocks in one run", "paged, blocks shuffled"
SEED = 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = speed.options(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.NAMES, default="110m")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=32)
    given = speed.parsed(parser, {"model": "rehearsal", "context": 24, "steps": 2}, arguments)
    model = models.load(given.model, torch.float32)
    prompt = random_ids(given.context, vocab_size=model.config.vocab_size, generator=torch.Generator().manual_seed(SEED))
    layers, slots = prepared(model, prompt), given.context + given.steps + 1
    report = speed.report(
        given, name="paged", script="paged", versions=[],
        title=f"Decoding with a paged cache: {models.title(given.model)}, float32",
        notes=[
            f"Milliseconds per token of {given.steps} greedy steps behind {given.context:,} tokens; blocks of {given.block_size} "
            "tokens. In one run: the sequence's blocks lie one after the other in the pool. Shuffled: in random order.",
        ],
    )  # fmt: skip
    contenders = [
        Ours(name, model, prompt, layers, given.steps, make, fast=True)
        for name, make in caches(model, slots, block_size=given.block_size).items()
    ]
    timings = measure(contenders, rounds=given.rounds, quiet=speed.quiet(given))
    for timing in timings.values():
        times, scale = statistics.median(ratios(timing, timings[CONTIGUOUS])), speed.MS / given.steps
        report.add(
            cache=timing.name,
            ms_per_token=speed.spread(timing, scale),
            time_over_contiguous=f"{times:.3f}",
            rejected=timing.rejected,
        )
        report.record(cache=timing.name, over_contiguous=times, context=given.context, **timing.figures(scale))
    speed.finish(report, given)


def caches(model: Llama, slots: int, *, block_size: int) -> dict[str, Callable[[], KVCache]]:
    """Return what makes an empty cache of each kind."""
    return {
        CONTIGUOUS: lambda: ContiguousCache(model.config, max_seq_len=slots, dtype=model.dtype),
        IN_A_RUN: lambda: paged(model, slots, block_size=block_size, shuffled=False),
        SHUFFLED: lambda: paged(model, slots, block_size=block_size, shuffled=True),
    }


def paged(model: Llama, slots: int, *, block_size: int, shuffled: bool) -> PagedCache:
    """Return an empty paged cache of one row, whose blocks will come from its pool in order or in none."""
    pool = BlockPool(model.config, num_blocks=-(-slots // block_size), block_size=block_size, dtype=model.dtype)
    if shuffled:
        # A pool gives out again what came back last.
        blocks = pool.allocate_many(pool.num_blocks)
        random.Random(SEED).shuffle(blocks)
        for block in blocks:
            pool.release(block)
    return PagedCache(pool, [[]])


if __name__ == "__main__":
    speed.run(main)
