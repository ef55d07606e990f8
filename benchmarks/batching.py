"""How many tokens a second come out when requests join and leave between steps, and when a batch ends before the next starts.

python -m benchmarks.batching
"""

import argparse
import statistics
import time
from collections.abc import Callable

from benchmarks.report import Report, percent
from benchmarks.workload import Lengths, requests, sampled_text
from llama3_edu import ContiguousCache, Engine, generate, left_pad, load_tiny
from llama3_edu.model import Llama

SEED = 3
Wishes = list[tuple[list[int], Lengths]]
Measured = tuple[float, int, int]
"""Seconds, steps, and places in all steps' batches."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--requests", type=int, default=96)
    options.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    model, tokenizer = load_tiny()
    mix = requests(given.requests, prompt_mean=32, new_mean=64, longest=400, seed=SEED)
    wishes = [
        (sampled_text(model, lengths.prompt, start=tokenizer.bos_id, seed=SEED + index), lengths)
        for index, lengths in enumerate(mix)
    ]
    new_tokens = sum(lengths.new for lengths in mix)
    report = Report(
        name="batching",
        title="Throughput of continuous and of static batching",
        notes=[
            f"{given.requests} requests that are all there at the start, lengths log-normal (standard deviation of the "
            f"logarithm 1.0, seed {SEED}): prompts of {sum(r.prompt for r in mix) / len(mix):.0f} tokens on average, answers"
            f" of {new_tokens / len(mix):.0f}, {new_tokens:,} new tokens in all; the bundled model in float32.",
            "Static: `generate` over a padded batch in a contiguous cache, until its longest answer is done; what a row "
            "writes beyond its own answer is thrown away. Engine, batch by batch: the engine, given the next batch when the"
            " last one has ended. Continuous: the engine, given all requests at once.",
            "Useful: new tokens / places in the batches of all steps that were computed for one. Counted.",
            f"Tokens a second and the ratio to static: the three run one after the other, median of {given.repeats} rounds "
            "(smallest to largest).",
        ],
    )
    for batch in given.batches:
        measure(report, model, wishes, batch, repeats=given.repeats)
    report.finish()


def measure(report: Report, model: Llama, wishes: Wishes, batch: int, *, repeats: int) -> None:
    ways: dict[str, Callable[[], Measured]] = {
        "static": lambda: static(model, wishes, batch),
        "engine, batch by batch": lambda: batch_by_batch(model, wishes, batch),
        "continuous": lambda: continuous(model, wishes, batch),
    }
    ways["static"]()  # warm-up
    rounds = [{name: way() for name, way in ways.items()} for _ in range(repeats)]
    new_tokens = sum(lengths.new for _, lengths in wishes)
    for name in ways:
        _, steps, places = rounds[0][name]
        speeds = [new_tokens / measured[name][0] for measured in rounds]
        ratios = [measured["static"][0] / measured[name][0] for measured in rounds]
        report.add(
            batching=name, batch=batch, steps=steps, useful=percent(new_tokens, places),
            tokens_a_second=statistics.median(speeds),
            times_static=f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        )  # fmt: skip


def static(model: Llama, wishes: Wishes, batch: int) -> Measured:
    start, steps, places = time.perf_counter(), 0, 0
    for group in batches_of(wishes, batch):
        tokens, positions = left_pad([prompt for prompt, _ in group])
        longest = max(lengths.new for _, lengths in group)
        cache = ContiguousCache(model.config, len(group), max_seq_len=tokens.shape[1] + longest, dtype=model.dtype)
        generate(model, tokens, positions=positions, max_new_tokens=longest, cache=cache)
        steps, places = steps + longest, places + longest * len(group)
    return time.perf_counter() - start, steps, places


def batch_by_batch(model: Llama, wishes: Wishes, batch: int) -> Measured:
    engine = engine_for(model, batch)
    start = time.perf_counter()
    for group in batches_of(wishes, batch):
        run(engine, group)
    return time.perf_counter() - start, len(engine.statistics), len(engine.statistics) * batch


def continuous(model: Llama, wishes: Wishes, batch: int) -> Measured:
    engine = engine_for(model, batch)
    start = time.perf_counter()
    run(engine, wishes)
    return time.perf_counter() - start, len(engine.statistics), len(engine.statistics) * batch


def engine_for(model: Llama, batch: int) -> Engine:
    return Engine(model, num_blocks=batch * 32, max_batch=batch, prefix_caching=False)


def run(engine: Engine, wishes: Wishes) -> None:
    for prompt, lengths in wishes:
        engine.add(prompt, max_new_tokens=lengths.new)
    engine.run()


def batches_of(wishes: Wishes, batch: int) -> list[Wishes]:
    """The requests in batches, in order of arrival."""
    return [wishes[first : first + batch] for first in range(0, len(wishes), batch)]


if __name__ == "__main__":
    main()
