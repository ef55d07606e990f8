"""Meta's own files give the model that Hugging Face's give, bit for bit, in however many pieces they come."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from meta_layout import write_meta
from safetensors.torch import load_file, save_file
from tiny_models import random_model, random_tokens

from llama3_edu import CheckpointError, Llama, LlamaConfig, RopeScaling, load_checkpoint, save_checkpoint, stop_ids
from llama3_edu.checkpoint import hugging_face_name

CONFIG = LlamaConfig(
    dim=64, n_layers=2, n_heads=8, n_kv_heads=4, hidden_dim=176, vocab_size=72, rope_scaling=RopeScaling(factor=8.0),
    max_seq_len=131_072,
)  # fmt: skip
TIED = replace(CONFIG, tie_embeddings=True)


def their_tensors(model: Llama) -> dict[str, torch.Tensor]:
    return {hugging_face_name(name): weight.clone() for name, weight in model.named_parameters()}


def assert_same_weights(found: Llama, expected: Llama) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("files", [None, 1, 2, 4])
@pytest.mark.parametrize("config", [CONFIG, TIED, replace(CONFIG, head_dim=6, rope_scaling=None, max_seq_len=8192)], ids=["plain", "tied", "head_dim"])
def test_both_layouts_give_the_same_model(config, files, tmp_path):
    model = random_model(config, dtype=torch.float32)
    save_checkpoint(model, tmp_path / "theirs")
    write_meta(their_tensors(model), config, tmp_path / "meta", files=files)
    found = load_checkpoint(tmp_path / "meta")
    assert found.config == config
    assert_same_weights(found, load_checkpoint(tmp_path / "theirs"))
    tokens = random_tokens(2, 9, config=config)
    assert torch.equal(found(tokens), load_checkpoint(tmp_path / "theirs")(tokens))


@given(
    files=st.sampled_from([1, 2, 4]), n_kv_heads=st.sampled_from([4, 8]), n_rep=st.integers(1, 2), half=st.integers(1, 5),
    embeddings_axis=st.sampled_from([0, 1]), piece=st.sampled_from([1, 56, 300, 4096, 2**20]), bits=st.sampled_from([None, 8]),
    tied=st.booleans(),
)  # fmt: skip
def test_cuts_heads_and_pieces_of_any_size(
    tmp_path_factory, files, n_kv_heads, n_rep, half, embeddings_axis, piece, bits, tied
):
    config = LlamaConfig(
        dim=2 * half * n_kv_heads * n_rep, n_layers=1, n_heads=n_kv_heads * n_rep, n_kv_heads=n_kv_heads, vocab_size=40,
        hidden_dim=8 * (half * n_kv_heads * n_rep), tie_embeddings=tied,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("meta")
    model = random_model(config, dtype=torch.float32)
    save_checkpoint(model, directory / "theirs")
    write_meta(their_tensors(model), config, directory / "meta", files=files, embeddings_axis=embeddings_axis)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama3_edu.stored._PIECE_BYTES", piece)
        found = load_checkpoint(directory / "meta", weight_bits=bits)
    assert_same_weights(found, load_checkpoint(directory / "theirs", weight_bits=bits))


def test_hugging_face_s_layout_is_read_where_both_are(tmp_path):
    model, other = random_model(CONFIG, dtype=torch.float32), random_model(CONFIG, seed=8, dtype=torch.float32)
    save_checkpoint(model, tmp_path)
    write_meta(their_tensors(other), CONFIG, tmp_path)
    write_meta(their_tensors(other), CONFIG, tmp_path / "original")
    assert_same_weights(load_checkpoint(tmp_path), model)


def test_meta_s_files_are_found_in_the_folder_the_hub_keeps_them_in(tmp_path):
    model = random_model(CONFIG, dtype=torch.float32)
    write_meta(their_tensors(model), CONFIG, tmp_path / "original", files=2)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert_same_weights(load_checkpoint(tmp_path), model)
    assert stop_ids(tmp_path) == (5, 7)


def test_a_tied_output_may_be_stored_and_must_be_the_embeddings(tmp_path):
    # Of a released shape, params.json tells that the embeddings are tied; of any other, that the projection is not there.
    model = random_model(TIED, dtype=torch.float32)
    tensors = their_tensors(model)
    write_meta(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, TIED, tmp_path / "stored", files=2)
    assert not load_checkpoint(tmp_path / "stored").config.tie_embeddings
    write_meta(tensors, TIED, tmp_path / "left out", files=2)
    found = load_checkpoint(tmp_path / "left out")
    assert found.config.tie_embeddings and found.output.weight is found.tok_embeddings.weight


def test_old_rope_buffers_are_ignored(tmp_path):
    model = random_model(CONFIG, dtype=torch.float32)
    write_meta(their_tensors(model), CONFIG, tmp_path)
    path = tmp_path / "consolidated.safetensors"
    save_file(load_file(path) | {"rope.freqs": torch.ones(4)}, path)
    assert_same_weights(load_checkpoint(tmp_path), model)


@pytest.fixture
def written(tmp_path):
    write_meta(their_tensors(random_model(CONFIG, dtype=torch.float32)), CONFIG, tmp_path, files=4)
    return tmp_path


@pytest.mark.parametrize("gone", ["00", "02", "03"])
def test_a_file_that_is_not_there_is_noticed(written, gone):
    (written / f"consolidated.{gone}.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds 3 of the 4 consolidated files"):
        load_checkpoint(written)


def test_params_json_is_needed(written):
    (written / "params.json").unlink()
    with pytest.raises(CheckpointError, match="holds no params.json, which says what shape the model in consolidated.00.safetensors"):
        load_checkpoint(written)


def test_all_that_does_not_fit_is_listed_by_meta_s_names(written):
    first = written / "consolidated.00.safetensors"
    tensors = load_file(first)
    del tensors["layers.1.attention.wo.weight"]
    tensors["layers.0.attention.wq.bias"] = torch.ones(16)
    save_file(tensors, first)
    with pytest.raises(CheckpointError, match="do not fit its params.json") as caught:
        load_checkpoint(written)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "surplus: layers.0.attention.wq.bias [16]",
        "wrong shape: layers.1.attention.wo.weight should be [64, 64]; it is [64, 48]",
    ]


def test_pickles_are_refused_and_the_way_out_works(tmp_path):
    model = random_model(CONFIG, dtype=torch.float32)
    write_meta(their_tensors(model), CONFIG, tmp_path)
    torch.save(load_file(tmp_path / "consolidated.safetensors"), tmp_path / "consolidated.00.pth")
    (tmp_path / "consolidated.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickle files alone .consolidated.00.pth.*refuses code.*consolidated.00.safetensors here"):
        load_checkpoint(tmp_path)
    save_file(torch.load(tmp_path / "consolidated.00.pth", weights_only=True), tmp_path / "consolidated.00.safetensors")
    assert_same_weights(load_checkpoint(tmp_path), model)


def test_rope_factor_of_unknown_shapes_must_be_said(written):
    fields = json.loads((written / "params.json").read_text())
    del fields["rope_scaling_factor"]
    (written / "params.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="rope_scaling_factor is missing .8 in Llama 3.1, 32 in Llama 3.2"):
        load_checkpoint(written)
