"""How many blocks copy-on-write saves in beam search, by beam width.

python -m benchmarks.beam_blocks
"""

import argparse
from dataclasses import dataclass

import torch

from benchmarks.report import Report, percent
from benchmarks.workload import Lengths, requests, sampled_text
from llama3_edu import BlockPool, PagedCache, Tokenizer, beam_search, load_tiny
from llama3_edu.events import BlockCopied, Event, KeysStored
from llama3_edu.model import Llama

SEED = 1
MIXES = {"short (Alpaca-like)": (19, 58), "long (ShareGPT-like)": (161, 338)}
"""Mean tokens of prompts and answers that the PagedAttention paper gives (arXiv 2309.06180, figure 11)."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--widths", type=int, nargs="+", default=[2, 4, 6, 8])
    options.add_argument("--prompts", type=int, default=5, help="prompts of each mix")
    options.add_argument("--block-size", type=int, default=16)
    given = options.parse_args()
    model, tokenizer = load_tiny()
    report = Report(
        name="beam_blocks",
        title="Blocks that copy-on-write saves in beam search",
        notes=[
            f"{given.prompts} prompts of each mix, written by the bundled model itself (seeds from {SEED} on); lengths "
            "log-normal around the means that the PagedAttention paper gives for Alpaca and ShareGPT (arXiv 2309.06180, "
            f"figure 11), prompt and answer 480 tokens at most. Blocks of {given.block_size} tokens, no end token: every "
            "answer has its full length.",
            "Saved: 1 - blocks held / blocks that the beams would hold if each had its own, both summed over all steps. "
            "Paper: 37.6-55.2 % (Alpaca), 44.3-66.3 % (ShareGPT), with a 13B model.",
            "Tokens copied: slots of the blocks copied on write. Without blocks, every step copies all that each beam holds"
            " whenever beams change places. All counted, not timed.",
        ],
    )
    for mix, (prompt_mean, new_mean) in MIXES.items():
        wishes = requests(given.prompts, prompt_mean=prompt_mean, new_mean=new_mean, longest=480, seed=SEED)
        for width in given.widths:
            measure(report, mix, width, wishes, model, tokenizer, given.block_size)
    report.finish()


def measure(
    report: Report, mix: str, width: int, wishes: list[Lengths], model: Llama, tokenizer: Tokenizer, block_size: int
) -> None:
    count = Count(n_layers=model.config.n_layers)
    for index, lengths in enumerate(wishes):
        prompt = sampled_text(model, lengths.prompt, start=tokenizer.bos_id, seed=SEED + index)
        blocks = width * (-(-(lengths.prompt + lengths.new) // block_size) + 1)
        pool = BlockPool(model.config, num_blocks=blocks, block_size=block_size, dtype=model.dtype, observer=count)
        cache = count.cache = PagedCache(pool, [[]], observer=count)
        beam_search(model, torch.tensor([prompt]), num_beams=width, max_new_tokens=lengths.new, cache=cache)
        cache.release()
        assert pool.num_used == 0
    report.add(
        mix=mix, beams=width, blocks_saved=percent(count.alone - count.shared, count.alone), blocks_held=count.shared,
        held_without_sharing=count.alone, steps=count.steps, tokens_copied_per_step=count.copied * block_size / count.steps,
        tokens_held_per_step=count.tokens / count.steps,
    )  # fmt: skip


@dataclass
class Count:
    """An observer that adds up, over all steps, the blocks that beams hold together and would hold alone."""

    n_layers: int
    cache: PagedCache | None = None
    shared: int = 0
    alone: int = 0
    tokens: int = 0
    copied: int = 0
    steps: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, BlockCopied):
            self.copied += 1
        elif isinstance(event, KeysStored) and event.layer == self.n_layers - 1:
            tables = self.cache.block_tables
            self.shared += len({block for table in tables for block in table})
            self.alone += sum(map(len, tables))
            self.tokens += sum(event.seq_lens)
            self.steps += 1


if __name__ == "__main__":
    main()
