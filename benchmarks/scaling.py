"""How the time of a whole text grows with its length, with a cache and without one.

    python -m benchmarks.scaling

A text of n tokens costs the sum of its steps. With a cache it is decoded piece by piece, and the pieces' times are added up.
Without one, each step is a forward over all tokens so far: those are timed at a few lengths, and the sum over all is taken by
trapezoids, because running every one of them would take an hour.
"""

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from benchmarks import models, speed
from benchmarks.ours import Ours, Timed, prepared
from benchmarks.timing import measure
from benchmarks.workload import random_ids
from llama3_edu import ContiguousCache, Llama

LENGTHS = "64,128,256,512,768,1024,1536,2048"
STRAIGHT_FROM = 512
"""Tokens: the slope is taken from here on."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = speed.options(__doc__.splitlines()[0], rounds=5, patience=600)
    parser.add_argument("--model", choices=models.NAMES, default="110m")
    parser.add_argument("--lengths", default=LENGTHS)
    quick = {"model": "rehearsal", "lengths": "8,16,512,520"}
    given = speed.parsed(parser, quick, arguments)
    lengths = [int(length) for length in given.lengths.split(",")]
    model = models.load(given.model, torch.float32)
    tokens = random_ids(lengths[-1], vocab_size=model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    timings = measure(
        [*pieces(model, tokens, lengths), *forwards(model, tokens, lengths)], rounds=given.rounds, quiet=speed.quiet(given)
    )
    cached = list(accumulate(timings[_piece(length)].median for length in lengths))
    naive = summed_up(lengths, [timings[_forward(length)].median for length in lengths])
    slopes = slope(lengths, cached), slope(lengths, naive)
    report = speed.report(
        given, name="scaling", script="scaling", versions=[],
        title=f"The time of a whole text: {models.title(given.model)}, float32",
        notes=[
            "Seconds for all tokens up to a length, one sequence, greedy. With a cache: pieces of the text, decoded and added up. Without: a "
            "forward over all tokens so far, timed at these lengths, summed over every length between by trapezoids.",
            f"Slope of log time over log length, from {STRAIGHT_FROM} tokens on: {slopes[0]:.2f} with a cache, {slopes[1]:.2f} without. 1 "
            "is a time that doubles with the length, 2 one that grows fourfold.",
        ],
    )  # fmt: skip
    for length, with_cache, without in zip(lengths, cached, naive):
        report.add(
            tokens=length, with_cache_s=f"{with_cache:.2f}", without_s=f"{without:.1f}", times=f"{without / with_cache:.0f}"
        )
        report.record(tokens=length, cached_seconds=with_cache, naive_seconds=without)
    rejected = sum(timing.rejected for timing in timings.values())
    report.record(cached_slope=slopes[0], naive_slope=slopes[1], straight_from=STRAIGHT_FROM, rejected=rejected)
    speed.finish(report, given)


def pieces(model: Llama, tokens: list[int], lengths: Sequence[int]) -> list[Ours]:
    """Return contenders that decode from each length to the next, the first of them from the second token on."""
    made = []
    for start, end in pairwise([2, *lengths]):

        def make(slots: int = end + 2) -> ContiguousCache:
            return ContiguousCache(model.config, max_seq_len=slots, dtype=model.dtype)

        layers = prepared(model, tokens[:start])
        made.append(Ours(_piece(end), model, tokens[:start], layers, end - start, make, fast=True))
    return made


def forwards(model: Llama, tokens: list[int], lengths: Sequence[int]) -> list[Timed]:
    """Return contenders that run the model over all tokens up to each length, as a step without a cache does."""

    def forward(length: int) -> None:
        with torch.no_grad():
            model.next_logits(torch.tensor([tokens[:length]])).argmax().item()

    return [Timed(_forward(length), lambda length=length: forward(length)) for length in lengths]


def summed_up(lengths: Sequence[int], seconds: Sequence[float]) -> list[float]:
    """Return the time of all steps up to each length: between two lengths on a straight line, before the first as long as that."""
    areas = [(end - start) * (a + b) / 2 for (start, a), (end, b) in pairwise(zip(lengths, seconds))]
    return list(accumulate([lengths[0] * seconds[0], *areas]))


def slope(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope of the line through log time over log length, of the lengths that count."""
    points = [(math.log(n), math.log(t)) for n, t in zip(lengths, seconds) if n >= STRAIGHT_FROM]
    return statistics.linear_regression(*zip(*points)).slope


def _piece(length: int) -> str:
    return f"cached, up to {length}"


def _forward(length: int) -> str:
    return f"forward over {length}"


if __name__ == "__main__":
    speed.run(main)
