"""Exercises of chapter 13: beams and copy-on-write."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llama3_edu.cache.blocks import BlockPool, OutOfBlocks, blocks_for
from llama3_edu.cache.growing import GrowingCache
from llama3_edu.cache.paged import PagedCache
from llama3_edu.checks.exercise import Case, Exercise, Solution, Wrong
from llama3_edu.checks.material import CPU, devices, random_llama
from llama3_edu.config import LlamaConfig
from llama3_edu.events import BlockAllocated, BlockCopied, Event
from llama3_edu.model import Llama

__all__ = ["EXERCISES"]

SMALL = LlamaConfig(dim=2, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=2, vocab_size=2)
"""As little per token as there can be: a key of two numbers and a value of two."""


def counted(number: int, what: str) -> str:
    """Return `1 block`, `2 blocks`."""
    return f"{number} {what}{'s' * (number != 1)}"


@dataclass
class Watched:
    """A pool whose every event is kept, with a block in it that belongs to nobody here: so block and index differ."""

    num_blocks: int = 16
    block_size: int = 2
    device: torch.device = CPU
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = BlockPool(
            SMALL,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            device=self.device,
            dtype=torch.float32,
            observer=self.events.append,
        )
        self.strangers = [self.pool.allocate()]

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def filled(self, num_tokens: int, *, first: int = 1) -> list[int]:
        """Return the table of a text whose keys are first, first + 1, …"""
        cache = PagedCache(self.pool, [[]])
        cache.reserve(torch.arange(num_tokens)[None])
        numbers = torch.arange(first, first + num_tokens, device=self.device).float()
        k = numbers[None, :, None, None].expand(1, num_tokens, 1, 2)
        cache.update(0, k, -k)
        return cache.block_tables[0]

    def keys(self, table: Sequence[int], num_tokens: int) -> list[int]:
        """What a table's slots hold, one number per token."""
        k, _ = PagedCache(self.pool, [[*table]], [num_tokens]).read(0)
        return [int(number) for number in k[0, :, 0, 0].tolist()]

    def shared(self, table: Sequence[int]) -> list[int]:
        for block in table:
            self.pool.share(block)
        return [*table]

    def check_counts(self, *tables: Sequence[int], hints: tuple[str, str]) -> None:
        """Raise unless every block is counted once per table it is in.

        Args:
            hints: what to say where a block is counted too often, and where too seldom.
        """
        held = Counter(block for table in (*tables, self.strangers) for block in table)
        for block in range(self.num_blocks):
            holders = self.pool.ref_count(block)
            if holders != held[block]:
                tables_say = f"it stands in {counted(held[block], 'table')}"
                told = f"afterwards block {block} has {counted(holders, 'holder')}, but {tables_say}"
                raise Wrong(told, hint=hints[holders < held[block]])


# -- fork --


def fork_cases(generator: torch.Generator) -> Iterator[Case]:
    for num_blocks, num_shared in ((1, 0), (0, 0), (2, 0), (2, 1), (3, 3), (7, 4)):
        others = f", {num_shared} of them also in another table" if num_shared else ""
        yield Case(f"a table of {counted(num_blocks, 'block')}{others}", (num_blocks, num_shared))


def judge_fork(exercise: Exercise, solution: Solution, case: Case) -> None:
    num_blocks, num_shared = case.args
    watched = Watched()
    table = watched.pool.allocate_many(num_blocks)
    other = watched.shared(table[:num_shared])
    given = [*table]
    watched.events.clear()
    came = solution(watched.pool, given)
    if watched.count(BlockAllocated):
        raise Wrong(
            f"the pool gave out {counted(watched.count(BlockAllocated), 'block')}, wanted is none",
            hint="A fork copies nothing: nobody writes yet. Both tables hold the very same blocks.",
        )
    if not isinstance(came, list) or came != table:
        raise Wrong(f"{came} came, wanted is {table}", hint="The second table lists the same blocks, in the same order.")
    if came is given:
        raise Wrong("the table itself came back", hint="Two texts need two lists: what one appends, the other must not see.")
    if given != table:
        raise Wrong(f"the first table was changed to {given}, it was {table}", hint="The first text goes on as it was.")
    too_often = "Count one more holder per block, and no more than one."
    watched.check_counts(
        table, came, other, hints=(too_often, "The pool was not told: share every block, the first to the last.")
    )


FORK = Exercise(
    name="fork",
    chapter=13,
    title="Fork a block table",
    stars=1,
    minutes=10,
    cases=fork_cases,
    look="A second list of the same blocks, and one more holder for each of them.",
    judge=judge_fork,
)


# -- append_slot --


def append_slot_cases(generator: torch.Generator) -> Iterator[Case]:
    yield Case("an empty table, block_size = 2", (0, 2, 0, CPU))
    for size, lengths in ((2, (1, 2, 3, 4)), (4, (3, 4, 5, 8)), (1, (1, 2))):
        for others in (0, 1, 2):
            yield from (append_slot_case(num_tokens, size, others, CPU) for num_tokens in lengths)
    for device in devices()[1:]:
        yield append_slot_case(3, 2, 1, device)


def append_slot_case(num_tokens: int, size: int, others: int, device: torch.device) -> Case:
    held = ("nobody else holds", "one other table holds", f"{others} other tables hold")[min(others, 2)]
    on = "" if device == CPU else f", on {device}"
    return Case(
        f"a table of {counted(num_tokens, 'token')}, block_size = {size}, whose blocks {held}{on}",
        (num_tokens, size, others, device),
    )


def judge_append_slot(exercise: Exercise, solution: Solution, case: Case) -> None:
    num_tokens, size, num_others, device = case.args
    watched = Watched(block_size=size, device=device)
    table = watched.filled(num_tokens) if num_tokens else []
    others = [watched.shared(table) for _ in range(num_others)]
    before = [*table]
    watched.events.clear()
    slot = solution(watched.pool, table, num_tokens)
    check_grown(watched, before, table, num_tokens, is_shared=num_others > 0)
    wanted = table[num_tokens // size] * size + num_tokens % size
    if type(slot) is not int or slot != wanted:
        raise Wrong(
            f"slot {slot} came, wanted is {wanted}: the table is {table} now",
            hint="Block b holds the slots from b * block_size on; the new token is number num_tokens, counted from 0.",
        )
    watched.check_counts(
        table,
        *others,
        hints=(
            "Who takes a block out of a table and puts a copy there has to release it, or it is held for ever.",
            "Something was released that is still in a table.",
        ),
    )
    for name, rows in (("this table", table), *(("another table", other) for other in others)):
        wanted_keys = list(range(1, num_tokens + 1))
        came = watched.keys(rows[: blocks_for(num_tokens, size)], num_tokens) if num_tokens else []
        if came != wanted_keys:
            told = f"afterwards {name} reads keys {came}, stored were {wanted_keys}"
            raise Wrong(told, hint="A fresh block is empty: what the shared one holds has to go along. pool.copy does that.")


def check_grown(watched: Watched, before: list[int], table: list[int], num_tokens: int, *, is_shared: bool) -> None:
    """Raise unless the table has room for one more token that nobody else will see, at the price of one block at most."""
    size = watched.block_size
    needed = blocks_for(num_tokens + 1, size)
    if len(table) != needed:
        full = num_tokens % size == 0
        hint = (
            "All blocks are full: the token needs a new one." if full else "The last block has a free slot: no new one is needed."
        )
        raise Wrong(
            f"the table has {counted(len(table), 'block')} now, for {counted(num_tokens + 1, 'token')} it needs {needed}",
            hint=hint,
        )
    copies, wanted_copies = watched.count(BlockCopied), int(is_shared and num_tokens % size != 0)
    if copies > wanted_copies:
        hint = "Nobody else holds this block: write in place." if not is_shared else "A full block is never written again."
        if wanted_copies:
            hint = "One copy is enough: that of the block which is written to."
        raise Wrong(f"{counted(copies, 'block')} copied, wanted {'is 1' if wanted_copies else 'is none'}", hint=hint)
    if wanted_copies and table[-1] == before[-1]:
        told = f"the token would be written into block {table[-1]}, which another table holds too"
        raise Wrong(told, hint="What has other holders must not be written: put a copy in its place first.")
    if table[: len(before) - wanted_copies] != before[: len(before) - wanted_copies]:
        raise Wrong(f"the table is {table} now, it was {before}", hint="Only the block that is written to may be replaced.")


APPEND_SLOT = Exercise(
    name="append_slot",
    chapter=13,
    title="Append, and copy only when you must",
    stars=2,
    minutes=20,
    cases=append_slot_cases,
    look="Is the last block full, then allocate. Do others hold it, then copy and release. Else there is nothing to do.",
    judge=judge_append_slot,
)


# -- reorder_tables --


def reorder_tables_cases(generator: torch.Generator) -> Iterator[Case]:
    given: list[tuple[list[int], int, list[int]]] = [([1], 0, [0]), ([1], 0, [0, 0]), ([1, 1], 0, [0, 1]), ([1, 1], 0, [1, 0])]
    given += [([1, 1], 0, [1, 1]), ([1, 1], 1, [0, 0]), ([2, 2, 2], 1, [2, 2, 0]), ([2, 2, 2], 2, [1]), ([1, 2], 1, [1, 1, 0, 1])]
    for own, common, parents in given:
        rows = f"{counted(len(own), 'table')} with {common} common and {' + '.join(map(str, own))} own blocks"
        yield Case(f"{rows}, parents = {parents}", (own, common, parents))
    for width, size in ((2, 4), (3, 2)):
        model = random_llama(generator)
        prompt = torch.randint(13, (1, 5), generator=generator)
        says = f"a whole search, {width} beams over blocks of {size}"
        yield Case(says, (model, prompt, width, size), extra="search")


def judge_reorder_tables(exercise: Exercise, solution: Solution, case: Case) -> None:
    if case.extra == "search":
        return judge_search(solution, *case.args)
    own, common, parents = case.args
    watched = Watched(num_blocks=24)
    beginning = watched.pool.allocate_many(common)
    tables = [[*(watched.shared(beginning) if row else beginning), *watched.pool.allocate_many(n)] for row, n in enumerate(own)]
    wanted = [[*tables[parent]] for parent in parents]
    watched.events.clear()
    try:
        came = solution(watched.pool, tables, [*parents])
    except ValueError as error:
        if "is free" not in str(error):
            raise
        raise Wrong(
            f"the pool refused: {error}",
            hint="For a moment nobody held a block that an heir wants. Share what is wanted first, release afterwards.",
        ) from None
    check_reordered(watched, came, wanted)


def check_reordered(watched: Watched, came: Any, wanted: list[list[int]]) -> None:
    if watched.count(BlockAllocated):
        told = f"the pool gave out {counted(watched.count(BlockAllocated), 'block')}, wanted is none"
        raise Wrong(told, hint="A reorder copies nothing: heirs hold the very same blocks.")
    if not isinstance(came, list) or [list(table) for table in came] != wanted:
        raise Wrong(f"{came} came, wanted is {wanted}", hint="Row i is to continue what row parents[i] held.")
    if len(set(map(id, came))) != len(came):
        told = "two rows came with one and the same list"
        raise Wrong(told, hint="Two heirs of one parent need two lists: each will append blocks of its own.")
    watched.check_counts(
        *came,
        hints=(
            "A row that is replaced lets go of each of its blocks, whether it has heirs or not: every heir counts for itself.",
            "Every heir is one more holder of each of its blocks.",
        ),
    )


def judge_search(solution: Solution, model: Llama, prompt: Tensor, width: int, size: int) -> None:
    """Follow beams over blocks that the answer reorders; compare them with beams over rows that are copied."""
    pool = BlockPool(model.config, num_blocks=64, block_size=size, dtype=model.dtype)
    tables: list[list[int]] = [[]]

    def run(tokens: Tensor) -> Tensor:
        held = tokens.shape[1] - 1 if tokens.shape[1] > prompt.shape[1] else 0
        return model.next_logits(tokens[:, held:], PagedCache(pool, tables, [held] * len(tables)))

    def reorder(parents: Tensor) -> None:
        tables[:] = solution(pool, tables, parents.tolist())

    cache = GrowingCache(model.config, dtype=model.dtype)
    copied = search(prompt, width, lambda tokens: model.next_logits(tokens[:, int(cache.seq_lens[0]) :], cache), cache.reorder)
    shared = search(prompt, width, run, reorder)
    if not torch.equal(shared[0], copied[0]) or not torch.allclose(shared[1], copied[1], rtol=0, atol=1e-9):
        told = f"the best beam over shared blocks is {shared[0][0].tolist()}, over copied rows {copied[0][0].tolist()}"
        raise Wrong(told, hint="Row i is to continue what row parents[i] held.")
    held = len(set().union(*tables))
    if pool.num_used != held:
        raise Wrong(f"after the search {pool.num_used} blocks are in use, the tables hold {held}", hint="Who lets go of them?")


def search(
    tokens: Tensor, width: int, run: Callable[[Tensor], Tensor], reorder: Callable[[Tensor], None], steps: int = 6
) -> tuple[Tensor, Tensor]:
    """Follow `width` beams: the loop of the chapter. Return their tokens and scores, best first."""
    scores = torch.zeros(1, dtype=torch.float64)
    for _ in range(steps):
        log_probs = run(tokens).log_softmax(dim=-1)
        scores, places = (scores[:, None] + log_probs).flatten().topk(width)
        parents, newest = places // log_probs.shape[1], places % log_probs.shape[1]
        reorder(parents)
        tokens = torch.cat((tokens[parents], newest[:, None]), dim=1)
    return tokens, scores


REORDER_TABLES = Exercise(
    name="reorder_tables",
    chapter=13,
    title="Beams that share equal beams that copy",
    stars=2,
    minutes=20,
    cases=reorder_tables_cases,
    look="One new list per heir, its blocks shared; then every old table released.",
    judge=judge_reorder_tables,
)


# -- use_fork --


class Cancelled(Exception):
    """The reader went away."""


def use_fork_cases(generator: torch.Generator) -> Iterator[Case]:
    yield Case("use that only looks, and returns 7", (2, "looks"))
    yield Case("use that raises Cancelled", (2, "raises"))
    yield Case("use that writes, so the last block is replaced by a copy", (3, "writes"))
    yield Case("use that appends a block", (2, "appends"))
    yield Case("use that writes and then raises Cancelled", (3, "writes, raises"))
    yield Case("use that gives up the blocks itself", (3, "empties"))
    yield Case("use that runs out of blocks", (5, "appends, runs out"))


def judge_use_fork(exercise: Exercise, solution: Solution, case: Case) -> None:
    num_blocks, does = case.args
    watched = Watched(num_blocks=8)
    table = watched.pool.allocate_many(num_blocks)
    before = [*table]
    calls = []

    def use(fork: list[int]) -> int:
        calls.append(fork)
        check_fork_in_use(watched, fork, table, before)
        return play(watched.pool, fork, does)

    came = error = None
    try:
        came = solution(watched.pool, table, use)
    except (Cancelled, OutOfBlocks) as stopped:
        error = stopped
    if len(calls) != 1:
        raise Wrong(
            f"use was called {counted(len(calls), 'time')}, wanted is once", hint="Fork, call use(fork), clean up, return."
        )
    check_outcome(came, error, does)
    if table != before:
        raise Wrong(f"the table was changed to {table}, it was {before}", hint="The text itself goes on as it was.")
    watched.check_counts(
        table,
        hints=(
            "Blocks are left behind. Release what the fork holds when use has ended, however it ended: try … finally.",
            "A block of the text itself was let go. Release the blocks that are in the fork at the end, each once.",
        ),
    )


def check_fork_in_use(watched: Watched, fork: Any, table: list[int], before: list[int]) -> None:
    if fork is table:
        raise Wrong("use was given the table itself", hint="Give it a second list, and leave the text as it is.")
    if fork != before:
        raise Wrong(f"use was given {fork}, the table is {before}", hint="A fork begins with the same blocks.")
    for block in before:
        if watched.pool.ref_count(block) != 2:
            told = f"while use runs, block {block} has {counted(watched.pool.ref_count(block), 'holder')}, wanted are 2"
            raise Wrong(told, hint="A fork counts as a holder: otherwise use takes shared blocks for its own.")


def check_outcome(came: Any, error: Exception | None, does: str) -> None:
    if error is None and ("raises" in does or "runs out" in does):
        raise Wrong(
            f"use raised an error, and {came} came back", hint="Clean up, and let the error pass: `finally`, not `except`."
        )
    if error is not None and "raises" not in does and "runs out" not in does:
        raise error
    if error is None and came != 7:
        raise Wrong(f"{came} came, use returned 7", hint="Return what use returns.")


def play(pool: BlockPool, fork: list[int], does: str) -> int:
    """Do with a fork what a text does with its table."""
    if "appends" in does:
        fork.append(pool.allocate())
    if "runs out" in does:
        pool.allocate_many(pool.num_free + 1)
    if "writes" in does:
        shared = fork[-1]
        fork[-1] = pool.copy(shared)
        pool.release(shared)
    if "empties" in does:
        while fork:
            pool.release(fork.pop())
    if "raises" in does:
        raise Cancelled("the reader went away")
    return 7


USE_FORK = Exercise(
    name="use_fork",
    chapter=13,
    title="Nothing leaks",
    stars=2,
    minutes=15,
    cases=use_fork_cases,
    look="Share every block into a new list, call use with it, and release in the end what is in that list then.",
    judge=judge_use_fork,
)

EXERCISES: tuple[Exercise, ...] = (FORK, APPEND_SLOT, REORDER_TABLES, USE_FORK)
