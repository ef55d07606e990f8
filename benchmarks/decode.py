"""Milliseconds per decoded token at growing contexts, beside peers and beside the limit that memory sets.

    python -m benchmarks.decode                                              # 110 M parameters in float32, all peers
    python -m benchmarks.decode --model 1b --peers transformers              # Llama 3.2 1B's shape in bfloat16
    python -m benchmarks.decode --model 110m --contexts 128,512 --peers none

The peers need their environment: benchmarks/peers.sh makes it.
"""

import argparse
import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks import models, speed
from benchmarks.ours import Limit, Ours, Peer, Prepared, Textbook, limits, prepared
from benchmarks.report import Report
from benchmarks.timing import Contender, Timing, measure, ratios
from benchmarks.workers import PeerFailed, Worker, peer
from benchmarks.workload import random_ids
from llama3_edu import ContiguousCache, Llama

OURS, REFERENCE = "llama3_edu", "llama3_edu, the readable model"
PEERS = ("transformers", "openvino", "ctranslate2")


@dataclass(frozen=True)
class Defaults:
    """How a model is measured when nobody says otherwise."""

    dtype: str
    contexts: str
    peers: str
    steps: int


DEFAULTS = {
    "110m": Defaults("float32", "128,512,1024,2048", "transformers,openvino,ctranslate2", steps=32),
    "1b": Defaults("bfloat16", "128,1024", "transformers", steps=12),
    "tiny": Defaults("float32", "128,384", "transformers", steps=64),
    "rehearsal": Defaults("float32", "16,32", "none", steps=2),
}

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""How far a peer's logits may be from the readable model's, in standard deviations; one beyond that computes something else."""


def main(arguments: Sequence[str] | None = None) -> None:
    given = _given(arguments)
    model = models.load(given.model, getattr(torch, given.dtype))
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(peer(name, models.directory(given.model), dtype=given.dtype, threads=given.threads))
            for name in given.peers
        ]
        report = _report(given, workers)
        for context in given.contexts:
            _measure(report, given, model, workers, context)
    speed.finish(report, given)


def _given(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = speed.options(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.NAMES, default="110m")
    parser.add_argument("--dtype", choices=TOLERANCE, help="float32, for 1b bfloat16")
    parser.add_argument("--contexts", help="tokens that a step looks back at, one or several: 128,512")
    parser.add_argument("--peers", help=f"any of {','.join(PEERS)}, or none")
    parser.add_argument("--steps", type=int, help="tokens per sample")
    given = speed.parsed(parser, {"model": "rehearsal"}, arguments)
    for name, value in vars(DEFAULTS[given.model]).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.contexts = [int(context) for context in given.contexts.split(",")]
    given.peers = [name for name in given.peers.split(",") if name not in ("", "none")]
    return given


def _report(given: argparse.Namespace, workers: Sequence[Worker]) -> Report:
    return speed.report(
        given,
        name=f"decode_{given.model}_{given.dtype}",
        script="decode",
        title=f"Decoding one sequence: {models.title(given.model)}, {given.dtype}",
        versions=[worker.version for worker in workers],
        notes=[
            f"Milliseconds per token of {given.steps} greedy steps behind a prompt of that many random tokens; the prompt is not "
            "timed, nor is the first step. All have the same weights; before anything was timed, every peer's logits were compared "
            "with those of the readable model.",
            "The limit reads as many bytes as a step must read, every weight once, and all keys and values once, in the fastest of "
            "the ways that torch has (`Limit` in `benchmarks/ours.py`). MBU, the share of the memory's bandwidth: the limit's time "
            "over the contender's.",
            "transformers: eager, `sdpa`, its default cache, `inference_mode`. OpenVINO: float32 throughout, keys and values too. "
            "CTranslate2: float32, its own loop. The textbook loop: plain torch over a cache allocated ahead.",
        ],
    )


def _measure(report: Report, given: argparse.Namespace, model: Llama, workers: Sequence[Worker], context: int) -> None:
    generator = torch.Generator().manual_seed(context)
    prompt = random_ids(context + 1, vocab_size=model.config.vocab_size, generator=generator)
    _check_same(model, workers, prompt[:64], tolerance=TOLERANCE[given.dtype])
    layers = prepared(model, prompt[:context])
    for worker in workers:
        worker.call("prepare", tokens=prompt[:context])
    contenders = list(_contenders(given, model, workers, prompt[:context], layers))
    timings = measure(contenders, rounds=given.rounds, quiet=speed.quiet(given))
    limit = min((timings[one.name] for one in contenders if isinstance(one, Limit)), key=lambda timing: timing.median)
    ours, reference = timings[OURS], next(one for one in contenders if one.name == REFERENCE)
    for contender in contenders:
        timing = timings[contender.name]
        if timing.name.startswith("limit") and timing is not limit:
            continue
        same = _leading_equal(getattr(contender, "tokens", []), reference.tokens)
        _add(report, timing, ours, limit, context=context, steps=given.steps, same=same)
    nbytes = next(one.nbytes for one in contenders if isinstance(one, Limit))
    report.record(context=context, contender="bytes", nbytes=nbytes, bytes_per_second=nbytes * given.steps / limit.median)


def _contenders(
    given: argparse.Namespace, model: Llama, workers: Sequence[Worker], prompt: list[int], layers: Prepared
) -> Iterator[Contender]:
    steps, slots = given.steps, len(prompt) + given.steps + 1
    make = lambda: ContiguousCache(model.config, max_seq_len=slots, dtype=model.dtype)  # noqa: E731
    yield Ours(OURS, model, prompt, layers, steps, make, fast=True)
    yield Ours(REFERENCE, model, prompt, layers, steps, make, fast=False)
    yield Textbook(model, prompt, layers, steps)
    for worker in workers:
        yield Peer(worker, steps)
    yield from limits(model, context=len(prompt) + steps // 2, steps=steps)


def _add(report: Report, timing: Timing, ours: Timing, limit: Timing, *, context: int, steps: int, same: int) -> None:
    scale = speed.MS / steps
    times, is_limit = ratios(timing, ours), timing is limit
    mbu = statistics.median(ratios(limit, timing))
    report.add(
        context=context, contender=timing.name, ms_per_token=speed.spread(timing, scale), MBU=f"{mbu:.2f}",
        time_over_ours=f"{statistics.median(times):.2f}", rejected=timing.rejected,
    )  # fmt: skip
    report.record(
        context=context, contender="limit" if is_limit else timing.name, how=timing.name if is_limit else "", mbu=mbu,
        over_ours=statistics.median(times), over_ours_least=min(times), over_ours_most=max(times), same_tokens=same,
        steps=steps, **timing.figures(scale),
    )  # fmt: skip


@torch.no_grad()
def _check_same(model: Llama, workers: Sequence[Worker], tokens: list[int], *, tolerance: float) -> None:
    """Raise PeerFailed unless every peer's logits are ours up to rounding: a peer that computes something else is no peer."""
    expected = model.next_logits(torch.tensor([tokens]))[0].float()
    for worker in workers:
        found = torch.tensor(worker.call("logits", tokens=tokens))
        apart = ((found - expected).abs().max() / expected.std()).item()
        if not apart <= tolerance:
            raise PeerFailed(
                f"{worker.name} computes something else: its logits are {apart:.2g} standard deviations off; {tolerance} may be"
            )


def _leading_equal(found: list[int], expected: list[int]) -> int:
    """Count how many tokens two contenders chose alike before they parted."""
    pairs = list(zip(found, expected))
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))


if __name__ == "__main__":
    speed.run(main)
