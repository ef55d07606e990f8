"""Exercises of chapter 2: what can be kept."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llama3_edu.cache.base import KVCache, NoCache
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong, by_value
from llama3_edu.checks.material import TOLERANCES, devices, kinds, random_llama
from llama3_edu.model import Llama
from llama3_edu.probe import look_inside
from llama3_edu.rope import rope_angles, rotate

__all__ = ["EXERCISES"]


class Leak(nn.Module):
    """A projection that lets the three tokens before another have something of it.

    Args:
        projection: makes keys or values.
        strengths: by row of the batch and by how far ahead a token looks.
    """

    def __init__(self, projection: nn.Module, strengths: dict[tuple[int, int], float]) -> None:
        super().__init__()
        self.projection, self.strengths = projection, strengths

    def forward(self, x: Tensor) -> Tensor:
        out = self.projection(x)
        leaked = out.clone()
        for (row, ahead), strength in self.strengths.items():
            leaked[row, :-ahead] += strength * out[row, ahead:]
        return leaked


class SeesEverything(NoCache):
    """Reports every key at position 0, which every query may see."""

    def reserve(self, positions: Tensor) -> Tensor:
        return torch.zeros_like(positions)


class Maskless(Llama):
    """A Llama in which every token sees every other."""

    def forward(self, tokens: Tensor, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        return super().forward(tokens, SeesEverything(), positions)


def leaking_llama(generator: torch.Generator, most: str) -> Llama:
    """Return a Llama that leaks everywhere in two rows, and most in one projection of its middle layer, row 1, two tokens ahead.

    How much it leaks differs from place to place, so that whoever looks in one place alone sees a number of that place.
    """
    model = random_llama(generator, n_layers=3)
    little = {(row, ahead): 0.05 for row in (0, 1) for ahead in (1, 2, 3)}
    some = {(1, 2): 40.0, (0, 2): 20.0, (1, 1): 10.0, (0, 1): 9.0, (1, 3): 14.0, (0, 3): 12.0}
    much = {place: 3 * strength for place, strength in some.items()} | {(0, 2): 50.0}
    for layer, block in enumerate(model.layers):
        for name in ("wk", "wv"):
            strengths = little if layer != 1 else much if name == most else some
            setattr(block.attention, name, Leak(getattr(block.attention, name), strengths))
    return model


def changes_of(model: Llama, tokens: Tensor, at: int, replacement: int) -> Tensor:
    """Return the differences of all keys and values: `[n_layers 2 batch new_len n_kv_heads head_dim]`."""
    others = tokens.clone()
    others[:, at] = replacement
    then, now = look_inside(model, tokens), look_inside(model, others)
    kept = [torch.stack((k, v)) for k, v in zip(then.k, then.v)]
    return torch.stack([torch.stack((k, v)) for k, v in zip(now.k, now.v)]) - torch.stack(kept)


def change_of_the_past(model: Llama, tokens: Tensor, at: int, replacement: int) -> float:
    return changes_of(model, tokens, at, replacement)[:, :, :, :at].abs().max().item()


def change_case(
    generator: torch.Generator, says: str, model: Llama, batch: int, new_len: int, at: int, *, tolerance: float = 1e-6
) -> Case:
    tokens = torch.randint(12, (batch, new_len), generator=generator).to(next(model.parameters()).device)
    args = model, tokens, at, 12  # a token that stands nowhere in the text
    told = f"{says}, tokens of shape {list(tokens.shape)}, token {at} replaced"
    return Case(told, args, or_nothing(change_of_the_past(*args)), tolerance=tolerance)


def change_cases(generator: torch.Generator) -> Iterator[Case]:
    yield change_case(generator, "a sound Llama", random_llama(generator), 1, 2, 1)
    yield change_case(generator, "a sound Llama", random_llama(generator), 2, 5, 3)
    yield telling_case(generator, "wk", "keys")
    yield telling_case(generator, "wv", "values")
    yield change_case(generator, "a Llama without a mask", random_llama(generator, n_layers=3, kind=Maskless), 2, 5, 4)
    for device in devices()[1:]:
        leaky = leaking_llama(generator, "wv").to(torch.float32).to(device)
        yield change_case(generator, f"a leaking Llama on {device}", leaky, 2, 5, 3, tolerance=1e-3)


def telling_case(generator: torch.Generator, projection: str, kind: str) -> Case:
    """Draw a leaking Llama until each known wrong answer that can be told from the right one, and from the others, is."""
    says = f"a Llama of 3 layers that leaks, most of all in layer 1's {kind}, row 1, two tokens ahead"
    while True:
        case = change_case(generator, says, leaking_llama(generator, projection), 2, 6, 3)
        changes = changes_of(*case.args)
        numbers = [watch(changes, 3).item() for watch in (*MISSES.values(), largest_before)]
        numbers = sorted(numbers)
        apart = sum(two - one > 1e-3 for one, two in zip(numbers, numbers[1:]))
        if apart == len(numbers) - 2:  # keys alone, or values alone, are right here
            return case


def or_nothing(change: float) -> float:
    """Return 0 for what can only be rounding."""
    return 0.0 if abs(change) < 1e-9 else change


def judge_change(exercise: Exercise, solution: Solution, case: Case) -> None:
    """A number that is nearly 0 is 0, a tensor of one number is a number, and the model is left as it was."""

    def as_number(*args: Any) -> Any:
        came = solution(*args)
        if isinstance(came, Tensor) and came.numel() == 1:
            came = came.item()
        return or_nothing(came) if isinstance(came, (int, float)) else came

    blocks = case.args[0].layers
    before = [block.attention.attend for block in blocks]
    by_value(exercise, as_number, case)
    if [block.attention.attend for block in blocks] != before:
        raise Wrong("the number is right, but the model is left with another attention", hint="Put back what you exchanged.")


def largest_before(changes: Tensor, at: int) -> Tensor:
    return changes[:, :, :, :at].abs().max()


def from_changes(watch: Callable[[Tensor, int], Tensor]) -> Callable[[Llama, Tensor, int, int], float]:
    return lambda model, tokens, at, replacement: watch(changes_of(model, tokens, at, replacement), at).item()


BOUND_TO_CHANGE = "That includes tokens that are bound to change: the replaced one and those behind it. The past ends at at − 1."

MISSES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "The largest change is a decrease here, and it was missed. Take abs() before max().": lambda c, at: c[:, :, :, :at].max(),
    "That watches keys alone. Values can leak as well.": lambda c, at: largest_before(c[:, :1], at),
    "That watches values alone. Keys can leak as well.": lambda c, at: largest_before(c[:, 1:], at),
    "That watches the first layer alone.": lambda c, at: largest_before(c[:1], at),
    "That watches the last layer alone.": lambda c, at: largest_before(c[-1:], at),
    "That watches row 0 of the batch alone.": lambda c, at: largest_before(c[:, :, :1], at),
    "That watches the token before the replaced one alone. A leak may reach further back.": lambda c, at: (
        c[:, :, :, at - 1].abs().max()
    ),
    "That watches token 0 alone.": lambda c, at: c[:, :, :, 0].abs().max(),
    "That is a mean. One number that changes is enough to break a cache: take the largest.": lambda c, at: (
        c[:, :, :, :at].abs().mean()
    ),
    "That is 0. An instrument that shows nothing for a broken model proves nothing.": lambda c, at: c.new_zeros(()),
}
"""Instruments that miss something, by what to tell whoever built them."""

CHANGE_OF_THE_PAST = Exercise(
    name="change_of_the_past",
    chapter=2,
    title="Prove that the past does not change",
    stars=3,
    minutes=25,
    cases=change_cases,
    look="Look inside before and after; over all layers, keys and values, take the largest |difference| at tokens 0 to at − 1.",
    judge=judge_change,
    suspects=(
        Suspect(BOUND_TO_CHANGE, from_changes(lambda c, at: c.abs().max())),
        Suspect(BOUND_TO_CHANGE, from_changes(lambda c, at: largest_before(c, at + 1))),
        Suspect(BOUND_TO_CHANGE, from_changes(lambda c, at: c[:, :, :, at:].abs().max())),
        *(Suspect(hint, from_changes(watch)) for hint, watch in MISSES.items()),
    ),
)


def turned(k: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return rotate(k, *rope_angles(frequencies, positions, k.dtype))


def move_keys_cases(generator: torch.Generator) -> Iterator[Case]:
    quarter = torch.tensor([math.pi / 2])
    for key, old, new in (([1, 2], 1, 1), ([1, 2], 0, 1), ([1, 2], 3, 2)):
        k = torch.tensor(key, dtype=torch.float64).view(1, 1, 1, 2)
        kept = turned(k, torch.tensor([[old]]), quarter).round() + 0.0
        wanted = turned(k, torch.tensor([[new]]), quarter).round() + 0.0
        says = f"one kept key {[int(n) for n in kept.flatten()]}, frequency π/2, old position {old}, new position {new}"
        yield Case(says, (kept, torch.tensor([[old]]), torch.tensor([[new]]), quarter), wanted, tolerance=1e-3)
    for batch, kv_len, n_kv_heads, head_dim in ((1, 3, 1, 4), (2, 5, 2, 8)):
        for dtype, device in kinds(torch.float64, torch.float32):
            old, new = torch.randint(200, (2, batch, kv_len), generator=generator).to(device)
            frequencies = (500_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)).to(device)
            k = torch.randn(batch, kv_len, n_kv_heads, head_dim, generator=generator).to(dtype).to(device)
            args = turned(k, old, frequencies), old, new, frequencies
            says = f"k of shape {list(k.shape)} in {dtype} on {device}, row 0 moves from {old[0].tolist()} to {new[0].tolist()}"
            yield Case(says, args, turned(k, new, frequencies), tolerance=max(1e-3, TOLERANCES[dtype]))


MOVE_KEYS = Exercise(
    name="move_keys",
    chapter=2,
    title="Move keys that were kept after the turn",
    stars=2,
    minutes=15,
    cases=move_keys_cases,
    look="A kept key was turned by old × frequency. By how much more must it turn to end at new × frequency?",
    suspects=(
        Suspect("These are the keys as they came.", lambda k, old, new, frequencies: k),
        Suspect(
            "The kept keys are turned already, by their old positions. Turning them by the new ones comes on top of that.",
            lambda k, old, new, frequencies: turned(k, new, frequencies),
        ),
        Suspect(
            "That turns the keys back and leaves them there: they stand where position 0 is.",
            lambda k, old, new, frequencies: turned(k, -old, frequencies),
        ),
        Suspect(
            "That turns the other way: from 3 to 2 is a turn by −1.",
            lambda k, old, new, frequencies: turned(k, old - new, frequencies),
        ),
        Suspect("That turns by both positions. One of the two turns has to be undone.", lambda k, old, new, frequencies: turned(
            k, old + new, frequencies
        )),
        Suspect(
            "All keys of a row moved as far as its first one. Each has positions of its own.",
            lambda k, old, new, frequencies: turned(k, (new - old)[:, :1].expand(old.shape), frequencies),
        ),
    ),
)  # fmt: skip


def next_positions_cases(generator: torch.Generator) -> Iterator[Case]:
    rows = [([0], 1), ([3], 1), ([0], 2), ([3], 2), ([1, 3], 1), ([3, 0], 2), ([5, 1, 0], 4)]
    rows += [(torch.randint(99, (6,), generator=generator).tolist(), 6)]
    for device in devices():
        for seq_lens, new_len in rows:
            wanted = [list(range(held, held + new_len)) for held in seq_lens]
            says = f"seq_lens = {seq_lens}, new_len = {new_len} on {device}"
            args = torch.tensor(seq_lens, device=device), new_len
            yield Case(says, args, torch.tensor(wanted, device=device))


def counted_from(first: Callable[[Tensor], Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda seq_lens, new_len: first(seq_lens)[:, None] + torch.arange(new_len, device=seq_lens.device)


NEXT_POSITIONS = Exercise(
    name="next_positions",
    chapter=2,
    title="Let positions go on where the cache ends",
    stars=1,
    minutes=10,
    cases=next_positions_cases,
    look="Row r counts up from seq_lens[r]; the result is [batch new_len].",
    suspects=(
        Suspect(
            "That begins at 0 again, as if nothing were held: every new key would be turned as if it stood at the start.",
            counted_from(lambda seq_lens: seq_lens * 0),
        ),
        Suspect(
            "That is one too far. Positions begin at 0, so of n tokens held the last stands at n − 1, and the next at n.",
            counted_from(lambda seq_lens: seq_lens + 1),
        ),
        Suspect(
            "That is one too near: it gives the first new token the place of the last one held.",
            counted_from(lambda seq_lens: seq_lens - 1),
        ),
        Suspect(
            "All rows begin where the longest ends. Each row has a length of its own.",
            counted_from(lambda seq_lens: seq_lens.max().expand(seq_lens.shape)),
        ),
        Suspect(
            "All rows begin where row 0 ends. Each row has a length of its own.",
            counted_from(lambda seq_lens: seq_lens[:1].expand(seq_lens.shape)),
        ),
        Suspect(
            "Every new token of a row has the same position. They stand one behind the other.",
            lambda seq_lens, new_len: seq_lens[:, None].expand(-1, new_len),
        ),
        Suspect("Rows and columns are exchanged: wanted is [batch new_len].", lambda seq_lens, new_len: (
            seq_lens + torch.arange(new_len, device=seq_lens.device)[:, None]
        )),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (CHANGE_OF_THE_PAST, MOVE_KEYS, NEXT_POSITIONS)
