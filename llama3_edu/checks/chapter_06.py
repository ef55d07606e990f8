"""Exercises of chapter 6: grouped-query attention."""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llama3_edu.attention import attend
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong, by_value
from llama3_edu.checks.material import TOLERANCES, counting_up, kinds
from llama3_edu.positions import causal_mask

__all__ = ["EXERCISES"]


def repeat_kv_cases(generator: torch.Generator):
    for n_kv_heads, n_rep in ((1, 1), (2, 1), (1, 2), (2, 2), (2, 3)):
        x = counting_up(1, 1, n_kv_heads, 1)
        says = f"x of shape {list(x.shape)} holding 1 to {n_kv_heads}, n_rep = {n_rep}"
        yield Case(says, (x, n_rep), x.repeat_interleave(n_rep, dim=2))
    for dtype, device in kinds(torch.float32, torch.float64, torch.bfloat16):
        for batch, kv_len, n_kv_heads, head_dim in ((1, 2, 1, 1), (1, 3, 2, 2), (2, 5, 4, 8)):
            for n_rep in (1, 2, 3):
                x = torch.randn(batch, kv_len, n_kv_heads, head_dim, generator=generator).to(device, dtype)
                says = f"x of shape {list(x.shape)} in {dtype} on {device}, n_rep = {n_rep}"
                yield Case(says, (x, n_rep), x.repeat_interleave(n_rep, dim=2))


REPEAT_KV = Exercise(
    name="repeat_kv",
    chapter=6,
    title="Give every query head its KV head",
    stars=1,
    minutes=10,
    cases=repeat_kv_cases,
    look="Each head should appear n_rep times in a row.",
    suspects=(
        Suspect("That is x as it came: no head was repeated.", lambda x, n: x),
        Suspect("That repeats tokens, not heads: the heads are axis 2.", lambda x, n: x.repeat_interleave(n, dim=1)),
        Suspect("That repeats the numbers in each head; the heads are axis 2.", lambda x, n: x.repeat_interleave(n, dim=3)),
        Suspect(
            "The heads have an axis of their own for the copies: join the two with `reshape`.",
            lambda x, n: x[:, :, :, None].expand(-1, -1, -1, n, -1),
        ),
        Suspect(
            "The heads come in the order 0 1 0 1; wanted is 0 0 1 1: each is repeated before the next begins.",
            lambda x, n: x.repeat(1, 1, n, 1),
        ),
    ),
)


class NewMemory(TorchDispatchMode):
    """Remembers the largest result that lies in no memory given, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(results):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return results


def grouped_cases(generator: torch.Generator):
    sizes = (
        (1, 1, 2, 2, 1, 2),
        (1, 1, 3, 4, 2, 2),
        (1, 2, 3, 4, 2, 4),
        (2, 3, 7, 6, 2, 8),
        (2, 1, 64, 8, 2, 32),
        (2, 3, 64, 8, 2, 32),
    )
    for dtype, device in kinds(torch.float64, torch.float32, torch.bfloat16):
        for batch, new_len, kv_len, n_heads, n_kv_heads, head_dim in sizes:
            shapes = ((batch, new_len, n_heads, head_dim), *[(batch, kv_len, n_kv_heads, head_dim)] * 2)
            q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
            positions = torch.arange(kv_len, device=device).expand(batch, -1)
            masks = {"no mask": None, "a causal mask": causal_mask(positions[:, -new_len:], positions)}
            for name, mask in masks.items():
                says = f"q {list(q.shape)}, k and v {list(k.shape)}, {name}, {dtype} on {device}"
                yield Case(says, (q, k, v, mask), attend(q, k, v, mask), tolerance=TOLERANCES[dtype])


def judge_grouped(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Compare what is returned, then look at what was written on the way, where scores are much smaller than keys."""
    by_value(exercise, solution, case)
    q, k, v, mask = case.args
    n_rep = q.shape[2] // k.shape[2]
    if k.shape[1] < 64:
        return
    with NewMemory() as new:
        solution(q, k, v, mask)
    if new.largest >= n_rep * k.numel():
        told = f"the result is right, but a tensor of {new.largest:,} numbers was written on the way, and k has {k.numel():,}"
        raise Wrong(
            told,
            hint="Where keys or values are expanded and then multiplied or reshaped, they are written out. Group the queries.",
        )


def in_other_order(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention whose output heads come one of each group after another."""
    return attend(q, k, v, mask).unflatten(2, (k.shape[2], -1)).transpose(2, 3).flatten(2, 3)


def tiled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention in which query head h reads KV head h modulo their number."""
    n_rep = q.shape[2] // k.shape[2]
    return attend(q, k.repeat(1, 1, n_rep, 1), v.repeat(1, 1, n_rep, 1), mask)


GROUPED_ATTEND = Exercise(
    name="grouped_attend",
    chapter=6,
    title="Attention that repeats nothing",
    stars=2,
    minutes=20,
    cases=grouped_cases,
    look="Go through it: which KV head each query head reads, the scale, the mask, softmax over the keys, the order of the heads.",
    judge=judge_grouped,
    suspects=(
        Suspect(
            "The scores are not scaled there: divide by the square root of head_dim.",
            lambda q, k, v, mask: attend(q * math.sqrt(q.shape[-1]), k, v, mask),
        ),
        Suspect("The mask is not used there.", lambda q, k, v, mask: attend(q, k, v)),
        Suspect("Query head h reads KV head h modulo their number there; neighbours should share one.", tiled),
        Suspect("Each head is right, and their order is not: the groups come first, then the heads in a group.", in_other_order),
    ),
)


def heads_of(weight: Tensor, n_kv_heads: int) -> Tensor:
    """Return a projection's rows by head, `[n_kv_heads head_dim dim]`."""
    return weight.unflatten(0, (n_kv_heads, -1))


def pool_cases(generator: torch.Generator):
    for n_kv_heads, n_groups, head_dim, dim in ((2, 1, 1, 1), (4, 2, 1, 1), (4, 2, 2, 1), (4, 1, 2, 2)):
        weight = (2.0 ** torch.arange(n_kv_heads * head_dim * dim)).reshape(-1, dim)
        yield pool_case(
            weight, n_kv_heads, n_groups, f"a weight with the numbers 1, 2, 4, … in {n_kv_heads} heads of {head_dim} rows"
        )
    for dtype, device in kinds(torch.float64, torch.float32, torch.bfloat16):
        for n_kv_heads, n_groups, head_dim, dim in ((3, 3, 2, 5), (4, 2, 4, 6), (8, 2, 4, 16), (12, 4, 2, 7)):
            weight = torch.randn(n_kv_heads * head_dim, dim, generator=generator).to(device, dtype)
            yield pool_case(
                weight, n_kv_heads, n_groups, f"a weight {list(weight.shape)} of {n_kv_heads} heads in {dtype} on {device}"
            )


def pool_case(weight: Tensor, n_kv_heads: int, n_groups: int, says: str) -> Case:
    wanted = heads_of(weight, n_kv_heads).unflatten(0, (n_groups, -1)).mean(dim=1).flatten(0, 1)
    return Case(
        f"{says}, {n_groups} group{'s' * (n_groups > 1)}",
        (weight, n_kv_heads, n_groups),
        wanted,
        tolerance=TOLERANCES[weight.dtype],
    )


MEAN_POOL = Exercise(
    name="mean_pool",
    chapter=6,
    title="From many KV heads to few",
    stars=2,
    minutes=15,
    cases=pool_cases,
    look="Row i of head h is row h · head_dim + i of the weight. Row i of a group is the mean of the rows i of its heads.",
    suspects=(
        Suspect(
            "Those heads are not neighbours. Query heads that share a KV head are, so merge heads 0, 1, … into group 0.",
            lambda w, n, g: heads_of(w, n).unflatten(0, (-1, g)).mean(dim=0).flatten(0, 1),
        ),
        Suspect(
            "That is the sum of each group's heads, wanted is the mean.", lambda w, n, g: pool_case(w, n, g, "").wanted * (n // g)
        ),
        Suspect(
            "That keeps the first head of each group and drops the others.",
            lambda w, n, g: heads_of(w, n).unflatten(0, (g, -1))[:, 0].flatten(0, 1),
        ),
        Suspect(
            "Rows that follow each other belong to one head, and are merged there. Give the heads an axis of their own first.",
            lambda w, n, g: w.unflatten(0, (-1, n // g)).mean(dim=1),
        ),
    ),
)

EXERCISES = (REPEAT_KV, GROUPED_ATTEND, MEAN_POOL)
