"""Run a model once and look inside: every layer's queries, keys, values and weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from llama3_edu.attention import attend, attention_weights
from llama3_edu.cache.base import KVCache
from llama3_edu.model import Llama

__all__ = ["Inside", "look_inside"]


@dataclass(frozen=True)
class Inside:
    """What one forward pass computed, layer by layer.

    Args:
        q: queries after rotation, one `[batch new_len n_heads head_dim]` per layer.
        k: all keys attended to, after rotation, one `[batch kv_len n_kv_heads head_dim]` per layer.
        v: all values attended to, of the same shape.
        weights: attention weights, one `[batch n_heads new_len kv_len]` per layer.
        logits: `[batch new_len vocab_size]`.
    """

    q: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    logits: Tensor


@torch.no_grad()
def look_inside(
    model: Llama,
    tokens: Int[Tensor, "batch new_len"],
    cache: KVCache | None = None,
    positions: Int[Tensor, "batch new_len"] | None = None,
) -> Inside:
    """Run the model once with the readable `attend` and return what it computed on the way.

    The model is left as it was. Arguments and errors are those of `Llama.forward`.
    """
    layers = []

    def attend_and_keep(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        # A cache may hand back views that the next forward overwrites.
        layers.append((q, k.clone(), v.clone(), attention_weights(q, k, mask)))
        return attend(q, k, v, mask)

    before = [block.attention.attend for block in model.layers]
    model.use_attention(attend_and_keep)
    try:
        logits = model(tokens, cache, positions)
    finally:
        for block, attend_before in zip(model.layers, before):
            block.attention.attend = attend_before
    q, k, v, weights = zip(*layers)
    return Inside(q=q, k=k, v=v, weights=weights, logits=logits)
