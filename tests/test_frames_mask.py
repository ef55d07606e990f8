"""Frames of the causal mask: every pass is one that really happened, every change one that really shows."""

import itertools
import re

import pytest
import torch
from tiny_models import CONFIG, SHAPES, random_model

import llama3_edu as le
from llama3_edu.cache.base import KVCache
from llama3_edu.frames_mask import MOST_TOKENS
from llama3_edu.positions import PAD
from llama3_edu.probe import look_inside
from llama3_edu.trace import Frames

SHAPE_IDS = {"argvalues": list(SHAPES.values()), "ids": list(SHAPES)}
LENGTH = 9
TEXT = torch.arange(LENGTH)[None]
PACK = {"none": le.right_pad, "before": le.left_pad, "after": le.right_pad}


@pytest.mark.parametrize("config", **SHAPE_IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_perturbation_frames_mark_exactly_what_changes(config: le.LlamaConfig, dtype: torch.dtype):
    model, tokens = random_model(config, dtype=dtype), torch.arange(8)[None]
    frames = le.perturbation_frames(model, tokens, replacement=50)
    before = look_inside(model, tokens)
    assert [step["replaced"] for step in frames["steps"]] == [None, *range(8)]
    for position, changes in enumerate(frames["changes"]):
        after = look_inside(model, tokens.clone().index_fill_(1, torch.tensor([position]), 50))
        for layer, flags in enumerate(changes["layers"]):
            for name in ("q", "k", "v"):
                same = (getattr(before, name)[layer] == getattr(after, name)[layer]).all(dim=-1).all(dim=-1)[0]
                assert flags[name] == "".join("01"[not equal] for equal in same)


def test_a_replaced_token_moves_nothing_before_it_and_only_its_own_keys_at_first():
    n = 8
    frames = le.perturbation_frames(random_model(), torch.arange(n)[None], replacement=50)
    for position, changes in enumerate(frames["changes"]):
        alone = "0" * position + "1" + "0" * (n - 1 - position)
        onwards = "0" * position + "1" * (n - position)
        first, last = changes["layers"][0], changes["layers"][-1]
        assert first["q"] == first["k"] == first["v"] == alone
        assert first["out"] == last["k"] == last["v"] == last["out"] == changes["logits"] == onwards
        for query, row in enumerate(first["scores"]):
            assert row == "".join("01"[query == position or key == position] for key in range(query + 1))
        assert all("1" not in row for layer in changes["layers"] for row in layer["scores"][:position])


def test_perturbation_frames_carry_the_weights_in_thousandths():
    model, tokens = random_model(), torch.arange(6)[None]
    frames = le.perturbation_frames(model, tokens, replacement=50)
    for layer, weights in enumerate(look_inside(model, tokens).weights):
        for head, rows in enumerate(frames["weights"][layer]):
            for query, row in enumerate(rows):
                assert len(row) == query + 1
                assert torch.tensor(row) / 1000 == pytest.approx(weights[0, head, query, : query + 1].tolist(), abs=5.1e-4)


def test_perturbation_frames_refuse_a_replacement_that_replaces_nothing():
    with pytest.raises(ValueError, match="without the replacement 3"):
        le.perturbation_frames(random_model(), torch.arange(6)[None], replacement=3)


def mask_frames(**options) -> Frames:
    return le.mask_frames(random_model(), TEXT, replacement=50, **options)


def test_the_whole_text_is_one_pass_with_nothing_cached():
    frames = le.perturbation_frames(random_model(), TEXT, replacement=50)
    assert frames["runs"] == [{"cached": 0, "chunk": None, "padding": "none"}]
    for step in frames["steps"]:
        assert step["positions"] == step["key_positions"] == list(range(LENGTH))


def test_every_combination_is_run_and_takes_in_every_column_once():
    frames = mask_frames(cached=(0, 5), chunks=(4, None), pad=3)
    combinations = itertools.product(("none", "before", "after"), (0, 5), (4, None))
    assert frames["runs"] == [{"cached": held, "chunk": chunk, "padding": padding} for padding, held, chunk in combinations]
    for index, run in enumerate(frames["runs"]):
        passes = [step for step in frames["steps"] if step["run"] == index]
        padding = {"none": [], "before": [PAD] * 3, "after": [PAD] * 3}[run["padding"]]
        columns = padding + list(range(LENGTH)) if run["padding"] == "before" else list(range(LENGTH)) + padding
        assert [at for own in passes for at in own["positions"]] == columns[run["cached"] :]
        assert {len(own["positions"]) for own in passes[:-1]} <= {run["chunk"]}
        for own in passes:
            assert own["key_positions"] == columns[: len(own["key_positions"])]
            assert own["key_positions"][-len(own["positions"]) :] == own["positions"]
            assert own["replaced"] is None


class Noting:
    """Hands a cache on and notes what `reserve` was given and returned for the first row."""

    def __init__(self, cache: KVCache) -> None:
        self.cache, self.passes = cache, []

    def __getattr__(self, name: str):
        return getattr(self.cache, name)

    def reserve(self, positions: torch.Tensor) -> torch.Tensor:
        key_positions = self.cache.reserve(positions)
        self.passes.append({"positions": positions[0].tolist(), "key_positions": key_positions[0].tolist()})
        return key_positions


@pytest.mark.parametrize("padding", PACK)
@pytest.mark.parametrize("chunk", [1, 4, 20])
def test_a_pass_is_what_a_real_cache_reserves(padding: str, chunk: int):
    frames = mask_frames(cached=(0,), chunks=(chunk,), paddings=(padding,))
    rows = [list(range(LENGTH)), list(range(LENGTH + 2))][: 1 if padding == "none" else 2]
    tokens, positions = PACK[padding](rows)
    cache = le.GrowingCache(CONFIG, len(rows), dtype=torch.float64)
    noting = Noting(cache)
    for first in range(0, tokens.shape[1], chunk):
        piece = slice(first, first + chunk)
        noting.reserve(positions[:, piece])
        for layer in range(CONFIG.n_layers):
            kv = torch.zeros(len(rows), tokens[:, piece].shape[1], CONFIG.n_kv_heads, CONFIG.head_dim, dtype=torch.float64)
            cache.update(layer, kv, kv)
    assert [{name: step[name] for name in ("positions", "key_positions")} for step in frames["steps"]] == noting.passes


def test_the_summary_counts_the_cells_of_the_real_mask():
    for step in mask_frames(cached=(0, 2))["steps"]:
        mask = le.causal_mask(torch.tensor([step["positions"]]), torch.tensor([step["key_positions"]]))
        numbers = [int(number) for number in re.findall(r"(\d+) (?:is |are )?(?:visible|masked)", step["summary"])]
        if "All" in step["summary"] or "only cell" in step["summary"]:
            assert mask.all()
        else:
            hidden = int((~mask).sum())
            seen = 0 if "none is visible" in step["summary"] else numbers.pop(0)
            assert seen == int(mask.sum()) and sum(numbers) == hidden
            assert f"Of {mask.numel()} cells" in step["summary"]


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_behind_a_cache_the_same_things_change_and_weigh_the_same(chunk: int, dtype: torch.dtype):
    model = random_model(dtype=dtype)
    frames = le.mask_frames(model, TEXT, replacement=50, chunks=(chunk,), paddings=("none",))
    for position in (0, 3, LENGTH - 1):
        replaced = TEXT.clone().index_fill_(1, torch.tensor([position]), 50)
        before, after = (le.GrowingCache(model.config, dtype=dtype) for _ in range(2))
        for first in range(0, LENGTH, chunk):
            piece = slice(first, min(first + chunk, LENGTH))
            old, new = look_inside(model, TEXT[:, piece], before), look_inside(model, replaced[:, piece], after)
            flags = frames["changes"][position]
            for layer, own in enumerate(flags["layers"]):
                assert own["k"][: piece.stop] == differing(old.k[layer], new.k[layer])
                assert own["v"][: piece.stop] == differing(old.v[layer], new.v[layer])
                assert own["q"][piece] == differing(old.q[layer], new.q[layer])
                for row, query in enumerate(range(first, piece.stop)):
                    for head in range(CONFIG.n_heads):
                        real = old.weights[layer][0, head, row, : query + 1].tolist()
                        assert torch.tensor(frames["weights"][layer][head][query]) / 1000 == pytest.approx(real, abs=6e-4)
            assert flags["logits"][piece] == differing(old.logits, new.logits)


def differing(old: torch.Tensor, new: torch.Tensor) -> str:
    return "".join("01"[int((a != b).any())] for a, b in zip(old[0], new[0]))


def test_a_stale_cache_gives_the_old_answer_bit_for_bit():
    model, replaced = random_model(), TEXT.clone()
    replaced[0, 2] = 50
    logits = []
    for text in (TEXT, replaced):
        cache = le.GrowingCache(model.config, dtype=model.dtype)
        model(TEXT[:, :5], cache)  # the cache was filled before the token was replaced
        logits.append(model(text[:, 5:], cache))
    assert torch.equal(*logits)
    assert "1" in le.mask_frames(model, TEXT, replacement=50)["changes"][2]["logits"][5:], "computed anew it would have changed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cached": (0, 9)}, "of 9 tokens, 0 to 8 can be cached before the first pass; cached offers 9"),
        ({"chunks": (2, 0)}, "at least 1 column, or None for all; chunks offers 0"),
        ({"paddings": ("left",)}, "one of none, before, after; paddings offers left"),
        ({"pad": 0}, "pad should be at least 1; it is 0"),
        ({"chunks": ()}, "at least one choice"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        mask_frames(**options)


def test_a_text_too_long_to_look_at_is_refused():
    config = le.LlamaConfig(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=8, vocab_size=99, max_seq_len=99)
    with pytest.raises(ValueError, match=f"one row of at most {MOST_TOKENS} tokens .* it was given 1 of 65"):
        le.mask_frames(le.Llama(config), torch.arange(65)[None], replacement=98)
