"""A look inside shows what the model computes, and leaves no trace."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIG, assert_same, random_model, random_tokens
from torch import Tensor

from llama3_edu import ContiguousCache, GrowingCache, KVCache, attend, fused_attend, left_pad, repeat_kv
from llama3_edu.probe import look_inside

MODEL = random_model()


def test_the_logits_are_the_models_own() -> None:
    tokens, positions = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
    assert_same(look_inside(MODEL, tokens, positions=positions).logits, MODEL(tokens, positions=positions))
    assert_same(look_inside(MODEL, tokens).logits, MODEL(tokens))


def test_queries_keys_and_values_are_those_attention_was_given() -> None:
    model, tokens = random_model(), random_tokens(2, 5)
    given: list[tuple[Tensor, ...]] = []

    def watching(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        given.append((q, k, v))
        return attend(q, k, v, mask)

    model.use_attention(watching)
    model(tokens)
    inside = look_inside(model, tokens)
    assert len(inside.q) == len(inside.k) == len(inside.v) == len(inside.weights) == CONFIG.n_layers
    for layer, (q, k, v) in enumerate(given[: CONFIG.n_layers]):
        assert_same(inside.q[layer], q)
        assert_same(inside.k[layer], k)
        assert_same(inside.v[layer], v)


def test_the_weights_give_what_attention_gives() -> None:
    inside = look_inside(MODEL, random_tokens(2, 5))
    triangle = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 5, 5)
    for q, k, v, weights in zip(inside.q, inside.k, inside.v, inside.weights):
        assert (weights.triu(diagonal=1) == 0).all()
        gathered = torch.einsum("bhqk,bkhd->bqhd", weights, repeat_kv(v, CONFIG.n_rep))
        assert_same(gathered, fused_attend(q, k, v, triangle))


@pytest.mark.parametrize("make", [GrowingCache, ContiguousCache])
def test_behind_a_cache_all_keys_are_shown(make: Callable[..., KVCache]) -> None:
    tokens = random_tokens(1, 6)
    cache = make(CONFIG, 1, dtype=torch.float64)
    look_inside(MODEL, tokens[:, :4], cache)
    inside, whole = look_inside(MODEL, tokens[:, 4:], cache), look_inside(MODEL, tokens)
    for layer in range(CONFIG.n_layers):
        assert_same(inside.k[layer], whole.k[layer])
        assert_same(inside.v[layer], whole.v[layer])
        assert_same(inside.weights[layer], whole.weights[layer][:, :, 4:])
    assert cache.seq_lens.tolist() == [6]


@pytest.mark.parametrize("make", [GrowingCache, ContiguousCache])
def test_what_was_shown_is_not_changed_by_later_steps(make: Callable[..., KVCache]) -> None:
    tokens, positions = left_pad([[1], [2, 3, 4]])
    cache = make(CONFIG, 2, dtype=torch.float64)
    inside = look_inside(MODEL, tokens, cache, positions)
    before = [tensor.clone() for tensor in (*inside.k, *inside.v)]
    # The shorter row's next tokens go where padding was shown.
    MODEL(torch.tensor([[5, 6], [7, 8]]), cache)
    assert all(map(torch.equal, (*inside.k, *inside.v), before))


def test_the_model_is_left_as_it_was_even_by_an_error() -> None:
    model = random_model()
    model.layers[1].attention.attend = attend
    before = [block.attention.attend for block in model.layers]
    look_inside(model, random_tokens(1, 3))
    with pytest.raises(ValueError):
        look_inside(model, torch.tensor([[99]]))
    with pytest.raises(RuntimeError):
        look_inside(model, random_tokens(1, 3), Broken(CONFIG))
    assert [block.attention.attend for block in model.layers] == before == [fused_attend, attend]


class Broken(GrowingCache):
    """Fails in the middle of a forward."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("out of order")


def test_what_is_shown_keeps_no_graph() -> None:
    inside = look_inside(random_model().requires_grad_(True), random_tokens(1, 3))
    assert not any(tensor.requires_grad for tensor in (*inside.q, *inside.k, *inside.v, *inside.weights, inside.logits))
