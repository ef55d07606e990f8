"""Traces of real runs, folded into frames: every count is the one that really happened."""

import json

import pytest
import torch
from tiny_models import CONFIG, SHAPES, random_model, random_tokens

import llama3_edu as le
from llama3_edu.events import KeysStored, TokenChosen, TokensComputed
from llama3_edu.probe import look_inside
from llama3_edu.trace import Frames, quoted, token_texts

SHAPE_IDS = {"argvalues": list(SHAPES.values()), "ids": list(SHAPES)}


class Letters:
    """A tokenizer that shows token 3 as `d`."""

    def pieces(self, token_ids: list[int]) -> list[str]:
        return [chr(97 + token_id % 26) for token_id in token_ids]


def two_runs(prompt_len: int, new: int) -> tuple[le.Trace, le.Trace, torch.Tensor]:
    model, naive, cached = random_model(), le.Trace(), le.Trace()
    prompt = random_tokens(1, prompt_len)
    tokens = le.generate(model, prompt, max_new_tokens=new, observer=naive)
    cache = le.GrowingCache(CONFIG, dtype=torch.float64)
    le.generate(model, prompt, max_new_tokens=new, cache=cache, observer=cached)
    return naive, cached, tokens


def recompute(prompt_len: int, new: int) -> Frames:
    naive, cached, tokens = two_runs(prompt_len, new)
    return le.recompute_frames(naive, cached, tokens=tokens)


def growth(prompt_len: int = 4, new: int = 6, slots: int = 12) -> tuple[Frames, list[le.KVCache]]:
    model, traces = random_model(), {"growing": le.Trace(), "contiguous": le.Trace()}
    growing = le.GrowingCache(CONFIG, dtype=torch.float64, observer=traces["growing"])
    contiguous = le.ContiguousCache(CONFIG, max_seq_len=slots, dtype=torch.float64, observer=traces["contiguous"])
    for cache in (growing, contiguous):
        tokens = le.generate(model, random_tokens(1, prompt_len), max_new_tokens=new, cache=cache)
    return le.growth_frames(traces, config=CONFIG, tokens=tokens, bits=64), [growing, contiguous]


def all_frames() -> dict[str, Frames]:
    tokens = random_tokens(1, 7)
    replacement = min(set(range(CONFIG.vocab_size)) - set(tokens[0].tolist()))
    return {
        "recompute": recompute(3, 5),
        "growth": growth()[0],
        "perturbation": le.perturbation_frames(random_model(), tokens, replacement=replacement),
        "mask": le.mask_frames(random_model(), tokens, replacement=replacement),
        "shapes": le.shape_frames(random_model(), tokens),
    }


def test_a_trace_keeps_every_event_in_order():
    naive, cached, _ = two_runs(3, 4)
    assert [type(event) for event in naive.events] == [TokensComputed, TokenChosen] * 4
    assert len(naive) == 8 and naive.of(TokenChosen) == cached.of(TokenChosen)
    assert naive.of(KeysStored) == []


@pytest.mark.parametrize("name", ["recompute", "growth", "perturbation", "mask", "shapes"])
def test_frames_are_plain_json_and_every_step_says_what_it_shows(name: str):
    frames = all_frames()[name]
    assert json.loads(json.dumps(frames, allow_nan=False)) == frames
    assert all(step["summary"] for step in frames["steps"])


def test_the_same_run_gives_the_same_frames():
    assert all_frames() == all_frames()


@pytest.mark.parametrize(("prompt_len", "new"), [(1, 1), (1, 9), (5, 7)])
def test_recompute_frames_count_the_tokens_the_model_was_given(prompt_len: int, new: int):
    model, given = random_model(), []
    model.tok_embeddings.register_forward_hook(lambda _, inputs, output: given.append(inputs[0].numel()))
    prompt, traces = random_tokens(1, prompt_len), (le.Trace(), le.Trace())
    tokens = le.generate(model, prompt, max_new_tokens=new, observer=traces[0])
    le.generate(model, prompt, max_new_tokens=new, cache=le.GrowingCache(CONFIG, dtype=torch.float64), observer=traces[1])
    steps = le.recompute_frames(*traces, tokens=tokens)["steps"]
    naive, cached = given[:new], given[new:]
    assert [step["naive"][1] - step["naive"][0] for step in steps] == naive
    assert [step["cached"][1] - step["cached"][0] for step in steps] == cached
    assert [step["naive_total"] for step in steps] == [sum(naive[: n + 1]) for n in range(new)]
    assert steps[-1]["naive_total"] == sum(range(prompt_len, prompt_len + new))
    assert steps[-1]["cached_total"] == prompt_len + new - 1


def test_from_one_token_the_naive_total_is_the_triangle_number():
    for n, step in enumerate(recompute(1, 10)["steps"], start=1):
        assert step["naive_total"] == n * (n + 1) // 2
        assert step["cached_total"] == n


def test_recompute_frames_follow_one_row_of_a_batch():
    model, naive, cached = random_model(), le.Trace(), le.Trace()
    prompts, positions = le.right_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
    options = {"max_new_tokens": 4, "positions": positions}
    tokens = le.generate(model, prompts, observer=naive, **options)
    le.generate(model, prompts, cache=le.GrowingCache(CONFIG, 2, dtype=torch.float64), observer=cached, **options)
    frames = le.recompute_frames(naive, cached, tokens=tokens, row=1)
    assert frames["prompt_len"] == 5
    assert [step["naive"] for step in frames["steps"]] == [[0, 5], [0, 6], [0, 7], [0, 8]]


def test_recompute_frames_refuse_what_is_no_pair_of_runs():
    naive, cached, tokens = two_runs(3, 4)
    with pytest.raises(ValueError, match="'cached' should hold a run of generate"):
        le.recompute_frames(naive, le.Trace(), tokens=tokens)
    shorter = le.Trace()
    shorter.events = cached.events[:-2]
    with pytest.raises(ValueError, match="should choose the same tokens"):
        le.recompute_frames(naive, shorter, tokens=tokens)
    torn = le.Trace()
    torn.events = [TokensComputed(positions=((0, 2),)), TokenChosen(row=0, position=3, token_id=1)]
    with pytest.raises(ValueError, match=r"unbroken run; they are \[0, 2\]"):
        le.recompute_frames(torn, torn, tokens=tokens)


def test_growth_frames_hold_the_bytes_the_caches_hold():
    frames, caches = growth()
    assert [cache["held"] for cache in frames["steps"][-1]["caches"]] == [cache.nbytes for cache in caches]
    assert frames["caches"] == [{"name": "growing", "slots": None}, {"name": "contiguous", "slots": 12}]
    held = [step["caches"][1]["held"] for step in frames["steps"]]
    assert held == [caches[1].nbytes] * len(held), "slots are allocated before the first token"
    for step in frames["steps"]:
        in_use = sum(step["stored"]) * frames["n_kv_heads"] * frames["bytes_per_cell"]
        assert step["caches"][0]["held"] == in_use


def test_growth_frames_count_every_byte_copied():
    prompt_len, new = 4, 6
    frames, _ = growth(prompt_len, new)
    per_token = le.kv_bytes_per_token(CONFIG, bits=64)
    last = frames["steps"][-1]
    assert last["caches"][0]["copied_total"] == per_token * sum(range(prompt_len, prompt_len + new - 1))
    assert last["caches"][1]["copied_total"] == 0
    assert last["stored"] == [prompt_len + new - 1] * CONFIG.n_layers
    assert len(frames["steps"]) == 1 + new * CONFIG.n_layers
    assert [step["layer"] for step in frames["steps"][1:]] == list(range(CONFIG.n_layers)) * new


def test_growth_frames_refuse_what_they_cannot_show():
    model, trace, other = random_model(), le.Trace(), le.Trace()
    cache = le.GrowingCache(CONFIG, dtype=torch.float64, observer=trace)
    tokens = le.generate(model, random_tokens(1, 3), max_new_tokens=2, cache=cache)
    with pytest.raises(ValueError, match="at least one trace"):
        le.growth_frames({}, config=CONFIG, tokens=tokens)
    with pytest.raises(ValueError, match="'empty' should hold what a cache reported"):
        le.growth_frames({"empty": other}, config=CONFIG, tokens=tokens)
    le.generate(model, random_tokens(1, 4), max_new_tokens=1, cache=le.GrowingCache(CONFIG, dtype=torch.float64, observer=other))
    with pytest.raises(ValueError, match="'b' was not given those of 'a'"):
        le.growth_frames({"a": trace, "b": other}, config=CONFIG, tokens=tokens)
    with pytest.raises(ValueError, match="no whole number of tokens"):
        le.growth_frames({"a": trace}, config=CONFIG, tokens=tokens, bits=7 * 64)
    wide = le.Trace()
    cache = le.GrowingCache(CONFIG, 2, dtype=torch.float64, observer=wide)
    le.generate(model, random_tokens(2, 3), max_new_tokens=1, cache=cache)
    with pytest.raises(ValueError, match="one row; 'wide' has 2"):
        le.growth_frames({"wide": wide}, config=CONFIG, tokens=tokens)


@pytest.mark.parametrize("config", **SHAPE_IDS)
def test_shape_frames_account_for_every_parameter_and_shape(config: le.LlamaConfig):
    n = 6
    frames = le.shape_frames(random_model(config), random_tokens(1, n))
    assert sum(step["parameters"] for step in frames["steps"]) == le.parameter_count(config)
    sizes = {"batch": 1, "new_len": n, "kv_len": n, "n_heads·head_dim": config.n_heads * config.head_dim}
    for step in frames["steps"]:
        assert step["shape"] == [sizes.get(axis) or getattr(config, axis) for axis in step["axes"]]


def test_shape_frames_list_the_likeliest_tokens_and_leave_no_hook_behind():
    model, tokens = random_model(), random_tokens(1, 5)
    frames = le.shape_frames(model, tokens, tokenizer=Letters(), top=4)
    probs = model(tokens)[0, -1].softmax(dim=-1)
    assert [entry["percent"] for entry in frames["next"]] == pytest.approx((100 * probs.topk(4).values).tolist(), abs=0.051)
    assert frames["next"][0]["text"] == Letters().pieces([int(probs.argmax())])[0]
    assert all(not module._forward_hooks for module in model.modules())


def test_shape_frames_preview_the_numbers_of_the_first_heads():
    model, tokens = random_model(), random_tokens(1, 5)
    keys = next(step for step in le.shape_frames(model, tokens)["steps"] if step["name"] == "Keys")
    k, preview = look_inside(model, tokens).k[0][0], keys["preview"]
    shown = torch.tensor(preview["rows"]) / 100 * preview["largest"]
    rows, groups, columns = shown.shape
    assert (rows, groups) == (5, CONFIG.n_kv_heads)
    torch.testing.assert_close(shown.double(), k[:, :, :columns], rtol=0, atol=0.01 * float(k.abs().max()))


def test_tokens_are_shown_by_their_text_or_by_their_number():
    assert token_texts([3, 0], Letters()) == ["d", "a"]
    assert token_texts([3, 0]) == ["#3", "#0"]
    assert [quoted("␣king"), quoted("␣")] == ["“king”", "“␣”"]
