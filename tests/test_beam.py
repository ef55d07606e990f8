"""Beams: against all continuations there are, against searches without a cache, and against their own events."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIG, assert_same, random_model, random_tokens
from torch import Tensor

from llama3_edu import (
    BlockPool,
    ContiguousCache,
    GrowingCache,
    KVCache,
    Llama,
    LlamaConfig,
    NoCache,
    OutOfBlocks,
    PagedCache,
    QuantizedCache,
    beam_search,
    generate,
)
from llama3_edu.events import BeamFinished, BeamsPruned, BlockCopied, Event, TokensComputed

SMALL = replace(CONFIG, vocab_size=5)
MODEL, SMALL_MODEL = random_model(), random_model(SMALL)


def paged(config: LlamaConfig, num_blocks: int = 100, block_size: int = 4, **options: object) -> PagedCache:
    pool = BlockPool(config, num_blocks=num_blocks, block_size=block_size, dtype=torch.float64, **options)
    return PagedCache(pool, [[]])


CACHES: dict[str, Callable[[LlamaConfig], KVCache]] = {
    "none": lambda config: NoCache(),
    "growing": lambda config: GrowingCache(config, dtype=torch.float64),
    "contiguous": lambda config: ContiguousCache(config, dtype=torch.float64),
    "paged": paged,
    "paged, blocks of one token": lambda config: paged(config, num_blocks=200, block_size=1),
    "quantised, all within the residual": lambda config: QuantizedCache(config, residual=64, dtype=torch.float64),
}
every_cache = pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)


def log_prob(model: Llama, tokens: Tensor, prompt_len: int) -> float:
    """The sum of the new tokens' log-probabilities, from one forward without a cache."""
    log_probs = model(tokens[None])[0].log_softmax(dim=-1)
    new = list(enumerate(tokens.tolist()))[prompt_len:]
    return sum(log_probs[position - 1, token_id].item() for position, token_id in new)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_enough_for_all_find_the_best_of_all(length_penalty: float) -> None:
    prompt, new_len = random_tokens(1, 4, config=SMALL), 3
    rows = [torch.cat((prompt[0], torch.tensor(new))) for new in product(range(5), repeat=new_len)]
    everything = sorted(((log_prob(SMALL_MODEL, row, 4) / new_len**length_penalty, row.tolist()) for row in rows), reverse=True)
    found = beam_search(
        SMALL_MODEL,
        prompt,
        num_beams=125,
        max_new_tokens=new_len,
        cache=paged(SMALL, num_blocks=500),
        length_penalty=length_penalty,
    )
    assert found.tokens.tolist() == [row for _, row in everything]
    assert_same(found.scores, torch.tensor([score for score, _ in everything], dtype=torch.float64))


def test_beams_that_end_compete_with_those_that_go_on() -> None:
    prompt, new_len, eos = random_tokens(1, 4, config=SMALL), 3, 2
    endings = {new[: new.index(eos) + 1] if eos in new else new for new in product(range(5), repeat=new_len)}
    rows = [torch.cat((prompt[0], torch.tensor(new))) for new in endings]
    everything = sorted(((log_prob(SMALL_MODEL, row, 4) / (len(row) - 4), row.tolist()) for row in rows), reverse=True)
    found = beam_search(SMALL_MODEL, prompt, num_beams=125, max_new_tokens=new_len, eos_id=eos)
    filled = [row + [eos] * (7 - len(row)) for _, row in everything]
    assert found.tokens.tolist() == filled
    assert len(found.scores) == len(endings) < 125, "there are fewer continuations than beams"
    assert_same(found.scores, torch.tensor([score for score, _ in everything], dtype=torch.float64))


@every_cache
@settings(max_examples=12)
@given(num_beams=st.integers(1, 6), seed=st.integers(0, 9), length_penalty=st.sampled_from([-0.5, 0.0, 1.0, 2.0]))
def test_a_cache_never_changes_the_beams(
    make: Callable[[LlamaConfig], KVCache], num_beams: int, seed: int, length_penalty: float
) -> None:
    prompt = random_tokens(1, 1 + seed, config=SMALL, seed=seed)
    options = {"num_beams": num_beams, "max_new_tokens": 8, "eos_id": seed % 5, "length_penalty": length_penalty}
    expected = beam_search(SMALL_MODEL, prompt, **options)
    found = beam_search(SMALL_MODEL, prompt, cache=make(SMALL), **options)
    assert torch.equal(found.tokens, expected.tokens)
    assert_same(found.scores, expected.scores)


@every_cache
def test_one_beam_is_greedy(make: Callable[[LlamaConfig], KVCache]) -> None:
    prompt = random_tokens(1, 5)
    found = beam_search(MODEL, prompt, num_beams=1, max_new_tokens=9, cache=make(CONFIG))
    assert torch.equal(found.tokens, generate(MODEL, prompt, max_new_tokens=9))


def test_scores_are_those_of_the_tokens_and_fall() -> None:
    prompt = random_tokens(1, 5)
    cache = GrowingCache(CONFIG, dtype=torch.float64)
    found = beam_search(MODEL, prompt, num_beams=5, max_new_tokens=7, length_penalty=0.5, cache=cache)
    expected = torch.tensor([log_prob(MODEL, row, 5) / 7**0.5 for row in found.tokens], dtype=torch.float64)
    assert_same(found.scores, expected)
    assert (found.scores.diff() <= 0).all() and len(found.tokens.unique(dim=0)) == 5


def test_a_prompt_held_in_part_is_not_run_again() -> None:
    prompt, events = random_tokens(1, 6), []
    cache = GrowingCache(CONFIG, dtype=torch.float64)
    MODEL(prompt[:, :4], cache)
    found = beam_search(MODEL, prompt, num_beams=3, max_new_tokens=4, cache=cache, observer=events.append)
    assert torch.equal(found.tokens, beam_search(MODEL, prompt, num_beams=3, max_new_tokens=4).tokens)
    computed = [event.positions for event in events if isinstance(event, TokensComputed)]
    assert computed == [((4, 5),), ((6,),) * 3, ((7,),) * 3, ((8,),) * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models_are_scored_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    model = random_model(dtype=dtype, device=device)
    prompt = random_tokens(1, 5).to(device)
    cache = GrowingCache(CONFIG, dtype=dtype, device=device)
    found = beam_search(model, prompt, num_beams=3, max_new_tokens=4, cache=cache)
    assert found.scores.dtype == torch.float32 and found.tokens.device.type == device.type
    assert torch.equal(found.tokens[:, :5], prompt.expand(3, 5))


# -- Blocks --


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_nothing_is_left_behind(num_beams: int, block_size: int) -> None:
    cache = paged(CONFIG, block_size=block_size)
    beam_search(MODEL, random_tokens(1, 7), num_beams=num_beams, max_new_tokens=9, cache=cache, eos_id=3)
    assert cache.pool.num_used > 0
    assert sum(map(len, cache.block_tables)) == sum(cache.pool.ref_count(block) for block in range(100))
    cache.release()
    assert cache.pool.num_used == 0


def test_beams_hold_their_common_past_once() -> None:
    events: list[Event] = []
    cache = paged(CONFIG, observer=events.append)
    beam_search(MODEL, random_tokens(1, 30), num_beams=4, max_new_tokens=6, cache=cache)
    tables = cache.block_tables
    assert len(tables) == 4 and all(table[:7] == tables[0][:7] for table in tables)
    assert cache.pool.num_used < sum(map(len, tables)) / 2
    assert any(isinstance(event, BlockCopied) for event in events), "beams that share a block they write to must copy it"


def test_a_pool_too_small_stops_the_search_and_leaks_nothing() -> None:
    cache = paged(CONFIG, num_blocks=5)
    with pytest.raises(OutOfBlocks):
        beam_search(MODEL, random_tokens(1, 14), num_beams=4, max_new_tokens=9, cache=cache)
    assert sum(map(len, cache.block_tables)) == sum(cache.pool.ref_count(block) for block in range(5)) > 0
    cache.release()
    assert cache.pool.num_used == 0


# -- Events --


def test_beams_can_be_followed_through_their_events() -> None:
    prompt, events = random_tokens(1, 3, config=SMALL), []
    options = {"num_beams": 4, "max_new_tokens": 6, "eos_id": 1}
    found = beam_search(SMALL_MODEL, prompt, observer=events.append, **options)
    beams, finished = [prompt[0].tolist()], []
    for event in events:
        if isinstance(event, BeamFinished):
            assert event.position == len(beams[event.parent])
            finished.append((event.score, [*beams[event.parent], event.token_id]))
        elif isinstance(event, BeamsPruned):
            assert event.position == len(beams[0])
            assert set(event.closed) == set(range(len(beams))) - set(event.parents)
            beams = [[*beams[parent], token_id] for parent, token_id in zip(event.parents, event.token_ids)]
            assert len(beams) == 4, "however many beams end, as many go on"
            assert list(event.scores) == sorted(event.scores, reverse=True)
            for beam, score in zip(beams, event.scores):
                assert score == pytest.approx(log_prob(SMALL_MODEL, torch.tensor(beam), 3), abs=1e-10)
    best = sorted(finished, reverse=True)[:4]
    assert [row[: len(beam)] for row, (_, beam) in zip(found.tokens.tolist(), best)] == [beam for _, beam in best]
    assert found.scores.tolist() == pytest.approx([score for score, _ in best], abs=1e-10)
    watched_or_not = beam_search(SMALL_MODEL, prompt, **options)
    assert torch.equal(watched_or_not.tokens, found.tokens) and torch.equal(watched_or_not.scores, found.scores)


# -- What is refused --


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 0}, "num_beams should be at least 1; it is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens should be at least 1; it is 0"),
        ({"eos_id": 61}, "token ids go from 0 to 60; eos_id is 61"),
        ({"eos_id": [3, -1]}, "token ids go from 0 to 60; eos_id is -1"),
        ({"tokens": random_tokens(2, 4)}, "beam search continues one prompt at a time; it was given 2"),
        ({"tokens": random_tokens(1, 0)}, "the model needs at least one token per row"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object], message: str, unchecked: None) -> None:
    options = {"tokens": random_tokens(1, 4), "num_beams": 2, "max_new_tokens": 3} | wrong
    with pytest.raises(ValueError, match=message):
        beam_search(MODEL, **options)


def test_a_cache_that_holds_the_whole_prompt_is_refused() -> None:
    cache, prompt = GrowingCache(CONFIG, dtype=torch.float64), random_tokens(1, 4)
    MODEL(prompt, cache)
    with pytest.raises(ValueError, match="the cache holds 4 tokens and the prompt has 4; its last one must be new"):
        beam_search(MODEL, prompt, num_beams=2, max_new_tokens=3, cache=cache)


def test_a_cache_of_several_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="the cache holds 2 rows; the batch has 1"):
        beam_search(MODEL, random_tokens(1, 4), num_beams=2, max_new_tokens=3, cache=GrowingCache(CONFIG, 2, dtype=torch.float64))
