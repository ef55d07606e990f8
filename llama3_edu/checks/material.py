"""What the inputs of exercises are made of: types and devices, numbers that are easy to read, small models."""

from collections.abc import Iterator

import torch
from torch import Tensor

from llama3_edu.config import LlamaConfig
from llama3_edu.hardware import default_device
from llama3_edu.model import Llama

__all__ = ["CPU", "TOLERANCES", "devices", "kinds", "counting_up", "random_llama"]

CPU = torch.device("cpu")

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far a right answer that sums in another order may be off, relative to the largest number wanted."""


def devices() -> list[torch.device]:
    """Return the processor, and then the device chapters run on where that is another."""
    return list(dict.fromkeys((CPU, default_device())))


def kinds(*dtypes: torch.dtype) -> Iterator[tuple[torch.dtype, torch.device]]:
    """Yield types and devices to try: every type on the processor, then float32 wherever else chapters run.

    Not every device has every type, float64 above all.
    """
    for dtype in dtypes:
        yield dtype, CPU
    for device in devices()[1:]:
        yield torch.float32, device


def counting_up(*shape: int, first: int = 1) -> Tensor:
    """Return float32 numbers 1, 2, 3, … in a shape: a wrong place shows in the message."""
    numbers = torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.float32)
    return numbers.reshape(shape)


def random_llama(
    generator: torch.Generator,
    *,
    n_layers: int = 2,
    vocab_size: int = 13,
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
    kind: type[Llama] = Llama,
) -> Llama:
    """Return an untrained Llama of a few thousand weights, in which the past counts as the newest token does."""
    config = LlamaConfig(dim=16, n_layers=n_layers, n_heads=4, n_kv_heads=2, hidden_dim=24, vocab_size=vocab_size)
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from randomness that is not ours
        model = kind(config).to(dtype).requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 2:
            width = weight.shape[1] ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 2 / width)
    return model.to(device).eval()
