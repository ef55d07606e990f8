"""Every suspect is wrong in its own way and in no other, no check but the one that should finds it, and the frames say so."""

import json
from itertools import combinations

import pytest
import torch
from tiny_models import CONFIG, random_model, random_tokens

import llama3_edu as le
from llama3_edu.bugs import SUSPECTS, EmptyFirstSlot, ForgetfulBeams, SquareMask, Suspect, Trial, allocated_bytes, examine
from llama3_edu.frames_bugs import ROUNDING, symptoms

MODEL = random_model()
TOKENS = random_tokens(2, 20)
TOKENS[1, :9] = TOKENS[0, :9]
TRIAL = Trial(TOKENS, cuts=(6, 10, *range(11, 20)), swap_at=14)
FOUND = {suspect.name: examine(MODEL, suspect, TRIAL) for suspect in SUSPECTS}
WRONG_FROM = dict(zip(FOUND, (0, 6, 14, 6, 5, 20, 20)))
every_suspect = pytest.mark.parametrize("suspect", SUSPECTS, ids=lambda suspect: suspect.name)


@every_suspect
def test_errors_begin_where_the_bug_first_shows(suspect: Suspect) -> None:
    errors = FOUND[suspect.name].logit_errors
    first = WRONG_FROM[suspect.name]
    assert max((0.0, *errors[:first])) < 1e-10
    assert min((1.0, *errors[first : first + 2])) > ROUNDING


def test_a_sound_cache_is_found_sound_whatever_the_pieces() -> None:
    for cuts in ((14,), (1, 14), tuple(range(1, 20))):
        for cache_type in (le.GrowingCache, le.ContiguousCache):
            found = examine(MODEL, Suspect("sound", cache_type), Trial(TOKENS, cuts=cuts, swap_at=14))
            assert max(found.logit_errors) < 1e-10 and max(map(max, found.key_errors)) < 1e-10
            assert found.surplus == 0 and found.nbytes == found.allocated


@pytest.mark.parametrize(
    ("name", "surplus"), [("slot 0 is never written", 1), ("a cached token is run again", 1), ("the mask is square", 0)]
)
def test_a_key_too_many_is_counted(name: str, surplus: int) -> None:
    assert FOUND[name].surplus == surplus


def test_the_first_layer_tells_lost_keys_from_hidden_ones() -> None:
    def wrong(name: str, layer: int) -> list[int]:
        return [slot for slot, error in enumerate(FOUND[name].key_errors[layer]) if error > ROUNDING]

    assert wrong("the mask is square", 0) == []
    assert wrong("all layers write to the last", 0) == list(range(19)), "all but the slot just written"
    assert wrong("all layers write to the last", -1) == list(range(6, 20))
    assert wrong("beams move, the cache stays", 0) == list(range(9, 14)), "where the rows differ, up to the swap"


def test_no_two_suspects_have_the_same_symptoms() -> None:
    for one, other in combinations(FOUND, 2):
        assert symptoms(FOUND[one]) != symptoms(FOUND[other]), f"{one} and {other}"


def test_the_square_mask_is_what_is_causal_does() -> None:
    def square(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    other = random_model()
    other.use_attention(square)
    caches = SquareMask(CONFIG, 2, dtype=torch.float64), le.GrowingCache(CONFIG, 2, dtype=torch.float64)
    for piece in TOKENS.split((7, 5, 1, 7), dim=1):
        torch.testing.assert_close(MODEL(piece, caches[0]), other(piece, caches[1]), rtol=0, atol=1e-10)


def test_the_empty_slot_is_one_key_of_zeros_before_all_others() -> None:
    cache = EmptyFirstSlot(CONFIG, 2, dtype=torch.float64)
    key_positions = cache.reserve(torch.arange(3).expand(2, 3))
    k = torch.randn(2, 3, CONFIG.n_kv_heads, CONFIG.head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keys, values = cache.update(0, k, -k)
    assert key_positions.tolist() == [[0, 0, 1, 2]] * 2
    assert (keys[:, 0] == 0).all() and torch.equal(keys[:, 1:], k) and torch.equal(values[:, 1:], -k)


def test_forgetful_beams_report_a_score_that_their_text_does_not_have() -> None:
    prompt = random_tokens(1, 4)

    def gap(cache: le.KVCache) -> float:
        result = le.beam_search(MODEL, prompt, num_beams=3, max_new_tokens=8, cache=cache)
        log_probs = MODEL(result.tokens)[:, 3:-1].log_softmax(dim=-1)
        own = log_probs.gather(-1, result.tokens[:, 4:, None]).sum(dim=(1, 2)) / 8
        return (own - result.scores).abs().max().item()

    assert gap(le.GrowingCache(CONFIG, dtype=torch.float64)) < 1e-10
    assert gap(ForgetfulBeams(CONFIG, dtype=torch.float64)) > 0.01


def test_allocated_bytes_counts_each_piece_of_memory_once() -> None:
    for cache in (le.GrowingCache(CONFIG, 2), le.ContiguousCache(CONFIG, 2, max_seq_len=24)):
        cache.reserve(torch.arange(3).expand(2, 3))
        k = torch.zeros(2, 3, CONFIG.n_kv_heads, CONFIG.head_dim)
        for layer in range(CONFIG.n_layers):
            cache.update(layer, k, k)
        assert allocated_bytes(cache) == cache.nbytes > 0


def test_frames_are_plain_json_judge_every_name_and_give_nothing_away() -> None:
    frames = le.bug_frames(MODEL, TRIAL)
    assert json.loads(json.dumps(frames, allow_nan=False)) == frames
    assert sorted(step["answer"] for step in frames["steps"]) == list(range(len(SUSPECTS)))
    for step in frames["steps"]:
        verdicts = [reply.startswith("Right. ") for reply in step["replies"]]
        assert verdicts == [index == step["answer"] for index in range(len(SUSPECTS))]
        assert all(reply.startswith("No. ") for reply, right in zip(step["replies"], verdicts) if not right)
        assert not any(name in step["summary"] for name in frames["names"])
        found = FOUND[frames["names"][step["answer"]]]
        assert step["errors"] == pytest.approx(found.logit_errors, rel=0.01)
        assert 10.0 ** frames["lowest"] < ROUNDING and max(step["errors"]) <= 10.0 ** frames["highest"]
