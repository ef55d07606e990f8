"""The models that are measured: shapes with random weights, written once in the layout that every library reads.

    python -m benchmarks.models 110m 1b    # writes them under .venv-peers/models

What decoding costs depends on shapes alone. Weights are drawn from a fixed generator, so that every library is given the very
same numbers, and its logits can be compared with ours before anything is timed.
"""

import argparse
import importlib.resources
from pathlib import Path

import torch

from llama3_edu import Llama, LlamaConfig, load_checkpoint, parameter_count, save_checkpoint

DIRECTORY = Path(__file__).resolve().parents[1] / ".venv-peers" / "models"
SEED = 0

SHAPES = {
    "110m": LlamaConfig(
        dim=768, n_layers=12, n_heads=12, n_kv_heads=4, hidden_dim=2048, vocab_size=32_000, max_seq_len=4096, tie_embeddings=True
    ),
    "1b": LlamaConfig.from_preset("llama3.2-1b"),
    "rehearsal": LlamaConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=128, vocab_size=256, max_seq_len=4096, tie_embeddings=True
    ),
}
"""By name. `tiny` is the bundled model, which is trained. `110m` has 100 million parameters; with a key head for every query
head, which is how this shape is mostly seen, it would have 110."""

STORED = {"1b": torch.bfloat16}
"""What a model's weights are stored as, where not as float32: the type they are measured in."""

NAMES = (*SHAPES, "tiny")


def directory(name: str) -> Path:
    """Return where a model's checkpoint is, in the layout of Hugging Face; it is written where it is not there yet."""
    if name == "tiny":
        return Path(str(importlib.resources.files("llama3_edu") / "tiny"))
    home = DIRECTORY / name / "huggingface"
    if not (home / "model.safetensors").exists():
        save_checkpoint(random_model(SHAPES[name], dtype=STORED.get(name, torch.float32)), home)
    return home


def title(name: str) -> str:
    """Return what a model is called in a table's title: how many parameters it has."""
    config = LlamaConfig.from_json(directory(name) / "config.json")
    count = parameter_count(config)
    return f"{count / 1e9:.2f} billion parameters" if count >= 1e9 else f"{count / 1e6:,.1f} million parameters"


def load(name: str, dtype: torch.dtype) -> Llama:
    """Load a model by its name."""
    return load_checkpoint(directory(name), dtype=dtype)


def random_model(config: LlamaConfig, *, dtype: torch.dtype) -> Llama:
    """Return a model whose matrices are normal numbers, scaled so that each layer hands on about as much as it gets."""
    generator = torch.Generator().manual_seed(SEED)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = Llama(config).requires_grad_(False)
    finally:
        torch.set_default_dtype(default)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.copy_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
        else:
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", choices=NAMES, default=["110m"])
    for name in options.parse_args().names:
        print(directory(name))


if __name__ == "__main__":
    main()
