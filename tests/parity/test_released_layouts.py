"""The released shapes at their true widths, with random weights and few layers: transformers' logits from Hugging Face's files and Meta's.

The whole of it takes minutes and several GB of memory, and so is slow; one thin model stands for it every day.
"""

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from meta_layout import write_meta
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from llama3_edu import ContiguousCache, Llama, LlamaConfig, load_checkpoint
from llama3_edu.checkpoint import hugging_face_name

SHAPES = {
    # name: preset, layers, vocabulary (None: the true one), files of Meta's
    "1B, thin": ("llama3.2-1b", 1, 500, 1),
    "1B": ("llama3.2-1b", 2, None, None),
    "3B": ("llama3.2-3b", 2, None, 1),
    "8B": ("llama3-8b", 1, None, 1),
    "3.1 8B": ("llama3.1-8b", 2, 1000, 2),
    "70B": ("llama3-70b", 1, 1000, 8),
}
FAST = ("1B, thin",)
PARAMETERS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SHAPES]


@pytest.fixture(scope="module", params=PARAMETERS)
def written(request, tmp_path_factory):
    """One shape's random weights in bfloat16, written in both layouts; given with the shape and the number of Meta's files."""
    preset, layers, vocab, files = SHAPES[request.param]
    config = replace(LlamaConfig.from_preset(preset), n_layers=layers)
    config = replace(config, vocab_size=vocab or config.vocab_size)
    directory = tmp_path_factory.mktemp("layouts")
    write_both(config, directory, files=files)
    yield config, directory
    for path in directory.rglob("*.safetensors"):  # gigabytes that nobody looks at again
        path.unlink()


def write_both(config, directory, *, files):
    """Weights for which sums stay of the order of one, so that errors have a scale."""
    generator = torch.Generator().manual_seed(11)
    with torch.device("meta"):
        shapes = {hugging_face_name(name): weight.shape for name, weight in Llama(config).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (1 + 0.2 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5).bfloat16()
    for folder in ("theirs", "meta"):
        (directory / folder).mkdir()
    fields = config.to_hugging_face() | {"torch_dtype": "bfloat16"}
    (directory / "theirs" / "config.json").write_text(json.dumps(fields))
    save_file(tensors, directory / "theirs" / "model.safetensors", metadata={"format": "pt"})
    write_meta(tensors, config, directory / "meta", files=files)


def prompt(config):
    return torch.randint(config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(2))


@torch.inference_mode()
def their_logits(directory, tokens, dtype):
    """Transformers' logits; the model is gone again when they come, so that two large ones are never held."""
    model, report = LlamaForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    logits = model.eval()(tokens).logits
    del model
    gc.collect()
    return logits


@torch.inference_mode()
def test_both_layouts_agree_with_transformers(written, agree):
    config, directory = written
    tokens = prompt(config)
    expected = {dtype: their_logits(directory / "theirs", tokens, dtype) for dtype in (torch.float32, torch.bfloat16)}
    for folder in ("theirs", "meta"):
        ours = load_checkpoint(directory / folder, dtype=torch.float32)
        assert replace(ours.config, tie_embeddings=config.tie_embeddings) == config
        assert ours.output.weight.shape == (config.vocab_size, config.dim)
        agree(ours(tokens), expected[torch.float32])
        cache = ContiguousCache(ours.config, batch=2, max_seq_len=24)
        agree(torch.cat([ours(part, cache) for part in tokens.split([10, 1, 13], dim=1)], dim=1), expected[torch.float32])
        del ours
        gc.collect()
        ours = load_checkpoint(directory / folder)
        assert ours.dtype == torch.bfloat16
        as_far_off(ours(tokens), expected[torch.bfloat16], exact=expected[torch.float32])
        del ours
        gc.collect()


def as_far_off(ours, theirs, *, exact):
    """Assert that rounding takes us no further from float32 than it takes them, and about as far."""
    ours, theirs = ((found.double() - exact.double()).square().mean().sqrt().item() for found in (ours, theirs))
    assert theirs > 0 and 0.8 < ours / theirs < 1.25, (ours, theirs)


@pytest.mark.parametrize("written", [pytest.param("1B, thin")], indirect=True)
@pytest.mark.parametrize("mistake", ["rows of wk as they come", "files in the wrong order"])
@torch.inference_mode()
def test_a_mistake_in_the_layout_would_be_seen(written, mistake, tmp_path):
    config, directory = written
    tensors = load_file(directory / "meta" / "consolidated.00.safetensors")
    (tmp_path / "params.json").write_text((directory / "meta" / "params.json").read_text())
    if mistake == "rows of wk as they come":
        theirs = load_file(directory / "theirs" / "model.safetensors")
        tensors["layers.0.attention.wk.weight"] = theirs["model.layers.0.self_attn.k_proj.weight"]
    else:
        weight = tensors["layers.0.attention.wo.weight"]
        tensors["layers.0.attention.wo.weight"] = torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)
    save_file(tensors, tmp_path / "consolidated.00.safetensors")
    right, wrong = (load_checkpoint(place, dtype=torch.float32)(prompt(config)) for place in (directory / "meta", tmp_path))
    assert (right - wrong).abs().max().item() > 1e-2


# -- Meta's own model ------------------------------------------------------------------------------------------------

REFERENCE = {
    "plain": (LlamaConfig(dim=64, n_layers=3, n_heads=8, n_kv_heads=4, hidden_dim=192, vocab_size=96), (1, 2, 4)),
    "3.1, scaled": (
        replace(
            LlamaConfig.from_preset("llama3.1-8b"), dim=128, n_layers=3, n_heads=8, n_kv_heads=2, hidden_dim=384, vocab_size=96,
            head_dim=16, rope_theta=20_000.0,
        ),
        (1, 2),
    ),
    "1B's width": (replace(LlamaConfig.from_preset("llama3.2-1b"), n_layers=1, vocab_size=512, rope_scaling=None), (1, 2)),
    "8B's width": (replace(LlamaConfig.from_preset("llama3-8b"), n_layers=1, vocab_size=512), (2,)),
    "70B's width": (replace(LlamaConfig.from_preset("llama3-70b"), n_layers=1, vocab_size=512), (1,)),
}  # fmt: skip


@pytest.fixture(scope="module")
def metas_python(tmp_path_factory):
    """An environment of its own with Meta's package and what its model is made with, and the tests' own torch."""
    venv = tmp_path_factory.mktemp("meta") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "llama-models==0.3.0", "fairscale==0.4.13"], check=True)
    where = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True)
    Path(where.stdout.strip(), "tests.pth").write_text(str(Path(torch.__file__).parents[1]))
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "files"), [(name, files) for name, (_, counts) in REFERENCE.items() for files in counts], ids=str
)
@torch.inference_mode()
def test_meta_s_own_model_agrees(shape, files, metas_python, tmp_path, agree):
    config = replace(REFERENCE[shape][0], tie_embeddings=False)
    write_both(config, tmp_path, files=files)
    length = 300 if config.rope_scaling else 24
    tokens = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(2))
    torch.save({"tokens": tokens, "split": [length - 14, 1, 1, 12]}, tmp_path / "prompt.pt")
    script = Path(__file__).with_name("metas_model.py")
    subprocess.run([metas_python, script, tmp_path / "meta", tmp_path / "prompt.pt", tmp_path / "logits.pt"], check=True)
    expected = torch.load(tmp_path / "logits.pt")
    for folder in ("meta", "theirs"):
        ours = load_checkpoint(tmp_path / folder, dtype=torch.float32)
        agree(ours(tokens), expected)
    if config.rope_scaling:  # or agreeing would prove little
        ours.config = replace(config, rope_scaling=None)
        assert (ours(tokens) - expected).abs().max().item() > 1e-2
