"""Every file that describes a Llama 3 is read alike, and what the model cannot do is refused by name."""

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3_edu import LlamaConfig, RopeScaling
from llama3_edu.config import PRESETS

SCALED = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

HUGGING_FACE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128_000,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131_072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128_256,
}
"""Llama 3.2 1B, RoPE aside."""

OLD_ROPE = {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", **SCALED}}
NEW_ROPE = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, **SCALED}}
PLAIN_ROPES = {
    "old": {"rope_theta": 500_000.0, "rope_scaling": None},
    "older": {"rope_theta": 500_000.0},
    "new": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
}

META = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128_256, "multiple_of": 1024,
        "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500_000.0}  # fmt: skip
"""Llama 3 8B as Meta ships it."""

_SCALED = {"use_scaled_rope": True}
META_SHAPES = {
    "llama3-8b": {},
    "llama3-70b": {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096},
    "llama3.1-8b": _SCALED,
    "llama3.1-70b": {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096, **_SCALED},
    "llama3.1-405b": {"dim": 16_384, "n_layers": 126, "n_heads": 128, "multiple_of": 4096, "ffn_dim_multiplier": 1.2, **_SCALED},
    "llama3.2-1b": {"dim": 2048, "n_layers": 16, "multiple_of": 256, "ffn_dim_multiplier": 1.5, **_SCALED},
    "llama3.2-3b": {"dim": 3072, "n_layers": 28, "n_heads": 24, "multiple_of": 256, "ffn_dim_multiplier": 1.0, **_SCALED},
}  # fmt: skip


def read(directory: Path, fields: Mapping[str, Any] | str) -> LlamaConfig:
    path = directory / "config.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")
    return LlamaConfig.from_json(path)


def without(fields: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


# -- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rope", [OLD_ROPE, NEW_ROPE], ids=["old", "new"])
def test_both_forms_of_hugging_face_give_the_released_1b(tmp_path: Path, rope: dict[str, Any]) -> None:
    assert read(tmp_path, {**HUGGING_FACE, **rope}) == LlamaConfig.from_preset("llama3.2-1b")


@pytest.mark.parametrize("rope", PLAIN_ROPES.values(), ids=PLAIN_ROPES)
def test_plain_rope_is_read_from_any_form(tmp_path: Path, rope: dict[str, Any]) -> None:
    assert read(tmp_path, {**HUGGING_FACE, **rope}) == replace(LlamaConfig.from_preset("llama3.2-1b"), rope_scaling=None)


def test_the_settings_of_scaling_are_those_of_the_file(tmp_path: Path) -> None:
    settings = {"factor": 5, "low_freq_factor": 1.5, "high_freq_factor": 3, "original_max_position_embeddings": 100}
    expected = RopeScaling(factor=5, low_freq_factor=1.5, high_freq_factor=3, original_max_seq_len=100)
    for rope in ({"rope_scaling": {"type": "llama3", **settings}}, {"rope_parameters": {"rope_type": "llama3", **settings}}):
        assert read(tmp_path, {**HUGGING_FACE, **rope, "rope_theta": 7}).rope_scaling == expected


@pytest.mark.parametrize(("name", "shape"), META_SHAPES.items(), ids=META_SHAPES)
def test_meta_files_give_the_released_models(tmp_path: Path, name: str, shape: dict[str, Any]) -> None:
    assert read(tmp_path, {**META, **shape}) == LlamaConfig.from_preset(name)


def test_meta_files_that_say_how_much_rope_is_scaled_are_believed(tmp_path: Path) -> None:
    found = read(tmp_path, {**META, "dim": 512, "use_scaled_rope": True, "rope_scaling_factor": 16, "rope_high_freq_factor": 8})
    assert found.rope_scaling == RopeScaling(factor=16, high_freq_factor=8)


def test_meta_files_of_unknown_shape_must_say_how_much_rope_is_scaled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rope_scaling_factor is missing .8 in Llama 3.1, 32 in Llama 3.2"):
        read(tmp_path, {**META, "dim": 512, "use_scaled_rope": True})


def test_meta_files_without_kv_heads_or_multiplier(tmp_path: Path) -> None:
    found = read(tmp_path, without(META, "n_kv_heads", "ffn_dim_multiplier"))
    assert (found.n_kv_heads, found.hidden_dim) == (32, 11_264)


@pytest.mark.parametrize("absent", ["left out", None])
def test_what_hugging_face_files_leave_out_is_what_transformers_assumes(tmp_path: Path, absent: str | None) -> None:
    optional = ("head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    fields = without(HUGGING_FACE, *optional)
    found = read(tmp_path, fields if absent else {**fields, **dict.fromkeys(optional)})
    assert (found.head_dim, found.n_kv_heads, found.tie_embeddings) == (64, 32, False)
    assert (found.max_seq_len, found.norm_eps, found.rope_theta) == (2048, 1e-6, 10_000.0)


def test_an_explicit_head_dim_need_not_be_dim_over_heads(tmp_path: Path) -> None:
    found = read(tmp_path, {**HUGGING_FACE, "head_dim": 96, "num_attention_heads": 24, "num_key_value_heads": 3})
    assert (found.head_dim, found.n_rep, found.kv_dim, found.kv_elements_per_token) == (96, 8, 288, 2 * 16 * 288)


@given(
    n_kv_heads=st.integers(1, 4), n_rep=st.integers(1, 4), half=st.integers(1, 32), explicit=st.booleans(), tied=st.booleans(),
    theta=st.floats(1, 1e7), factor=st.none() | st.floats(1, 64),
)  # fmt: skip
def test_what_is_written_for_hugging_face_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    n_kv_heads: int, n_rep: int, half: int, explicit: bool, tied: bool, theta: float, factor: float | None,
) -> None:  # fmt: skip
    config = LlamaConfig(
        dim=n_kv_heads * n_rep * 2 * half, n_layers=3, n_heads=n_kv_heads * n_rep, n_kv_heads=n_kv_heads,
        head_dim=2 * half + 2 if explicit else 0, hidden_dim=7, vocab_size=11, max_seq_len=13, norm_eps=1e-4, rope_theta=theta,
        rope_scaling=factor and RopeScaling(factor=factor, low_freq_factor=2, high_freq_factor=3, original_max_seq_len=17),
        tie_embeddings=tied,
    )  # fmt: skip
    assert read(tmp_path_factory.getbasetemp(), config.to_hugging_face()) == config


# -- Presets and derived values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "dim", "heads", "kv_heads", "head_dim", "hidden_dim"),
    [
        ("llama3-8b", 32, 4096, 32, 8, 128, 14_336),
        ("llama3-70b", 80, 8192, 64, 8, 128, 28_672),
        ("llama3.1-8b", 32, 4096, 32, 8, 128, 14_336),
        ("llama3.1-70b", 80, 8192, 64, 8, 128, 28_672),
        ("llama3.1-405b", 126, 16_384, 128, 8, 128, 53_248),
        ("llama3.2-1b", 16, 2048, 32, 8, 64, 8192),
        ("llama3.2-3b", 28, 3072, 24, 8, 128, 8192),
    ],
)
def test_presets_are_the_published_shapes(
    name: str, layers: int, dim: int, heads: int, kv_heads: int, head_dim: int, hidden_dim: int
) -> None:
    config = LlamaConfig.from_preset(name)
    found = (config.n_layers, config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.hidden_dim)
    assert found == (layers, dim, heads, kv_heads, head_dim, hidden_dim)
    assert (config.vocab_size, config.rope_theta, config.norm_eps) == (128_256, 500_000.0, 1e-5)
    factor = {"llama3": None, "llama3.1": 8.0, "llama3.2": 32.0}[name.split("-")[0]]
    published = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8192}
    assert config.rope_scaling == (factor and RopeScaling(factor=factor, **published))
    assert config.max_seq_len == (131_072 if factor else 8192)
    assert config.tie_embeddings == name.startswith("llama3.2")


def test_all_presets_are_tested_and_an_unknown_one_is_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match="there is no preset 'llama4'; choose one of llama3-8b, llama3-70b, .*llama3.2-3b"):
        LlamaConfig.from_preset("llama4")
    assert set(PRESETS) == set(META_SHAPES)


def test_a_configuration_is_frozen_and_compares_by_value() -> None:
    config = LlamaConfig.from_preset("llama3-8b")
    with pytest.raises(FrozenInstanceError):
        config.dim = 1
    assert replace(config) == config and hash(replace(config)) == hash(config) and replace(config, dim=8192) != config


# -- Refusing ---------------------------------------------------------------------------------------------------------

REFUSED_BY_HUGGING_FACE_KEY = {
    "attention_bias": (True, r"attention_bias should be false; it is True"),
    "mlp_bias": (True, r"mlp_bias should be false; it is True"),
    "hidden_act": ("gelu", r"hidden_act should be \"silu\"; it is 'gelu'"),
    "architectures": (["MixtralForCausalLM"], r"architectures should be \[\"LlamaForCausalLM\"\]; it is \['Mixtral.*'\]"),
    "model_type": ("mistral", r"model_type should be \"llama\"; it is 'mistral'"),
    "sliding_window": (4096, r"sliding_window should be left out; it is 4096"),
    "quantization_config": ({"quant_method": "gptq"}, r"quantization_config should be left out; it is \{.*'gptq'\}"),
    "rope_scaling": ({"type": "linear"}, r"rope_scaling.rope_type should be \"default\" or \"llama3\"; it is 'linear'"),
    "rope_parameters": ({"rope_type": "yarn", "factor": 2.0}, r"rope_parameters.rope_type should be .*; it is 'yarn'"),
    "num_key_value_heads": (5, r"num_key_value_heads should be a divisor of n_heads \(32\); it is 5"),
    "head_dim": (63, r"head_dim should be an even whole number above 0; it is 63"),
    "hidden_size": (-2048, r"hidden_size should be a whole number above 0; it is -2048"),
    "intermediate_size": ("8192", r"intermediate_size should be a whole number above 0; it is '8192'"),
    "num_hidden_layers": (True, r"num_hidden_layers should be a whole number above 0; it is True"),
    "num_attention_heads": (0, r"num_attention_heads should be a whole number above 0; it is 0"),
    "vocab_size": (128_256.5, r"vocab_size should be a whole number above 0; it is 128256.5"),
    "rms_norm_eps": (0, r"rms_norm_eps should be a number above 0; it is 0"),
    "rope_theta": ("big", r"rope_theta should be a number above 0; it is 'big'"),
    "tie_word_embeddings": ("no", r"tie_word_embeddings should be true or false; it is 'no'"),
    "max_position_embeddings": (0.5, r"max_position_embeddings should be a whole number above 0; it is 0.5"),
}


@pytest.mark.parametrize("key", REFUSED_BY_HUGGING_FACE_KEY)
def test_what_the_model_cannot_honour_is_refused_by_key_and_value(tmp_path: Path, key: str, unchecked: None) -> None:
    value, message = REFUSED_BY_HUGGING_FACE_KEY[key]
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read(tmp_path, {**HUGGING_FACE, key: value})


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"])
def test_a_hugging_face_file_that_lacks_a_size_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {key} is missing"):
        read(tmp_path, without(HUGGING_FACE, key))
    with pytest.raises(ValueError, match=rf"config\.json: {key} is missing"):
        read(tmp_path, {**HUGGING_FACE, key: None})


@pytest.mark.parametrize("key", SCALED)
@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
def test_scaling_that_lacks_a_setting_is_refused(tmp_path: Path, key: str, form: str) -> None:
    with pytest.raises(ValueError, match=rf"{form}\.{key} is missing"):
        read(tmp_path, {**HUGGING_FACE, form: {"rope_type": "llama3", **without(SCALED, key)}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (without(META, "n_layers"), "n_layers is missing"),
        (without(META, "multiple_of"), "multiple_of is missing"),
        ({**META, "vocab_size": -1}, "vocab_size should be a whole number above 0; it is -1"),
        ({**META, "dim": "4096"}, "dim should be a whole number above 0; it is '4096'"),
        ({**META, "multiple_of": 0}, "multiple_of should be a whole number above 0; it is 0"),
        ({**META, "ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier should be a number above 0; it is '1.3'"),
        ({**META, "n_heads": 24}, r"n_heads should be a divisor of dim \(4096\), or an explicit head_dim; it is 24"),
        ({**META, "quantization_args": {"scheme": "int4"}}, "quantization_args should be left out; it is {'scheme': 'int4'}"),
        ({**META, "lora_args": {"rank": 16}}, "lora_args should be left out; it is {'rank': 16}"),
    ],
)
def test_meta_files_that_make_no_model_are_refused(tmp_path: Path, fields: dict[str, Any], message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        read(tmp_path, fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "config.json is not a JSON file: "),
        ("[1, 2]", "config.json should hold a JSON object; it holds a list"),
        ("{}", 'config.json: model_type should be "llama"; it is None'),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        LlamaConfig.from_json(tmp_path / "config.json")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        LlamaConfig.from_json(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0}, "factor should be a number above 0; it is 0"),
        ({"factor": float("inf")}, "factor should be a number above 0; it is inf"),
        ({"low_freq_factor": 4.0}, r"low_freq_factor should be less than high_freq_factor \(4.0\); it is 4.0"),
        ({"original_max_seq_len": -1}, "original_max_seq_len should be a number above 0; it is -1"),
    ],
)
def test_scaling_without_meaning_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeScaling(**{"factor": 8.0, **changes})
