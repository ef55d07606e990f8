"""Beam search: several continuations of one prompt side by side, the best of them kept at every step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.base import KVCache, NoCache, lengths
from llama3_edu.events import BeamFinished, BeamsPruned, Observer, TokensComputed, ignore
from llama3_edu.kernels import NextLogits, fastest
from llama3_edu.model import Llama

__all__ = ["BeamResult", "beam_search"]


@dataclass(frozen=True)
class BeamResult:
    """Continuations of a prompt, the best one first.

    Args:
        tokens: the prompt and what follows it. A beam that ended before the longest is filled up with its own last token.
        scores: for each beam, the sum of its new tokens' log-probabilities, divided by their number to the power of the length
            penalty.
    """

    tokens: Int[Tensor, "num_beams total_len"]
    scores: Float[Tensor, "num_beams"]


@dataclass(frozen=True)
class _Candidate:
    """A beam with one token more."""

    parent: int  # the row it continues
    token_id: int
    score: float  # the sum of log-probabilities


@dataclass(frozen=True)
class _Finished:
    """A beam that ended, with its final score."""

    tokens: Int[Tensor, "total_len"]
    score: float


def beam_search(
    model: Llama,
    tokens: Int[Tensor, "1 prompt_len"],
    *,
    num_beams: int,
    max_new_tokens: int,
    cache: KVCache | None = None,
    eos_id: int | Sequence[int] | None = None,
    length_penalty: float = 1.0,
    fast: bool = True,
    observer: Observer = ignore,
) -> BeamResult:
    """Return the `num_beams` best continuations that were found by following `num_beams` of them at a time.

    Every beam is extended by every token; of all these, the best go on. The cache follows with one `reorder` per step, so in a
    `PagedCache` beams share the blocks of their common past, and a beam that is given up gives its blocks back. The rows
    of the cache hold the last beams when the search ends; they are the caller's to release.

    Args:
        tokens: one prompt.
        num_beams: beams that go on at every step, and continuations returned; fewer where there are not so many.
        max_new_tokens: tokens at most.
        cache: where keys and values are kept, with one row. It may hold the first tokens already. None: nothing is kept.
        eos_id: the token, or tokens, that end a beam. None: every beam ends at `max_new_tokens`.
        length_penalty: above 0, longer beams gain; below 0, shorter ones do; at 0 the plain sums are compared.
        fast: take a faster way to the same logits where there is one (`llama3_edu.kernels`). False: run the model as `model.py` has it.
        observer: is told `TokensComputed` for every forward, `BeamFinished` for every beam that ends among the best, and
            `BeamsPruned` for every step that another follows.

    Raises:
        ValueError: there is not exactly one prompt, `num_beams` or `max_new_tokens` is below 1, an eos id is outside the
            vocabulary, the cache holds the whole prompt already, or what `Llama.forward` refuses.
    """
    stops = _as_set(eos_id)
    cache = NoCache() if cache is None else cache
    _check(model, tokens, cache, num_beams, max_new_tokens, stops)
    next_logits = fastest(model, fast=fast)
    scores = torch.zeros(1, dtype=torch.promote_types(model.dtype, torch.float32), device=tokens.device)
    finished: list[_Finished] = []
    for new_len in range(1, max_new_tokens + 1):
        logits = _next_logits(next_logits, tokens, cache, observer)
        # A beam has one way to end per stop, so among this many `num_beams` go on, if so many exist.
        candidates = _best(logits, scores, count=max(2, 1 + len(stops)) * num_beams)
        is_last = new_len == max_new_tokens
        ended = [c for c in candidates[:num_beams] if is_last or c.token_id in stops]
        finished = _merge(finished, [_finish(c, tokens, new_len**length_penalty, observer) for c in ended])[:num_beams]
        running = [c for c in candidates if c.token_id not in stops][:num_beams]
        if is_last or not running or _is_settled(running, finished, num_beams, new_len**length_penalty):
            break
        _report(running, tokens, observer)
        tokens, scores = _continue(running, tokens, scores, cache)
    return _result(finished, scores)


def _next_logits(
    next_logits: NextLogits, tokens: Int[Tensor, "beams total_len"], cache: KVCache, observer: Observer
) -> Float[Tensor, "beams vocab_size"]:
    """Run what the cache does not hold yet. All beams are equally long."""
    beams, total_len = tokens.shape
    seen = int(lengths(cache, beams)[0])
    observer(TokensComputed(positions=(tuple(range(seen, total_len)),) * beams))
    with torch.no_grad():
        return next_logits(tokens[:, seen:], cache)


def _best(logits: Float[Tensor, "beams vocab_size"], scores: Float[Tensor, "beams"], *, count: int) -> list[_Candidate]:
    """Return the `count` best of all beams with one token more, the best one first."""
    sums = scores[:, None] + logits.to(scores.dtype).log_softmax(dim=-1)
    best, places = sums.flatten().topk(min(count, sums.numel()))
    vocab_size = logits.shape[1]
    return [_Candidate(place // vocab_size, place % vocab_size, score) for score, place in zip(best.tolist(), places.tolist())]


def _continue(
    running: list[_Candidate], tokens: Int[Tensor, "beams total_len"], scores: Float[Tensor, "beams"], cache: KVCache
) -> tuple[Int[Tensor, "new_beams longer"], Float[Tensor, "new_beams"]]:
    """Let tokens, scores and the cache follow the beams that go on."""
    parents = torch.tensor([c.parent for c in running], device=tokens.device)
    cache.reorder(parents)
    newest = torch.tensor([[c.token_id] for c in running], dtype=tokens.dtype, device=tokens.device)
    return torch.cat((tokens[parents], newest), dim=1), scores.new_tensor([c.score for c in running])


def _finish(candidate: _Candidate, tokens: Int[Tensor, "beams total_len"], divisor: float, observer: Observer) -> _Finished:
    newest = tokens.new_tensor([candidate.token_id])
    ended = _Finished(torch.cat((tokens[candidate.parent], newest)), candidate.score / divisor)
    position = tokens.shape[1]
    observer(BeamFinished(position=position, parent=candidate.parent, token_id=candidate.token_id, score=ended.score))
    return ended


def _merge(finished: list[_Finished], ended: list[_Finished]) -> list[_Finished]:
    """Return all of them, the best one first; of equals, the one that ended first."""
    return sorted([*finished, *ended], key=lambda beam: -beam.score)


def _is_settled(running: list[_Candidate], finished: list[_Finished], num_beams: int, divisor: float) -> bool:
    """Say whether no running beam beats the worst that finished, if it ended as it stands.

    It may still do so later where the length penalty is above 0. This is the rule of thumb that `transformers` calls
    `early_stopping=False`.
    """
    return len(finished) == num_beams and running[0].score / divisor <= finished[-1].score


def _result(finished: list[_Finished], scores: Tensor) -> BeamResult:
    longest = max(len(beam.tokens) for beam in finished)
    rows = [torch.cat((beam.tokens, beam.tokens[-1:].expand(longest - len(beam.tokens)))) for beam in finished]
    return BeamResult(tokens=torch.stack(rows), scores=scores.new_tensor([beam.score for beam in finished]))


def _report(running: list[_Candidate], tokens: Int[Tensor, "beams total_len"], observer: Observer) -> None:
    parents = [c.parent for c in running]
    observer(
        BeamsPruned(
            position=tokens.shape[1],
            parents=tuple(parents),
            token_ids=tuple(c.token_id for c in running),
            scores=tuple(c.score for c in running),
            closed=tuple(row for row in range(len(tokens)) if row not in parents),
        )
    )


def _as_set(eos_id: int | Iterable[int] | None) -> set[int]:
    if eos_id is None:
        return set()
    return {eos_id} if isinstance(eos_id, int) else set(eos_id)


def _check(model: Llama, tokens: Tensor, cache: KVCache, num_beams: int, max_new_tokens: int, stops: set[int]) -> None:
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} should be at least 1; it is {value}")
    prompts, prompt_len = tokens.shape
    if prompts != 1:
        raise ValueError(f"beam search continues one prompt at a time; it was given {prompts}")
    for stop in stops:
        if not 0 <= stop < model.config.vocab_size:
            raise ValueError(f"token ids go from 0 to {model.config.vocab_size - 1}; eos_id is {stop}")
    held = int(lengths(cache, 1)[0])
    if held >= prompt_len > 0:
        raise ValueError(
            f"the cache holds {held} tokens and the prompt has {prompt_len}; its last one must be new, "
            f"or there are no logits to choose from"
        )
