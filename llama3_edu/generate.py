"""One loop that writes text, with any cache or none."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llama3_edu.cache.base import KVCache, NoCache, lengths
from llama3_edu.events import Observer, TokenChosen, TokensComputed, ignore
from llama3_edu.kernels import fastest
from llama3_edu.model import Llama
from llama3_edu.positions import PAD
from llama3_edu.sampling import Choose, greedy

__all__ = ["generate", "stream"]


def generate(
    model: Llama,
    tokens: Int[Tensor, "batch prompt_len"],
    *,
    max_new_tokens: int,
    cache: KVCache | None = None,
    choose: Choose = greedy,
    stop_ids: Sequence[int] = (),
    positions: Int[Tensor, "batch prompt_len"] | None = None,
    fast: bool = True,
    observer: Observer = ignore,
) -> Int[Tensor, "batch total_len"]:
    """Return the prompts with up to `max_new_tokens` more tokens behind them.

    A row that chose one of `stop_ids` is done; while others go on, it is filled up with that same token.
    Arguments and errors are those of `stream`.
    """
    steps = stream(
        model, tokens, max_new_tokens=max_new_tokens, cache=cache, choose=choose, stop_ids=stop_ids,
        positions=positions, fast=fast, observer=observer,
    )  # fmt: skip
    return torch.cat((tokens, *(step[:, None] for step in steps)), dim=1)


def stream(
    model: Llama,
    tokens: Int[Tensor, "batch prompt_len"],
    *,
    max_new_tokens: int,
    cache: KVCache | None = None,
    choose: Choose = greedy,
    stop_ids: Sequence[int] = (),
    positions: Int[Tensor, "batch prompt_len"] | None = None,
    fast: bool = True,
    observer: Observer = ignore,
) -> Iterator[Int[Tensor, "batch"]]:
    """Yield the next token of every row, again and again.

    Each round runs the model over the tokens that the cache does not hold yet: all of them where there is no cache, the
    newest one where there is.

    Args:
        tokens: the prompts.
        max_new_tokens: rounds at most.
        cache: where keys and values are kept, with one row per prompt. It may hold the first tokens already. None:
            nothing is kept.
        choose: from logits to tokens: `greedy`, or what `sampler` returns.
        stop_ids: tokens after which a row is done. The stop token itself is still yielded; the loop ends when all rows are done.
        positions: where the prompts' tokens stand, as `right_pad` and `left_pad` return it. None: no padding.
        fast: take a faster way to the same logits where there is one (`llama3_edu.kernels`); they are equal up to rounding. False: run
            the model as `model.py` has it.
        observer: is told `TokensComputed` for every forward and `TokenChosen` for every row that goes on.

    Raises:
        ValueError: `max_new_tokens` is below 0, the cache holds the whole prompt of a row already (its last token must be
            run, or there are no logits to choose from), or what `Llama.forward` refuses.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens should be at least 0; it is {max_new_tokens}")
    cache = NoCache() if cache is None else cache
    positions = _default_positions(tokens) if positions is None else positions
    _check_unseen(positions, cache)
    next_logits = fastest(model, fast=fast)
    stops = torch.tensor(list(stop_ids), dtype=tokens.dtype, device=tokens.device)
    done = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    for _ in range(max_new_tokens):
        seen = _columns_held(positions, cache)
        observer(TokensComputed(positions=_without_padding(positions[:, seen:])))
        with torch.no_grad():  # not inference_mode: logits and cache may be written to outside
            logits = next_logits(tokens[:, seen:], cache, positions[:, seen:])
        chosen = torch.where(done, tokens[:, -1], choose(logits))
        at = torch.where(done, PAD, positions.amax(dim=1) + 1)
        _report(chosen, at, observer)
        yield chosen
        done = done | torch.isin(chosen, stops)
        if done.all():
            return
        tokens = torch.cat((tokens, chosen[:, None]), dim=1)
        # A row that is done is padding from now on: not even its stop token is run.
        positions = torch.cat((positions, torch.where(done, PAD, at)[:, None]), dim=1)


def _default_positions(tokens: Tensor) -> Int[Tensor, "batch prompt_len"]:
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)


def _columns_held(positions: Int[Tensor, "batch total_len"], cache: KVCache) -> int:
    """Return how many leading columns need not be run: every row's token there is padding or in the cache."""
    return int(_held(positions, cache).all(dim=0).cumprod(dim=0).sum())


def _check_unseen(positions: Int[Tensor, "batch prompt_len"], cache: KVCache) -> None:
    for row, all_held in enumerate(_held(positions, cache).all(dim=1).tolist()):
        if all_held:
            raise ValueError(
                f"row {row} has no token that is new to the cache; its last one must be, or there are no logits to choose from"
            )


def _held(positions: Int[Tensor, "batch total_len"], cache: KVCache) -> Bool[Tensor, "batch total_len"]:
    """True where there is nothing to run: the token is padding or in the cache."""
    return positions < lengths(cache, len(positions)).to(positions.device)[:, None]


def _without_padding(positions: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(position for position in row if position != PAD) for row in positions.tolist())


def _report(chosen: Tensor, at: Tensor, observer: Observer) -> None:
    for row, (token_id, position) in enumerate(zip(chosen.tolist(), at.tolist())):
        if position != PAD:
            observer(TokenChosen(row=row, position=position, token_id=token_id))
