"""Writes checkpoints the way Meta does, from tensors with Hugging Face's names: the way back, written without the loader's help."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llama3_edu import LlamaConfig

NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}

BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "output", "tok_embeddings")
BY_COLUMNS = ("wo", "w2")
"""How Meta's model is spread over GPUs: layers that make outputs in parallel are cut by rows, those that take inputs in parallel by columns."""

FFN = {2048: (256, 1.5), 3072: (256, 1.0), 4096: (1024, 1.3), 8192: (4096, 1.3)}
"""`multiple_of` and `ffn_dim_multiplier` of the released models, by width."""


def meta_name(name: str) -> str:
    """What Meta calls a tensor: `layers.3.attention.wq.weight`."""
    if name in NAMES:
        return NAMES[name]
    layer, place = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"layers.{layer}.{NAMES[place]}.weight"


def neighbours(weight: Tensor, head_dim: int) -> Tensor:
    """Put the rows of each head in Meta's order: partner beside partner."""
    heads = weight.split(head_dim)
    return torch.cat([torch.stack((head[: head_dim // 2], head[head_dim // 2 :]), dim=1).flatten(0, 1) for head in heads])


def params(config: LlamaConfig) -> dict:
    """What `params.json` says of a shape. `hidden_dim` is given by how it is rounded."""
    multiple_of, multiplier = FFN.get(config.dim, (config.hidden_dim, None))
    fields = {
        "dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size, "multiple_of": multiple_of, "ffn_dim_multiplier": multiplier,
        "norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "use_scaled_rope": config.rope_scaling is not None,
    }  # fmt: skip
    if config.head_dim * config.n_heads != config.dim:
        fields["head_dim"] = config.head_dim
    if config.rope_scaling:
        fields["rope_scaling_factor"] = config.rope_scaling.factor
        fields["rope_high_freq_factor"] = config.rope_scaling.high_freq_factor
    return fields


def write_meta(
    tensors: dict[str, Tensor], config: LlamaConfig, directory: Path, *, files: int | None = None, embeddings_axis: int = 0
) -> None:
    """Write `params.json` and the weights: in one file without a number, or cut across several."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps(params(config)))
    cut: list[dict[str, Tensor]] = [{} for _ in range(files or 1)]
    for theirs, weight in tensors.items():
        name = meta_name(theirs)
        kind = name.split(".")[-2]
        if kind in ("wq", "wk"):
            weight = neighbours(weight, config.head_dim)
        axis = embeddings_axis if kind == "tok_embeddings" else 1 if kind in BY_COLUMNS else 0
        assert weight.ndim == 1 or kind in BY_ROWS + BY_COLUMNS, name
        parts = [weight] * len(cut) if weight.ndim == 1 else weight.chunk(len(cut), dim=axis)
        for file, part in zip(cut, parts, strict=True):
            file[name] = part.contiguous()
    for index, file in enumerate(cut):
        save_file(file, directory / (f"consolidated.{index:02}.safetensors" if files else "consolidated.safetensors"))
