"""Exercises of chapter 10: keys and values in few bits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llama3_edu.cache.store import pack
from llama3_edu.checks.compare import difference, shown
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong
from llama3_edu.hardware import default_device

__all__ = ["EXERCISES"]

Quantised = tuple[Tensor, Tensor, Tensor]
"""Codes, scale and zero."""

# -- Quantise ---------------------------------------------------------------------------------------------------------


def quantise_cases(generator: torch.Generator):
    def case(x: Tensor, bits: int, dim: int, tolerance: float) -> Case:
        given = f"x={shown(x)}" if x.numel() <= 8 else f"x of shape {list(x.shape)}"
        where = "" if x.device.type == "cpu" else f" on {x.device.type}"
        says = f"{given} in {x.dtype}{where}, bits={bits}, dim={dim}"
        return Case(says, (x,), _quantised(x, bits, dim), kwargs={"bits": bits, "dim": dim}, tolerance=tolerance)

    for numbers, dim in (
        ([[0.0, 1.0, 2.0, 3.0]], 1),
        ([[1.0, 1.4, 2.6, 4.0]], 1),
        ([[-2.0, -0.7, 0.2, 1.0]], 1),
        ([[0.0, 10.0], [3.0, 40.0]], 0),
        ([[0.0, 10.0], [3.0, 40.0]], 1),
        ([[5.0, 5.0], [0.0, 3.0]], 1),
    ):
        yield case(torch.tensor(numbers), 2, dim, 1e-5)
    places = [("cpu", torch.float64, 1e-9), ("cpu", torch.float32, 1e-5), (default_device().type, torch.float32, 1e-5)]
    for device, dtype, tolerance in places:
        for shape, dim in (((6,), 0), ((3, 5), 0), ((4, 7), 1), ((2, 16, 3, 8), 1), ((2, 5, 3, 8), -1)):
            for bits in (2, 4, 8):
                yield case(_away_from_ties(shape, dim, bits, generator).to(dtype).to(device), bits, dim, tolerance)


def _away_from_ties(shape: tuple[int, ...], dim: int, bits: int, generator: torch.Generator) -> Tensor:
    """Numbers near the levels of their group, so that no rounding error can move one to another level."""
    most = 2**bits - 1
    levels = torch.randint(most + 1, shape, generator=generator).double()
    lowest, highest = torch.randperm(shape[dim], generator=generator)[:2].tolist()
    levels.select(dim, lowest).zero_()
    levels.select(dim, highest).fill_(most)
    off = 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.4
    off = torch.where(levels == 0, off.abs(), torch.where(levels == most, -off.abs(), off))
    off.select(dim, lowest).zero_()
    off.select(dim, highest).zero_()
    one_per_group = [1 if axis == dim % len(shape) else size for axis, size in enumerate(shape)]
    scale = torch.randint(1, 9, one_per_group, generator=generator).double() / 4
    zero = torch.randint(-8, 9, one_per_group, generator=generator).double() / 2
    return zero + scale * (levels + off)


def _quantised(x: Tensor, bits: int, dim: int) -> Quantised:
    zero, high = x.aminmax(dim=dim, keepdim=True)
    return _with(x, (high - zero) / (2**bits - 1), zero)


def _with(x: Tensor, scale: Tensor, zero: Tensor, most: int = 255) -> Quantised:
    step = torch.where(scale == 0, 1, scale)
    return ((x - zero) / step).round().clamp(0, most).to(torch.uint8), scale, zero


def _as_many_gaps_as_levels(x: Tensor, *, bits: int, dim: int) -> Quantised:
    zero, high = x.aminmax(dim=dim, keepdim=True)
    return _with(x, (high - zero) / 2**bits, zero)


def _as_many_gaps_as_levels_clamped(x: Tensor, *, bits: int, dim: int) -> Quantised:
    zero, high = x.aminmax(dim=dim, keepdim=True)
    return _with(x, (high - zero) / 2**bits, zero, most=2**bits - 1)


def _cut_off(x: Tensor, *, bits: int, dim: int) -> Quantised:
    _, scale, zero = _quantised(x, bits, dim)
    return ((x - zero) / torch.where(scale == 0, 1, scale)).to(torch.uint8), scale, zero


def _about_zero(x: Tensor, *, bits: int, dim: int) -> Quantised:
    largest = x.abs().amax(dim=dim, keepdim=True)
    return _with(x, 2 * largest / (2**bits - 1), -largest)


def _from_zero(x: Tensor, *, bits: int, dim: int) -> Quantised:
    largest = x.amax(dim=dim, keepdim=True)
    return _with(x, largest / (2**bits - 1), torch.zeros_like(largest))


def _one_group(x: Tensor, *, bits: int, dim: int) -> Quantised:
    zero, high = x.aminmax()
    return _with(x, (high - zero) / (2**bits - 1), zero)


def _last_axis(x: Tensor, *, bits: int, dim: int) -> Quantised:
    return _quantised(x, bits, -1)


def _first_axis(x: Tensor, *, bits: int, dim: int) -> Quantised:
    return _quantised(x, bits, 0)


def _all_other_axes(x: Tensor, *, bits: int, dim: int) -> Quantised:
    others = [axis for axis in range(x.ndim) if axis != dim % x.ndim]
    zero = x.amin(dim=others, keepdim=True)
    return _with(x, (x.amax(dim=others, keepdim=True) - zero) / (2**bits - 1), zero)


def _axis_lost(x: Tensor, *, bits: int, dim: int) -> Quantised:
    codes, scale, zero = _quantised(x, bits, dim)
    return codes, scale.squeeze(dim), zero.squeeze(dim)


GAPS = "With b bits there are 2^b levels, and one gap fewer between them."
AXIS = "The numbers along `dim` are one group: `dim` is the axis that becomes 1 long in `scale`, and the only one."

QUANTISE = Exercise(
    name="quantise",
    chapter=10,
    title="Round a group to a few levels",
    stars=1,
    minutes=10,
    cases=quantise_cases,
    look="`zero` is the lowest number of a group, `scale` the gap between levels, a code the number of the nearest level.",
    suspects=(
        Suspect(GAPS, _as_many_gaps_as_levels),
        Suspect(GAPS, _as_many_gaps_as_levels_clamped),
        Suspect("That cuts the fraction off. The nearest level may be the one above.", _cut_off),
        Suspect("Those levels lie evenly about zero. They should span the group, from its lowest number.", _about_zero),
        Suspect("Those levels begin at zero. They should span the group, from its lowest number.", _from_zero),
        Suspect("`scale` and `zero` should keep the axis `dim`, 1 long, so that they fit `x`.", _axis_lost),
        Suspect("That is one scale for the whole tensor. Each group has its own.", _one_group),
        Suspect(AXIS, _last_axis),
        Suspect(AXIS, _first_axis),
        Suspect(AXIS, _all_other_axes),
    ),
)

# -- Two codes to a byte ----------------------------------------------------------------------------------------------


def pack_int4_cases(generator: torch.Generator):
    def case(codes: Tensor) -> Case:
        given = f"codes={codes.tolist()}" if codes.numel() <= 8 else f"codes of shape {list(codes.shape)}"
        where = "" if codes.device.type == "cpu" else f" on {codes.device.type}"
        return Case(given + where, (codes,), pack(codes, bits=4))

    for numbers in ([1, 2], [15, 15], [5, 1, 7], [3], [1, 2, 3, 4], [[1, 2], [3, 4]], [[1, 2, 3], [4, 5, 6]]):
        yield case(torch.tensor(numbers, dtype=torch.uint8))
    for device in sorted({"cpu", default_device().type}):
        for shape in ((17,), (4, 64), (3, 9), (2, 3, 4, 33)):
            yield case(torch.randint(16, shape, generator=generator, dtype=torch.uint8).to(device))


def _even(codes: Tensor) -> Tensor:
    return torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))


def _upper_first(codes: Tensor) -> Tensor:
    codes = _even(codes)
    return codes[..., 0::2] << 4 | codes[..., 1::2]


def _halves(codes: Tensor) -> Tensor:
    low, high = _even(codes).chunk(2, dim=-1)
    return low | high << 4


def _first_axis_paired(codes: Tensor) -> Tensor:
    return pack(codes.movedim(0, -1), bits=4).movedim(-1, 0)


def _odd_one_lost(codes: Tensor) -> Tensor:
    return pack(codes[..., : codes.shape[-1] // 2 * 2], bits=4)


def _filled_up_in_front(codes: Tensor) -> Tensor:
    return pack(torch.nn.functional.pad(codes, (codes.shape[-1] % 2, 0)), bits=4)


PACK_INT4 = Exercise(
    name="pack_int4",
    chapter=10,
    title="Pack two codes into a byte",
    stars=1,
    minutes=10,
    cases=pack_int4_cases,
    look="Codes 0 and 1 of a row share its byte 0: the first in the four lower bits, the second in the four upper ones.",
    suspects=(
        Suspect("The first code of each pair is in the upper half of its byte; it should be in the lower.", _upper_first),
        Suspect("That pairs the first half of a row with its second. Neighbours should share a byte.", _halves),
        Suspect("The last code of a row of odd length is lost. It has a byte of its own.", _odd_one_lost),
        Suspect("What fills up a row of odd length comes behind the last code, not before the first.", _filled_up_in_front),
        Suspect(
            "That lets rows run into each other: every row begins with a byte of its own.",
            lambda codes: pack(codes.flatten(), bits=4),
        ),
        Suspect("That pairs along the first axis. Neighbours along the last axis should share a byte.", _first_axis_paired),
    ),
)

# -- Effective bits ---------------------------------------------------------------------------------------------------


def effective_bits_cases(generator: torch.Generator):
    def case(num_rounded: int, num_whole: int, bits: int, group_size: int) -> Case:
        args, named = (num_rounded, num_whole), {"bits": bits, "group_size": group_size}
        says = f"num_rounded={num_rounded}, num_whole={num_whole}, bits={bits}, group_size={group_size}"
        return Case(says, args, _effective(*args, **named), kwargs=named, tolerance=1e-9)

    for numbers in ((4, 0, 2, 4), (64, 0, 4, 64), (0, 5, 4, 64), (2, 2, 4, 2), (64, 36, 4, 64), (8128, 64, 8, 64)):
        yield case(*numbers)
    for bits in (2, 4, 8):
        for group_size in (16, 32, 128):
            groups, whole = torch.randint(1, 100, (2,), generator=generator).tolist()
            yield case(groups * group_size, whole, bits, group_size)


def _effective(num_rounded: int, num_whole: int, *, bits: int, group_size: int, shared: float = 32, whole: int = 16) -> float:
    return (num_rounded * (bits + shared / group_size) + num_whole * whole) / (num_rounded + num_whole)


def _effective_with(**wrong: float) -> Callable[..., float]:
    return lambda num_rounded, num_whole, **named: _effective(num_rounded, num_whole, **named, **wrong)


EFFECTIVE_BITS = Exercise(
    name="effective_bits",
    chapter=10,
    title="Count what a number really takes",
    stars=2,
    minutes=10,
    cases=effective_bits_cases,
    look="Add up all bits of one channel: its codes, its groups' scales and zeros, its whole numbers. Divide by its tokens.",
    suspects=(
        Suspect("Scale and zero are left out. Both take 16 bits, once per group.", _effective_with(shared=0)),
        Suspect("A group has a scale and a zero, 16 bits each; one of them is missing.", _effective_with(shared=16)),
        Suspect("Scale and zero take 16 bits each, not 2: those are bytes.", _effective_with(shared=4)),
        Suspect(
            "Every number is given a scale and a zero of its own. A group shares them.",
            lambda num_rounded, num_whole, *, bits, group_size: _effective(
                num_rounded, num_whole, bits=bits, group_size=group_size, shared=32 * group_size
            ),
        ),
        Suspect(
            "The tokens kept whole are left out. They take 16 bits per number, and they count.",
            lambda num_rounded, num_whole, *, bits, group_size: bits + 32 / group_size,
        ),
        Suspect(
            "That is the mean of two widths. There are more numbers of one than of the other: weigh them.",
            lambda num_rounded, num_whole, *, bits, group_size: (bits + 32 / group_size + 16) / 2,
        ),
        Suspect(
            "A token that is kept whole has neither scale nor zero.",
            lambda num_rounded, num_whole, *, bits, group_size: (
                (num_rounded * bits + num_whole * 16) / (num_rounded + num_whole) + 32 / group_size
            ),
        ),
    ),
)

# -- The residual window ----------------------------------------------------------------------------------------------

ROUNDED = 1000.0
"""What the rounding of the check adds to every number, so that nobody takes a rounded token for a whole one."""

CHANNELS = 2


def residual_window_cases(generator: torch.Generator):
    def case(group_size: int, residual: int, pieces: list[int]) -> Case:
        numbers = torch.randint(100, (sum(pieces), CHANNELS), generator=generator).float()
        says = f"group_size={group_size}, residual={residual}, appends of {shown(pieces)} tokens"
        return Case(says, (), extra=(group_size, residual, numbers.split(pieces)))

    for story in (
        (1, 0, [1]), (2, 0, [1, 1, 1]), (2, 1, [1, 1, 1, 1]), (2, 0, [2, 2]), (2, 3, [1] * 6), (2, 1, [5, 1]), (3, 0, [7, 1, 4]),
    ):  # fmt: skip
        yield case(*story)
    for _ in range(6):
        group_size, residual, *pieces = torch.randint(1, 7, (8,), generator=generator).tolist()
        yield case(group_size, residual, pieces)
    yield case(16, 32, [40, *[1] * 30])


def judge_window(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Append piece by piece; after each, the right tokens should be rounded, once."""
    group_size, residual, pieces = case.extra
    groups = list(torch.cat(pieces).split(group_size))
    calls = 0

    def round_group(group: Any) -> Tensor:
        nonlocal calls
        _check_group(group, groups, calls, group_size)
        calls += 1
        return group + ROUNDED

    window = solution(group_size=group_size, residual=residual, round_group=round_group)
    held = torch.empty(0, CHANNELS)
    for piece in pieces:
        given = piece.clone()
        came = window.append(given)
        held = torch.cat((held, piece))
        _compare_tokens(came, held, max(0, len(held) - residual) // group_size * group_size)
        if difference(given, piece):
            raise Wrong(f"{_after(held)}, `append` changed what it was given", hint="Write to a tensor of your own.")


def _check_group(group: Any, groups: list[Tensor], calls: int, group_size: int) -> None:
    """Say what is wrong with what an answer wants to have rounded, if anything is."""
    if not isinstance(group, Tensor) or list(group.shape) != [group_size, CHANNELS]:
        given = f"a tensor of shape {list(group.shape)}" if isinstance(group, Tensor) else shown(group)
        problem = f"`round_group` was given {given}, wanted is [{group_size}, {CHANNELS}]"
        raise Wrong(problem, hint="It takes one full group at a time: as many tokens as a group holds, all channels.")
    if calls < len(groups) and not difference(group, groups[calls]):
        return
    if (group >= ROUNDED).any():
        raise Wrong("`round_group` was given a rounded group again", hint="Keep rounded groups apart from what is still whole.")
    for earlier, once in enumerate(groups[:calls]):
        if not difference(group, once):
            again = f"`round_group` was given group {earlier} a second time"
            raise Wrong(again, hint="A group is rounded once, when its time has come. Keep what came back.")
    first = calls * group_size
    wanted = f"wanted are tokens {first} to {first + group_size - 1}"
    raise Wrong(f"`round_group` was given {shown(group)}, {wanted}", hint="The oldest tokens that are whole go first.")


def _after(held: Tensor) -> str:
    return f"with {len(held)} token{'s' if len(held) > 1 else ''} so far"


def _compare_tokens(came: Any, held: Tensor, num_rounded: int) -> None:
    """Say of the first token that is wrong what is wrong with it."""
    after = _after(held)
    wanted = held.clone()
    wanted[:num_rounded] += ROUNDED
    problem = difference(came, wanted)
    if not problem:
        return
    if came is None:
        raise Wrong(f"{after}, {problem}", hint="Is a `return` missing?")
    if not isinstance(came, Tensor) or came.shape != wanted.shape or came.dtype != wanted.dtype:
        raise Wrong(f"{after}, {problem}", hint="`append` returns all tokens so far, oldest first, rounded or not.")
    token = int((came != wanted).any(dim=1).nonzero()[0])
    is_whole, is_rounded = (bool((came[token] == held[token] + times * ROUNDED).all()) for times in (0, 1))
    if is_whole:
        raise Wrong(
            f"{after}, token {token} is whole, wanted is rounded",
            hint="A group is rounded as soon as it is full and `residual` younger tokens stand behind it. "
            "One piece may bring several groups to that point.",
        )
    if is_rounded:
        raise Wrong(
            f"{after}, token {token} is rounded, wanted is whole",
            hint="The newest `residual` tokens stay whole, and so does a group while any of them is in it.",
        )
    raise Wrong(f"{after}, token {token}: {problem}", hint="Tokens stay in their order: rounded groups first, whole ones behind.")


RESIDUAL_WINDOW = Exercise(
    name="ResidualWindow",
    chapter=10,
    title="Round a group once, when its time has come",
    stars=3,
    minutes=20,
    cases=residual_window_cases,
    look="Two parts: groups that are rounded and stay as they are, and younger tokens that are whole.",
    judge=judge_window,
)

EXERCISES = (QUANTISE, PACK_INT4, EFFECTIVE_BITS, RESIDUAL_WINDOW)
