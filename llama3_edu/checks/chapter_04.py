"""Exercises of chapter 4: masks and chunks."""

import torch
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.cache.base import KVCache
from llama3_edu.cache.contiguous import ContiguousCache
from llama3_edu.cache.growing import GrowingCache
from llama3_edu.checks.compare import difference, shown
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong
from llama3_edu.checks.material import TOLERANCES, counting_up, devices, kinds, random_llama
from llama3_edu.model import Llama

__all__ = ["EXERCISES"]


def mask_of(held: Tensor, new: Tensor, *, start: Tensor | None = None, shift: int = 0, padding_sees: bool = False) -> Tensor:
    """Return the mask of a step whose rows hold `held` tokens and are given `new` more, padded at the end.

    The rest makes it wrong: rows that begin at `start`, queries that see `shift` keys more, padding that sees keys.
    """
    start = held if start is None else start
    queries = torch.arange(int(new.max()), device=new.device)
    keys = torch.arange(int((held + new).max()), device=new.device)
    mask = keys <= (start[:, None] + queries + shift)[:, :, None]
    return mask if padding_sees else mask & (queries < new[:, None])[:, :, None]


def lengths_cases(generator: torch.Generator):
    small = (([0], [3]), ([0], [1]), ([2], [1]), ([2], [2]), ([5], [3]), ([0, 0], [2, 1]), ([3, 1], [1, 1]), ([3, 1], [1, 3]))
    drawn = [torch.randint(0, 7, (2, 4), generator=generator).tolist() for _ in range(6)]
    for held, new in (*small, *((held, [more + 1 for more in extra]) for held, extra in drawn)):
        for device in devices():
            args = (torch.tensor(held, device=device), torch.tensor(new, device=device))
            yield Case(f"held = {held}, new = {new} on {device}", args, mask_of(*args))


MASK_FROM_LENGTHS = Exercise(
    name="mask_from_lengths",
    chapter=4,
    title="Build the mask from lengths alone",
    stars=2,
    minutes=15,
    cases=lengths_cases,
    look="Query i of row r stands at position held[r] + i, key j at position j; a query sees itself and all before it.",
    suspects=(
        Suspect("True and False are the wrong way round: True is where a query may look.", lambda h, n: ~mask_of(h, n)),
        Suspect(
            "The triangle stands in the upper left corner there, as if every row began at position 0. Queries stand behind what is held.",
            lambda h, n: mask_of(h, n, start=torch.zeros_like(h)),
        ),
        Suspect("A query does not see itself there: its own key is the last it may see.", lambda h, n: mask_of(h, n, shift=-1)),
        Suspect("A query sees one key too many there: the one behind its own.", lambda h, n: mask_of(h, n, shift=1)),
        Suspect("Padding sees keys there: a query with i >= new[r] is no token.", lambda h, n: mask_of(h, n, padding_sees=True)),
        Suspect(
            "All rows got the lower right corner there. That is right where rows are equally long; each counts from its own held[r].",
            lambda h, n: mask_of(h, n, start=((h + n).max() - n.max()).expand_as(h)),
        ),
    ),
)


class Watched:
    """A model that remembers what it was fed."""

    def __init__(self, model: Llama) -> None:
        self.model = model
        self.pieces: list[Tensor] = []
        self.caches: list[KVCache | None] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def __call__(self, tokens: Tensor, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        self._remember(tokens, cache)
        return self.model(tokens, cache, positions)

    forward = __call__

    def next_logits(self, tokens: Tensor, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        self._remember(tokens, cache)
        return self.model.next_logits(tokens, cache, positions)

    def _remember(self, tokens: Tensor, cache: KVCache | None) -> None:
        self.pieces.append(tokens.clone())
        self.caches.append(cache)


def pieces_cases(generator: torch.Generator):
    longest = 9
    every_room = [(1, held, longest, room) for held in (0, 4) for room in range(1, longest + 1)]
    for dtype, device in kinds(torch.float64):
        model = random_llama(generator, dtype=dtype, device=device)
        for batch, held, length, room in ((1, 0, 1, 1), (1, 0, 2, 1), (1, 0, 3, 2), (1, 2, 3, 2), (2, 1, 4, 3), *every_room):
            # no token twice: after `a a` come the same logits as after `a`, and an answer that stops too early would be right
            rows = [torch.randperm(model.config.vocab_size, generator=generator)[:length] for _ in range(batch)]
            tokens = torch.stack(rows).to(device)
            with torch.inference_mode():
                wanted = model.next_logits(tokens)
            says = f"{batch} row{'s' * (batch > 1)} of {length} token{'s' * (length > 1)}, {held} of them in the cache, room = {room}, {dtype} on {device}"
            yield Case(says, (model, held, tokens, room), wanted.clone(), tolerance=TOLERANCES[dtype])


def judge_pieces(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Run a prompt in pieces; look at what the model was fed before looking at what came of it."""
    model, held, tokens, room = case.args
    kind = GrowingCache if held % 2 else ContiguousCache
    cache = kind(model.config, len(tokens), device=model.device, dtype=model.dtype)
    with torch.inference_mode():
        if held:
            model(tokens[:, :held], cache)
        watched = Watched(model)
        came = solution(watched, cache, tokens.clone(), room)
    check_fed(watched, cache, tokens[:, held:], room)
    problem = difference(came, case.wanted, tolerance=case.tolerance)
    if problem:
        everywhere = isinstance(came, Tensor) and came.dim() == 3
        hint = "Only the logits behind the last token are wanted; `model.next_logits` returns just those." if everywhere else ""
        raise Wrong(problem, hint="Is a `return` missing?" if came is None else hint or "Return what the last piece gave.")


def check_fed(watched: Watched, cache: KVCache, wanted: Tensor, room: int) -> None:
    """Raise Wrong unless every token that was missing was fed once, in order, through this cache, and never more than `room` at once."""
    lengths = [piece.shape[1] for piece in watched.pieces]
    if not lengths:
        raise Wrong("the model was never run", hint="Feed it `tokens`, a piece at a time.")
    if any(other is not cache for other in watched.caches):
        raise Wrong("a piece was run without the cache that was given", hint="Hand `cache` to the model with every piece.")
    if max(lengths) > room:
        raise Wrong(f"a piece of {max(lengths)} tokens was fed, with room for {room}", hint="No piece may be longer than `room`.")
    fed = torch.cat(watched.pieces, dim=1)
    if fed.shape[1] > wanted.shape[1]:
        told = f"{fed.shape[1]} tokens were fed, and {wanted.shape[1]} were missing from the cache"
        raise Wrong(told, hint="`cache.seq_lens` says how many tokens of each row it holds: begin behind them.")
    if fed.shape[1] < wanted.shape[1]:
        told = f"{fed.shape[1]} tokens were fed, and {wanted.shape[1]} were missing from the cache"
        raise Wrong(told, hint=f"The pieces had lengths {shown(lengths)}. The last may be shorter than `room`.")
    if not torch.equal(fed, wanted):
        raise Wrong(
            "the right number of tokens was fed, but others, or in another order", hint="Begin at the first token not held."
        )


PREFILL_IN_PIECES = Exercise(
    name="prefill_in_pieces",
    chapter=4,
    title="Feed a prompt in pieces",
    stars=2,
    minutes=15,
    cases=pieces_cases,
    look="Begin behind what the cache holds, and feed at most `room` tokens at a time.",
    judge=judge_pieces,
)


def seen(q: Tensor, k: Tensor, v: Tensor, *, corner: int | None = None, shift: int = 0, everything: bool = False) -> Tensor:
    """Return attention in which query i sees the keys up to `corner + i + shift`; as it should be without the rest."""
    new_len, kv_len = q.shape[1], k.shape[1]
    last = torch.arange(new_len, device=q.device) + (kv_len - new_len if corner is None else corner) + shift
    mask = None if everything else torch.arange(kv_len, device=q.device) <= last[:, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    n_rep = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(n_rep, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def attend_cases(generator: torch.Generator):
    for new_len, kv_len in ((3, 3), (1, 3), (2, 4), (3, 4)):
        q, k = torch.zeros(1, new_len, 1, 2), torch.zeros(1, kv_len, 1, 2)
        v = counting_up(1, kv_len, 1, 1).expand(-1, -1, -1, 2).clone()
        says = f"{new_len} quer{'ies' if new_len > 1 else 'y'} and {kv_len} keys of zeros, values 1 to {kv_len}"
        yield Case(says, (q, k, v), seen(q, k, v), tolerance=TOLERANCES[torch.float32])
    for dtype, device in kinds(torch.float64, torch.float32, torch.bfloat16):
        for batch, new_len, kv_len, n_heads, n_kv_heads in ((1, 1, 1, 1, 1), (1, 2, 5, 2, 2), (2, 3, 7, 4, 2), (2, 1, 8, 8, 2)):
            shapes = ((batch, new_len, n_heads, 8), (batch, kv_len, n_kv_heads, 8), (batch, kv_len, n_kv_heads, 8))
            q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
            says = f"q {list(q.shape)}, k and v {list(k.shape)} in {dtype} on {device}"
            yield Case(says, (q, k, v), seen(q, k, v), tolerance=TOLERANCES[dtype])


CAUSAL_ATTEND = Exercise(
    name="causal_attend",
    chapter=4,
    title="Repair the square mask",
    stars=2,
    minutes=10,
    cases=attend_cases,
    look="The last query is the last token: it sees every key. Each query before it sees one key less.",
    suspects=(
        Suspect(
            "The triangle stands in the upper left corner there: the queries are the last tokens, not the first.",
            lambda q, k, v: seen(q, k, v, corner=0),
        ),
        Suspect(
            "Every query sees every key there, those that come after it too.", lambda q, k, v: seen(q, k, v, everything=True)
        ),
        Suspect("A query sees one key too many there: the one behind its own.", lambda q, k, v: seen(q, k, v, shift=1)),
        Suspect("A query does not see its own key there.", lambda q, k, v: seen(q, k, v, shift=-1)),
    ),
)

EXERCISES = (MASK_FROM_LENGTHS, PREFILL_IN_PIECES, CAUSAL_ATTEND)
