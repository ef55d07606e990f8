"""How much of the prompts need not be computed when they begin with the same system prompt.

python -m benchmarks.prefix
"""

import argparse
import statistics
import time

from benchmarks.report import Report, percent
from benchmarks.workload import requests, sampled_text
from llama3_edu import Engine, load_tiny
from llama3_edu.model import Llama

SEED = 2


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--system-lengths", type=int, nargs="+", default=[0, 64, 128, 256])
    options.add_argument("--requests", type=int, default=32)
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    model, tokenizer = load_tiny()
    report = Report(
        name="prefix",
        title="Prompt tokens saved by finding the blocks of a shared system prompt",
        notes=[
            f"{given.requests} requests, each the system prompt and 24 tokens of its own on average, 8 tokens generated; 8 "
            "run at once; blocks of 16; the bundled model wrote the text, and runs it in float32.",
            "Saved: prompt tokens that the prefix cache had / all prompt tokens. Counted over a whole run that starts with "
            "an empty cache. The first request computes the system prompt, and so do those that start in the same step.",
            f"Faster: time without the prefix cache / time with it, one run after the other, median of {given.repeats} pairs"
            " (smallest to largest). The tokens that come out are the same.",
        ],
    )
    for length in given.system_lengths:
        prompts = prompts_after(model, length, count=given.requests, start=tokenizer.bos_id)
        measure(report, model, prompts, length, repeats=given.repeats)
    report.finish()


def prompts_after(model: Llama, length: int, *, count: int, start: int) -> list[list[int]]:
    """Return prompts that begin with the same `length` tokens."""
    system = sampled_text(model, length, start=start, seed=SEED) if length else []
    own = requests(count, prompt_mean=24, new_mean=8, longest=128, seed=SEED, spread=0.5)
    return [system + sampled_text(model, lengths.prompt, start=start, seed=SEED + index)[1:] for index, lengths in enumerate(own)]


def measure(report: Report, model: Llama, prompts: list[list[int]], length: int, *, repeats: int) -> None:
    ratios = []
    for _ in range(repeats):
        plain, plain_seconds, plain_texts = timed(model, prompts, prefix_caching=False)
        found, found_seconds, found_texts = timed(model, prompts, prefix_caching=True)
        ratios.append(plain_seconds / found_seconds)
        assert plain_texts == found_texts
    all_tokens = sum(map(len, prompts))
    reused = sum(step.reused_tokens for step in found.statistics)
    computed = sum(step.prompt_tokens for step in found.statistics)
    assert reused + computed == all_tokens == sum(step.prompt_tokens for step in plain.statistics)
    report.add(
        tokens_of_the_system_prompt=length, prompt_tokens=all_tokens, computed=computed, saved=percent(reused, all_tokens),
        faster=f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})",
    )  # fmt: skip


def timed(model: Llama, prompts: list[list[int]], *, prefix_caching: bool) -> tuple[Engine, float, list[list[int]]]:
    engine = Engine(model, num_blocks=512, max_batch=8, prefix_caching=prefix_caching)
    sequences = [engine.add(prompt, max_new_tokens=8) for prompt in prompts]
    start = time.perf_counter()
    engine.run()
    return engine, time.perf_counter() - start, [sequence.token_ids for sequence in sequences]


if __name__ == "__main__":
    main()
