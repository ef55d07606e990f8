"""Rotations turn by position, and scores depend on distances alone."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, assert_same
from torch import Tensor

from llama3_edu import LlamaConfig, RopeScaling, rope_angles, rope_frequencies, rotate

PLAIN = replace(CONFIG, rope_scaling=None, rope_theta=500_000.0, head_dim=128)


def rotated(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return rotate(x, *rope_angles(frequencies, positions, x.dtype))


def test_frequencies_are_powers_of_theta() -> None:
    expected = [500_000.0 ** (-2 * pair / 128) for pair in range(64)]
    torch.testing.assert_close(rope_frequencies(PLAIN), torch.tensor(expected))


def test_a_rotation_is_a_complex_product(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 3, 8, generator=generator, dtype=torch.float64).to(device)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 9, 11, 13, 500]], device=device)
    frequencies = rope_frequencies(CONFIG, device)
    # The angle is taken in float32, as everywhere; what is compared here is how pairs are formed and turned.
    angles = (positions[:, :, None, None].float() * frequencies).double()
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(angles.cos(), angles.sin())
    assert_same(rotated(x, positions, frequencies), torch.cat((turned.real, turned.imag), dim=-1), tolerance=1e-6)


def test_position_0_is_left_alone_and_lengths_never_change() -> None:
    x = torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out = rotated(x, torch.arange(6)[None], rope_frequencies(CONFIG))
    assert torch.equal(out[:, 0], x[:, 0])
    assert_same(out.norm(dim=-1), x.norm(dim=-1), tolerance=1e-6)


@given(offset=st.integers(0, 1000), distance=st.integers(0, 50))
def test_scores_depend_on_the_distance_alone(offset: int, distance: int) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator, dtype=torch.float64)
    # Whole-number fractions of a turn are exact in float32, so no rounding hides behind the offset.
    frequencies = torch.tensor([1.0, 0.5, 0.25, 0.125])

    def score(query_at: int, key_at: int) -> Tensor:
        turned = (rotated(x, torch.tensor([[at]]), frequencies) for x, at in ((q, query_at), (k, key_at)))
        return math.prod(turned).sum()

    assert_same(score(offset + distance, offset), score(distance, 0), tolerance=1e-5)


def test_each_row_turns_by_its_own_positions() -> None:
    x = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(4))
    positions = torch.tensor([[0, 1, 2], [40, 41, 42]])
    both = rotated(x, positions, rope_frequencies(CONFIG))
    for row in range(2):
        assert torch.equal(both[row : row + 1], rotated(x[row : row + 1], positions[row : row + 1], rope_frequencies(CONFIG)))


@pytest.mark.parametrize(("name", "factor"), [("llama3.1-8b", 8), ("llama3.1-405b", 8), ("llama3.2-1b", 32), ("llama3.2-3b", 32)])
def test_scaling_keeps_the_fast_stretches_the_slow_and_blends_between(name: str, factor: int) -> None:
    config = LlamaConfig.from_preset(name)
    plain, scaled = rope_frequencies(replace(config, rope_scaling=None)), rope_frequencies(config)
    wavelengths = 2 * math.pi / plain.double()
    # Published: 8,192 tokens of original context, factors 1 and 4, so the ends are at 8,192 / 4 and 8,192 / 1.
    fast, slow = wavelengths < 2048, wavelengths > 8192
    assert fast.any() and slow.any() and not (fast | slow).all()
    assert torch.equal(scaled[fast], plain[fast])
    assert torch.equal(scaled[slow], plain[slow] / factor)
    smooth = (8192 / wavelengths - 1) / (4 - 1)
    blended = (1 - smooth) * plain / factor + smooth * plain
    between = ~(fast | slow)
    torch.testing.assert_close(scaled[between].double(), blended[between], rtol=1e-5, atol=0)
    assert (scaled.diff() < 0).all()


def test_the_blend_meets_both_ends_at_their_wavelengths() -> None:
    scaling = RopeScaling(factor=8.0, original_max_seq_len=16)
    # With two pairs the second turns theta ** -0.5 per position: place it where the bands meet.
    for wavelength, expected_divisor in ((4.0, 1.0), (3.9, 1.0), (16.0, 8.0), (17.0, 8.0), (6.4, 1 / (0.5 + 0.5 / 8))):
        theta = (wavelength / (2 * math.pi)) ** 2
        config = replace(CONFIG, head_dim=4, rope_theta=theta, rope_scaling=scaling)
        plain = 2 * math.pi / wavelength
        assert rope_frequencies(config)[1].item() == pytest.approx(plain / expected_divisor, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_angles_are_taken_in_float32_whatever_the_model_computes_in(dtype: torch.dtype) -> None:
    positions = torch.tensor([[100_000, 100_001]])
    cos, sin = rope_angles(rope_frequencies(PLAIN), positions, dtype)
    angles = positions[:, :, None, None].float() * rope_frequencies(PLAIN)
    assert torch.equal(cos, angles.cos().to(dtype)) and torch.equal(sin, angles.sin().to(dtype))
