"""Small random models for tests, and the plain ways of computing what a cache must agree with."""

from dataclasses import replace

import torch
from torch import Tensor

from llama3_edu import Llama, LlamaConfig, RopeScaling

CONFIG = LlamaConfig(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    hidden_dim=48,
    vocab_size=61,
    max_seq_len=64,
    rope_theta=10_000.0,
    rope_scaling=RopeScaling(factor=8.0, original_max_seq_len=16),
)
"""Grouped heads, scaled RoPE, a vocabulary that is no round number."""

SHAPES = {
    "grouped": CONFIG,
    "one KV head": replace(CONFIG, n_kv_heads=1, rope_scaling=None),
    "all KV heads": replace(CONFIG, n_kv_heads=4, n_layers=3, tie_embeddings=True),
    "explicit head_dim": replace(CONFIG, head_dim=12),
}


def random_model(
    config: LlamaConfig = CONFIG, *, seed: int = 7, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Llama:
    """A model with random weights, the norms' included, so that no weight is a 1 that hides a mistake. It is not in training, as loaded
    models are not: only then do fast paths apply.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Llama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else noise / parameter.shape[-1] ** 0.5)
        model.tok_embeddings.weight.mul_(config.dim**0.5)
    return model.to(device=device, dtype=dtype).requires_grad_(False).eval()


def random_tokens(*shape: int, seed: int = 3, config: LlamaConfig = CONFIG) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_same(found: Tensor, expected: Tensor, *, tolerance: float = 1e-10) -> None:
    """Equal to an absolute tolerance; NaN is equal to nothing."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
