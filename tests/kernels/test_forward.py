"""The fast path gives the model's logits, and steps aside where it would not. The contract of caches is tested with it, too."""

import gc
import platform
import weakref
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, SHAPES, assert_same, random_model, random_tokens
from torch import Tensor, nn

import llama3_edu as le
from llama3_edu import PAD, BlockPool, ContiguousCache, Engine, Llama, PagedCache, QuantizedCache
from llama3_edu.attention import attend, fused_attend
from llama3_edu.kernels import FastLlama, NextLogits, fastest, pack
from llama3_edu.kernels.projection import (
    OneDnnProjection,
    PlainProjection,
    Projection,
    WeightedRowsProjection,
    make_projection,
)

on_x86 = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def is_fast(model: Llama) -> bool:
    return isinstance(getattr(fastest(model), "__self__", None), FastLlama)


def the_fast_path(model: Llama) -> NextLogits:
    assert is_fast(model), "the model itself would agree with itself"
    return fastest(model)


@pytest.mark.parametrize("shape", SHAPES)
@given(batch=st.integers(1, 3), prompt_len=st.integers(1, 9), steps=st.integers(0, 4))
def test_logits_equal_the_models(shape: str, batch: int, prompt_len: int, steps: int) -> None:
    model = random_model(SHAPES[shape])
    ours, theirs = (ContiguousCache(model.config, batch, dtype=model.dtype) for _ in range(2))
    for new_len in [prompt_len, *[1] * steps]:
        tokens = random_tokens(batch, new_len, seed=new_len)
        assert_same(the_fast_path(model)(tokens, ours), model.next_logits(tokens, theirs))


def test_all_logits_equal_the_models() -> None:
    model, tokens = random_model(), random_tokens(2, 7)
    assert_same(FastLlama(pack(model)).forward(tokens), model(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_of_number_agree_within_their_rounding(dtype: torch.dtype) -> None:
    exact = random_model()
    model, tokens = deepcopy(exact).to(dtype), random_tokens(1, 12)
    wanted, reference, found = (
        exact.next_logits(tokens),
        model.next_logits(tokens),
        the_fast_path(model)(tokens, ContiguousCache(CONFIG, dtype=dtype)),
    )
    assert found.dtype == dtype
    # Both round; the fast path may not be further off than the model is, but for another draw of the same luck.
    off = (reference.double() - wanted).abs().max().item()
    assert (found.double() - wanted).abs().max().item() <= 2 * off + torch.finfo(dtype).eps


@pytest.mark.parametrize("fast", [True, False])
def test_generation_beams_and_engine_choose_the_same_tokens(fast: bool) -> None:
    model, prompt = random_model(), random_tokens(1, 6)
    slow = le.generate(model, prompt, max_new_tokens=12, cache=ContiguousCache(CONFIG, dtype=model.dtype), fast=False)
    assert torch.equal(le.generate(model, prompt, max_new_tokens=12, fast=fast), slow)
    engine = Engine(model, num_blocks=8, block_size=4, fast=fast)
    sequence = engine.add(prompt[0].tolist(), max_new_tokens=12)
    engine.run()
    assert sequence.token_ids == slow[0].tolist()
    beams = [le.beam_search(model, prompt, num_beams=3, max_new_tokens=5, fast=choice) for choice in (fast, False)]
    assert torch.equal(beams[0].tokens, beams[1].tokens)
    assert_same(beams[0].scores, beams[1].scores)


# -- Where it applies -------------------------------------------------------------------------------------------------


def with_hook(model: Llama) -> None:
    model.layers[0].attention.wk.register_forward_hook(lambda *_: None)


def with_own_layer(model: Llama) -> None:
    class Louder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    wo = model.layers[1].attention.wo
    model.layers[1].attention.wo = Louder(wo.in_features, wo.out_features, bias=False, dtype=model.dtype)


def with_bias(model: Llama) -> None:
    model.layers[0].feed_forward.w2.bias = nn.Parameter(torch.ones(CONFIG.dim, dtype=model.dtype))


def with_own_forward(model: Llama) -> None:
    block = model.layers[0]
    block.forward = lambda x, *rest: x


STRANGERS = {
    "readable attention": lambda model: model.use_attention(attend),
    "a hook": with_hook,
    "a layer of another class": with_own_layer,
    "a bias": with_bias,
    "a forward of its own": with_own_forward,
    "in training": lambda model: model.train(),
}


@pytest.mark.parametrize("change", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_model_that_does_something_else_runs_as_it_is(change) -> None:
    model = random_model()
    assert is_fast(model)
    change(model)
    assert not is_fast(model)
    tokens = random_tokens(1, 5)
    with torch.no_grad():
        assert torch.equal(fastest(model)(tokens), model.next_logits(tokens))


def test_back_from_another_attention_it_is_fast_again() -> None:
    model = random_model()
    model.use_attention(attend)
    model.use_attention(fused_attend)
    assert is_fast(model)
    assert not isinstance(getattr(fastest(model, fast=False), "__self__", None), FastLlama)


# -- Packing ----------------------------------------------------------------------------------------------------------


def test_packing_changes_no_value_and_holds_nothing_twice() -> None:
    model = random_model()
    before = deepcopy(model.state_dict())
    packed = pack(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in model.parameters()}
    assert sum(storages.values()) == packed.nbytes == sum(weight.nbytes for weight in model.parameters())
    assert pack(model) is packed


def test_what_is_written_into_a_parameter_later_counts() -> None:
    model, tokens = random_model(), random_tokens(1, 4)
    the_fast_path(model)(tokens, le.NoCache())
    with torch.no_grad():
        model.layers[0].attention.wk.weight.mul_(1.5)
        model.layers[1].feed_forward.w3.weight.add_(0.1)
    assert_same(the_fast_path(model)(tokens, le.NoCache()), model.next_logits(tokens))


def test_a_model_in_another_type_is_packed_anew() -> None:
    model, tokens = random_model(), random_tokens(1, 4)
    first = the_fast_path(model)(tokens, le.NoCache())
    model.to(torch.float32)
    assert the_fast_path(model)(tokens, le.NoCache()).dtype == torch.float32
    model.load_state_dict({name: weight.double() for name, weight in random_model(seed=8).state_dict().items()}, assign=True)
    assert_same(the_fast_path(model)(tokens, le.NoCache()), model.next_logits(tokens))
    assert not torch.allclose(the_fast_path(model)(tokens, le.NoCache()), first)


def test_a_model_is_let_go_with_what_was_packed_of_it() -> None:
    model = random_model()
    the_fast_path(model)(random_tokens(1, 3), le.NoCache())
    alive = weakref.ref(model), weakref.ref(pack(model))
    del model
    gc.collect()
    assert alive[0]() is None and alive[1]() is None


def test_a_packed_model_is_saved_and_copied_like_any_other(tmp_path) -> None:
    model, tokens = random_model(dtype=torch.float32), random_tokens(1, 4)
    pack(model)
    le.save_checkpoint(model, tmp_path)
    for again in (le.load_checkpoint(tmp_path), deepcopy(model)):
        assert torch.equal(again.next_logits(tokens), model.next_logits(tokens))


def test_what_cannot_be_packed_is_refused() -> None:
    model = random_model()
    with_bias(model)
    with pytest.raises(ValueError, match="plain matrices"):
        pack(model)


def test_bad_tokens_are_refused_as_the_model_refuses_them() -> None:
    model = random_model()
    for tokens, positions in (
        (torch.tensor([[CONFIG.vocab_size]]), None),
        (torch.tensor([[-1]]), None),
        (torch.empty(1, 0, dtype=torch.long), None),
    ):
        messages = []
        for next_logits in (model.next_logits, the_fast_path(model)):
            with pytest.raises(ValueError) as refused:
                next_logits(tokens, le.NoCache(), positions)
            messages.append(str(refused.value))
        assert messages[0] == messages[1]


# -- Matrices ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not on_x86, reason="oneDNN is part of PyTorch's builds for x86")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_onednn_multiplies_as_torch_does(dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1300, 1024, generator=generator).to(dtype)
    x, residual = torch.randn(rows, 1024, generator=generator).to(dtype), torch.randn(rows, 1300, generator=generator).to(dtype)
    projection = make_projection(weight, may_copy=dtype == torch.bfloat16)
    if dtype == torch.float32:
        assert type(projection) is OneDnnProjection
    exact, sizes = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    for found, wanted in ((projection(x), exact), (projection.add_to(residual, x), residual.double() + exact)):
        assert found.dtype == dtype and found.shape == (rows, 1300)
        # Sums are kept in float32, whatever goes in, and are rounded once on their way out.
        allowed = 4 * torch.finfo(torch.float32).eps * sizes + torch.finfo(dtype).eps * wanted.abs()
        assert ((found.double() - wanted).abs() <= allowed).all()


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(not on_x86, reason="FBGEMM is part of PyTorch's builds for x86")
@pytest.mark.parametrize("in_features", [1, 5, 17, 1024])
def test_a_row_is_multiplied_as_torch_does_by_any_number_of_threads(threads: int, in_features: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(1300, in_features, generator=generator), torch.randn(in_features, generator=generator)
    residual, before = torch.randn(1300, generator=generator), x.clone()
    projection = WeightedRowsProjection(weight)
    exact, sizes = weight.double() @ x.double(), weight.double().abs() @ x.double().abs()
    given_residual = residual.clone()
    for found, wanted in ((projection.of_row(x), exact), (projection.add_row_to(residual, x), residual.double() + exact)):
        allowed = 4 * torch.finfo(torch.float32).eps * (sizes + residual.double().abs())
        assert found.shape == (1300,) and ((found.double() - wanted).abs() <= allowed).all()
    assert torch.equal(residual, given_residual) and torch.equal(x, before)


def of_one_row(projection: Projection, x: Tensor) -> Tensor:
    return torch.stack((projection.of_row(x), projection.add_row_to(torch.zeros(1300, dtype=x.dtype), x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_projection_multiplies_one_row_as_it_does_many(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, x = torch.randn(1300, 1024, generator=generator).to(dtype), torch.randn(1024, generator=generator).to(dtype)
    for projection in (PlainProjection(weight), make_projection(weight), make_projection(weight, may_copy=False)):
        wanted = projection(x[None]).expand(2, -1)
        torch.testing.assert_close(of_one_row(projection, x), wanted, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


def test_small_matrices_and_exact_ones_stay_with_blas() -> None:
    assert isinstance(make_projection(torch.zeros(8, 8)), PlainProjection)
    assert isinstance(make_projection(torch.zeros(1300, 1024, dtype=torch.float64)), PlainProjection)


def test_no_copy_is_held_where_there_is_no_room_for_one() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        assert make_projection(torch.zeros(1300, 1024, dtype=dtype), may_copy=False).nbytes_beside == 0


@pytest.mark.skipif(not on_x86, reason="copies are held on x86 alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_into_a_matrix_that_is_held_twice_counts(dtype: torch.dtype) -> None:
    config = replace(CONFIG, dim=768, n_heads=12, n_kv_heads=4, hidden_dim=1024, vocab_size=3000, head_dim=64)
    model, token = random_model(config, dtype=dtype), torch.tensor([[5]])

    def next_logits() -> Tensor:
        return the_fast_path(model)(token, ContiguousCache(config, dtype=dtype))

    first = next_logits()
    with torch.no_grad():
        model.layers[1].feed_forward.w2.weight.mul_(-1)
    second = next_logits()
    assert the_fast_path(model).__self__.nbytes_beside > 0 and not torch.allclose(first, second)
    torch.testing.assert_close(second, model.next_logits(token), rtol=0, atol=1e-4 if dtype == torch.float32 else 0.2)


@pytest.mark.skipif(not on_x86, reason="oneDNN is part of PyTorch's builds for x86")
def test_a_model_with_large_matrices_agrees() -> None:
    config = replace(CONFIG, dim=768, n_heads=12, n_kv_heads=4, hidden_dim=1024, vocab_size=3000, head_dim=64)
    exact = random_model(config)
    model, tokens = deepcopy(exact).float(), random_tokens(2, 9)
    assert any(isinstance(layer.w13, OneDnnProjection) for layer in FastLlama(pack(model)).layers)
    torch.testing.assert_close(the_fast_path(model)(tokens, le.NoCache()).double(), exact.next_logits(tokens), rtol=0, atol=1e-4)


# -- Few bits ---------------------------------------------------------------------------------------------------------


@given(
    bits=st.sampled_from([8, 4, 2]), group_size=st.integers(1, 9), residual=st.integers(0, 7), head_dim=st.sampled_from([6, 8, 12]),
    channels=st.integers(1, 40), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
)  # fmt: skip
def test_codes_are_attended_to_as_the_numbers_they_stand_for(
    bits: int, group_size: int, residual: int, head_dim: int, channels: int, lengths: list[int]
) -> None:
    config = replace(CONFIG, head_dim=head_dim)
    model = random_model(config)
    tokens, positions = le.right_pad([random_tokens(1, length, seed=length)[0].tolist() for length in lengths])
    logits = []
    for fast in (True, False):
        cache = QuantizedCache(config, len(lengths), bits=bits, group_size=group_size, residual=residual, dtype=model.dtype)
        pool = BlockPool(config, num_blocks=90, block_size=group_size, bits=bits, group_size=channels, dtype=model.dtype)
        for held in (cache, PagedCache(pool, [[] for _ in lengths])):
            run = the_fast_path(model) if fast else model.next_logits
            run(tokens, held, positions)
            for step in range(3):
                new = torch.tensor([[7 + step]] * len(lengths))
                logits.append(run(new, held))
    half = len(logits) // 2
    for found, wanted in zip(logits[:half], logits[half:]):
        assert_same(found, wanted)


@pytest.mark.parametrize("kept", [ContiguousCache, PagedCache, QuantizedCache])
def test_a_cache_of_another_class_has_its_own_update_called(kept: type) -> None:
    class Forgetful(kept):
        def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            return super().update(layer, k, torch.zeros_like(v))

    model, tokens = random_model(), random_tokens(1, 5)
    logits = []
    for fast in (True, False):
        pool = BlockPool(CONFIG, num_blocks=9, block_size=4, dtype=model.dtype)
        cache = Forgetful(pool, [[]]) if kept is PagedCache else Forgetful(CONFIG, dtype=model.dtype)
        run = the_fast_path(model) if fast else model.next_logits
        run(tokens, cache)
        logits.append(run(torch.tensor([[3]]), cache))
    assert_same(*logits)


def test_a_row_that_pauses_among_codes_stays_finite() -> None:
    model = random_model()
    cache = QuantizedCache(CONFIG, 2, bits=8, group_size=4, dtype=model.dtype)
    run = the_fast_path(model)
    run(random_tokens(2, 5), cache)
    logits = run(torch.tensor([[1], [2]]), cache, torch.tensor([[5], [PAD]]))
    assert logits.isfinite().all()
