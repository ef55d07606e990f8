"""Exercises of chapter 9: rows of different length, and who shares a step."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llama3_edu.cache.blocks import blocks_for
from llama3_edu.checkpoint import load_tiny
from llama3_edu.checks.compare import shown
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong, by_value
from llama3_edu.hardware import default_device
from llama3_edu.positions import PAD, left_pad, right_pad

__all__ = ["EXERCISES"]

# -- Positions under padding ------------------------------------------------------------------------------------------


def padded_positions_cases(generator: torch.Generator):
    def case(real: list[list[int]], held: list[int], device: str = "cpu") -> Case:
        mask, before = torch.tensor(real, dtype=torch.bool, device=device), torch.tensor(held, device=device)
        says = f"real={real}, held={held}" if mask.numel() <= 16 else f"real of shape {list(mask.shape)}"
        says += "" if device == "cpu" else f" on {device}"
        return Case(says, (mask, before), _positions(mask, before))

    yield case([[1]], [0])
    yield case([[1, 1, 1]], [0])
    yield case([[0, 1, 1]], [0])
    yield case([[1, 1, 1], [0, 0, 1]], [0, 0])
    yield case([[1, 1, 0], [1, 0, 0]], [0, 4])
    yield case([[0, 1], [1, 1], [0, 0]], [4, 0, 7])
    for device in sorted({"cpu", default_device().type}):
        for batch, new_len in ((3, 4), (5, 9), (8, 40)):
            lengths = torch.randint(new_len + 1, (batch,), generator=generator)[:, None]
            columns = torch.arange(new_len)
            held = torch.randint(20, (batch,), generator=generator).tolist()
            yield case((columns >= new_len - lengths).int().tolist(), held, device)
            yield case((columns < lengths).int().tolist(), held, device)


def _positions(real: Bool[Tensor, "batch new_len"], held: Int[Tensor, "batch"]) -> Int[Tensor, "batch new_len"]:
    return (real.cumsum(dim=1) - 1 + held[:, None]).masked_fill(~real, PAD)


COLUMNS = "Those are columns. A token's position counts the tokens before it in its own row, not the padding."
PADDING = "Padding has to stand at -1, wherever it is."

PADDED_POSITIONS = Exercise(
    name="padded_positions",
    chapter=9,
    title="Find the positions under padding",
    stars=1,
    minutes=10,
    cases=padded_positions_cases,
    look="A token stands at the number of tokens before it in its row, those held included; padding stands at -1.",
    suspects=(
        Suspect(
            COLUMNS,
            lambda real, held: (torch.arange(real.shape[1], device=real.device) + held[:, None]).masked_fill(~real, PAD),
        ),
        Suspect(
            COLUMNS,
            lambda real, held: torch.arange(real.shape[1], device=real.device) + held[:, None],
        ),
        Suspect(
            "That is one too many: the first token of a text stands at 0.",
            lambda real, held: (real.cumsum(dim=1) + held[:, None]).masked_fill(~real, PAD),
        ),
        Suspect(PADDING, lambda real, held: real.cumsum(dim=1) - 1 + held[:, None]),
        Suspect(PADDING, lambda real, held: _positions(real, held).masked_fill(~real, 1)),
        Suspect(PADDING, lambda real, held: _positions(real, held).masked_fill(~real, 0)),
        Suspect(
            "The row holds `held` tokens already; the new ones stand behind them.",
            lambda real, held: _positions(real, torch.zeros_like(held)),
        ),
        Suspect(
            "That moves the padding too. Only tokens stand behind those held.",
            lambda real, held: _positions(real, torch.zeros_like(held)) + held[:, None],
        ),
        Suspect(
            "That counts down the columns; a row is counted along axis 1.",
            lambda real, held: (real.cumsum(dim=0) - 1 + held[:, None]).masked_fill(~real, PAD),
        ),
    ),
)

# -- Batched equals single --------------------------------------------------------------------------------------------

Run: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From tokens and positions, both [batch new_len], to logits, [batch new_len vocab_size]."""


def _run_tiny(device: str, dtype: torch.dtype) -> Run:
    model, _ = load_tiny(device=device, dtype=dtype)

    @torch.no_grad()
    def run(tokens: Tensor, positions: Tensor) -> Tensor:
        return model(tokens.to(device), positions=positions.to(device))

    return run


def batched_next_logits_cases(generator: torch.Generator):
    places = [("cpu", torch.float64, 1e-9)]
    if default_device().type != "cpu":
        places.append((default_device().type, torch.float32, 1e-3))
    for device, dtype, tolerance in places:
        run = _run_tiny(device, dtype)
        for lengths in ([1], [3], [2, 2], [2, 3], [3, 1], [4, 2, 7], [9, 1, 16, 5, 16]):
            rows = [torch.randint(1, 512, (length,), generator=generator).tolist() for length in lengths]
            wanted = [run(torch.tensor([row]), torch.arange(len(row))[None])[0, -1] for row in rows]
            many = f"{len(rows)} row{'s' if len(rows) > 1 else ''} of {lengths} tokens on {device}"
            yield Case(many, (run, rows), torch.stack(wanted), tolerance=tolerance)


def judge_batch(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Compare what comes with what each row gets alone, and count how often the model ran."""
    shapes = []

    def called_with_counter(run: Run, rows: list[list[int]]) -> Any:
        def counted(tokens: Tensor, positions: Tensor) -> Tensor:
            shapes.append(list(tokens.shape))
            return run(tokens, positions)

        return solution(counted, rows)

    by_value(exercise, called_with_counter, case)
    if len(shapes) != 1:
        times = f"the logits are right, but the model ran {len(shapes)} times, wanted is once"
        raise Wrong(times, hint="Put the rows side by side in one rectangle; that is what a batch is for.")


def _columns_as_positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1]).expand(tokens.shape)


def _last_column_of_right_padded(run: Run, rows: list[list[int]]) -> Tensor:
    return run(*right_pad(rows))[:, -1]


def _padding_as_text_on_the_left(run: Run, rows: list[list[int]]) -> Tensor:
    tokens, _ = left_pad(rows)
    return run(tokens, _columns_as_positions(tokens))[:, -1]


def _left_padding_at_zero(run: Run, rows: list[list[int]]) -> Tensor:
    tokens, positions = left_pad(rows)
    return run(tokens, positions.clamp_min(0))[:, -1]


def _own_length_on_the_left(run: Run, rows: list[list[int]]) -> Tensor:
    return run(*left_pad(rows))[range(len(rows)), [len(row) - 1 for row in rows]]


def _first_tokens(run: Run, rows: list[list[int]]) -> Tensor:
    return run(*right_pad(rows))[:, 0]


def _one_before_the_last(run: Run, rows: list[list[int]]) -> Tensor:
    return run(*right_pad(rows))[range(len(rows)), [max(0, len(row) - 2) for row in rows]]


BATCHED_NEXT_LOGITS = Exercise(
    name="batched_next_logits",
    chapter=9,
    title="Get from a batch what each row gets alone",
    stars=2,
    minutes=15,
    cases=batched_next_logits_cases,
    look="Three things have to fit together: the side of the padding, the positions, and the column that you take.",
    judge=judge_batch,
    suspects=(
        Suspect("With padding on the right, the last column is a token in the longest rows alone.", _last_column_of_right_padded),
        Suspect("With those positions the padding is read as text. Padding stands at -1.", _padding_as_text_on_the_left),
        Suspect(
            "Padding at position 0 is seen by every token of its row: a key is seen where 0 <= its position. "
            "It has to stand at -1.",
            _left_padding_at_zero,
        ),
        Suspect("With padding on the left, a row does not end in column `len(row) - 1`.", _own_length_on_the_left),
        Suspect("That is what follows each row's first token; wanted is what follows its last.", _first_tokens),
        Suspect("That is one token before the last: it predicts the last token, which is known.", _one_before_the_last),
    ),
)

# -- One step of a scheduler ------------------------------------------------------------------------------------------

Queue: TypeAlias = list[tuple[int, int]]
"""Sequences as pairs: number in order of arrival, tokens of the text so far."""


def scheduler_step(
    running: Queue, waiting: Queue, *, num_blocks: int, block_size: int, max_batch: int,
    blocks: Callable[[int, int], int] = blocks_for, victim: int = -1, at_the_end: bool = False, once: bool = False,
    grows_first: bool = False, spare: int = 1, own_spare: int = 0, skips: bool = False, more_rows: int = 0,
) -> tuple[Queue, Queue]:  # fmt: skip
    """Let give way, let in, and give everybody a token. What follows `max_batch` are the ways to get it wrong."""
    running, waiting = list(running), list(waiting)

    def taken(sequences: Queue) -> int:
        return sum(blocks(tokens, block_size) for _, tokens in sequences)

    preempted = 0
    while taken(running) > num_blocks and not (once and preempted):
        sequence, tokens = running.pop(victim)
        preempted += 1
        waiting.insert(len(waiting) if at_the_end else 0, (sequence, tokens + grows_first))
    for candidate in list(waiting):
        others = taken(running) + spare * len(running) + own_spare
        if len(running) < max_batch + more_rows and taken([candidate]) + others <= num_blocks:
            waiting.remove(candidate)
            running.append(candidate)
        elif not skips:
            break
    return [(sequence, tokens + 1) for sequence, tokens in running], waiting


def scheduler_step_cases(generator: torch.Generator):
    def case(running: Queue, waiting: Queue, num_blocks: int, block_size: int, max_batch: int) -> Case:
        sizes = {"num_blocks": num_blocks, "block_size": block_size, "max_batch": max_batch}
        named = ", ".join(f"{name}={value}" for name, value in sizes.items())
        says = f"running={running}, waiting={waiting}, {named}"
        return Case(says, (running, waiting), scheduler_step(running, waiting, **sizes), kwargs=sizes)

    yield case([], [(0, 1)], 4, 2, 2)
    yield case([(0, 2)], [], 4, 2, 2)
    yield case([(0, 2)], [], 1, 2, 2)
    yield case([], [(0, 3)], 2, 2, 2)
    yield case([(0, 2)], [(1, 2)], 2, 2, 2)
    yield case([(0, 2)], [(1, 2)], 3, 2, 2)
    yield case([(0, 2)], [(1, 1)], 8, 2, 1)
    yield case([(0, 3), (1, 3)], [], 3, 2, 2)
    yield case([(0, 3), (1, 3)], [(2, 1)], 3, 2, 3)
    yield case([(0, 7), (1, 3), (2, 3)], [], 5, 2, 3)
    yield case([(0, 2)], [(1, 9), (2, 1)], 5, 2, 3)
    yield case([(0, 2)], [(1, 3), (2, 2), (3, 1)], 9, 2, 4)
    for size in (3, 6, 9):
        for _ in range(15):
            draw = torch.randint(12, (2 * size + 3,), generator=generator).tolist()
            block_size, num_running = 1 + draw[0] % 4, draw[1] % size
            sequences = [(number, 2 + tokens) for number, tokens in enumerate(draw[3 : size + 3])]
            running, waiting = sequences[:num_running], sequences[num_running:]
            held = sum(blocks_for(tokens - 1, block_size) for _, tokens in running)
            first = blocks_for(running[0][1], block_size) if running else 1
            yield case(running, waiting, max(held, first) + draw[2] % 5, block_size, max(1, num_running) + draw[2] % 3)


def judge_step(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Judge by value, and show both lists of a wrong answer whole."""
    came: list[Any] = []

    def remembered(*args: Any, **kwargs: Any) -> Any:
        came.append(solution(*args, **kwargs))
        return came[0]

    try:
        by_value(exercise, remembered, case)
    except Wrong as wrong:
        if came[0] == case.wanted or not isinstance(came[0], tuple) or len(came[0]) != 2:
            raise
        (running, waiting), (running_wanted, waiting_wanted) = came[0], case.wanted
        wanted = f"wanted are {shown(running_wanted)} and {shown(waiting_wanted)}"
        problem = f"running={shown(running)}, waiting={shown(waiting)} came, {wanted}"
        raise Wrong(problem, hint=wrong.hint) from None


def _step_with(**wrong: Any) -> Callable[..., tuple[Queue, Queue]]:
    return lambda running, waiting, **sizes: scheduler_step(running, waiting, **sizes, **wrong)


SCHEDULER_STEP = Exercise(
    name="scheduler_step",
    chapter=9,
    title="Decide one step of a scheduler",
    stars=3,
    minutes=25,
    cases=scheduler_step_cases,
    judge=judge_step,
    look="In this order: who has to give way, who is let in, and then a token for everybody who runs.",
    suspects=(
        Suspect(
            "That lets in without a spare block: each sequence that runs already may need one more soon.", _step_with(spare=0)
        ),
        Suspect("The spare blocks are for those who run already, not for the newcomer.", _step_with(own_spare=1)),
        Suspect("The last one let in gives way, not the first: the first one has to get to its end.", _step_with(victim=0)),
        Suspect("Who gives way waits at its old place, before all that came later.", _step_with(at_the_end=True)),
        Suspect("One of them gave way, and those who are left still need more blocks than there are.", _step_with(once=True)),
        Suspect("Who gives way gets no token in this step.", _step_with(grows_first=True)),
        Suspect(
            "The first in the queue does not fit, and somebody behind it was let in. Then long ones would wait for ever.",
            _step_with(skips=True),
        ),
        Suspect("More sequences run than `max_batch` allows.", _step_with(more_rows=1)),
        Suspect("Blocks are whole: a block that is begun is taken.", _step_with(blocks=lambda tokens, size: tokens // size)),
        Suspect(
            "Blocks are needed for the tokens there are. The token chosen in this step is stored in the next.",
            _step_with(blocks=lambda tokens, size: blocks_for(tokens + 1, size)),
        ),
    ),
)

EXERCISES = (PADDED_POSITIONS, BATCHED_NEXT_LOGITS, SCHEDULER_STEP)
