"""What is reported is exact, plain, and changes nothing."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIG, random_model, random_tokens

from llama3_edu import ContiguousCache, GrowingCache, KVCache, generate, kv_bytes
from llama3_edu.events import Event, KeysStored, TokenChosen, TokensComputed, ignore

MODEL = random_model()


def told(new_tokens: int, prompt_len: int, make: Callable[..., KVCache] | None, **options: object) -> list[Event]:
    """All events of one generation, the cache's and the loop's in the order they came."""
    events: list[Event] = []
    cache = make and make(CONFIG, 1, dtype=torch.float64, observer=events.append, **options)
    generate(MODEL, random_tokens(1, prompt_len), max_new_tokens=new_tokens, cache=cache, observer=events.append)
    return events


def computed(events: list[Event]) -> list[tuple[int, ...]]:
    return [event.positions[0] for event in events if isinstance(event, TokensComputed)]


def stored(events: list[Event]) -> list[KeysStored]:
    return [event for event in events if isinstance(event, KeysStored)]


@settings(max_examples=8)
@given(prompt_len=st.integers(1, 6), new_tokens=st.integers(1, 8))
def test_without_a_cache_every_step_computes_everything(prompt_len: int, new_tokens: int) -> None:
    work = computed(told(new_tokens, prompt_len, None))
    assert work == [tuple(range(prompt_len + step)) for step in range(new_tokens)]
    triangle = lambda n: n * (n + 1) // 2
    assert sum(map(len, work)) == triangle(prompt_len + new_tokens - 1) - triangle(prompt_len - 1)


@settings(max_examples=8)
@given(new_tokens=st.integers(1, 12))
def test_from_one_token_the_naive_total_is_the_triangular_number(new_tokens: int) -> None:
    assert sum(map(len, computed(told(new_tokens, 1, None)))) == new_tokens * (new_tokens + 1) // 2


@pytest.mark.parametrize("make", [GrowingCache, ContiguousCache])
@settings(max_examples=8)
@given(prompt_len=st.integers(1, 6), new_tokens=st.integers(1, 8))
def test_with_a_cache_the_prompt_is_computed_once_then_one_token_a_step(
    make: Callable[..., KVCache], prompt_len: int, new_tokens: int
) -> None:
    work = computed(told(new_tokens, prompt_len, make))
    assert work == [tuple(range(prompt_len)), *((prompt_len + step,) for step in range(new_tokens - 1))]
    assert sum(map(len, work)) == prompt_len + new_tokens - 1


@settings(max_examples=8)
@given(prompt_len=st.integers(1, 6), new_tokens=st.integers(1, 8))
def test_growing_copies_what_it_held_at_every_step(prompt_len: int, new_tokens: int) -> None:
    events = stored(told(new_tokens, prompt_len, GrowingCache))
    held_before = [0, *range(prompt_len, prompt_len + new_tokens - 1)]
    per_layer_token = kv_bytes(CONFIG, seq_len=1, bits=64) // CONFIG.n_layers
    expected = [held * per_layer_token for held in held_before for _ in range(CONFIG.n_layers)]
    assert [event.bytes_copied for event in events] == expected


@settings(max_examples=8)
@given(steps=st.integers(1, 12))
def test_growing_one_token_at_a_time_copies_a_triangle(steps: int) -> None:
    events = stored(told(steps, 1, GrowingCache))
    assert sum(event.bytes_copied for event in events) == kv_bytes(CONFIG, seq_len=steps * (steps - 1) // 2, bits=64)


def test_a_cache_allocated_once_copies_nothing() -> None:
    events = stored(told(8, 3, ContiguousCache, max_seq_len=16))
    assert {event.bytes_copied for event in events} == {0}
    assert {event.nbytes for event in events} == {kv_bytes(CONFIG, seq_len=16, bits=64)}


def test_bytes_grow_with_each_layer_stored() -> None:
    events = stored(told(3, 4, GrowingCache))
    one = kv_bytes(CONFIG, seq_len=1, bits=64) // CONFIG.n_layers
    # Prompt of 4, then 1 and 1: each layer in turn adds what is new.
    assert [event.nbytes for event in events] == [4 * one, 8 * one, 9 * one, 10 * one, 11 * one, 12 * one]


@pytest.mark.parametrize("make", [GrowingCache, ContiguousCache])
def test_lengths_in_events_are_those_after_storing(make: Callable[..., KVCache]) -> None:
    events = stored(told(3, 4, make))
    assert [event.seq_lens for event in events] == [(held,) for held in (4, 5, 6) for _ in range(CONFIG.n_layers)]
    assert [event.layer for event in events] == [0, 1] * 3


def test_a_step_is_told_in_the_order_it_happens() -> None:
    kinds = [type(event) for event in told(2, 3, GrowingCache)]
    assert kinds == [TokensComputed, KeysStored, KeysStored, TokenChosen] * 2


def test_the_tokens_told_are_the_tokens_returned() -> None:
    events: list[Event] = []
    tokens = random_tokens(2, 4)
    out = generate(MODEL, tokens, max_new_tokens=5, observer=events.append)
    chosen = [event for event in events if isinstance(event, TokenChosen)]
    assert [(event.row, event.position) for event in chosen] == [(row, position) for position in range(4, 9) for row in range(2)]
    assert all(out[event.row, event.position] == event.token_id for event in chosen)


def test_events_are_frozen_plain_values() -> None:
    for event in told(2, 3, GrowingCache):
        json.dumps(asdict(event))
        hash(event)
        with pytest.raises(FrozenInstanceError):
            event.positions = ()


def test_ignore_keeps_quiet() -> None:
    assert ignore(TokenChosen(row=0, position=0, token_id=0)) is None
