"""More shapes for `repeat_kv`: a kept example of what an instructor's own folder holds."""

import torch

from llama3_edu.checks import Case

points = 2
look = "Try more than one batch row and more than two heads."


def cases(generator: torch.Generator):
    for batch, kv_len, n_kv_heads, n_rep in ((3, 4, 5, 4), (2, 1, 8, 8)):
        zebra_keys = torch.randint(-99, 99, (batch, kv_len, n_kv_heads, 2), generator=generator)
        yield Case(
            f"x of shape {list(zebra_keys.shape)}, n_rep = {n_rep}",
            (zebra_keys, n_rep),
            zebra_keys.repeat_interleave(n_rep, dim=2),
        )
