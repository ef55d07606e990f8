"""Frames made from shapes alone: groups as attention has them, bytes as caches have them, questions as `memory` answers them."""

import json
import re
from dataclasses import replace

import pytest
import torch
from tiny_models import CONFIG

import llama3_edu as le
from llama3_edu.config import PRESETS
from llama3_edu.sizes import CARDS, model_name

SHAPES = {
    "llama3-8b": PRESETS["llama3-8b"],
    "llama3.2-3b": PRESETS["llama3.2-3b"],
    "own head_dim": replace(CONFIG, n_heads=6, n_kv_heads=2, head_dim=12),
    "one head": replace(CONFIG, n_heads=1, n_kv_heads=1),
}
every_shape = pytest.mark.parametrize("config", list(SHAPES.values()), ids=list(SHAPES))


@every_shape
def test_a_query_head_is_moved_by_the_kv_head_it_is_said_to_read_and_by_no_other(config: le.LlamaConfig) -> None:
    for step in le.head_group_frames(config)["steps"]:
        n_kv_heads = step["n_kv_heads"]
        q, k = torch.ones(1, 1, config.n_heads, 4), torch.ones(1, 1, n_kv_heads, 4)
        for kv_head in range(n_kv_heads):
            v = torch.zeros(1, 1, n_kv_heads, 4)
            v[:, :, kv_head] = 1
            moved = le.fused_attend(q, k, v)[0, 0, :, 0].round().tolist()
            assert moved == [float(read == kv_head) for read in step["groups"]]


@every_shape
def test_every_divisor_has_its_step_most_kv_heads_first(config: le.LlamaConfig) -> None:
    frames = le.head_group_frames(config)
    counts = [step["n_kv_heads"] for step in frames["steps"]]
    assert counts == sorted(counts, reverse=True) and counts[0] == config.n_heads and counts[-1] == 1
    assert set(counts) == {count for count in range(1, config.n_heads + 1) if config.n_heads % count == 0}
    assert frames["own"] == config.n_kv_heads and frames["own"] in counts
    kinds = [step["kind"] for step in frames["steps"]]
    assert kinds[0] == "MHA" and set(kinds[1:-1]) <= {"GQA"} and kinds[-1] == ("MQA" if config.n_heads > 1 else "MHA")


@pytest.mark.parametrize(("bits", "dtype"), [(16, torch.float16), (32, torch.float32)])
def test_bytes_per_token_are_those_of_a_cache_of_that_shape(bits: int, dtype: torch.dtype) -> None:
    config = replace(CONFIG, n_heads=6, n_kv_heads=2, head_dim=12)
    for step in le.head_group_frames(config, bits=bits)["steps"]:
        variant = replace(config, n_kv_heads=step["n_kv_heads"])
        assert step["bytes_per_token"] == le.ContiguousCache(variant, max_seq_len=1, dtype=dtype).nbytes
        assert step["n_rep"] == variant.n_rep == step["groups"].count(0)


def test_summaries_say_what_the_step_holds_and_which_is_the_models_own() -> None:
    frames = le.head_group_frames(PRESETS["llama3-8b"])
    for step in frames["steps"]:
        said = step["summary"]
        assert f"{step['kind']}: 32 query heads, {step['n_kv_heads']} KV head" in said
        assert f"{step['bytes_per_token']:,} bytes per token ({le.format_bytes(step['bytes_per_token'])})" in said
        assert ("This is what Llama 3 8B does." in said) == (step["n_kv_heads"] == 8)
        share = re.search(r"1/(\d+) of what MHA keeps", said)
        assert (int(share[1]) if share else 1) == step["n_rep"]


def test_models_are_called_what_people_call_them() -> None:
    assert {preset: model_name(config) for preset, config in PRESETS.items()} == {
        "llama3-8b": "Llama 3 8B",
        "llama3-70b": "Llama 3 70B",
        "llama3.1-8b": "Llama 3.1 8B",
        "llama3.1-70b": "Llama 3.1 70B",
        "llama3.1-405b": "Llama 3.1 405B",
        "llama3.2-1b": "Llama 3.2 1B",
        "llama3.2-3b": "Llama 3.2 3B",
    }
    bundled, _ = le.load_tiny()
    frames = le.head_group_frames(bundled.config)
    assert (frames["model"], frames["n_heads"], frames["own"]) == ("the bundled model", 8, 2)
    assert model_name(CONFIG) is None and le.head_group_frames(CONFIG)["model"] == "this model"
    assert le.head_group_frames(PRESETS["llama3-8b"], name="mine")["model"] == "mine"


def test_the_calculators_table_is_enough_for_the_arithmetic() -> None:
    rows = le.calculator_frames()["models"]
    assert len(rows) == len(PRESETS)
    for row, config in zip(rows, PRESETS.values()):
        assert row["parameters"] * 2 == le.weight_bytes(config)
        assert row["kv_elements"] * 2 == le.kv_bytes_per_token(config)
        assert 2 * row["n_layers"] * row["n_kv_heads"] * row["head_dim"] == row["kv_elements"]


def test_a_cards_label_means_gib() -> None:
    for card in CARDS:
        assert card.memory_bytes == int(card.name.split()[-2]) * 2**30
    assert [card.memory_bytes for card in CARDS] == sorted(card.memory_bytes for card in CARDS)


def test_the_questions_to_start_from_are_answered_by_the_arithmetic() -> None:
    frames = le.calculator_frames()
    presets = list(PRESETS.values())
    for step in frames["steps"]:
        config, card = presets[step["model"]], frames["cards"][step["card"]]
        weights = le.weight_bytes(config, bits=step["weight_bits"])
        kv = le.kv_bytes(config, seq_len=step["seq_len"], batch=step["batch"], bits=step["kv_bits"])
        assert f"weights take {weights:,} bytes ({weights / 1e9:.2f}"[:-3] in step["summary"]
        assert f"take {kv:,} bytes" in step["summary"]
        left = card["bytes"] - weights - kv
        assert f"{abs(left):,} bytes" in step["summary"]
        assert ("Both fit" in step["summary"]) == (left >= 0)
        rows = re.search(r"largest batch is ([\d,]+) row", step["summary"])
        batch = int(rows[1].replace(",", "")) if rows else 0
        row = le.kv_bytes(config, seq_len=step["seq_len"], bits=step["kv_bits"])
        assert batch * row <= card["bytes"] - weights < (batch + 1) * row
    assert "34.36 GB, 32.00 GiB" in frames["steps"][1]["summary"]


def test_a_question_is_asked_only_where_its_model_and_its_card_are_there() -> None:
    only = {"llama3-8b": PRESETS["llama3-8b"]}
    frames = le.calculator_frames(only)
    assert {step["model"] for step in frames["steps"]} == {0} and len(frames["steps"]) == 2
    message = r"starts from one of llama3-8b on RTX 4090 24 GB, .*; it was given llama3-8b and T4 16 GB"
    with pytest.raises(ValueError, match=message):
        le.calculator_frames(only, CARDS[:1])


def test_frames_can_be_written_as_json() -> None:
    for frames in (le.head_group_frames(CONFIG), le.calculator_frames()):
        assert json.loads(json.dumps(frames)) == frames
