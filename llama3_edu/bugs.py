"""Caches that are subtly wrong, each in the way of a bug that programs were shipped with, and a trial that shows what each does.

Nothing in here fails: shapes fit, numbers are finite, text comes out. That is what makes these bugs worth knowing. The caches are
kept in narrow lines, because chapter 5 shows their source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.cache.base import KVCache
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.cache.growing import GrowingCache
from llama3_edu.config import LlamaConfig
from llama3_edu.model import Llama
from llama3_edu.probe import Inside, look_inside

__all__ = [
    "EmptyFirstSlot", "SquareMask", "ForgetfulBeams", "LastLayerOnly", "CountsElements",
    "Suspect", "SUSPECTS", "Trial", "Findings", "examine", "allocated_bytes",
]  # fmt: skip


_Pair: TypeAlias = tuple[Tensor, Tensor]


class EmptyFirstSlot(GrowingCache):
    """Begins to write at slot 1. Slot 0 keeps the zeros it was allocated
    with, and every query attends to them."""

    def reserve(self, positions: Tensor) -> Tensor:
        return F.pad(super().reserve(positions), (1, 0))

    def update(self, layer: int, k: Tensor, v: Tensor) -> _Pair:
        k, v = super().update(layer, k, v)
        return F.pad(k, (0, 0, 0, 0, 1, 0)), F.pad(v, (0, 0, 0, 0, 1, 0))


class SquareMask(GrowingCache):
    """Numbers keys as if the first new token stood at position 0, which
    puts the mask's triangle into the upper left corner."""

    def reserve(self, positions: Tensor) -> Tensor:
        held = self.seq_lens[:, None]
        return super().reserve(positions) + held


class ForgetfulBeams(GrowingCache):
    """Copies its rows where their number changes, and lets them stay where
    they are when they change places."""

    def reorder(self, parents: Tensor) -> None:
        if len(parents) != len(self.seq_lens):
            super().reorder(parents)


class LastLayerOnly(ContiguousCache):
    """Makes one function per layer in a loop. All of them look up `layer`
    when they run, and by then it is the last one."""

    def __init__(self, config: LlamaConfig, batch: int = 1, **options: object) -> None:
        super().__init__(config, batch, **options)
        keep = super().update
        layers = range(config.n_layers)
        self._updates = [lambda k, v: keep(layer, k, v) for layer in layers]

    def update(self, layer: int, k: Tensor, v: Tensor) -> _Pair:
        return self._updates[layer](k, v)


class CountsElements(GrowingCache):
    """Reports numbers where bytes were asked for."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() for tensor in (*self._keys, *self._values))


@dataclass(frozen=True)
class Suspect:
    """Something that may be wrong with a cache, or with how it is used.

    Args:
        name: what is wrong, in a few words.
        cache_type: the cache that shows it.
        runs_last_token_twice: the program meets a prompt that is cached to its end, and runs its last token once more, behind it.
    """

    name: str
    cache_type: type[KVCache]
    runs_last_token_twice: bool = False


SUSPECTS = (
    Suspect("slot 0 is never written", EmptyFirstSlot),
    Suspect("the mask is square", SquareMask),
    Suspect("beams move, the cache stays", ForgetfulBeams),
    Suspect("all layers write to the last", LastLayerOnly),
    Suspect("a cached token is run again", GrowingCache, runs_last_token_twice=True),
    Suspect("elements pass for bytes", CountsElements),
    Suspect("nothing is wrong", GrowingCache),
)
"""Six bugs, and a cache without one."""


@dataclass(frozen=True)
class Trial:
    """Two rows of text to feed through a cache, and how.

    Args:
        tokens: the two rows, equally long, and alike in the first piece.
        cuts: the positions at which a forward begins, after 0.
        swap_at: one of the cuts: before it, each row becomes the continuation of the other.
    """

    tokens: Int[Tensor, "2 seq_len"]
    cuts: Sequence[int]
    swap_at: int

    @property
    def swapped(self) -> Int[Tensor, "2 seq_len"]:
        """The rows as they read after the swap."""
        return torch.cat((self.tokens.flip(0)[:, : self.swap_at], self.tokens[:, self.swap_at :]), dim=1)


@dataclass(frozen=True)
class Findings:
    """What a trial found, each figure the largest over both rows.

    Args:
        logit_errors: how far the logits of each position are from those of a run without a cache.
        key_errors: for each layer, how far the key in each slot is from the one that belongs there, at the end.
        surplus: keys handed back beyond one per token.
        nbytes: what the cache says it takes.
        allocated: what it takes.
    """

    logit_errors: tuple[float, ...]
    key_errors: tuple[tuple[float, ...], ...]
    surplus: int
    nbytes: int
    allocated: int


def examine(model: Llama, suspect: Suspect, trial: Trial) -> Findings:
    """Feed a trial's rows through a suspect's cache, and compare everything with runs that keep nothing."""
    tokens = trial.tokens.to(model.device)
    cache = suspect.cache_type(model.config, 2, device=model.device, dtype=model.dtype)
    pieces = [_run(model, cache, tokens[:, : trial.cuts[0]])]
    if suspect.runs_last_token_twice:
        again = _run(model, cache, pieces[-1].tokens[:, -1:])
        pieces.append(_Piece(again.tokens[:, :0], again.inside))
        pieces[0].inside.logits[:, -1:] = again.inside.logits
    for first, end in zip(trial.cuts, (*trial.cuts[1:], tokens.shape[1])):
        if first == trial.swap_at:
            cache.reorder(torch.tensor([1, 0], device=model.device))
        pieces.append(_run(model, cache, tokens[:, first:end]))
    logits = torch.cat([piece.inside.logits for piece in pieces if piece.tokens.shape[1]], dim=1)
    return _compare(model, cache, trial, logits, pieces[-1].inside)


def allocated_bytes(cache: KVCache) -> int:
    """Return the bytes of all memory behind a cache's tensors of keys and values, each piece of memory counted once."""
    held = [value for field in vars(cache).values() for value in (field if isinstance(field, list) else [field])]
    tensors = [value for value in held if isinstance(value, Tensor) and value.is_floating_point()]
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@dataclass(frozen=True)
class _Piece:
    tokens: Int[Tensor, "2 new_len"]
    inside: Inside


def _run(model: Llama, cache: KVCache, tokens: Int[Tensor, "2 new_len"]) -> _Piece:
    return _Piece(tokens, look_inside(model, tokens, cache))


def _compare(model: Llama, cache: KVCache, trial: Trial, logits: Float[Tensor, "2 seq_len vocab_size"], last: Inside) -> Findings:
    before, after = (look_inside(model, rows.to(model.device)) for rows in (trial.tokens, trial.swapped))
    right = torch.cat((before.logits[:, : trial.swap_at], after.logits[:, trial.swap_at :]), dim=1)
    seq_len = trial.tokens.shape[1]
    key_errors = [_largest(k[:, :seq_len] - right_k, keep=1) for k, right_k in zip(last.k, after.k)]
    return Findings(
        logit_errors=_largest(logits - right, keep=1),
        key_errors=tuple(key_errors),
        surplus=last.k[0].shape[1] - seq_len,
        nbytes=cache.nbytes,
        allocated=allocated_bytes(cache),
    )


def _largest(difference: Tensor, *, keep: int) -> tuple[float, ...]:
    others = [axis for axis in range(difference.dim()) if axis != keep]
    return tuple(difference.abs().amax(dim=others).tolist())
