"""From logits to tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llama3_edu import greedy, sampler

PROBS = [0.5, 0.25, 0.125, 0.0625, 0.0625]


def seeded(seed: int = 20) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(probs: list[float], rows: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(probs, dtype=dtype).log().expand(rows, len(probs))


def drawn(probs: list[float], *, rows: int = 4000, **options: object) -> set[int]:
    return set(sampler(**{"generator": seeded(), **options})(logits_of(probs, rows)).tolist())


def random_logits(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def test_greedy_takes_the_likeliest_and_of_equals_the_lowest_id(device: torch.device) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 2.0], [5.0, 5.0, 5.0]], device=device)
    assert greedy(logits).tolist() == [1, 0, 0]


@given(seed=st.integers(0, 1000), temperature=st.floats(0.05, 20))
def test_keeping_one_token_is_greedy(seed: int, temperature: float) -> None:
    logits = random_logits(3, 40, seed=seed)
    choose = sampler(temperature=temperature, top_k=1, generator=seeded())
    assert torch.equal(choose(logits), greedy(logits))
    choose = sampler(temperature=temperature, top_p=1e-9, generator=seeded())
    assert torch.equal(choose(logits), greedy(logits))


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    logits = random_logits(50, 100)
    first, again, other = (sampler(generator=seeded(seed)) for seed in (1, 1, 2))
    one, two = first(logits), first(logits)
    assert torch.equal(again(logits), one) and torch.equal(again(logits), two)
    assert not torch.equal(one, two) and not torch.equal(other(logits), one)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    sampler(generator=seeded())(random_logits(2, 9))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_are_spread_as_softmax_says(temperature: float, dtype: torch.dtype) -> None:
    logits = random_logits(1, 12).to(dtype)
    count = 20_000
    tokens = sampler(temperature=temperature, generator=seeded())(logits.expand(count, 12))
    expected = count * (logits[0].double() / temperature).softmax(dim=0)
    chi_square = ((tokens.bincount(minlength=12) - expected).square() / expected).sum()
    assert chi_square < 31.26  # 11 degrees of freedom: one seed in a thousand lies above


def test_rows_are_drawn_independently_each_from_its_own_logits() -> None:
    logits = torch.full((3, 6), -1e9)
    logits[0, 4] = logits[1, 0] = logits[2, 5] = 0
    assert sampler(generator=seeded())(logits).tolist() == [4, 0, 5]
    same = sampler(generator=seeded())(torch.zeros(200, 6))
    assert len(set(same.tolist())) == 6


@pytest.mark.parametrize("top_k", [1, 2, 4, 5, 50])
def test_top_k_keeps_the_k_likeliest(top_k: int) -> None:
    assert drawn(PROBS, top_k=top_k) == set(range(min(top_k, 5)))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {0}), (0.5, {0}), (0.51, {0, 1}), (0.75, {0, 1}), (0.76, {0, 1, 2}), (0.9, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3, 4})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: set[int]) -> None:
    assert drawn(PROBS, top_p=top_p) == kept


def test_ids_are_those_of_the_logits_not_of_the_ranking() -> None:
    assert drawn([0.0625, 0.25, 0.0625, 0.5, 0.125], top_k=2) == {1, 3}
    assert drawn([0.0625, 0.25, 0.0625, 0.5, 0.125], top_p=0.8) == {1, 3, 4}


def test_top_p_counts_what_top_k_left() -> None:
    # Of 0.5 and 0.25 the first holds two thirds.
    assert drawn(PROBS, top_k=2, top_p=0.66) == {0}
    assert drawn(PROBS, top_k=2, top_p=0.67) == {0, 1}


def test_temperature_comes_before_top_p() -> None:
    # At a temperature of 0.5 the probabilities are squared and made to add up to 1 again: the first holds 0.73.
    assert drawn(PROBS, top_p=0.7) == {0, 1}
    assert drawn(PROBS, top_p=0.7, temperature=0.5) == {0}


def test_what_is_kept_keeps_its_proportions() -> None:
    count = 20_000
    tokens = sampler(top_k=2, generator=seeded())(logits_of(PROBS, count))
    share = (tokens == 0).double().mean().item()
    assert abs(share - 2 / 3) < 4 * (2 / 9 / count) ** 0.5


def test_the_logits_are_not_written_to() -> None:
    logits = random_logits(2, 9)
    before = logits.clone()
    sampler(temperature=0.5, top_k=3, top_p=0.5, generator=seeded())(logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"temperature should be above 0; it is 0.0 .*choose=greedy"),
        ({"temperature": -1.0}, "temperature should be above 0; it is -1.0"),
        ({"temperature": float("nan")}, "temperature should be above 0; it is nan"),
        ({"top_k": 0}, "top_k should be at least 1; it is 0"),
        ({"top_p": 0.0}, "top_p should be above 0 and at most 1; it is 0.0"),
        ({"top_p": 1.5}, "top_p should be above 0 and at most 1; it is 1.5"),
    ],
)
def test_settings_without_meaning_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**options, generator=seeded())
