"""Exercises of chapter 5: bugs to repair, and a check that finds those nobody was told of."""

from collections.abc import Callable
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor

from llama3_edu import bugs
from llama3_edu.beam import beam_search
from llama3_edu.cache.base import KVCache
from llama3_edu.cache.blocks import BlockPool
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.cache.growing import GrowingCache
from llama3_edu.cache.paged import PagedCache
from llama3_edu.checks import hidden_bugs
from llama3_edu.checks.compare import difference, shown
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong
from llama3_edu.checks.material import TOLERANCES, devices, kinds, random_llama
from llama3_edu.config import LlamaConfig
from llama3_edu.events import Event, KeysStored
from llama3_edu.model import Llama

__all__ = ["EXERCISES"]


def slot_cases(generator: torch.Generator):
    for dtype, device in kinds(torch.float32, torch.float64, torch.bfloat16):
        for n_layers, batch, pieces in ((1, 1, (1,)), (1, 1, (2, 1)), (2, 1, (1, 1)), (3, 2, (4, 1, 1, 3))):
            config = LlamaConfig(dim=8, n_layers=n_layers, n_heads=4, n_kv_heads=2, hidden_dim=8, vocab_size=8)
            news = [torch.randint(-9, 10, (n_layers, 2, batch, n, 2, 2), generator=generator).to(device, dtype) for n in pieces]
            fed = "a token" if pieces == (1,) else f"pieces of {', '.join(map(str, pieces))} tokens"
            says = f"{n_layers} layer{'s' * (n_layers > 1)}, {batch} row{'s' * (batch > 1)}, {fed}, {dtype} on {device}"
            yield Case(says, (config, batch, dtype, device), extra=news)


def judge_slots(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Feed a cache pieces until it is full, then let its rows change places."""
    config, batch, dtype, device = case.args
    room = sum(new.shape[3] for new in case.extra)
    cache = solution(config, batch, max_seq_len=room, device=device, dtype=dtype)
    held = case.extra[0][:, :, :, :0]
    check_lengths(cache, batch, 0)
    for new in case.extra:
        start, held = held.shape[3], torch.cat((held, new), dim=3)
        positions = torch.arange(start, held.shape[3], device=device).expand(batch, -1)
        check_positions(cache.reserve(positions), held.shape[3], batch)
        for layer in range(config.n_layers):
            check_layer(cache.update(layer, *new[layer].clone()), layer, held, start)
        check_lengths(cache, batch, held.shape[3])
    check_bytes(cache.nbytes, batch * room * config.kv_elements_per_token, dtype)
    cache.reorder(torch.arange(batch).flip(0))
    last = cache.update(config.n_layers - 1, *case.extra[-1][-1].flip(1).clone())
    problem = difference(tuple(last), tuple(held.flip(2)[-1]))
    if problem:
        raise Wrong(f"after its rows changed places, {problem}", hint="`reorder` was right before.")


def check_lengths(cache: KVCache, batch: int, wanted: int) -> None:
    came = cache.seq_lens
    if not isinstance(came, Tensor) or came.tolist() != [wanted] * batch:
        when = "before anything was fed" if wanted == 0 else f"after {wanted} tokens"
        hint = "Nothing has come yet, so nothing is held." if wanted == 0 else "It should count the tokens that came."
        raise Wrong(f"seq_lens are {shown(came)} {when}, wanted is {[wanted] * batch}", hint=hint)


def check_positions(came: Tensor, end: int, batch: int) -> None:
    problem = difference(came.tolist() if isinstance(came, Tensor) else came, [list(range(end))] * batch)
    if problem:
        raise Wrong(f"reserve returned other positions: {problem}", hint="The token at position p lives in slot p, from 0 on.")


def check_layer(came: tuple[Tensor, Tensor], layer: int, held: Tensor, start: int) -> None:
    problem = difference(tuple(came), tuple(held[layer]))
    if not problem:
        return
    hint = "A layer should be handed back what it stored itself, and all of it."
    others = [other for other in range(len(held)) if other != layer]
    if any(not difference(came[0][:, :start], held[other][0][:, :start]) for other in others if start):
        hint = "Those are another layer's: which layer does each function store into, when it runs?"
    raise Wrong(f"update of layer {layer} returned something else: {problem}", hint=hint)


def check_bytes(came: object, elements: int, dtype: torch.dtype) -> None:
    wanted = elements * dtype.itemsize
    if came == wanted and isinstance(came, int):
        return
    hint = "That is how many numbers there are" if came == elements else "It counts keys and values of all slots, in bytes"
    raise Wrong(f"nbytes is {shown(came)}, wanted is {wanted}", hint=f"{hint}; one of {dtype} takes {dtype.itemsize} bytes.")


SLOT_CACHE = Exercise(
    name="SlotCache",
    chapter=5,
    title="Three bugs in one cache",
    stars=2,
    minutes=20,
    cases=slot_cases,
    look="Follow one token through reserve and update, by hand.",
    judge=judge_slots,
)


def forgetful_search(model: Llama, tokens: Tensor, num_beams: int, max_new_tokens: int) -> tuple[Tensor, Tensor]:
    """Return what a beam search returns that leaves the cache as it is when beams move."""
    cache = bugs.ForgetfulBeams(model.config, device=model.device, dtype=model.dtype)
    found = beam_search(model, tokens, num_beams=num_beams, max_new_tokens=max_new_tokens, cache=cache, length_penalty=0.0)
    return found.tokens, found.scores


def beam_cases(generator: torch.Generator):
    for device in devices():
        if device.type == "mps":  # it has no float64, and where two beams are nearly equal, float32 may choose either
            continue
        for num_beams, new, prompt_len in (
            (1, 1, 1),
            (1, 4, 2),
            *((beams, new, 3) for beams in (2, 3, 4) for new in (2, 3, 5, 8)),
        ):
            model = random_llama(generator, device=device)
            prompt = torch.randint(model.config.vocab_size, (1, prompt_len), generator=generator).to(device)
            args = (model, prompt, num_beams, new)
            found = beam_search(model, prompt, num_beams=num_beams, max_new_tokens=new, length_penalty=0.0)
            says = f"{num_beams} beam{'s' * (num_beams > 1)}, {new} new token{'s' * (new > 1)}, on {device}"
            yield Case(says, args, (found.tokens, found.scores), tolerance=TOLERANCES[torch.float64])


def judge_beams(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Search; compare the scores with those of the texts, the texts with the best there are, and count what was run."""
    model, prompt, num_beams, new = case.args
    stored: list[Event] = []
    cache = GrowingCache(model.config, device=model.device, dtype=model.dtype, observer=stored.append)
    came = solution(model, prompt.clone(), cache, num_beams, new)
    problem = difference(tuple(came) if isinstance(came, list) else came, case.wanted, tolerance=case.tolerance)
    if problem:
        is_pair = isinstance(came, (tuple, list)) and len(came) == 2
        told = borrowed_score(model, prompt.shape[1], *came) if is_pair else ""
        raise Wrong(told or problem, hint=exercise.hint_for(case, came))
    run = sum(len(row) for event in stored if isinstance(event, KeysStored) and event.layer == 0 for row in event.positions)
    needed = prompt.shape[1] + num_beams * (new - 1)
    if run != needed:
        told = f"texts and scores are right, but {run} tokens were run through the cache where {needed} are enough"
        raise Wrong(told, hint="Let the cache follow the beams; then each step runs one token of each.")


def borrowed_score(model: Llama, prompt_len: int, tokens: object, scores: object) -> str:
    """Say which text does not have the score that is reported for it, if the answer looks like texts and scores at all."""
    if not isinstance(tokens, Tensor) or not isinstance(scores, Tensor) or tokens.dim() != 2 or scores.shape != tokens.shape[:1]:
        return ""
    log_probabilities = model(tokens)[:, prompt_len - 1 : -1].log_softmax(dim=-1)
    own = log_probabilities.gather(-1, tokens[:, prompt_len:, None]).sum(dim=(1, 2))
    apart = (own - scores).abs() > 1e-6
    if own.shape != scores.shape or not apart.any():
        return ""
    row = int(apart.nonzero()[0])
    return f"row {row} reports the score {scores[row]:.4f}, and its own text has {own[row]:.4f}"


SEARCH_BEAMS = Exercise(
    name="search_beams",
    chapter=5,
    title="A score that belongs to no text",
    stars=2,
    minutes=15,
    cases=beam_cases,
    look="At every step three things follow the beams: their tokens, their scores, and what the cache holds.",
    judge=judge_beams,
    suspects=(
        Suspect(
            "Tokens and scores moved to their new rows, and the keys of their past stayed behind.",
            forgetful_search,
        ),
    ),
)

MakeCache: TypeAlias = Callable[[int], KVCache]
ROOM = 32


def never_empty(make: MakeCache) -> MakeCache:
    """Return what makes caches that go on where the first of them stopped."""
    made: list[KVCache] = []

    def make_another(batch: int) -> KVCache:
        cache = deepcopy(made[0]) if made else make(batch)
        if made:
            cache.reorder(torch.zeros(batch, dtype=torch.long))
        made.append(cache)
        return cache

    return make_another


def makers(model: Llama) -> list[tuple[str, bool, MakeCache]]:
    """Return caches to be judged: what they are, in words; whether they are right; and what makes one with so many rows."""
    config, dtype = model.config, model.dtype

    def plain(kind: type[KVCache]) -> MakeCache:
        return lambda batch: kind(config, batch, dtype=dtype)

    def contiguous(batch: int) -> KVCache:
        return ContiguousCache(config, batch, max_seq_len=ROOM, dtype=dtype)

    def last_layer(batch: int) -> KVCache:
        return bugs.LastLayerOnly(config, batch, max_seq_len=ROOM, dtype=dtype)

    def paged(batch: int) -> KVCache:
        pool = BlockPool(config, num_blocks=8 * ROOM // 4, block_size=4, dtype=dtype)
        return PagedCache(pool, [[] for _ in range(batch)])

    return [
        ("the growing cache", True, plain(GrowingCache)),
        ("the contiguous cache", True, contiguous),
        ("a cache whose slot 0 is never written", False, plain(bugs.EmptyFirstSlot)),
        ("a cache that makes the mask square", False, plain(bugs.SquareMask)),
        ("a cache whose layers all write to the last", False, last_layer),
        ("a cache that stays where it is when rows change places", False, plain(bugs.ForgetfulBeams)),
        ("a cache that reports elements for bytes", False, plain(bugs.CountsElements)),
        ("a paged cache", True, paged),
        ("a cache that hands its keys back in another order", True, plain(hidden_bugs.Backwards)),
        ("a cache with a spare slot at PAD", True, plain(hidden_bugs.SpareSlot)),
        ("a hidden cache, wrong where there are several rows", False, plain(hidden_bugs.FirstRowForAll)),
        ("a hidden cache, wrong where a step has one token", False, plain(hidden_bugs.SwapsInDecode)),
        ("a hidden cache, wrong where rows change places", False, plain(hidden_bugs.ValuesStay)),
        ("a hidden cache, wrong where rows differ in length", False, plain(hidden_bugs.ShowsPadding)),
        ("a hidden cache, wrong where a text is longer than 16 tokens", False, plain(hidden_bugs.ForgetsTheOldest)),
        ("a hidden cache, wrong where a row becomes another's and is still wanted", False, plain(hidden_bugs.OneRowAfterAnother)),
        ("a hidden cache, wrong where three rows go round in a ring", False, plain(hidden_bugs.MovesBackwards)),
        ("a hidden cache that rounds numbers", False, plain(hidden_bugs.RoundsToSingle)),
        ("a hidden cache that reports too few bytes", False, plain(hidden_bugs.CountsKeysOnly)),
        ("a hidden factory that gives a second cache what the first one held", False, never_empty(plain(GrowingCache))),
    ]


def verdict_cases(generator: torch.Generator):
    model = random_llama(generator)
    for says, is_right, make in makers(model):
        yield Case(says, (make, model), is_right)


def judge_verdict(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Ask whether a cache is right."""
    came = solution(*case.args)
    if getattr(came, "ndim", None) == 0:  # a truth of torch or NumPy
        came = came.item()
    if not isinstance(came, bool):
        raise Wrong(f"it returned {shown(came)}", hint="The answer should be True or False.")
    if came and not case.wanted:
        raise Wrong("it said True", hint="Which promise is broken there, and which trial would show it?")
    if case.wanted and not came:
        raise Wrong(
            "it said False, and all promises are kept",
            hint="Is the tolerance above rounding, which is about 1e-13 here? Ask for what is promised, and no more.",
        )


IS_RIGHT = Exercise(
    name="is_right",
    chapter=5,
    title="Write a check that catches hidden bugs",
    stars=3,
    minutes=35,
    cases=verdict_cases,
    look="A cache that is wrong may also refuse what a right one takes: ask for its `seq_lens` before you feed it.",
    judge=judge_verdict,
)

EXERCISES = (SLOT_CACHE, SEARCH_BEAMS, IS_RIGHT)
