"""Checkpoints: what is written comes back, whatever the layout; what is wrong is named, all of it at once."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from llama3_edu import checkpoint
from llama3_edu.checkpoint import load_checkpoint, load_tiny, save_checkpoint, stop_ids
from llama3_edu.config import LlamaConfig
from llama3_edu.generate import generate
from llama3_edu.memory import int8_weight_bytes, parameter_count, weight_bytes
from llama3_edu.model import Llama
from llama3_edu.stored import CheckpointError

UNTIED = LlamaConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, hidden_dim=48, vocab_size=50)
TIED = replace(UNTIED, tie_embeddings=True)
TOKENS = torch.arange(20).view(2, 10)


def make_model(config, generator):
    model = Llama(config)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    return model


@pytest.fixture
def model(generator):
    return make_model(UNTIED, generator)


@pytest.fixture
def saved(model, tmp_path):
    save_checkpoint(model, tmp_path)
    return tmp_path


def rewrite(directory, change):
    """Let `change` edit a saved checkpoint's tensors, a dict by name, and write them again."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied"])
def test_what_is_saved_comes_back(config, shards, tmp_path, generator, device):
    model = make_model(config, generator)
    save_checkpoint(model, tmp_path / "new" / "folder", shards=shards)
    loaded = load_checkpoint(tmp_path / "new" / "folder", device=device)
    assert loaded.config == config
    assert len(list((tmp_path / "new" / "folder").glob("*.safetensors"))) == shards
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].cpu(), weight), name
    assert_close(loaded(TOKENS.to(device)).cpu(), model(TOKENS))


def test_a_loaded_model_is_ready_for_inference(saved):
    loaded = Llama.from_pretrained(str(saved))
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert not any(weight.is_meta for weight in loaded.parameters())


def test_tied_embeddings_stay_one_tensor(tmp_path, generator):
    save_checkpoint(make_model(TIED, generator), tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded.output.weight is loaded.tok_embeddings.weight
    assert sum(weight.numel() for weight in loaded.parameters()) == parameter_count(TIED)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_loads_as_every_other(stored, dtype, model, tmp_path):
    save_checkpoint(model, tmp_path, dtype=stored)
    loaded = load_checkpoint(tmp_path, dtype=dtype)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(stored).to(dtype)), name


def test_the_type_is_the_file_s_when_none_is_asked_for(model, tmp_path):
    save_checkpoint(model, tmp_path, dtype=torch.bfloat16)
    assert load_checkpoint(tmp_path).dtype == torch.bfloat16


def test_a_tensor_longer_than_one_piece_comes_back_whole(tmp_path, generator, monkeypatch):
    monkeypatch.setattr("llama3_edu.stored._PIECE_BYTES", 56)  # a size that divides nothing evenly
    model = make_model(UNTIED, generator)
    save_checkpoint(model, tmp_path)
    for name, weight in load_checkpoint(tmp_path).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_old_rope_buffers_are_ignored(saved, model):
    rewrite(saved, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}))
    assert_close(load_checkpoint(saved)(TOKENS), model(TOKENS))


def test_a_tied_output_may_be_stored_as_well(tmp_path, generator):
    model = make_model(TIED, generator)
    save_checkpoint(model, tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert_close(load_checkpoint(tmp_path)(TOKENS), model(TOKENS))


def test_a_tied_output_that_differs_is_refused(tmp_path, generator):
    save_checkpoint(make_model(TIED, generator), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    with pytest.raises(CheckpointError, match="lm_head.weight.*is not model.embed_tokens.weight"):
        load_checkpoint(tmp_path)


def test_all_that_does_not_fit_is_listed_at_once(saved):
    def spoil(tensors):
        del tensors["model.norm.weight"], tensors["lm_head.weight"]
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(48, 32)
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(24)
        tensors["model.layers.1.self_attn.k_proj.weight"] = torch.ones(24, 32)
        tensors["model.layers.1.mlp.down_proj.weight"] = torch.ones(32, 48, dtype=torch.int8)

    rewrite(saved, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    first, *problems = str(caught.value).splitlines()
    assert str(saved) in first
    assert sorted(problem.strip() for problem in problems) == [
        "missing: lm_head.weight [50, 32]",
        "missing: model.norm.weight [32]",
        "surplus: model.layers.0.self_attn.q_proj.bias [24]",
        "surplus: model.layers.2.mlp.up_proj.weight [48, 32]",
        "wrong shape: model.layers.1.self_attn.k_proj.weight should be [12, 32]; it is [24, 32]",
        "wrong type: model.layers.1.mlp.down_proj.weight should be one of F64, F32, F16, BF16; it is I8",
    ]


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_file_that_is_cut_short_is_named_with_both_sizes(saved, left):
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut short.*\d+ bytes.*it has \d+") as caught:
        load_checkpoint(saved)
    assert f"it has {len(whole[:left])}" in str(caught.value)
    if left == -1:
        assert f"describes {len(whole)} bytes" in str(caught.value)


def test_a_file_that_is_too_long_is_named(saved):
    with open(saved / "model.safetensors", "ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="model.safetensors is too long"):
        load_checkpoint(saved)


def entry(shape, begin, end, dtype="F32"):
    return {"model.norm.weight": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    "header",
    [b"version https://git-lfs.github.com/spec/v1", b"{not JSON", b"[]", b'{"a": 3}']
    + [json.dumps(wrong).encode() for wrong in (entry([32], 0, 64), entry([32], 128, 0), entry([32], -128, 0), entry("x", 0, 4))],
)
def test_what_is_no_safetensors_file_is_named(saved, header):
    length = b"" if header.startswith(b"version") else len(header).to_bytes(8, "little")
    (saved / "model.safetensors").write_bytes(length + header + bytes(128))
    with pytest.raises(CheckpointError, match="model.safetensors is not a safetensors file"):
        load_checkpoint(saved)


def test_a_note_of_git_lfs_says_how_to_get_the_file(saved):
    (saved / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7549304\n")
    with pytest.raises(CheckpointError, match="not a safetensors file but a note of Git LFS.*`git lfs pull`"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("how", "needed"),
    [
        ({}, weight_bytes(UNTIED, bits=32)),
        ({"dtype": torch.float16}, weight_bytes(UNTIED, bits=16)),
        ({"dtype": torch.float16, "weight_bits": 8}, int8_weight_bytes(UNTIED, bits=16)),
    ],
)
def test_a_model_larger_than_memory_is_refused_before_its_memory_is_taken(how, needed, saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "available_memory", lambda: needed)
    assert load_checkpoint(saved, **how).config == UNTIED
    monkeypatch.setattr(checkpoint, "available_memory", lambda: needed - 1)
    monkeypatch.setattr(checkpoint, "_fill", lambda *args, **kwargs: pytest.fail("its memory was taken"))
    with pytest.raises(MemoryError, match=f"take {needed:,} bytes .*; {needed - 1:,} bytes .*are available"):
        load_checkpoint(saved, **how)


def test_of_the_ways_to_make_a_model_smaller_those_that_help_are_named(saved, monkeypatch):
    ways = {"dtype=torch.bfloat16": weight_bytes(UNTIED, bits=16), "weight_bits=8": int8_weight_bytes(UNTIED, bits=32)}
    for available in (*ways.values(), min(ways.values()) - 1):
        monkeypatch.setattr(checkpoint, "available_memory", lambda: available)  # noqa: B023
        with pytest.raises(MemoryError, match="close other programs, or take a smaller model") as caught:
            load_checkpoint(saved)
        assert {way: way in str(caught.value) for way in ways} == {way: size <= available for way, size in ways.items()}


def test_where_nobody_knows_how_much_memory_there_is_nothing_is_refused(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "available_memory", lambda: None)
    assert load_checkpoint(saved).config == UNTIED


def test_a_missing_shard_is_named(model, tmp_path):
    save_checkpoint(model, tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="index.json names 3 files; missing: model-00002-of-00003.safetensors"):
        load_checkpoint(tmp_path)


def test_a_shard_that_is_cut_short_is_named(model, tmp_path):
    save_checkpoint(model, tmp_path, shards=3)
    shard = tmp_path / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="model-00003-of-00003.safetensors is cut short"):
        load_checkpoint(tmp_path)


def test_of_a_tensor_that_two_shards_hold_the_index_chooses_one(model, tmp_path):
    save_checkpoint(model, tmp_path, shards=2)
    first, last = (tmp_path / f"model-0000{shard}-of-00002.safetensors" for shard in (1, 2))
    stale = load_file(last) | {"model.embed_tokens.weight": torch.zeros(50, 32)}
    save_file(stale, last)
    assert_close(load_checkpoint(tmp_path)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("index", ["no JSON", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_named(model, tmp_path, index):
    save_checkpoint(model, tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="index.json is not the index of a checkpoint"):
        load_checkpoint(tmp_path)


def test_an_index_may_not_point_outside_its_directory(model, tmp_path):
    save_checkpoint(model, tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="should name files beside it; it names ../secret.safetensors"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_files_are_refused_unopened_with_the_reason(saved, name):
    (saved / "model.safetensors").rename(saved / name)
    with pytest.raises(CheckpointError, match=f"pickle files alone .{name}.. Unpickling runs .*safetensors version"):
        load_checkpoint(saved)


def test_a_directory_without_weights_or_configuration_says_which(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor"):
        load_checkpoint(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds no config.json"):
        load_checkpoint(saved)


def test_a_type_that_holds_no_weights_is_refused(saved):
    with pytest.raises(ValueError, match="floating-point type; it is torch.int8"):
        load_checkpoint(saved, dtype=torch.int8)


def test_shards_must_have_something_to_hold(model, tmp_path):
    for shards in (0, 1000):
        with pytest.raises(ValueError, match=f"shards should be from 1 to .* it is {shards}"):
            save_checkpoint(model, tmp_path, shards=shards)


def test_files_carry_the_mark_other_loaders_ask_for(saved):
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_place_that_does_not_exist_is_named(tmp_path, saved):
    for place in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "nowhere"):
        with pytest.raises(FileNotFoundError, match="nowhere' is neither a directory nor a repository name"):
            load_checkpoint(place)
    with pytest.raises(NotADirectoryError, match="model.safetensors is a file; give the directory"):
        load_checkpoint(saved / "model.safetensors")


def write_settings(directory, **files):
    for name, fields in files.items():
        (directory / f"{name}.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"generation_config": {"eos_token_id": [128_001, 128_008, 128_009]}, "config": {"eos_token_id": 2}},
            (128_001, 128_008, 128_009),
        ),
        ({"generation_config": {"eos_token_id": 128_001}}, (128_001,)),
        ({"generation_config": {"temperature": 0.6}, "config": {"eos_token_id": [7, 0]}}, (7, 0)),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 7}}, (7,)),
        ({"config": {"eos_token_id": 0}}, (0,)),
        ({"config": {}}, ()),
        ({}, ()),
    ],
)
def test_stop_ids_are_those_of_the_files(tmp_path, files, expected):
    write_settings(tmp_path, **files)
    assert stop_ids(tmp_path) == stop_ids(str(tmp_path)) == expected


@pytest.mark.parametrize("wrong", ["</s>", [1, "2"], True, -1, 1.5, {"id": 3}])
def test_stop_ids_that_are_none_are_refused(tmp_path, wrong):
    write_settings(tmp_path, generation_config={"eos_token_id": wrong})
    with pytest.raises(
        CheckpointError, match="generation_config.json: eos_token_id should be a token id or a list of them; it is"
    ):
        stop_ids(tmp_path)


@pytest.mark.parametrize("text", ["{not JSON", "[1]", ""])
def test_settings_that_are_no_json_object_are_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="generation_config.json (is not a JSON file|should hold a JSON object)"):
        stop_ids(tmp_path)


MEASURE = """
import resource, sys
from pathlib import Path
import psutil, torch
from llama3_edu.checkpoint import load_checkpoint, load_tiny

def peak():
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux getrusage also remembers the parent process.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

load_tiny(dtype=getattr(torch, sys.argv[2]))  # what loading needs of torch once, some 40 MB of code, is no copy of the model
before = psutil.Process().memory_info().rss
model = load_checkpoint(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print(peak() - before, psutil.Process().memory_info().rss - before)
"""


@pytest.mark.parametrize("stored, dtype", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16")])
def test_loading_never_holds_the_model_twice(stored, dtype, tmp_path):
    # Three quarters of the model are one tensor, so a copy of that tensor alone would break the bound.
    config = LlamaConfig(dim=512, n_layers=4, n_heads=8, n_kv_heads=8, hidden_dim=2048, vocab_size=96_000, tie_embeddings=True)
    save_checkpoint(Llama(config), tmp_path, dtype=getattr(torch, stored))
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path, dtype], check=True, capture_output=True, text=True)
    peak, held = map(int, run.stdout.split())
    model_bytes = weight_bytes(config, bits=8 * getattr(torch, dtype).itemsize)
    assert held >= 0.95 * model_bytes, "the weights are not in memory: the measurement proves nothing"
    assert peak <= 1.15 * model_bytes


def test_the_bundled_model_loads_and_writes():
    model, tokenizer = load_tiny()
    assert model.dtype == torch.float32 and not model.training
    assert model.config.vocab_size == tokenizer.vocab_size
    prompt = tokenizer.encode("ROMEO:\n", bos=True)
    written = generate(model, torch.tensor([prompt]), max_new_tokens=8)[0].tolist()
    assert written[: len(prompt)] == prompt
    assert tokenizer.decode(written[1:]).startswith("ROMEO:\n")
    assert load_tiny(dtype=torch.bfloat16)[0].dtype == torch.bfloat16
