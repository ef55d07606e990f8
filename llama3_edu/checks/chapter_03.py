"""Exercises of chapter 3: the cache."""

import math
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llama3_edu.attention import attend as package_attend
from llama3_edu.attention import repeat_kv
from llama3_edu.checks.compare import difference, shown
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong, copied
from llama3_edu.checks.material import TOLERANCES, counting_up, devices, kinds
from llama3_edu.positions import causal_mask

__all__ = ["EXERCISES"]


def append_cases(generator: torch.Generator) -> Iterator[Case]:
    sizes = [(1, 2, 0, 1), (1, 4, 2, 1), (1, 3, 2, 1), (1, 5, 1, 2), (1, 4, 0, 4), (2, 5, 2, 1), (3, 9, 4, 3)]
    for device in devices():
        for batch, max_seq_len, held, new_len in sizes:
            heads = (1, 1) if batch == 1 else (2, 4)
            storage = counting_up(batch, max_seq_len, *heads).to(device)
            new = -counting_up(batch, new_len, *heads).to(device)
            after = storage.clone()
            after[:, held : held + new_len] = new
            says = f"storage of shape {list(storage.shape)} on {device}, {held} held, {new_len} new"
            yield Case(says, (storage, held, new), after[:, : held + new_len], extra=after)


def judge_append(exercise: Exercise, solution: Solution, case: Case) -> None:
    """What comes back should be right, be stored, and be a view: nothing is copied but what is new."""
    storage, held, new = copied(case.args)
    came = solution(storage, held, new)
    problem = difference(came, case.wanted)
    if problem and came is None:
        raise Wrong(problem, hint="Is a `return` missing?")
    if problem:
        raise Wrong(problem, hint=exercise.hint_for(case, came))
    stored = difference(storage, case.extra)
    if stored and not difference(storage, case.args[0]):
        raise Wrong(
            "what came back is right, but storage is as it was",
            hint="Assign to its slots; a new tensor is lost by the next step.",
        )
    if stored:
        raise Wrong(
            f"what came back is right, but storage is not: {stored}", hint="Slots that get no new token keep what they hold."
        )
    if came.untyped_storage().data_ptr() != storage.untyped_storage().data_ptr():
        raise Wrong(
            "the numbers are right, but they were copied into a tensor of its own",
            hint="Hand back a slice of storage itself: a view costs nothing, however much is held.",
        )
    if difference(new, case.args[2]):
        raise Wrong("it returned what was wanted, but changed `new`", hint="Read from `new`; write to storage.")


def stored_from(first: Callable[[int], int]) -> Callable[[Tensor, int, Tensor], Tensor]:
    """Return an answer that writes elsewhere."""

    def append(storage: Tensor, held: int, new: Tensor) -> Tensor:
        storage[:, first(held) : first(held) + new.shape[1]] = new
        return storage[:, : held + new.shape[1]]

    return append


def handed_back(view: Callable[[Tensor, int, int], Tensor]) -> Callable[[Tensor, int, Tensor], Tensor]:
    """Return an answer that stores rightly and hands back something else."""

    def append(storage: Tensor, held: int, new: Tensor) -> Tensor:
        storage[:, held : held + new.shape[1]] = new
        return view(storage, held, new.shape[1])

    return append


APPEND = Exercise(
    name="append",
    chapter=3,
    title="Append without copying",
    stars=2,
    minutes=15,
    cases=append_cases,
    look="The token at position p lives in slot p. Tokens are axis 1 of storage.",
    judge=judge_append,
    suspects=(
        Suspect(
            "That hands back what was held before. The new tokens belong to it.", handed_back(lambda s, held, n: s[:, :held])
        ),
        Suspect(
            "That hands back all slots, filled or not. Attention would see what stands in the empty ones.",
            handed_back(lambda s, held, n: s),
        ),
        Suspect(
            "That hands back the new tokens alone. Attention needs those before them as well.",
            handed_back(lambda s, held, n: s[:, held : held + n]),
        ),
        Suspect(
            "The new tokens went to the first slots, over older ones. They follow what is held.", stored_from(lambda held: 0)
        ),
        Suspect(
            "That writes one slot too late: with n tokens held, slots 0 to n − 1 are full and slot n is the next.",
            stored_from(lambda held: held + 1),
        ),
        Suspect("That writes one slot too early, over the last token held.", stored_from(lambda held: held - 1)),
    ),
)


def attend_cases(generator: torch.Generator) -> Iterator[Case]:
    sizes = [(1, 1, 1, 1, 1, 1), (1, 2, 2, 1, 1, 4), (1, 1, 3, 4, 2, 4), (2, 3, 5, 6, 2, 8)]
    for batch, new_len, kv_len, n_heads, n_kv_heads, head_dim in sizes:
        for dtype, device in kinds(torch.float64, torch.float32, torch.bfloat16):
            q = torch.randn(batch, new_len, n_heads, head_dim, generator=generator).to(dtype).to(device)
            k, v = torch.randn(2, batch, kv_len, n_kv_heads, head_dim, generator=generator).to(dtype).to(device)
            for masked in (False, True) if new_len > 1 else (False,):
                positions = torch.arange(kv_len - new_len, kv_len, device=device).expand(batch, -1)
                mask = causal_mask(positions, torch.arange(kv_len, device=device).expand(batch, -1)) if masked else None
                wide = package_attend(q.cpu().double(), k.cpu().double(), v.cpu().double(), mask.cpu() if masked else None)
                says = (
                    f"q of shape {list(q.shape)}, k and v {list(k.shape)} in {dtype} on {device}, {'a' if masked else 'no'} mask"
                )
                yield Case(says, (q, k, v, mask), wide.to(dtype).to(device), tolerance=TOLERANCES[dtype])


def attended(
    scale: Callable[[int], float] = math.sqrt,
    spread: Callable[[Tensor, int], Tensor] = repeat_kv,
    hide: Callable[[Tensor, Tensor], Tensor] = lambda scores, mask: scores.masked_fill(~mask, -math.inf),
    softmax: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(dim=-1),
    widen: Callable[[Tensor, int], Tensor] | None = None,
) -> Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """Return attention with one part of it exchanged."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        n_rep, head_dim = q.shape[2] // k.shape[2], q.shape[3]
        scores = torch.einsum("bqhd,bkhd->bhqk", q, spread(k, n_rep)) / scale(head_dim)
        scores = scores if mask is None else hide(scores, mask[:, None])
        return torch.einsum("bhqk,bkhd->bqhd", softmax(scores), (widen or spread)(v, n_rep))

    return attend


def tiled(x: Tensor, n_rep: int) -> Tensor:
    return x.repeat(1, 1, n_rep, 1)


TURNED_ROUND = "The mask is turned round: True is where a query may look."

ATTEND = Exercise(
    name="attend",
    chapter=3,
    title="Attend to everything that is held",
    stars=3,
    minutes=25,
    cases=attend_cases,
    look="Scores of every query with every key, divided by √head_dim, hidden where the mask is False, softmax over the keys, times v.",
    suspects=(
        Suspect("The scores are not scaled. Divide them by √head_dim.", attended(scale=lambda head_dim: 1.0)),
        Suspect("The scores are divided by head_dim. Divide by its square root.", attended(scale=float)),
        Suspect("The scores are multiplied by √head_dim. Divide.", attended(scale=lambda head_dim: head_dim**-0.5)),
        Suspect(
            "The softmax runs over the queries. Each query's weights over the keys should add up to 1: dim=-1.",
            attended(softmax=lambda scores: scores.softmax(dim=-2)),
        ),
        Suspect(
            "The softmax runs over the heads. Each query's weights over the keys should add up to 1: dim=-1.",
            attended(softmax=lambda scores: scores.softmax(dim=1)),
        ),
        Suspect("The softmax is missing: raw scores weigh the values.", attended(softmax=lambda scores: scores)),
        Suspect(
            "The KV heads are dealt out in the order 0 1 0 1. Neighbouring query heads share one: 0 0 1 1.",
            attended(spread=tiled),
        ),
        Suspect(
            "Keys are dealt out in the order 0 0 1 1 and values in another. Both go to the same query heads.",
            attended(widen=tiled),
        ),
        Suspect("The mask is not used.", attended(hide=lambda scores, mask: scores)),
        Suspect(TURNED_ROUND, attended(hide=lambda scores, mask: scores.masked_fill(mask, -math.inf))),
        Suspect(TURNED_ROUND, attended(hide=lambda scores, mask: scores.masked_fill(mask, torch.finfo(scores.dtype).min))),
        Suspect(
            "Hidden scores are set to 0, and the softmax gives them weight all the same. Set them to the smallest number there is.",
            attended(hide=lambda scores, mask: scores.masked_fill(~mask, 0.0)),
        ),
    ),
)


def reserve_cases(generator: torch.Generator) -> Iterator[Case]:
    for held, new, max_seq_len in (
        ([0], [1], 4), ([2], [1], 4), ([3], [1], 4), ([0], [4], 4), ([4], [0], 4),
        ([7], [2], 8), ([6], [3], 8), ([0], [9], 8), ([5], [20], 9),
        ([2, 5], [1, 3], 8), ([2, 5], [1, 4], 8), ([7, 2], [6, 1], 12), ([1, 2, 9], [3, 3, 4], 12),
    ):  # fmt: skip
        rows = list(zip(held, new))
        full = next((row for row, (has, more) in enumerate(rows) if has + more > max_seq_len), None)
        wanted = None if full is not None else [has + more for has, more in rows]
        yield Case(f"held = {held}, new = {new}, max_seq_len = {max_seq_len}", (held, new, max_seq_len), wanted, extra=full)


def judge_reserve(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Where there is room, `held` grows; where there is none, it is as it was, and the error says what was wanted and given."""
    held, new, max_seq_len = copied(case.args)
    error = None
    try:
        solution(held, new, max_seq_len)
    except NotImplementedError:
        raise
    except Exception as raised:
        error = raised
    if new != case.args[1]:
        raise Wrong(f"`new` is {shown(new)} afterwards, and was {shown(case.args[1])}", hint="Change `held` and nothing else.")
    if case.extra is None:
        judge_room(case, held, error)
    else:
        judge_refusal(case, held, error)


def judge_room(case: Case, held: list[int], error: Exception | None) -> None:
    before = case.args[0]
    if error is not None:
        exactly = any(has + more == case.args[2] for has, more in zip(before, case.args[1]))
        hint = "A row may become exactly full: only more than max_seq_len is too much." if exactly else "There is room for these."
        raise Wrong(f"it raised {type(error).__name__}: {' '.join(str(error).split())[:120]}", hint=hint)
    if held == before != case.wanted:
        raise Wrong(
            f"held is {shown(held)} afterwards, wanted is {shown(case.wanted)}",
            hint="`held` belongs to the cache: change the list itself, as held[row] += …; a new list is lost.",
        )
    if held != case.wanted:
        raise Wrong(
            f"held is {shown(held)} afterwards, wanted is {shown(case.wanted)}", hint="Each row grows by its own new tokens."
        )


def judge_refusal(case: Case, held: list[int], error: Exception | None) -> None:
    before, new, max_seq_len = case.args
    row = case.extra
    if error is None:
        raise Wrong(
            f"nothing was raised, and held is {shown(held)}; wanted is a ValueError: row {row} would hold {before[row] + new[row]}",
            hint="To drop tokens, to begin again at 0 or to go on regardless makes wrong text without a word.",
        )
    if not isinstance(error, ValueError):
        raise Wrong(
            f"{type(error).__name__} came, wanted is a ValueError",
            hint="assert is for what cannot happen, and `python -O` leaves it out. This can: raise ValueError(…).",
        )
    if held != before:
        raise Wrong(
            f"it refused, but held is {shown(held)} and was {shown(before)}",
            hint="Look at every row before you change the first: whoever catches the error goes on with this list.",
        )
    numbers = {int(number) for number in re.findall(r"\d+", str(error).replace(",", ""))}
    missing = [number for number in (max_seq_len, before[row], new[row]) if number not in numbers]
    if missing:
        raise Wrong(
            f"the message is {shown(str(error))}, without {' and '.join(map(str, missing))}",
            hint="Say how many tokens a row has room for, how many this one holds, and how many more it was given.",
        )


RESERVE = Exercise(
    name="reserve",
    chapter=3,
    title="Refuse what does not fit",
    stars=2,
    minutes=15,
    cases=reserve_cases,
    look="First compare held[row] + new[row] with max_seq_len for every row; then add.",
    judge=judge_reserve,
)

EXERCISES: tuple[Exercise, ...] = (APPEND, ATTEND, RESERVE)
