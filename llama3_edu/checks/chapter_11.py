"""Exercises of chapter 11: memory in blocks."""

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from llama3_edu.attention import attend
from llama3_edu.cache.blocks import OutOfBlocks
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong
from llama3_edu.hardware import default_device
from llama3_edu.positions import PAD

__all__ = ["EXERCISES"]

# -- Allocate and free ------------------------------------------------------------------------------------------------

Action: TypeAlias = tuple[str, int]
"""What is asked for, and how many blocks: `take 3`, `give back 2`, or one of the mistakes in `MISTAKES`."""

MISTAKES = {
    "give back one twice": "Whoever gives a block back twice gives it away twice. Keep track of who is free.",
    "give back one that nobody took": "Only a block that somebody holds can come back.",
    "give back one that is no block": "The pool has blocks 0 to num_blocks - 1 and no others.",
    "give back one with a free one": "Look at all of them first: where one cannot come back, nothing should change.",
    "give back the same one twice at once": "The same block stands twice in that list. One of them is too many.",
}
"""Each has to end in a ValueError, and to change nothing."""


def free_list_cases(generator: torch.Generator) -> Iterator[Case]:
    def case(num_blocks: int, *actions: Action) -> Case:
        told = ", ".join(f"{what} {count}" if what not in MISTAKES else what for what, count in actions)
        told = told if len(actions) < 8 else f"{len(actions)} random steps"
        return Case(f"{num_blocks} block{'s' if num_blocks > 1 else ''}: {told}", (), extra=(num_blocks, actions))

    yield case(1, ("take", 1))
    yield case(2, ("take", 1), ("take", 1))
    yield case(3, ("take", 3), ("give back", 3))
    yield case(2, ("take", 2), ("give back", 1), ("take", 1))
    yield case(2, ("take", 3), ("take", 2))
    yield case(3, ("take", 2), ("take", 2), ("take", 1))
    yield case(2, ("take", 0), ("take", 2), ("give back", 0), ("take", 1))
    yield case(2, ("take", 1), ("give back", 1), ("give back one twice", 1), ("take", 2))
    yield case(2, ("take", 1), ("give back one that nobody took", 1), ("take", 1))
    yield case(2, ("take", 2), ("give back one that is no block", 1), ("give back", 2))
    yield case(3, ("take", 2), ("give back one with a free one", 1), ("take", 2))
    yield case(2, ("take", 2), ("give back the same one twice at once", 1), ("give back", 1))
    for num_blocks in (4, 7, 30):
        kinds, counts = torch.randint(6, (2, 30), generator=generator).tolist()
        named = ["take", "take", "take", "give back", "give back", "give back one twice"]
        yield case(num_blocks, *[(named[kind], count) for kind, count in zip(kinds, counts)])


class Story:
    """Tells an answer what to do, and knows what should come of it.

    Args:
        pool: the answer's own.
        num_blocks: how many blocks it was given.
    """

    def __init__(self, pool: Any, num_blocks: int) -> None:
        self.pool, self.num_blocks = pool, num_blocks
        self.held: list[int] = []
        self.given_back: list[int] = []

    @property
    def free(self) -> list[int]:
        return [block for block in range(self.num_blocks) if block not in self.held]

    def play(self, what: str, count: int) -> None:
        if what == "take":
            self._take(count)
        elif what == "give back":
            self._give_back(self.held[:count])
        else:
            self._refused(self._mistake(what), MISTAKES[what])
        if self.pool.num_free != len(self.free):
            free = f"`num_free` is {self.pool.num_free}, wanted is {len(self.free)}"
            raise Wrong(
                f"with {sorted(self.held)} taken, {free}",
                hint="It counts the blocks that nobody holds. Lists that were handed out belong to others.",
            )

    def _take(self, count: int) -> None:
        if count > len(self.free):
            self._expect(lambda: self.pool.allocate(count), OutOfBlocks, f"allocate({count}) with {len(self.free)} free")
            return
        given = self.pool.allocate(count)
        self._check_given(given, count)
        self.held += given
        given.clear()  # a table belongs to whoever took the blocks

    def _check_given(self, given: Any, count: int) -> None:
        came = f"allocate({count}) returned {given}"
        if not isinstance(given, list):
            raise Wrong(f"{came}, wanted is a list of blocks", hint="It returns a list, even of one block or of none.")
        if len(given) != count:
            raise Wrong(f"{came}, wanted are {count} blocks", hint="All that were asked for, or an error.")
        outside = [block for block in given if not isinstance(block, int) or not 0 <= block < self.num_blocks]
        if outside:
            raise Wrong(f"{came}, wanted are blocks from 0 to {self.num_blocks - 1}", hint="Blocks are numbered from 0.")
        taken = [block for block in given if block in self.held]
        if taken or len(set(given)) != count:
            raise Wrong(f"{came}, wanted are free ones: {self.free}", hint="A block that was handed out is not free any more.")

    def _give_back(self, blocks: list[int]) -> None:
        given = list(blocks)
        self.pool.release(given)
        given.clear()
        self.held = [block for block in self.held if block not in blocks]
        self.given_back = blocks

    def _mistake(self, what: str) -> list[int]:
        """Return what somebody gives back by mistake, or nothing where the mistake cannot be made now."""
        held, free = self.held[:1], self.free[:1]
        if what == "give back one with a free one":
            return held + free if held and free else []
        if what == "give back the same one twice at once":
            return held * 2
        if what == "give back one twice":
            return [block for block in self.given_back if block not in self.held][:1]
        return [self.num_blocks] if what == "give back one that is no block" else free

    def _refused(self, blocks: list[int], hint: str) -> None:
        if blocks:
            self._expect(lambda: self.pool.release(blocks), ValueError, f"release({blocks}) with {sorted(self.held)} taken", hint)

    def _expect(self, call: Callable[[], Any], wanted: type[Exception], said: str, hint: str = "") -> None:
        hint = hint or "Where too few are free, take none and raise le.OutOfBlocks(needed=…, free=…)."
        before = self.pool.num_free
        try:
            came = call()
        except wanted:
            if self.pool.num_free != before:
                after = f"{said} raised {wanted.__name__}, but `num_free` went from {before} to {self.pool.num_free}"
                raise Wrong(after, hint="Look before anything is changed: all or nothing.") from None
            return
        except (NotImplementedError, Wrong):
            raise
        except Exception as error:
            raised = f"{said} raised {type(error).__name__}, wanted is {wanted.__name__}"
            raise Wrong(raised, hint=hint) from None
        raise Wrong(f"{said} returned {came}, wanted is {wanted.__name__}", hint=hint)


def judge_story(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Tell a story of taking and giving back; after each step, look at what came and at what is free."""
    num_blocks, actions = case.extra
    story = Story(solution(num_blocks), num_blocks)
    for what, count in actions:
        story.play(what, count)


FREE_LIST = Exercise(
    name="FreeList",
    chapter=11,
    title="Hand out blocks, and take them back",
    stars=2,
    minutes=15,
    cases=free_list_cases,
    look="Every block is free or held. `allocate` and `release` move blocks from one to the other, and refuse what cannot be.",
    judge=judge_story,
)

# -- Slots ------------------------------------------------------------------------------------------------------------


def slot_mapping_cases(generator: torch.Generator) -> Iterator[Case]:
    def case(tables: list[list[int]], positions: list[list[int]], block_size: int, device: str = "cpu") -> Case:
        given = torch.tensor(tables, device=device), torch.tensor(positions, device=device)
        says = f"block_tables={tables}, positions={positions}, block_size={block_size}"
        if sum(map(len, positions)) > 12:
            says = f"positions of shape {list(given[1].shape)}, block_size={block_size}"
        return Case(
            says + ("" if device == "cpu" else f" on {device}"),
            given,
            _slots(*given, block_size),
            kwargs={"block_size": block_size},
        )

    yield case([[0]], [[0]], 4)
    yield case([[2]], [[1]], 4)
    yield case([[3, 1]], [[5]], 4)
    yield case([[7, 2, 9, 4]], [[37]], 16)
    yield case([[3, 1]], [[2, 3, 4]], 4)
    yield case([[3, 2], [0, 1]], [[4], [5]], 4)
    yield case([[3, 1], [2, 0]], [[PAD, 4], [0, 1]], 4)
    for device in sorted({"cpu", default_device().type}):
        for batch, per_row, block_size, new_len in ((2, 3, 2, 4), (5, 4, 16, 7), (8, 6, 3, 18)):
            tables = torch.randperm(batch * per_row, generator=generator).view(batch, per_row)
            first = torch.randint(per_row * block_size - new_len + 1, (batch, 1), generator=generator)
            positions = first + torch.arange(new_len)
            padding = torch.randint(new_len, (batch, 1), generator=generator)
            positions = torch.where(torch.arange(new_len) < padding, PAD, positions)
            yield case(tables.tolist(), positions.tolist(), block_size, device)


def _slots(block_tables: Tensor, positions: Tensor, block_size: int) -> Tensor:
    blocks = block_tables.gather(1, positions.clamp_min(0) // block_size)
    return torch.where(positions == PAD, PAD, blocks * block_size + positions % block_size)


def _slots_with(formula: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """A wrong formula for real tokens, right for padding."""

    def imitate(block_tables: Tensor, positions: Tensor, *, block_size: int) -> Tensor:
        return torch.where(positions == PAD, PAD, formula(block_tables, positions.clamp_min(0), block_size))

    return imitate


def _padding_in_the_last_block(block_tables: Tensor, positions: Tensor, *, block_size: int) -> Tensor:
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    return block_tables[rows, positions // block_size] * block_size + positions % block_size


def _padding_as_position_zero(block_tables: Tensor, positions: Tensor, *, block_size: int) -> Tensor:
    return _slots(block_tables, positions.clamp_min(0), block_size)


PADDING = "Padding has no slot. At -1 it would be written over a key that somebody needs."

SLOT_MAPPING = Exercise(
    name="slot_mapping",
    chapter=11,
    title="Find the slot of every new token",
    stars=2,
    minutes=15,
    cases=slot_mapping_cases,
    look="position // block_size says which entry of the row's table, position % block_size which place in that block.",
    suspects=(
        Suspect(
            "That is the number of the block. A block has `block_size` slots.", _slots_with(lambda t, p, n: t.gather(1, p // n))
        ),
        Suspect(
            "A block's first slot is `block * block_size`; the block alone is not enough.",
            _slots_with(lambda t, p, n: t.gather(1, p // n) + p % n),
        ),
        Suspect(
            "That is the first slot of the block. A token's place in its block is missing.",
            _slots_with(lambda t, p, n: t.gather(1, p // n) * n),
        ),
        Suspect(
            "The whole position was added. The blocks before this one lie elsewhere; its place in the block is what counts.",
            _slots_with(lambda t, p, n: t.gather(1, p // n) * n + p),
        ),
        Suspect(
            "That is the slot if a row's blocks lay one behind the other. The table says where they lie.",
            _slots_with(lambda t, p, n: p + 0 * t[:, :1]),
        ),
        Suspect("All rows were looked up in the first row's table.", _slots_with(lambda t, p, n: t[0][p // n] * n + p % n)),
        Suspect(PADDING, _padding_in_the_last_block),
        Suspect(PADDING, _padding_as_position_zero),
    ),
)

# -- Paged equals contiguous ------------------------------------------------------------------------------------------


def paged_attend_cases(generator: torch.Generator) -> Iterator[Case]:
    def case(
        num_tokens: int, block_size: int, n_heads: int, n_kv_heads: int, head_dim: int, *, num_blocks: int, rest: float = 1.0,
        larger: float = 1.0, device: str = "cpu", dtype: torch.dtype = torch.float64,
    ) -> Case:  # fmt: skip
        needed = -(-num_tokens // block_size)
        spared = int(num_blocks > needed)  # where there are more blocks, the first one is somebody else's
        table = spared + torch.randperm(num_blocks - spared, generator=generator)[:needed]
        if needed > 1 and table[0] < table[1]:  # never in the order of the pool
            table[[0, 1]] = table[[1, 0]]
        q, k, v = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((n_heads, head_dim), *[(num_tokens, n_kv_heads, head_dim)] * 2)
        )
        q = (q * larger).to(dtype)
        k, v = k.to(dtype), v.to(dtype)
        wanted = attend(q[None, None], k[None], v[None])[0, 0]
        pools = []
        for x in (k, v):
            pool = torch.full((num_blocks * block_size, n_kv_heads, head_dim), rest, dtype=dtype)
            positions = torch.arange(num_tokens)
            pool[table[positions // block_size] * block_size + positions % block_size] = x
            pools.append(pool.view(num_blocks, block_size, n_kv_heads, head_dim).to(device))
        heads = (
            f"{n_heads} head{'s' if n_heads > 1 else ''} over {n_kv_heads} KV head{'s' if n_kv_heads > 1 else ''} of {head_dim}"
        )
        says = f"{num_tokens} token{'s' if num_tokens > 1 else ''} in blocks {table.tolist()} of {block_size}, {heads}"
        says += f", {rest} in every other slot" if math.isnan(rest) else ", scores in the thousands" if larger > 1 else ""
        says += f", {dtype}" + ("" if device == "cpu" else f" on {device}")
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        args = (q.to(device), *pools, table.tolist())
        return Case(says, args, wanted.to(device), kwargs={"num_tokens": num_tokens}, tolerance=tolerance)

    yield case(1, 1, 1, 1, 1, num_blocks=1)
    yield case(2, 2, 1, 1, 4, num_blocks=2)
    yield case(4, 2, 1, 1, 4, num_blocks=3)
    yield case(3, 2, 1, 1, 4, num_blocks=3)
    yield case(3, 2, 4, 2, 4, num_blocks=3)
    yield case(3, 2, 1, 1, 4, num_blocks=3, rest=math.nan)
    yield case(6, 2, 2, 2, 4, num_blocks=4, larger=3000.0)
    yield case(12, 4, 4, 4, 16, num_blocks=5, larger=3000.0)
    for device, dtype in (("cpu", torch.float64), ("cpu", torch.float32), (default_device().type, torch.float32)):
        for sizes in ((37, 16, 8, 2, 32), (64, 16, 4, 4, 16), (50, 7, 6, 3, 8)):
            yield case(*sizes, num_blocks=12, rest=math.nan, device=device, dtype=dtype)


def _gathered(pool: Tensor, block_table: list[int], num_tokens: int) -> Tensor:
    return pool[block_table].flatten(0, 1)[:num_tokens]


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q[None, None], k[None], v[None])[0, 0]


def _with_empty_slots(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    return _attended(q, k_pool[block_table].flatten(0, 1), v_pool[block_table].flatten(0, 1))


def _in_order_of_the_pool(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    table = sorted(block_table)
    return _attended(q, _gathered(k_pool, table, num_tokens), _gathered(v_pool, table, num_tokens))


def _the_pool_from_its_start(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    return _attended(q, k_pool.flatten(0, 1)[:num_tokens], v_pool.flatten(0, 1)[:num_tokens])


def _unscaled(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    q = q * math.sqrt(q.shape[-1])
    return _attended(q, _gathered(k_pool, block_table, num_tokens), _gathered(v_pool, block_table, num_tokens))


def _heads_in_turn(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    k, v = (_gathered(pool, block_table, num_tokens) for pool in (k_pool, v_pool))
    n_rep = q.shape[0] // k.shape[1]
    return _attended(q, k.repeat(1, n_rep, 1), v.repeat(1, n_rep, 1))


def _mean_of_blocks(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    size = k_pool.shape[1]
    k, v = (_gathered(pool, block_table, num_tokens).split(size) for pool in (k_pool, v_pool))
    return torch.stack([_attended(q, k_block, v_block) for k_block, v_block in zip(k, v)]).mean(dim=0)


def _never_shrunk(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    """A running softmax that takes a new largest score and leaves what it added up before as it was."""
    size, n_rep = k_pool.shape[1], q.shape[0] // k_pool.shape[2]
    largest, total, gathered = q.new_full(q.shape[:1], -math.inf), q.new_zeros(q.shape[:1]), torch.zeros_like(q)
    k, v = (_gathered(pool, block_table, num_tokens).repeat_interleave(n_rep, dim=1).split(size) for pool in (k_pool, v_pool))
    for k_block, v_block in zip(k, v):
        scores = torch.einsum("hd,khd->hk", q, k_block) / math.sqrt(q.shape[-1])
        largest = torch.maximum(largest, scores.amax(dim=1))
        weights = (scores - largest[:, None]).exp()
        total = total + weights.sum(dim=1)
        gathered = gathered + torch.einsum("hk,khd->hd", weights, v_block)
    return gathered / total[:, None]


def _exponentials_as_they_are(q: Tensor, k_pool: Tensor, v_pool: Tensor, block_table: list[int], *, num_tokens: int) -> Tensor:
    k, v = (_gathered(pool, block_table, num_tokens) for pool in (k_pool, v_pool))
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[1], dim=1) for x in (k, v))
    weights = (torch.einsum("hd,khd->hk", q, k) / math.sqrt(q.shape[-1])).exp()
    return torch.einsum("hk,khd->hd", weights / weights.sum(dim=1, keepdim=True), v)


PAGED_ATTEND = Exercise(
    name="paged_attend",
    chapter=11,
    title="Attend over blocks as over one piece",
    stars=3,
    minutes=25,
    cases=paged_attend_cases,
    look="Same keys, same order, same scale, same heads as attention over one piece of memory: which of them differs?",
    suspects=(
        Suspect(
            "The slots behind the last token take part. What lies there is nobody's, and 0 times NaN is NaN: leave them out.",
            _with_empty_slots,
        ),
        Suspect("That reads the pool from its start. The table says which blocks are this sequence's.", _the_pool_from_its_start),
        Suspect(
            "That takes the blocks in the order of the pool. The table has them in order of the text, and its last one is "
            "the one that may be partly filled.",
            _in_order_of_the_pool,
        ),
        Suspect("The scores are not divided by the square root of head_dim.", _unscaled),
        Suspect("The KV heads are dealt out in turn. Neighbouring query heads share one.", _heads_in_turn),
        Suspect("That is a softmax per block. The weights of all tokens together add up to 1.", _mean_of_blocks),
        Suspect(
            "A larger score turned up in a later block, and what was added up before was not scaled down to it.", _never_shrunk
        ),
        Suspect("The exponential of a large score is infinite. Subtract the largest score first.", _exponentials_as_they_are),
    ),
)

EXERCISES = (FREE_LIST, SLOT_MAPPING, PAGED_ATTEND)
