"""The shape of a Llama 3: one frozen dataclass, read from any of the files that describe one."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

__all__ = ["LlamaConfig", "RopeScaling", "PRESETS"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 and later stretch the slow RoPE frequencies to reach a longer context.

    Args:
        factor: how many times longer the slowest wavelengths become. 8 in Llama 3.1, 32 in Llama 3.2.
        low_freq_factor: wavelengths longer than `original_max_seq_len / low_freq_factor` are stretched in full.
        high_freq_factor: wavelengths shorter than `original_max_seq_len / high_freq_factor` are left alone.
        original_max_seq_len: the context, in tokens, that the unscaled model was trained for.

    Source: arXiv 2407.21783, §3.2, and the `rope_scaling` entry of the released `config.json` files.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"):
            _require(_is_number(getattr(self, name)) and getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        _require(
            self.low_freq_factor < self.high_freq_factor,
            "low_freq_factor",
            f"less than high_freq_factor ({self.high_freq_factor})",
            self.low_freq_factor,
        )


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Everything that fixes a Llama 3's shape. Names are Meta's; sizes count elements, not bytes.

    Args:
        dim: width of the residual stream.
        n_layers: number of decoder blocks.
        n_heads: number of query heads.
        n_kv_heads: number of key and value heads; divides `n_heads`.
        head_dim: width of one head; `dim // n_heads` when left out, and even, because RoPE rotates pairs.
        hidden_dim: width inside the feed-forward block.
        vocab_size: number of tokens the model can read and write.
        max_seq_len: longest context, in tokens, the model was made for.
        norm_eps: what RMSNorm adds under its square root.
        rope_theta: base of the RoPE frequencies.
        rope_scaling: how the frequencies are stretched, or None for Llama 3's plain ones.
        tie_embeddings: whether the output projection is the embedding matrix itself.

    Raises:
        ValueError: a size is not a positive integer, or sizes do not fit each other; the message names the key.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    vocab_size: int
    head_dim: int = 0
    max_seq_len: int = 8192
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "max_seq_len"):
            _require_size(name, getattr(self, name))
        _require(self.n_heads % self.n_kv_heads == 0, "n_kv_heads", f"a divisor of n_heads ({self.n_heads})", self.n_kv_heads)
        if self.head_dim == 0:
            divides = self.dim % self.n_heads == 0
            _require(divides, "n_heads", f"a divisor of dim ({self.dim}), or an explicit head_dim", self.n_heads)
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        _require(
            _is_integer(self.head_dim) and self.head_dim > 0 and self.head_dim % 2 == 0,
            "head_dim",
            "an even whole number above 0",
            self.head_dim,
        )
        for name in ("norm_eps", "rope_theta"):
            _require(_is_number(getattr(self, name)) and getattr(self, name) > 0, name, "a number above 0", getattr(self, name))
        _require(isinstance(self.tie_embeddings, bool), "tie_embeddings", "true or false", self.tie_embeddings)

    @property
    def n_rep(self) -> int:
        """How many query heads share one key-value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def kv_dim(self) -> int:
        """Elements in one token's keys of one layer: `n_kv_heads * head_dim`. Its values take as many again."""
        return self.n_kv_heads * self.head_dim

    @property
    def kv_elements_per_token(self) -> int:
        """Elements a cache holds for one token: keys and values of every layer."""
        return 2 * self.n_layers * self.kv_dim

    @classmethod
    def from_preset(cls, name: str) -> "LlamaConfig":
        """Return a released model's shape: `llama3-8b`, `llama3.2-1b`, … (see `PRESETS`).

        Raises:
            ValueError: there is no preset of that name; the message lists those there are.
        """
        try:
            return PRESETS[name]
        except KeyError:
            raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}") from None

    @classmethod
    def from_json(cls, path: str | Path) -> "LlamaConfig":
        """Read a Hugging Face `config.json` or a Meta `params.json`, whichever the file turns out to be.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not JSON, lacks a key, or asks for something this model does not do; the message
                names the file, the key and the value.
        """
        path = Path(path)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a JSON file: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path} should hold a JSON object; it holds a {type(fields).__name__}")
        try:
            return _from_meta(fields) if "dim" in fields else _from_hugging_face(fields)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_hugging_face(self) -> dict[str, Any]:
        """Return what a Hugging Face `config.json` says of this shape, in its older form (`rope_theta`, `rope_scaling`)."""
        scaling = self.rope_scaling and {
            "rope_type": "llama3",
            "factor": self.rope_scaling.factor,
            "low_freq_factor": self.rope_scaling.low_freq_factor,
            "high_freq_factor": self.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": self.rope_scaling.original_max_seq_len,
        }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            **{theirs: getattr(self, ours) for ours, theirs in _HUGGING_FACE_NAMES.items()},
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
        }


_HUGGING_FACE_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}


def _from_hugging_face(fields: Mapping[str, Any]) -> LlamaConfig:
    _refuse_what_is_not_llama(fields)
    for ours in ("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size"):
        _required(fields, _HUGGING_FACE_NAMES[ours])
    # What a file leaves out has the value that transformers gives it, which is not always Llama 3's.
    defaults = {"n_kv_heads": fields["num_attention_heads"], "max_seq_len": 2048, "norm_eps": 1e-6}
    found = {ours: fields[theirs] for ours, theirs in _HUGGING_FACE_NAMES.items() if fields.get(theirs) is not None}
    theta, scaling = _rope_of(fields)
    try:
        return LlamaConfig(**{**defaults, **found}, rope_theta=theta, rope_scaling=scaling)
    except ValueError as error:
        ours, complaint = str(error).split(" ", 1)
        raise ValueError(f"{_HUGGING_FACE_NAMES.get(ours, ours)} {complaint}") from None


def _refuse_what_is_not_llama(fields: Mapping[str, Any]) -> None:
    refusals = {
        "model_type": ("llama",),
        "hidden_act": ("silu", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "sliding_window": (None,),
        "quantization_config": (None,),
    }
    for key, accepted in refusals.items():
        value = fields.get(key)
        _require(value in accepted, key, " or ".join(json.dumps(a) for a in accepted if a is not None) or "left out", value)
    for architecture in fields.get("architectures") or ():
        _require(architecture == "LlamaForCausalLM", "architectures", '["LlamaForCausalLM"]', fields["architectures"])


def _rope_of(fields: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Read the RoPE settings from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling` (before)."""
    parameters = fields.get("rope_parameters")
    key = "rope_parameters" if parameters is not None else "rope_scaling"
    scaling = parameters if parameters is not None else fields.get("rope_scaling") or {}
    _require(isinstance(scaling, Mapping), key, "a JSON object", scaling)
    theta = scaling.get("rope_theta", fields.get("rope_theta", 10_000.0))
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    _require(rope_type in ("default", "llama3"), f"{key}.rope_type", '"default" or "llama3"', rope_type)
    if rope_type == "default":
        return theta, None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (_required(scaling, name, inside=key) for name in names)
    return theta, RopeScaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_seq_len=original)


def _from_meta(fields: Mapping[str, Any]) -> LlamaConfig:
    for key in ("quantization_args", "lora_args", "moe_args"):
        _require(fields.get(key) is None, key, "left out", fields.get(key))
    dim, n_layers, n_heads, vocab_size = (_required(fields, name) for name in ("dim", "n_layers", "n_heads", "vocab_size"))
    released = _released_like(fields)
    scaling = None
    if fields.get("use_scaled_rope"):
        # Meta's files of 3.1 and 3.2 say that RoPE is scaled, not by how much; taking 8 for all spoils 1B and 3B.
        known = {"rope_scaling_factor": released.rope_scaling.factor} if released else {}
        factor = _required({**known, **fields}, "rope_scaling_factor", hint="8 in Llama 3.1, 32 in Llama 3.2")
        scaling = RopeScaling(factor=factor, high_freq_factor=fields.get("rope_high_freq_factor") or 4.0)
    return LlamaConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=fields.get("n_kv_heads") or n_heads,
        head_dim=fields.get("head_dim") or 0,
        hidden_dim=_meta_hidden_dim(fields),
        vocab_size=vocab_size,
        max_seq_len=fields.get("max_seq_len") or (131_072 if scaling else 8_192),
        norm_eps=fields.get("norm_eps", 1e-5),
        rope_theta=fields.get("rope_theta", 500_000.0),
        rope_scaling=scaling,
        tie_embeddings=released.tie_embeddings if released else False,
    )


def _released_like(fields: Mapping[str, Any]) -> LlamaConfig | None:
    """Return the released model with scaled RoPE that these Meta fields describe, if they describe one."""
    shape = (fields["dim"], fields["n_layers"], fields["n_heads"])
    scaled = [config for config in PRESETS.values() if config.rope_scaling and fields.get("use_scaled_rope")]
    return next((config for config in scaled if (config.dim, config.n_layers, config.n_heads) == shape), None)


def _meta_hidden_dim(fields: Mapping[str, Any]) -> int:
    """Meta's files give the feed-forward width as two thirds of `4 * dim`, stretched, then rounded up to a multiple."""
    multiplier, multiple = fields.get("ffn_dim_multiplier") or 1.0, _required(fields, "multiple_of")
    _require_size("dim", fields["dim"])
    _require_size("multiple_of", multiple)
    _require(_is_number(multiplier) and multiplier > 0, "ffn_dim_multiplier", "a number above 0", multiplier)
    stretched = int(multiplier * int(2 * 4 * fields["dim"] / 3))
    return multiple * math.ceil(stretched / multiple)


def _required(fields: Mapping[str, Any], key: str, *, inside: str = "", hint: str = "") -> Any:
    if fields.get(key) is None:
        where = f"{inside}.{key}" if inside else key
        raise ValueError(f"{where} is missing" + (f" ({hint})" if hint else ""))
    return fields[key]


def _require(holds: bool, key: str, wanted: str, given: Any) -> None:
    if not holds:
        raise ValueError(f"{key} should be {wanted}; it is {given!r}")


def _require_size(key: str, value: Any) -> None:
    _require(_is_integer(value) and value > 0, key, "a whole number above 0", value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_LLAMA3_8B = LlamaConfig(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, hidden_dim=14_336, vocab_size=128_256)
_LLAMA3_70B = LlamaConfig(dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, hidden_dim=28_672, vocab_size=128_256)
_LLAMA31 = {"max_seq_len": 131_072, "rope_scaling": RopeScaling(factor=8.0)}
_LLAMA32 = {"max_seq_len": 131_072, "rope_scaling": RopeScaling(factor=32.0), "tie_embeddings": True, "vocab_size": 128_256}

PRESETS: dict[str, LlamaConfig] = {
    "llama3-8b": _LLAMA3_8B,
    "llama3-70b": _LLAMA3_70B,
    "llama3.1-8b": replace(_LLAMA3_8B, **_LLAMA31),
    "llama3.1-70b": replace(_LLAMA3_70B, **_LLAMA31),
    "llama3.1-405b": LlamaConfig(
        dim=16_384, n_layers=126, n_heads=128, n_kv_heads=8, hidden_dim=53_248, vocab_size=128_256, **_LLAMA31
    ),
    "llama3.2-1b": LlamaConfig(dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, hidden_dim=8192, **_LLAMA32),
    "llama3.2-3b": LlamaConfig(dim=3072, n_layers=28, n_heads=24, n_kv_heads=8, hidden_dim=8192, **_LLAMA32),
}
"""The released Llama 3 models by name. Source: arXiv 2407.21783, Table 3, and the released `config.json` files."""
