"""A model's weights as the fast paths want them: matrices that are read together lie together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llama3_edu.config import LlamaConfig
from llama3_edu.model import Attention, Block, FeedForward, Llama, RMSNorm

__all__ = ["PackedLayer", "PackedLlama", "pack", "is_plain"]


@dataclass(frozen=True)
class PackedLayer:
    """One decoder block: two norms and four matrices."""

    attention_norm: Float[Tensor, "dim"]
    wqkv: Float[Tensor, "qkv_dim dim"]
    """Rows of all query heads, then of all key heads, then of all value heads."""
    wo: Float[Tensor, "dim heads_dim"]
    ffn_norm: Float[Tensor, "dim"]
    w13: Float[Tensor, "two_hidden_dim dim"]
    """The gate, and below it what is gated."""
    w2: Float[Tensor, "dim hidden_dim"]

    @property
    def nbytes(self) -> int:
        """Bytes of the block's weights."""
        matrices = (self.wqkv, self.wo, self.w13, self.w2)
        return sum(weight.nbytes for weight in (self.attention_norm, self.ffn_norm, *matrices))


@dataclass(frozen=True)
class PackedLlama:
    """All weights of a model, in the order in which a step reads them."""

    config: LlamaConfig
    embeddings: Float[Tensor, "vocab_size dim"]
    layers: tuple[PackedLayer, ...]
    norm: Float[Tensor, "dim"]
    output: Float[Tensor, "vocab_size dim"]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        tied = self.output.data_ptr() == self.embeddings.data_ptr()
        ends = (self.embeddings, self.norm) if tied else (self.embeddings, self.norm, self.output)
        return sum(weight.nbytes for weight in ends) + sum(layer.nbytes for layer in self.layers)

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.dtype


def pack(model: Llama) -> PackedLlama:
    """Return a model's weights with the matrices of queries, keys and values in one, and gate and up in one.

    Nothing is held twice: the model's own parameters become views of the fused matrices, with the values they had. So what is
    written into them later is seen here too. A model is packed once; packed again, its fused matrices are found where they are, and
    what is returned is the same object unless something was written into a parameter since: what was derived from it is out of date
    then. (PyTorch does not count what is written through `parameter.data`.)

    Raises:
        ValueError: the model is not made of `Llama`'s own plain layers.
    """
    if not is_plain(model):
        raise ValueError("only a model of the package's own layers, without hooks and with plain matrices, can be packed")
    known, packed = _PACKED.get(model, (_State((), ()), None))
    state = _state(model)
    if packed is not None and known == state:
        return packed
    if packed is not None and known.addresses == state.addresses:
        packed = replace(packed)
    else:
        packed = _pack(model)
        state = _state(model)
    _PACKED[model] = state, packed
    return packed


class _State(NamedTuple):
    """Where the parameters lie, and how often each was written into. What was packed is held: nothing else comes to lie there."""

    addresses: tuple[int, ...]
    versions: tuple[int, ...]


_PACKED: "WeakKeyDictionary[Llama, tuple[_State, PackedLlama]]" = WeakKeyDictionary()


def _state(model: Llama) -> _State:
    weights = [weight for module in _modules(model) for weight in module._parameters.values() if weight is not None]
    # What was made in inference mode counts nothing.
    versions = tuple(0 if weight.is_inference() else weight._version for weight in weights)
    return _State(tuple(weight.data_ptr() for weight in weights), versions)


def _modules(model: nn.Module) -> list[nn.Module]:
    """Return a model and all that it is made of. `nn.Module.modules` says the same, but takes longer than a step of a small model may."""
    found, todo = [], [model]
    while todo:
        module = todo.pop()
        found.append(module)
        todo += module._modules.values()
    return found


_PLAIN = (Llama, Block, Attention, FeedForward, RMSNorm, nn.Linear, nn.Embedding, nn.ModuleList)


_OWN_WAYS = {"forward", "next_logits", "_hidden"}
"""What a single module can be given to replace its class's way of doing things."""


def is_plain(model: nn.Module) -> bool:
    """Whether a model does what `Llama`'s source says: no layer is of another class, and nobody listens in or steps in with a hook."""
    return all(
        type(module) in _PLAIN
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not _OWN_WAYS & vars(module).keys()
        and module._parameters.get("bias") is None
        for module in _modules(model)
    )


def _pack(model: Llama) -> PackedLlama:
    with torch.no_grad():
        layers = tuple(_pack_layer(block) for block in model.layers)
    embeddings, output = model.tok_embeddings.weight.data, model.output.weight.data
    return PackedLlama(model.config, embeddings, layers, model.norm.weight.data, output)


def _pack_layer(block: Block) -> PackedLayer:
    attention, feed_forward = block.attention, block.feed_forward
    return PackedLayer(
        attention_norm=block.attention_norm.weight.data,
        wqkv=_fuse((attention.wq, attention.wk, attention.wv)),
        wo=attention.wo.weight.data,
        ffn_norm=block.ffn_norm.weight.data,
        w13=_fuse((feed_forward.w1, feed_forward.w3)),
        w2=feed_forward.w2.weight.data,
    )


def _fuse(linears: Sequence[nn.Linear]) -> Float[Tensor, "all_out_features in_features"]:
    """Put matrices below one another, and let each layer's parameter be its part of the whole."""
    fused = torch.cat([linear.weight for linear in linears])
    for linear, part in zip(linears, fused.split([linear.out_features for linear in linears])):
        linear.weight.data = part
    return fused
