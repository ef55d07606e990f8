"""Requests to measure with: lengths drawn from a fixed generator, and text from the bundled model."""

import math
from dataclasses import dataclass

import torch

from llama3_edu import ContiguousCache, Llama, generate, sampler


@dataclass(frozen=True)
class Lengths:
    """A request's tokens: its prompt's, and those that are generated."""

    prompt: int
    new: int


def lognormal(count: int, *, mean: float, spread: float, least: int, most: int, generator: torch.Generator) -> list[int]:
    """Return whole numbers whose logarithms are normally distributed.

    Args:
        mean: of the numbers themselves, before they are cut off at `least` and `most`.
        spread: standard deviation of the logarithms.
    """
    normal = torch.randn(count, generator=generator, dtype=torch.float64)
    drawn = (math.log(mean) - spread**2 / 2 + spread * normal).exp()
    return [min(most, max(least, round(number))) for number in drawn.tolist()]


def requests(count: int, *, prompt_mean: float, new_mean: float, longest: int, seed: int, spread: float = 1.0) -> list[Lengths]:
    """Return the lengths of `count` requests, prompt and answer together at most `longest` tokens."""
    generator = torch.Generator().manual_seed(seed)
    prompts = lognormal(count, mean=prompt_mean, spread=spread, least=4, most=longest // 2, generator=generator)
    answers = lognormal(count, mean=new_mean, spread=spread, least=4, most=longest // 2, generator=generator)
    return [Lengths(prompt, new) for prompt, new in zip(prompts, answers)]


def random_ids(length: int, *, vocab_size: int, generator: torch.Generator) -> list[int]:
    """Return token ids of no meaning, for what depends on lengths alone."""
    return torch.randint(vocab_size, (length,), generator=generator).tolist()


def sampled_text(model: Llama, length: int, *, start: int, seed: int) -> list[int]:
    """Return text the model wrote: `length` token ids, the first one `start`."""
    choose = sampler(generator=torch.Generator().manual_seed(seed))
    cache = ContiguousCache(model.config, max_seq_len=length, dtype=model.dtype)
    return generate(model, torch.tensor([[start]]), max_new_tokens=length - 1, cache=cache, choose=choose)[0].tolist()
