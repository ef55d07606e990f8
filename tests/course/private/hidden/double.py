import torch

from llama3_edu.checks import Case


def cases(generator: torch.Generator):
    for length in (1, 2, 5):
        x = torch.randn(length, generator=generator)
        yield Case(f"x of shape {list(x.shape)}", (x,), 2 * x)
