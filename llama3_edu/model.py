"""Llama 3, in five short classes to be read from top to bottom."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from llama3_edu.attention import AttentionFunction, fused_attend
from llama3_edu.cache.base import KVCache, NoCache, lengths
from llama3_edu.config import LlamaConfig
from llama3_edu.positions import PAD, causal_mask
from llama3_edu.rope import rope_angles, rope_frequencies, rotate

__all__ = ["RMSNorm", "FeedForward", "Attention", "Block", "Llama"]


class RMSNorm(nn.Module):
    """Scales each token's vector to a root mean square of 1, then each number by a learned weight.

    Source: arXiv 1910.07467.
    """

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        # Squares overflow and vanish easily, so half precision is widened first and float64 stays what it is.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU: one projection decides, through SiLU, how much of another gets through to the third.

    Source: arXiv 2002.05202.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)  # the gate
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)  # what is gated
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)  # back to the residual stream

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Attention(nn.Module):
    """Grouped-query attention: every token asks all earlier ones, and itself, what they have for it."""

    def __init__(self, config: LlamaConfig, *, layer: int, attend: AttentionFunction) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.layer = layer
        self.attend = attend
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_dim, bias=False)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch new_len dim"], cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache
    ) -> Float[Tensor, "batch new_len dim"]:
        batch, new_len, _ = x.shape
        q = self.wq(x).view(batch, new_len, self.n_heads, self.head_dim)
        k = self.wk(x).view(batch, new_len, self.n_kv_heads, self.head_dim)
        v = self.wv(x).view(batch, new_len, self.n_kv_heads, self.head_dim)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k_all, v_all = cache.update(self.layer, k, v)  # [batch kv_len n_kv_heads head_dim]
        out = self.attend(q, k_all, v_all, mask)  # [batch new_len n_heads head_dim]
        return self.wo(out.reshape(batch, new_len, self.n_heads * self.head_dim))


class Block(nn.Module):
    """One decoder block: attention, then feed-forward, each on a normed copy and added back to the stream."""

    def __init__(self, config: LlamaConfig, *, layer: int, attend: AttentionFunction) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config, layer=layer, attend=attend)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Float[Tensor, "batch new_len dim"], cos: Tensor, sin: Tensor, mask: Tensor | None, cache: KVCache
    ) -> Float[Tensor, "batch new_len dim"]:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class Llama(nn.Module):
    """A Llama 3: token ids in, logits out, with whatever cache it is handed.

    Args:
        config: the shape.
        attend: how attention is computed: `fused_attend`, or `attend` for the version written to be read.
    """

    def __init__(self, config: LlamaConfig, *, attend: AttentionFunction = fused_attend) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer=layer, attend=attend) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.tok_embeddings.weight

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weight_bits: int | None = None,
    ) -> "Llama":
        """Load a trained model from a directory or from `owner/name` on the Hugging Face hub: see `load_checkpoint`."""
        # Imported late: a checkpoint is made of a model, and a model need not know of files.
        from llama3_edu.checkpoint import load_checkpoint

        return load_checkpoint(path_or_repo, device=device, dtype=dtype, weight_bits=weight_bits)

    @property
    def device(self) -> torch.device:
        return self.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in. Matrices may be in 8 bits; norms never are."""
        return self.norm.weight.dtype

    def use_attention(self, attend: AttentionFunction) -> None:
        """Compute attention with another function from now on, in every layer."""
        for block in self.layers:
            block.attention.attend = attend

    def forward(
        self,
        tokens: Int[Tensor, "batch new_len"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch new_len"] | None = None,
    ) -> Float[Tensor, "batch new_len vocab_size"]:
        """Return the logits that follow every token.

        Args:
            tokens: the token ids that are new to the cache.
            cache: what earlier tokens left behind, and where these will be kept. None: nothing is kept.
            positions: where each token stands, `PAD` for padding. None: each row continues where the cache ends.

        Raises:
            ValueError: no token was given, an id is outside the vocabulary, `positions` has another shape than `tokens`,
                or the cache refuses the positions.
        """
        return self.output(self._hidden(tokens, cache, positions)[0])

    def next_logits(
        self,
        tokens: Int[Tensor, "batch new_len"],
        cache: KVCache | None = None,
        positions: Int[Tensor, "batch new_len"] | None = None,
    ) -> Float[Tensor, "batch vocab_size"]:
        """Return the logits that follow each row's last real token, and compute no others.

        A row that is padding throughout gets finite logits that mean nothing. Arguments and errors are those of `forward`.
        """
        hidden, positions = self._hidden(tokens, cache, positions)
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        last = torch.where(positions == PAD, 0, columns).amax(dim=1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self.output(hidden[rows, last])

    def _hidden(
        self, tokens: Tensor, cache: KVCache | None, positions: Tensor | None
    ) -> tuple[Float[Tensor, "batch new_len dim"], Int[Tensor, "batch new_len"]]:
        """Run every block; return the normed residual stream, and the positions that were used."""
        cache = NoCache() if cache is None else cache
        positions = checked_positions(tokens, cache, positions, vocab_size=self.config.vocab_size)
        key_positions = cache.reserve(positions)
        mask = causal_mask(positions, key_positions)
        mask = None if mask.all() else mask
        cos, sin = rope_angles(rope_frequencies(self.config, tokens.device), positions, self.dtype)
        x = self.tok_embeddings(tokens)
        for block in self.layers:
            x = block(x, cos, sin, mask, cache)
        return self.norm(x), positions


def checked_positions(
    tokens: Int[Tensor, "batch new_len"], cache: KVCache, positions: Int[Tensor, "batch new_len"] | None, *, vocab_size: int
) -> Int[Tensor, "batch new_len"]:
    """Return where tokens stand. `positions` as None: each row continues where the cache ends.

    Raises:
        ValueError: no token was given, an id is outside the vocabulary, or `positions` has another shape than `tokens`.
    """
    if positions is None:
        batch, new_len = tokens.shape
        positions = lengths(cache, batch).to(tokens.device)[:, None] + torch.arange(new_len, device=tokens.device)
    if tokens.numel() == 0:
        raise ValueError(f"the model needs at least one token per row; it was given tokens of shape {list(tokens.shape)}")
    if positions.shape != tokens.shape:
        raise ValueError(f"every token needs a position; tokens are {list(tokens.shape)}, positions {list(positions.shape)}")
    low, high = (end.item() for end in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token ids go from 0 to {vocab_size - 1}; one of those given is {wrong}")
    return positions
