"""Exercises of chapter 6: grouped-query attention."""

import torch

from llama3_edu.checks.exercise import Case, Exercise, Suspect

__all__ = ["EXERCISES"]


def repeat_kv_cases(generator: torch.Generator):
    for batch, kv_len, n_kv_heads, head_dim in ((1, 1, 1, 1), (1, 1, 2, 1), (1, 2, 1, 1), (1, 3, 2, 2), (2, 5, 4, 8)):
        for n_rep in (1, 2, 3):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                x = torch.randn(batch, kv_len, n_kv_heads, head_dim, generator=generator).to(dtype)
                says = f"x of shape {list(x.shape)} in {dtype}, n_rep = {n_rep}"
                yield Case(says, (x, n_rep), x.repeat_interleave(n_rep, dim=2))


EXERCISES = (
    Exercise(
        name="repeat_kv",
        chapter=6,
        title="Give every query head its KV head",
        stars=1,
        minutes=10,
        cases=repeat_kv_cases,
        look="Each head should appear n_rep times in a row.",
        suspects=(
            Suspect(
                "The heads come in the order 0 1 0 1; wanted is 0 0 1 1: each is repeated before the next begins.",
                lambda x, n: x.repeat(1, 1, n, 1),
            ),
            Suspect("That repeats tokens, not heads: the heads are axis 2.", lambda x, n: x.repeat_interleave(n, dim=1)),
            Suspect("That repeats the numbers in each head; the heads are axis 2.", lambda x, n: x.repeat_interleave(n, dim=3)),
            Suspect("That is x as it came: no head was repeated.", lambda x, n: x),
        ),
    ),
)
