"""The counting functions of the engine's benchmarks, each against a case counted by hand, and the claim on slots."""

import sys
from pathlib import Path

import pytest
import torch

from llama3_edu import beam_search, load_tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.beam_blocks import Count  # noqa: E402
from benchmarks.report import Report, percent  # noqa: E402
from benchmarks.slots import LONGEST, RESERVED, paged, reserved  # noqa: E402
from benchmarks.workload import Lengths, lognormal, requests  # noqa: E402
from llama3_edu import BlockPool, PagedCache  # noqa: E402


def test_what_is_reserved_is_taken_whole_and_fills_token_by_token() -> None:
    mix = [Lengths(prompt=3, new=3), Lengths(prompt=2, new=1)]
    # Side by side: 3 + 2, then 4, then 5. One after the other: 3, 4, 5, then 2.
    assert reserved(mix, slots=16, room=lambda lengths: 8) == (14, 8 * 4, 3)
    assert reserved(mix, slots=8, room=lambda lengths: 8) == (14, 8 * 4, 4)


def test_blocks_take_what_the_tokens_need_rounded_up() -> None:
    mix = [Lengths(prompt=3, new=3), Lengths(prompt=2, new=1)]
    assert paged(mix, slots=16, block_size=4) == (14, 4 * 2 + 4 + 8, 3)


def test_nearly_every_slot_of_a_block_holds_a_token_and_few_of_those_reserved() -> None:
    mix = requests(12, prompt_mean=161, new_mean=338, longest=LONGEST, seed=5)
    held, taken, _ = paged(mix, slots=8192, block_size=16)
    assert held / taken >= 0.96
    held, taken, _ = reserved(mix, slots=8192, room=RESERVED[f"reserved: {LONGEST:,} each"])
    assert held / taken < 0.40


def test_blocks_of_beams_are_counted_at_every_step() -> None:
    model, _ = load_tiny()
    count = Count(n_layers=model.config.n_layers)
    pool = BlockPool(model.config, num_blocks=20, block_size=4, dtype=model.dtype, observer=count)
    count.cache = PagedCache(pool, [[]], observer=count)
    beam_search(model, torch.arange(8)[None], num_beams=2, max_new_tokens=3, cache=count.cache)
    # 8 tokens fill 2 blocks, which stay shared; each beam writes to a third one of its own, copied if both have one parent.
    assert (count.steps, count.shared, count.alone, count.tokens) == (3, 2 + 4 + 4, 2 + 6 + 6, 8 + 18 + 20)
    assert count.copied in (0, 1)


def test_lengths_have_the_mean_and_the_limits_asked_for() -> None:
    drawn = lognormal(20_000, mean=100, spread=0.5, least=1, most=10_000, generator=torch.Generator().manual_seed(0))
    assert sum(drawn) / len(drawn) == pytest.approx(100, rel=0.02)
    assert min(lognormal(99, mean=9, spread=2.0, least=4, most=20, generator=torch.Generator().manual_seed(0))) == 4


def test_a_report_is_a_table_with_a_row_for_each_figure() -> None:
    report = Report(name="none", title="Title", notes=["A note."])
    report.add(how="so", share_of_all=percent(1, 3), tokens=12345, ratio=1.23456)
    lines = report.markdown().splitlines()
    assert lines[0] == "# Title" and lines[-1] == "- A note."
    assert lines[4] == "| how | share of all | tokens | ratio |"
    assert lines[6] == "| so | 33.3 % | 12,345 | 1.23 |"
