"""Exercises of chapter 12: prefix sharing."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from llama3_edu.cache.blocks import OutOfBlocks
from llama3_edu.cache.prefix import chain_hash
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong, by_value

__all__ = ["EXERCISES"]


# -- block_names --


def block_names_cases(generator: torch.Generator) -> Iterator[Case]:
    pairs = [([5], [5], 1), ([5], [6], 1), ([], [5], 2), ([1, 2], [1, 2, 3], 2), ([1, 2], [2, 1], 2), ([1, 23], [12, 3], 2)]
    pairs += [([0], [256], 1), ([0], [65536], 1), ([7], [7, 7], 1), ([1, 3], [2, 3], 1), ([1, 3, 4], [2, 3, 4], 1)]
    for size in (2, 16):
        common = torch.randint(128_256, (3 * size,), generator=generator).tolist()
        pairs.append((common, [*common[: 2 * size], *common], size))
        pairs.append(([*common, *common, 9], [*common[:-1], 1 + common[-1], *common], size))
    for one, other, size in pairs:
        texts = f"token_ids = {one} and {other}" if len(one) < 4 else f"two texts of {len(one)} and {len(other)} tokens"
        yield Case(f"{texts}, block_size = {size}", (one, other, size))


def judge_block_names(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Any names will do that agree exactly where everything up to the end of the block agrees."""
    *texts, size = case.args
    named: list[tuple[list[int], bytes]] = []
    for text in texts:
        given = [*text]
        names = solution(given, size)
        check_names(names, text, size)
        if given != text:
            raise Wrong(f"token_ids was changed in place, to {given}", hint="Slices are copies; take those.")
        named += [(text[: (index + 1) * size], name) for index, name in enumerate(names)]
    if len({len(name) for _, name in named}) > 1:
        raise Wrong("some names are longer than others", hint="A hash has one length, however much went into it: digest it.")
    for index, (past, name) in enumerate(named):
        for other_past, other_name in named[:index]:
            compare_names(past, name, other_past, other_name, size)


def check_names(names: Any, text: list[int], size: int) -> None:
    if not isinstance(names, list):
        raise Wrong(f"{type(names).__name__} came, wanted is a list of names", hint="Collect one name per block in a list.")
    full = len(text) // size
    if len(names) != full:
        raise Wrong(f"names came: {len(names)}, full blocks in the text: {full}", hint="Full blocks alone have a name.")
    for name in names:
        if not isinstance(name, bytes):
            raise Wrong(f"a name is of type {type(name).__name__}, wanted is bytes", hint="That is what .digest() returns.")


def compare_names(past: list[int], name: bytes, other_past: list[int], other_name: bytes, size: int) -> None:
    same = past == other_past
    if same == (name == other_name):
        return
    block, other = past[-size:], other_past[-size:]
    shown = f"of {len(past)} and {len(other_past)} tokens" if len(past) > 4 else f"{other_past} and {past}"
    if same:
        raise Wrong(
            f"one and the same text, {shown}, got two names for its last block",
            hint="A name depends on tokens alone: on nothing that a second call, or another process, would see differently.",
        )
    raise Wrong(
        f"the last blocks of {shown} got one name, although different keys are in them", hint=why_equal(block, other, past, size)
    )


def why_equal(block: list[int], other: list[int], past: list[int], size: int) -> str:
    """Say what may be missing from names that are equal and should not be."""
    if block == other and len(past) <= 2 * size:
        return "The blocks hold the same tokens after different pasts: the name of the block before belongs in the name."
    if block == other:
        return "What differs lies more than one block back: put in the block before by its name, which stands for all its past."
    if sorted(block) == sorted(other):
        return "The same tokens in another order are another text."
    if "".join(map(str, block)) == "".join(map(str, other)):
        return "Their digits run together: give each token the same number of bytes, or put something between."
    return "Different tokens, one name: does every bit of a token id go in? Ids go up to 128,255."


BLOCK_NAMES = Exercise(
    name="block_names",
    chapter=12,
    title="A name for every block",
    stars=1,
    minutes=15,
    cases=block_names_cases,
    look="Walk over the full blocks; hash the name of the one before together with the tokens of this one.",
    judge=judge_block_names,
)


# -- reusable_blocks --


def chain(token_ids: Sequence[int], size: int) -> list[bytes]:
    """The names of the full blocks of a text."""
    names, name = [], b""
    for first in range(0, len(token_ids) - size + 1, size):
        name = chain_hash(name, token_ids[first : first + size])
        names.append(name)
    return names


def reusable_blocks_cases(generator: torch.Generator) -> Iterator[Case]:
    def case(says: str, token_ids: list[int], published: dict[bytes, int], size: int) -> Case:
        shown = f"token_ids = {token_ids}, block_size = {size}" if len(token_ids) < 9 else f"{len(token_ids)} tokens"
        return Case(f"{shown}, {says}", (token_ids, published, size), found(token_ids, published, size))

    four = chain([1, 2, 3, 4, 5, 6, 7, 8], 2)
    yield case("nothing published", [1], {}, 2)
    yield case("an empty prompt", [], {four[0]: 7}, 2)
    yield case("block [1, 2] published as 7", [1, 2, 3], {four[0]: 7}, 2)
    yield case("block [1, 2] published as 0", [1, 2, 3], {four[0]: 0}, 2)
    yield case("all of it published, as 7", [1, 2], {four[0]: 7}, 2)
    yield case("[1, 2] published as 7, no other", [1, 2, 1, 2, 9], {four[0]: 7}, 2)
    yield case("all of it published, as 7 and 3", [1, 2, 3, 4], dict(zip(four, (7, 3))), 2)
    yield case("its first four published, as 7 and 3", [1, 2, 3, 4, 5], dict(zip(four, (7, 3))), 2)
    yield case("the first block gone, the second as 3", [1, 2, 3, 4, 5], {four[1]: 3}, 2)
    yield case("the second block gone, the others as 7 and 3", [1, 2, 3, 4, 5, 6, 7], {four[0]: 7, four[2]: 3}, 2)
    for size in (4, 16):
        for length in (3 * size - 1, 3 * size, 3 * size + 1):
            text = torch.randint(128_256, (length,), generator=generator).tolist()
            blocks = torch.randperm(64, generator=generator)[:3].tolist()
            yield case(f"blocks of {size}, all full ones published", text, dict(zip(chain(text, size), blocks)), size)


def found(token_ids: list[int], published: dict[bytes, int], size: int) -> list[int]:
    blocks = []
    for name in chain(token_ids[:-1], size):
        if name not in published:
            break
        blocks.append(published[name])
    return blocks


def found_to_the_end(token_ids: list[int], published: dict[bytes, int], size: int) -> list[int]:
    return found([*token_ids, 0], published, size)


def found_past_gaps(token_ids: list[int], published: dict[bytes, int], size: int) -> list[int]:
    return [published[name] for name in chain(token_ids[:-1], size) if name in published]


def found_without_parents(token_ids: list[int], published: dict[bytes, int], size: int) -> list[int]:
    firsts = range(0, len(token_ids) - size, size)
    names = [chain_hash(b"", token_ids[first : first + size]) for first in firsts]
    return [published[name] for name in names if name in published]


def found_but_zero(token_ids: list[int], published: dict[bytes, int], size: int) -> list[int]:
    blocks: list[int] = []
    for name in chain(token_ids[:-1], size):
        if not published.get(name):
            break
        blocks.append(published[name])
    return blocks


REUSABLE_BLOCKS = Exercise(
    name="reusable_blocks",
    chapter=12,
    title="The prompt that is cached to its last token",
    stars=2,
    minutes=15,
    cases=reusable_blocks_cases,
    look="Follow the chain of names from the first block on, up to the last one that leaves a token to run.",
    suspects=(
        Suspect(
            "Nothing is left to run: a block with the prompt's last token may not be used, or there are no logits.",
            found_to_the_end,
        ),
        Suspect(
            "Block 0 is a block like any other. Ask whether the name is there, not whether its block is true.", found_but_zero
        ),
        Suspect(
            "A block is left out without need. Only the one with the prompt's last token must be.",
            lambda ids, published, size: found_to_the_end(ids, published, size)[:-1],
        ),
        Suspect(
            "Here a block is used after one that is missing. The table would have a hole: stop at the first name not found.",
            found_past_gaps,
        ),
        Suspect(
            "These blocks were named by their own tokens. The parent's name goes in; it is b'' for the first block only.",
            found_without_parents,
        ),
        Suspect("That is a number of tokens. Wanted are the blocks.", lambda ids, p, size: len(found(ids, p, size)) * size),
    ),
)


# -- blocks_to_evict --


def blocks_to_evict_cases(generator: torch.Generator) -> Iterator[Case]:
    def case(parents: dict[int, int | None], last_used: dict[int, int], holders: dict[int, int], count: int) -> Case:
        says = f"{len(parents)} published blocks, count = {count}"
        if len(parents) < 4:
            says = f"parents = {parents}, last_used = {last_used}, holders = {holders}, count = {count}"
        order = eviction_order(parents, last_used, holders)
        return Case(says, (parents, last_used, holders, count), order[:count] if count <= len(order) else OutOfBlocks)

    yield case({4: None}, {4: 1}, {4: 1}, 0)
    yield case({4: None}, {4: 1}, {4: 1}, 1)
    yield case({4: None, 2: None}, {4: 1, 2: 2}, {4: 1, 2: 1}, 1)
    yield case({4: None, 2: None}, {4: 1, 2: 2}, {4: 2, 2: 1}, 1)
    yield case({4: None, 2: 4}, {4: 1, 2: 1}, {4: 1, 2: 1}, 1)
    yield case({4: None, 2: 4}, {4: 1, 2: 1}, {4: 1, 2: 1}, 2)
    yield case({4: None, 2: 4}, {4: 1, 2: 1}, {4: 2, 2: 1}, 2)
    yield case({4: None, 2: 4, 7: 4}, {4: 3, 2: 2, 7: 3}, {4: 2, 2: 1, 7: 2}, 1)
    yield case({4: None, 2: 4, 7: None}, {4: 3, 2: 1, 7: 2}, {4: 1, 2: 1, 7: 1}, 2)
    for size in (8, 12, 20):
        tree = random_tree(generator, size)
        most = len(eviction_order(*tree))
        yield from (case(*tree, count) for count in (most // 2, most, most + 1))


def random_tree(generator: torch.Generator, size: int) -> tuple[dict[int, int | None], dict[int, int], dict[int, int]]:
    """Publish chains of blocks one after another, some of which begin like an earlier one; let some still be held."""
    unused = torch.randperm(64, generator=generator).tolist()
    parents: dict[int, int | None] = {}
    last_used: dict[int, int] = {}
    holders: dict[int, int] = {}
    time = 0
    while len(parents) < size:
        time, block = time + 1, None
        is_held = torch.rand(1, generator=generator).item() < 0.3
        for _ in range(3):
            children = [child for child, parent in parents.items() if parent == block]
            pick = int(torch.randint(len(children) + 2, (1,), generator=generator))
            child = children[pick] if pick < len(children) else unused.pop()
            parents.setdefault(child, block)
            last_used[child], holders[child] = time, holders.get(child, 1) + is_held
            block = child
    return parents, last_used, holders


def eviction_order(parents: dict[int, int | None], last_used: dict[int, int], holders: dict[int, int]) -> list[int]:
    """All blocks that may go, in the order in which they should."""
    order: list[int] = []
    while True:
        there = {block: parent for block, parent in parents.items() if block not in order}
        leaves = [block for block in there if holders[block] == 1 and block not in there.values()]
        if not leaves:
            return order
        order.append(min(leaves, key=lambda block: last_used[block]))


def judge_blocks_to_evict(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Where there are too few blocks, the answer is an error."""
    if case.wanted is not OutOfBlocks:
        try:
            return by_value(exercise, solution, case)
        except OutOfBlocks as refused:
            raise Wrong(
                f"it raised OutOfBlocks ({refused}), wanted is {case.wanted}",
                hint="The prefix cache itself is a holder: 1 means that nobody else holds the block.",
            ) from None
    *described, count = case.args
    free = len(eviction_order(*described))
    try:
        came = solution(*(dict(one) for one in described), count)
    except OutOfBlocks as refused:
        if (refused.needed, refused.free) == (count, free):
            return
        told = f"OutOfBlocks(needed={refused.needed}, free={refused.free}) was raised, wanted is needed={count}, free={free}"
        raise Wrong(told, hint="`free` is how many could have gone.") from None
    hint = "A block that a running sequence holds was given up, or one whose child stays: then refuse."
    if isinstance(came, list) and len(came) < count:
        hint = "Fewer than asked for is no answer: raise OutOfBlocks(needed=count, free=…)."
    raise Wrong(f"{came} came, wanted is OutOfBlocks, for only {free} may go", hint=hint)


def by_last_use(parents: dict, last_used: dict, holders: dict, count: int, sign: int = 1) -> list[int]:
    """Oldest first, wherever in a chain it stands."""
    return sorted((block for block in parents if holders[block] == 1), key=lambda block: sign * last_used[block])[:count]


def newest_first(parents: dict, last_used: dict, holders: dict, count: int) -> list[int]:
    return eviction_order(parents, {block: -time for block, time in last_used.items()}, holders)[:count]


def leaves_of_now(parents: dict, last_used: dict, holders: dict, count: int) -> list[int]:
    leaves = [block for block in parents if holders[block] == 1 and block not in parents.values()]
    return sorted(leaves, key=lambda block: last_used[block])[:count]


BLOCKS_TO_EVICT = Exercise(
    name="blocks_to_evict",
    chapter=12,
    title="Evict only what nobody holds",
    stars=2,
    minutes=25,
    cases=blocks_to_evict_cases,
    look="Of the blocks with one holder and no published child, the one used longest ago goes; then look again.",
    judge=judge_blocks_to_evict,
    suspects=(
        Suspect(
            "Among these is a block that a sequence still reads: it has more than one holder.",
            lambda parents, used, holders, count: eviction_order(parents, used, dict.fromkeys(parents, 1))[:count],
        ),
        Suspect("That begins with the block used last. The one used longest ago goes first.", newest_first),
        Suspect(
            "A parent goes before its child: from then on the child can never be found. A block may go when no child is left.",
            by_last_use,
        ),
        Suspect("Too few. When a leaf goes, its parent may have become a leaf.", leaves_of_now),
    ),
)

EXERCISES: tuple[Exercise, ...] = (BLOCK_NAMES, REUSABLE_BLOCKS, BLOCKS_TO_EVICT)
