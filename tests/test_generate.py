"""One loop, with any cache or none: the same tokens."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIG, SHAPES, assert_same, random_model, random_tokens
from torch import Tensor

from llama3_edu import ContiguousCache, GrowingCache, KVCache, NoCache, generate, greedy, left_pad, right_pad, sampler, stream
from llama3_edu.events import Event, TokenChosen, TokensComputed

MODEL = random_model()
RAGGED = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]

every_cache = pytest.mark.parametrize("make", [GrowingCache, ContiguousCache])
both_paddings = pytest.mark.parametrize("pad", [right_pad, left_pad])
every_way_to_choose = pytest.mark.parametrize("way", ["greedy", "sampled"])


def new_cache(make: Callable[..., KVCache], batch: int, **options: object) -> KVCache:
    return make(CONFIG, batch, **{"dtype": torch.float64, **options})


def choose_by(way: str, seed: int = 5) -> Callable[[Tensor], Tensor]:
    return greedy if way == "greedy" else sampler(temperature=1.5, top_k=20, generator=torch.Generator().manual_seed(seed))


def by_hand(ids: list[int], count: int) -> list[int]:
    """Greedy decoding of one row, as plainly as it can be put."""
    for _ in range(count):
        ids = [*ids, int(MODEL(torch.tensor([ids]))[0, -1].argmax())]
    return ids


# -- The same tokens --------------------------------------------------------------------------------------------------


def test_greedy_without_a_cache_is_the_loop_by_hand() -> None:
    tokens = random_tokens(2, 4)
    expected = [by_hand(row, 7) for row in tokens.tolist()]
    assert generate(MODEL, tokens, max_new_tokens=7).tolist() == expected
    assert generate(MODEL, tokens, max_new_tokens=7, cache=NoCache()).tolist() == expected


@every_cache
@every_way_to_choose
@pytest.mark.parametrize("shape", SHAPES)
def test_every_cache_gives_the_tokens_of_none(make: Callable[..., KVCache], way: str, shape: str) -> None:
    model, tokens = random_model(SHAPES[shape]), random_tokens(3, 6)
    cache = make(SHAPES[shape], 3, dtype=torch.float64)
    cached = generate(model, tokens, max_new_tokens=20, cache=cache, choose=choose_by(way))
    assert torch.equal(cached, generate(model, tokens, max_new_tokens=20, choose=choose_by(way)))
    assert cache.seq_lens.tolist() == [25] * 3  # the last token chosen was never run


@every_cache
def test_generation_runs_on_every_device(make: Callable[..., KVCache], device: torch.device) -> None:
    model, tokens = random_model(device=device), random_tokens(2, 5).to(device)
    out = generate(model, tokens, max_new_tokens=6, cache=new_cache(make, 2, device=device))
    assert out.tolist() == [by_hand(row, 6) for row in tokens.tolist()]


@every_cache
@both_paddings
def test_ragged_rows_go_on_as_each_would_alone(make: Callable[..., KVCache], pad: Callable[..., tuple[Tensor, Tensor]]) -> None:
    tokens, positions = pad(RAGGED)
    for cache in (None, new_cache(make, 3)):
        out = generate(MODEL, tokens, max_new_tokens=8, cache=cache, positions=positions)
        assert torch.equal(out[:, : tokens.shape[1]], tokens)
        assert [row[tokens.shape[1] :] for row in out.tolist()] == [by_hand(ids, 8)[len(ids) :] for ids in RAGGED]


@every_cache
@both_paddings
def test_sampled_ragged_rows_are_the_same_with_and_without_a_cache(
    make: Callable[..., KVCache], pad: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    tokens, positions = pad(RAGGED)
    options = {"max_new_tokens": 12, "positions": positions, "stop_ids": range(0, 61, 4)}
    naive = generate(MODEL, tokens, choose=choose_by("sampled"), **options)
    cached = generate(MODEL, tokens, choose=choose_by("sampled"), cache=new_cache(make, 3), **options)
    assert torch.equal(cached, naive)


@every_cache
@every_way_to_choose
def test_stream_yields_what_generate_returns(make: Callable[..., KVCache], way: str) -> None:
    tokens = random_tokens(2, 4)
    steps = list(stream(MODEL, tokens, max_new_tokens=6, cache=new_cache(make, 2), choose=choose_by(way)))
    out = generate(MODEL, tokens, max_new_tokens=6, cache=new_cache(make, 2), choose=choose_by(way))
    assert [step.shape for step in steps] == [(2,)] * 6
    assert torch.equal(torch.stack(steps, dim=1), out[:, 4:])


def test_stream_computes_no_step_before_it_is_asked_for() -> None:
    events: list[Event] = []
    steps = stream(MODEL, random_tokens(1, 4), max_new_tokens=6, observer=events.append)
    for count in (1, 2, 3):
        next(steps)
        assert sum(isinstance(event, TokensComputed) for event in events) == count


def test_a_function_that_chooses_may_write_to_the_logits_it_is_handed() -> None:
    tokens = random_tokens(2, 4)
    allowed = torch.arange(0, 61, 3)

    def only_some(logits: Tensor) -> Tensor:
        logits[:, [token_id for token_id in range(61) if token_id % 3]] = -torch.inf
        return greedy(logits)

    assert torch.isin(generate(MODEL, tokens, max_new_tokens=6, choose=only_some)[:, 4:], allowed).all()


# -- Where it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda *_, **__: None, GrowingCache], ids=["naive", "cached"])
def test_no_new_tokens_are_the_prompt(make: Callable[..., KVCache | None]) -> None:
    tokens = random_tokens(2, 4)
    assert torch.equal(generate(MODEL, tokens, max_new_tokens=0, cache=new_cache(make, 2)), tokens)
    assert list(stream(MODEL, tokens, max_new_tokens=0)) == []


def test_a_stop_token_is_kept_and_ends_the_row() -> None:
    tokens = random_tokens(1, 4)
    free = by_hand(tokens[0].tolist(), 8)
    for stop in (free[6], free[4]):
        end = free.index(stop, 4)
        assert generate(MODEL, tokens, max_new_tokens=8, stop_ids=(stop,)).tolist() == [free[: end + 1]]
        assert generate(MODEL, tokens, max_new_tokens=8, stop_ids=(stop, 0)).shape[1] <= end + 1


def test_a_stop_token_in_the_prompt_stops_nothing() -> None:
    tokens = random_tokens(1, 4)
    free = by_hand(tokens[0].tolist(), 5)
    stop = next(token_id for token_id in tokens[0].tolist() if token_id not in free[4:])
    assert generate(MODEL, tokens, max_new_tokens=5, stop_ids=[stop]).tolist() == [free]


def stopping_early() -> tuple[list[list[int]], int]:
    """The rows of RAGGED decoded freely, and a token that one row chooses earlier than the others do, if they ever do."""
    free = [by_hand(ids, 10) for ids in RAGGED]
    return free, free[0][len(RAGGED[0]) + 1]


@every_cache
@both_paddings
def test_a_row_that_is_done_is_filled_up_and_its_cache_holds_no_more(
    make: Callable[..., KVCache], pad: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    free, stop = stopping_early()
    tokens, positions = pad(RAGGED)
    events: list[Event] = []
    cache = new_cache(make, 3)
    out = generate(MODEL, tokens, max_new_tokens=10, cache=cache, positions=positions, stop_ids=[stop], observer=events.append)
    steps = out.shape[1] - tokens.shape[1]
    held = []
    for row, ids in enumerate(RAGGED):
        chosen = free[row][len(ids) :]
        end = chosen.index(stop) + 1 if stop in chosen else len(chosen)
        assert out[row, tokens.shape[1] :].tolist() == chosen[:end] + [stop] * (steps - end)
        told = [event.token_id for event in events if isinstance(event, TokenChosen) and event.row == row]
        assert told == chosen[:end]
        # The token that ends a row is never run, whether it is a stop token or the last one asked for.
        held.append(len(ids) + end - 1)
    assert cache.seq_lens.tolist() == held and len(set(held)) > 1
    computed = [event.positions for event in events if isinstance(event, TokensComputed)]
    assert [sum(len(positions[row]) for positions in computed) for row in range(3)] == held


# -- Caches that hold something already -------------------------------------------------------------------------------


@every_cache
@pytest.mark.parametrize("held", [1, 3, 6])
def test_a_cache_that_holds_the_beginning_is_gone_on_with(make: Callable[..., KVCache], held: int) -> None:
    tokens = random_tokens(2, 7)
    cache = new_cache(make, 2)
    MODEL(tokens[:, :held], cache)
    events: list[Event] = []
    out = generate(MODEL, tokens, max_new_tokens=5, cache=cache, observer=events.append)
    assert torch.equal(out, generate(MODEL, tokens, max_new_tokens=5))
    assert events[0] == TokensComputed(positions=(tuple(range(held, 7)),) * 2)


@every_cache
def test_a_conversation_goes_on_where_it_stopped(make: Callable[..., KVCache]) -> None:
    cache, tokens = new_cache(make, 2), random_tokens(2, 4)
    for more in (3, 1, 4):
        expected = generate(MODEL, tokens, max_new_tokens=more)
        tokens = generate(MODEL, tokens, max_new_tokens=more, cache=cache)
        assert torch.equal(tokens, expected)
        tokens = torch.cat((tokens, random_tokens(2, 2, seed=more)), dim=1)


@every_cache
@pytest.mark.parametrize(("pad", "cut"), [(right_pad, 1), (left_pad, 4)])
def test_ragged_rows_whose_beginnings_are_held_are_gone_on_with(
    make: Callable[..., KVCache], pad: Callable[..., tuple[Tensor, Tensor]], cut: int
) -> None:
    tokens, positions = pad([[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]])
    cache = new_cache(make, 3)
    MODEL(tokens[:, :cut], cache, positions[:, :cut])
    out = generate(MODEL, tokens, max_new_tokens=5, cache=cache, positions=positions)
    assert torch.equal(out, generate(MODEL, tokens, max_new_tokens=5, positions=positions))


@every_cache
def test_a_prompt_that_is_held_whole_is_refused(make: Callable[..., KVCache]) -> None:
    tokens = random_tokens(2, 4)
    cache = new_cache(make, 2)
    MODEL(tokens, cache)
    message = "row 0 has no token that is new to the cache; its last one must be, or there are no logits to choose from"
    with pytest.raises(ValueError, match=message):
        generate(MODEL, tokens, max_new_tokens=3, cache=cache)
    assert cache.seq_lens.tolist() == [4, 4]


@every_cache
@both_paddings
def test_one_row_that_is_held_whole_is_refused_too(
    make: Callable[..., KVCache], pad: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    tokens, positions = pad([[1, 2, 3], [4, 5, 6, 7]])
    cache = new_cache(make, 2)
    MODEL(torch.tensor([[1, 2, 3], [4, 5, 6]]), cache)
    with pytest.raises(ValueError, match="row 0 has no token that is new to the cache"):
        generate(MODEL, tokens, max_new_tokens=3, cache=cache, positions=positions)
    assert cache.seq_lens.tolist() == [3, 3]


# -- Refusing ---------------------------------------------------------------------------------------------------------


def test_less_than_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens should be at least 0; it is -1"):
        generate(MODEL, random_tokens(1, 2), max_new_tokens=-1)


def test_a_cache_that_fills_up_says_so() -> None:
    cache = new_cache(ContiguousCache, 1, max_seq_len=6)
    with pytest.raises(ValueError, match="room for 6 tokens per row; row 0 holds 6 and was given 1 more"):
        generate(MODEL, random_tokens(1, 4), max_new_tokens=10, cache=cache)


def test_a_cache_of_another_batch_is_refused() -> None:
    for rows in (1, 2):
        with pytest.raises(ValueError, match=f"the cache holds {rows} rows"):
            generate(MODEL, random_tokens(3, 4), max_new_tokens=1, cache=new_cache(GrowingCache, rows))


@every_cache
def test_a_cache_is_usable_where_gradients_are_on_after_generating_where_they_are_off(make: Callable[..., KVCache]) -> None:
    model = random_model().requires_grad_(True)
    tokens = random_tokens(1, 4)
    cache = new_cache(make, 1)
    out = generate(model, tokens, max_new_tokens=3, cache=cache)
    cache.reorder(torch.tensor([0]))
    assert_same(model(out[:, -1:], cache), model(out)[:, -1:])
