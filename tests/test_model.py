"""The model against the formulas, and what it computes no more than it must."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIG, SHAPES, assert_same, random_model, random_tokens
from torch import Tensor
from torch.nn import functional as F

from llama3_edu import PAD, ContiguousCache, GrowingCache, NoCache, left_pad, right_pad
from llama3_edu.attention import attend, fused_attend
from llama3_edu.model import FeedForward, Llama, RMSNorm
from llama3_edu.rope import rope_angles, rope_frequencies, rotate

MODEL = random_model()


def test_rms_norm_is_its_formula() -> None:
    x = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norm = RMSNorm(32, eps=0.1).double()
    norm.weight.data = torch.linspace(0.5, 2, 32, dtype=torch.float64)
    expected = norm.weight * x / (x.pow(2).sum(dim=-1, keepdim=True) / 32 + 0.1) ** 0.5
    assert_same(norm(x), expected, tolerance=1e-13)


def test_rms_norm_of_half_precision_neither_overflows_nor_vanishes() -> None:
    norm = RMSNorm(8, eps=1e-8).half()
    for size in (30_000.0, 1e-3):
        out = norm(torch.full((1, 8), size, dtype=torch.float16))
        assert out.dtype == torch.float16
        assert_same(out, torch.ones(1, 8, dtype=torch.float16), tolerance=1e-2)


def test_feed_forward_is_swiglu() -> None:
    block = FeedForward(CONFIG).double()
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gate = x @ block.w1.weight.T
    assert_same(block(x), (gate / (1 + (-gate).exp()) * (x @ block.w3.weight.T)) @ block.w2.weight.T, tolerance=1e-13)


def written_out(model: Llama, tokens: Tensor) -> Tensor:
    """The whole model for one plain batch, with PyTorch's own attention and no cache, mask or position of ours."""
    config, weights = model.config, dict(model.state_dict())
    batch, new_len = tokens.shape
    angles = rope_angles(rope_frequencies(config), torch.arange(new_len).expand(batch, new_len), model.dtype)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (config.dim,), weights[name], config.norm_eps)

    x = weights["tok_embeddings.weight"][tokens]
    for layer in range(config.n_layers):
        w = {name.removeprefix(f"layers.{layer}."): weight for name, weight in weights.items()}
        h = norm(x, f"layers.{layer}.attention_norm.weight")
        q, k, v = ((h @ w[f"attention.w{name}.weight"].T).view(batch, new_len, -1, config.head_dim) for name in "qkv")
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, *angles), rotate(k, *angles), v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + out.transpose(1, 2).flatten(2) @ w["attention.wo.weight"].T
        h = norm(x, f"layers.{layer}.ffn_norm.weight")
        x = x + (F.silu(h @ w["feed_forward.w1.weight"].T) * (h @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("attention", [attend, fused_attend])
def test_the_model_is_what_its_parts_are_written_out(shape: str, attention: Callable[..., Tensor]) -> None:
    model = random_model(SHAPES[shape])
    model.use_attention(attention)
    tokens = random_tokens(2, 9)
    assert_same(model(tokens), written_out(model, tokens), tolerance=1e-10)


def test_the_model_runs_on_every_device(device: torch.device) -> None:
    tokens = random_tokens(2, 9)
    assert_same(random_model(device=device)(tokens.to(device)).cpu(), MODEL(tokens), tolerance=1e-10)


def test_tied_embeddings_are_one_tensor() -> None:
    tied = Llama(SHAPES["all KV heads"])
    assert tied.output.weight is tied.tok_embeddings.weight
    assert Llama(CONFIG).output.weight is not Llama(CONFIG).tok_embeddings.weight


def test_no_cache_is_no_cache() -> None:
    tokens = random_tokens(2, 7)
    assert torch.equal(MODEL(tokens, NoCache()), MODEL(tokens))
    cache, k, v = NoCache(), torch.ones(2, 1, 2, 8), torch.zeros(2, 1, 2, 8)
    positions = torch.tensor([[0], [5]])
    assert cache.reserve(positions) is positions
    k_all, v_all = cache.update(0, k, v)
    assert k_all is k and v_all is v
    cache.reorder(torch.tensor([1, 0, 0]))
    assert cache.seq_lens.tolist() == [0] and cache.nbytes == 0


@pytest.mark.parametrize("pad", [right_pad, left_pad])
@pytest.mark.parametrize("pad_id", [0, 60])
def test_ragged_rows_without_a_cache_are_each_row_alone(pad: Callable[..., tuple[Tensor, Tensor]], pad_id: int) -> None:
    rows = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
    tokens, positions = pad(rows, pad_id=pad_id)
    logits = MODEL(tokens, positions=positions)
    assert logits.isfinite().all()
    for row, ids in enumerate(rows):
        assert_same(logits[row, positions[row] != PAD], MODEL(torch.tensor([ids]))[0])


def test_only_distances_matter_not_where_a_row_starts() -> None:
    tokens = random_tokens(1, 6)
    positions = torch.arange(6)[None]
    # Angles are float32, so this is no closer than float32.
    assert_same(MODEL(tokens, positions=positions + 100), MODEL(tokens, positions=positions), tolerance=1e-3)


def test_a_later_token_changes_nothing_before_it() -> None:
    tokens = random_tokens(1, 8)
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % CONFIG.vocab_size
    before, after = MODEL(tokens), MODEL(changed)
    assert_same(after[:, :5], before[:, :5], tolerance=1e-12)
    assert (after[:, 5:] - before[:, 5:]).abs().amax(dim=-1).min() > 1e-6


# -- next_logits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [right_pad, left_pad])
@pytest.mark.parametrize("make", [lambda: None, lambda: GrowingCache(CONFIG, 3, dtype=torch.float64)], ids=["naive", "cached"])
def test_next_logits_are_those_of_the_last_real_token(
    pad: Callable[..., tuple[Tensor, Tensor]], make: Callable[[], object]
) -> None:
    tokens, positions = pad([[1, 2, 3, 4, 5], [6], [7, 8, 9]])
    logits = MODEL(tokens, make(), positions)
    last = [logits[row, positions[row].argmax()] for row in range(3)]
    assert_same(MODEL.next_logits(tokens, make(), positions), torch.stack(last), tolerance=1e-13)


def test_next_logits_of_plain_rows() -> None:
    tokens = random_tokens(2, 7)
    assert_same(MODEL.next_logits(tokens), MODEL(tokens)[:, -1], tolerance=1e-13)


def test_next_logits_computes_no_other_rows() -> None:
    model = random_model()
    seen: list[tuple[torch.Size, torch.Size]] = []
    model.output.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].shape, output.shape)))
    tokens, positions = right_pad([[1, 2, 3, 4, 5, 6, 7], [8, 9]])
    model.next_logits(tokens, positions=positions)
    assert seen == [((2, CONFIG.dim), (2, CONFIG.vocab_size))]


def test_a_row_of_padding_gets_finite_logits_and_changes_nothing() -> None:
    cache = ContiguousCache(CONFIG, 2, max_seq_len=8, dtype=torch.float64)
    MODEL(random_tokens(2, 3), cache)
    logits = MODEL.next_logits(torch.tensor([[4], [5]]), cache, torch.tensor([[PAD], [3]]))
    assert logits.isfinite().all() and cache.seq_lens.tolist() == [3, 4]


# -- Attention is exchangeable, masks are not made in vain ------------------------------------------------------------


def test_attention_can_be_exchanged_and_gets_a_mask_only_where_something_is_hidden() -> None:
    masks: list[Tensor | None] = []

    def watching(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        masks.append(mask)
        return attend(q, k, v, mask)

    model = random_model()
    model.use_attention(watching)
    cache = GrowingCache(CONFIG, 1, dtype=torch.float64)
    tokens = random_tokens(1, 4)
    prefill = model(tokens[:, :3], cache)
    decode = model(tokens[:, 3:], cache)
    assert_same(torch.cat((prefill, decode), dim=1), MODEL(tokens))
    assert len(masks) == 2 * CONFIG.n_layers
    assert all(mask is not None for mask in masks[: CONFIG.n_layers]) and all(mask is None for mask in masks[CONFIG.n_layers :])


# -- Refusing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [MODEL, MODEL.next_logits], ids=["forward", "next_logits"])
@pytest.mark.parametrize(
    ("tokens", "positions", "message"),
    [
        (torch.zeros(2, 0, dtype=torch.long), None, r"at least one token per row; it was given tokens of shape \[2, 0\]"),
        (torch.zeros(0, 3, dtype=torch.long), None, r"at least one token per row; it was given tokens of shape \[0, 3\]"),
        (torch.tensor([[1, 61]]), None, "token ids go from 0 to 60; one of those given is 61"),
        (torch.tensor([[-1, 60]]), None, "token ids go from 0 to 60; one of those given is -1"),
        (torch.tensor([[1, 2]]), torch.tensor([[0]]), r"every token needs a position; tokens are \[1, 2\], positions \[1, 1\]"),
    ],
)
def test_tokens_that_cannot_be_run_are_refused(
    run: Callable[..., Tensor], tokens: Tensor, positions: Tensor | None, message: str, unchecked: None
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tokens, None, positions)


def test_refused_tokens_leave_the_cache_as_it_was(unchecked: None) -> None:
    cache = ContiguousCache(CONFIG, 1, max_seq_len=8, dtype=torch.float64)
    tokens = random_tokens(1, 5)
    MODEL(tokens[:, :3], cache)
    for wrong, positions in ((torch.tensor([[99]]), None), (tokens[:, 3:], torch.tensor([[3]])), (tokens[:, :0], None)):
        with pytest.raises(ValueError):
            MODEL(wrong, cache, positions)
    assert_same(MODEL(tokens[:, 3:], cache), MODEL(tokens)[:, 3:])


def test_a_cache_of_another_batch_is_refused() -> None:
    for rows in (1, 2):
        with pytest.raises(ValueError, match=rf"the cache holds {rows} rows"):
            MODEL(random_tokens(3, 2), GrowingCache(CONFIG, rows, dtype=torch.float64))
