"""The readable attention, the fused one and PyTorch's own give the same."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import assert_same
from torch import Tensor
from torch.nn import functional as F

from llama3_edu import PAD, attend, attention_weights, causal_mask, fused_attend, repeat_kv

HEADS = [(4, 4), (4, 2), (4, 1), (6, 3), (1, 1)]
every_grouping = pytest.mark.parametrize(("n_heads", "n_kv_heads"), HEADS)
both = pytest.mark.parametrize("attention", [attend, fused_attend])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def random_qkv(
    n_heads: int, n_kv_heads: int, *, new_len: int = 5, kv_len: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, new_len, n_heads, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_len, n_kv_heads, 8, generator=generator, dtype=torch.float64)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def ragged_mask(new_len: int = 5, kv_len: int = 7) -> Tensor:
    """Row 0 continues a cached prefix; row 1 is left-padded by two, so two of its queries see nothing."""
    positions = torch.stack((torch.arange(kv_len - new_len, kv_len), torch.tensor([PAD, PAD, 0, 1, 2])))
    key_positions = torch.stack((torch.arange(kv_len), torch.tensor([PAD, PAD, 0, 1, 2, PAD, PAD])))
    return causal_mask(positions, key_positions)


@given(batch=st.integers(1, 3), kv_len=st.integers(0, 4), n_kv_heads=st.integers(1, 4), n_rep=st.integers(1, 4))
def test_repeat_kv_is_repeat_interleave(batch: int, kv_len: int, n_kv_heads: int, n_rep: int) -> None:
    x = torch.arange(batch * kv_len * n_kv_heads * 2.0).view(batch, kv_len, n_kv_heads, 2)
    assert torch.equal(repeat_kv(x, n_rep), torch.repeat_interleave(x, n_rep, dim=2))


def test_repeat_kv_copies_when_it_repeats_and_only_then() -> None:
    x = torch.randn(1, 3, 2, 4)
    assert repeat_kv(x, 1) is x
    assert repeat_kv(x, 3).untyped_storage().nbytes() == 3 * x.untyped_storage().nbytes()


@pytest.mark.parametrize("n_rep", [0, -1])
def test_repeat_kv_refuses_less_than_one(n_rep: int) -> None:
    with pytest.raises(ValueError, match=f"n_rep should be at least 1; it is {n_rep}"):
        repeat_kv(torch.ones(1, 1, 1, 2), n_rep)


@every_grouping
@both
@pytest.mark.parametrize("masked", [True, False])
def test_both_equal_the_sum_written_out(attention: Callable[..., Tensor], n_heads: int, n_kv_heads: int, masked: bool) -> None:
    q, k, v = random_qkv(n_heads, n_kv_heads)
    mask = ragged_mask() if masked else torch.ones(2, 5, 7, dtype=torch.bool)
    out = attention(q, k, v, mask if masked else None)
    for row, query, head in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(n_heads)).tolist():
        seen = mask[row, query]
        if seen.any():
            shared = head // (n_heads // n_kv_heads)
            weights = (k[row, seen, shared] @ q[row, query, head] / 8**0.5).softmax(dim=0)
            assert_same(out[row, query, head], weights @ v[row, seen, shared], tolerance=1e-12)


@every_grouping
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("masked", [True, False])
def test_fused_equals_readable(n_heads: int, n_kv_heads: int, dtype: torch.dtype, masked: bool, device: torch.device) -> None:
    q, k, v = (x.to(device) for x in random_qkv(n_heads, n_kv_heads, dtype=dtype))
    mask = ragged_mask().to(device) if masked else None
    # Queries that see nothing included: both spread their weight evenly.
    assert_same(fused_attend(q, k, v, mask), attend(q, k, v, mask), tolerance=TOLERANCE[dtype])


@every_grouping
@both
def test_both_equal_pytorch_with_grouped_heads(attention: Callable[..., Tensor], n_heads: int, n_kv_heads: int) -> None:
    q, k, v = random_qkv(n_heads, n_kv_heads, new_len=7)
    triangle = causal_mask(torch.arange(7).expand(2, 7), torch.arange(7).expand(2, 7))
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert_same(attention(q, k, v, triangle), expected, tolerance=1e-12)


@both
@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float16])
def test_a_query_that_sees_nothing_is_not_nan(attention: Callable[..., Tensor], dtype: torch.dtype, device: torch.device) -> None:
    q, k, v = (x.to(device) for x in random_qkv(4, 2, dtype=dtype))
    assert attention(-50 * q, k, v, torch.zeros(2, 5, 7, dtype=torch.bool, device=device)).isfinite().all()


@both
def test_hidden_keys_and_values_never_matter(attention: Callable[..., Tensor]) -> None:
    q, k, v = random_qkv(4, 2)
    mask = ragged_mask()
    hidden = ~mask.any(dim=1)
    other_k, other_v = (torch.where(hidden[:, :, None, None], 1e6, x) for x in (k, v))
    real = mask.any(dim=-1)
    assert torch.equal(attention(q, other_k, other_v, mask)[real], attention(q, k, v, mask)[real])


@both
def test_a_mask_that_shows_everything_is_no_mask(attention: Callable[..., Tensor]) -> None:
    q, k, v = random_qkv(4, 2)
    assert_same(attention(q, k, v, torch.ones(2, 5, 7, dtype=torch.bool)), attention(q, k, v), tolerance=1e-14)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_weights_are_shares_of_what_is_visible(dtype: torch.dtype) -> None:
    q, k, _ = random_qkv(4, 2, dtype=dtype)
    mask = ragged_mask()
    weights = attention_weights(q, k, mask)
    assert weights.dtype == dtype and (weights >= 0).all()
    assert_same(weights.sum(dim=-1), torch.ones(2, 4, 5, dtype=dtype), tolerance=10 * torch.finfo(dtype).eps)
    sees = mask.any(dim=-1)[:, None, :, None]
    assert (weights.masked_fill(mask[:, None] | ~sees, 0) == 0).all()


def test_fused_attention_repeats_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = random_qkv(8, 2, new_len=1, kv_len=50)
    handed: list[Tensor] = []
    kernel = F.scaled_dot_product_attention

    def watching(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        handed.extend((k, v))
        return kernel(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watching)
    fused_attend(q, k, v)
    assert [x.untyped_storage().data_ptr() for x in handed] == [x.untyped_storage().data_ptr() for x in (k, v)]
