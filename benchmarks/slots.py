"""What share of the slots taken for keys and values holds a token: blocks against room reserved ahead.

python -m benchmarks.slots
"""

import argparse
from collections.abc import Callable, Iterator

import torch

from benchmarks.report import Report, percent
from benchmarks.workload import Lengths, random_ids, requests
from llama3_edu import Engine, Llama, LlamaConfig

LONGEST = 2048
SEED = 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--requests", type=int, default=150)
    options.add_argument("--slots", type=int, default=16384, help="slots of the pool, and of the memory reserved from")
    options.add_argument("--block-sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    given = options.parse_args()
    mix = requests(given.requests, prompt_mean=161, new_mean=338, longest=LONGEST, seed=SEED)
    report = Report(
        name="slots",
        title="Share of the slots taken that hold a token",
        notes=[
            f"{given.requests} requests, lengths log-normal (standard deviation of the logarithm 1.0, seed {SEED}): prompts "
            f"of {mean([r.prompt for r in mix]):.0f} tokens on average, answers of {mean([r.new for r in mix]):.0f}; means "
            "drawn from are 161 and 338, those that the PagedAttention paper gives for ShareGPT (arXiv 2309.06180, figure "
            "11).",
            f"{given.slots:,} slots for everybody. Reserved ahead: a request takes all its room when it starts and waits "
            f"until there is enough: {LONGEST:,} slots; or the power of two that its tokens will need; or exactly its "
            "tokens, known in advance.",
            "Share: tokens held / slots taken, both summed over all steps. Counted, not timed; a model of one layer writes "
            "the text.",
        ],
    )
    for size in given.block_sizes:
        add(report, f"blocks of {size}", *paged(mix, slots=given.slots, block_size=size))
    for name, room in RESERVED.items():
        add(report, name, *reserved(mix, slots=given.slots, room=room))
    report.finish()


def add(report: Report, how: str, held: int, taken: int, steps: int) -> None:
    report.add(slots_taken=how, share_that_holds_a_token=percent(held, taken), tokens_held_per_step=held / steps, steps=steps)


def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def paged(mix: list[Lengths], *, slots: int, block_size: int) -> tuple[int, int, int]:
    """Run the mix through an engine; return tokens held and slots taken, summed over all steps, and the steps."""
    config = LlamaConfig(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=8, vocab_size=64, max_seq_len=LONGEST)
    engine = Engine(
        Llama(config), num_blocks=slots // block_size, block_size=block_size, max_batch=256, max_tokens_per_step=2048,
        prefix_caching=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(SEED)
    for lengths in mix:
        engine.add(random_ids(lengths.prompt, vocab_size=64, generator=generator), max_new_tokens=lengths.new)
    engine.run()
    uses = [step.memory for step in engine.statistics]
    return sum(use.tokens_stored for use in uses), sum(use.slots_held for use in uses), len(uses)


def power_of_two(lengths: Lengths) -> int:
    return 1 << (lengths.prompt + lengths.new - 2).bit_length()


RESERVED: dict[str, Callable[[Lengths], int]] = {
    f"reserved: {LONGEST:,} each": lambda lengths: LONGEST,
    "reserved: next power of two": power_of_two,
    "reserved: exactly its own": lambda lengths: lengths.prompt + lengths.new - 1,
}


def reserved(mix: list[Lengths], *, slots: int, room: Callable[[Lengths], int]) -> tuple[int, int, int]:
    """Return the same for memory that a request takes whole when it starts. Prompts are computed in one step."""
    held, taken, steps = 0, 0, 0
    for running in plays(mix, slots=slots, room=room):
        held += sum(tokens for _, tokens in running)
        taken += sum(room(lengths) for lengths, _ in running)
        steps += 1
    return held, taken, steps


def plays(mix: list[Lengths], *, slots: int, room: Callable[[Lengths], int]) -> Iterator[list[tuple[Lengths, int]]]:
    """Yield, for every step, the requests that run and the tokens each holds."""
    waiting, running = list(mix), []
    while waiting or running:
        running = [(lengths, tokens + 1) for lengths, tokens in running if tokens + 1 < lengths.prompt + lengths.new]
        while waiting and sum(room(lengths) for lengths, _ in running) + room(waiting[0]) <= slots:
            first = waiting.pop(0)
            running.append((first, first.prompt))
        if running:
            yield running


if __name__ == "__main__":
    main()
