"""Wrong answers to the exercises of chapter 12, each with what its learner must be told."""

from textwrap import dedent


def names(
    hashed: str = "name + data",
    data: str = "b''.join(t.to_bytes(8, 'little') for t in ids)",
    stop: str = "len(token_ids) - block_size + 1",
    digest: str = "hashlib.sha256(hashed).digest()",
    before: str = "",
) -> str:
    return dedent(f"""
        def block_names(token_ids, block_size):
            name, before, found = b"", b"", []
            {before or "pass"}
            for first in range(0, {stop}, block_size):
                ids = token_ids[first : first + block_size]
                data = {data}
                hashed = {hashed}
                name = {digest}
                before = data
                found.append(name)
            return found
    """)


def reuse(
    until: str = "len(token_ids) - block_size",
    name: str = "chain_hash(name, ids)",
    missing: str = "if name not in published:\n                    break",
    give: str = "blocks",
) -> str:
    return dedent(f"""
        def reusable_blocks(token_ids, published, block_size):
            name, blocks = b"", []
            for first in range(0, {until}, block_size):
                ids = token_ids[first : first + block_size]
                name = {name}
                {missing}
                blocks.append(published[name])
            return {give}
    """)


def evict(
    may_go: str = "holders[b] == 1",
    leaf: str = "b not in left.values()",
    choice: str = "min",
    left: str = "dict(parents)",
    refuse: str = "raise OutOfBlocks(needed=count, free=len(order))",
) -> str:
    return dedent(f"""
        def blocks_to_evict(parents, last_used, holders, count):
            left, order = {left}, []
            while len(order) < count:
                free = [b for b in left if {may_go} and {leaf}]
                if not free:
                    {refuse}
                block = {choice}(free, key=lambda b: last_used[b])
                del left[block]
                order.append(block)
            return order
    """)


MUTANTS = {
    "block_names": {
        "tokens alone": (names("data"), "the name of the block before belongs in the name"),
        "tokens of the block before": (names("before + data"), "lies more than one block back"),
        "number of the block": (names("bytes([first % 256]) + data"), "the name of the block before belongs in the name"),
        "digits": (names(data="''.join(map(str, ids)).encode()"), "digits run together"),
        "one byte per token": (names(data="bytes(t % 256 for t in ids)"), "every bit of a token id"),
        "any order": (names(data="b''.join(t.to_bytes(8, 'little') for t in sorted(ids))"), "in another order"),
        "not hashed": (names(digest="hashed"), "digest it"),
        "hash()": (names("(name, *ids)", digest="hash(hashed)"), "is of type int, wanted is bytes"),
        "the open block too": (names(stop="len(token_ids)"), "Full blocks alone"),
        "a full block too few": (names(stop="len(token_ids) - block_size"), "names came: 0, full blocks in the text: 1"),
        "names by chance": (
            "import secrets\n" + names(digest="secrets.token_bytes(32)"),
            "A name depends on tokens alone",
        ),
        "eats its input": (
            names(data="b''.join(token_ids.pop().to_bytes(8, 'little') for t in ids)", stop="len(token_ids[:])"),
            "was changed in place",
        ),
        "a generator": (
            "def block_names(token_ids, block_size):\n    yield b''",
            "generator came, wanted is a list",
        ),
    },
    "reusable_blocks": {
        "everything": (reuse("len(token_ids) - block_size + 1"), "Nothing is left to run"),
        "always one less": (reuse("len(token_ids) - 2 * block_size + 1"), "left out without need"),
        "past a gap": (reuse(missing="if name not in published:\n                    continue"), "a hole"),
        "no parents": (reuse(name="chain_hash(b'', ids)"), "named by their own tokens"),
        "block 0 is false": (reuse(missing="if not published.get(name):\n                    break"), "Block 0 is a block"),
        "tokens, not blocks": (reuse(give="len(blocks) * block_size"), "That is a number of tokens"),
        "no look": (reuse(missing="pass"), "it raised KeyError"),
        "takes them away": (
            reuse(
                missing="if name not in published:\n                    break",
                give="[published.pop(n) for n in list(published) if published[n] in blocks]",
            ),
            "changed argument 2 in place",
        ),
    },
    "blocks_to_evict": {
        "held ones too": (evict("True"), "that a sequence still reads"),
        "holders of 0": (evict("holders[b] == 0"), "The prefix cache itself is a holder"),
        "newest first": (evict(choice="max"), "The one used longest ago goes first"),
        "roots too": (evict(leaf="True"), "can never be found"),
        "leaves of the beginning": (
            evict(leaf="b not in parents.values()", refuse="return order"),
            "its parent may have become a leaf",
        ),
        "fewer": (evict(refuse="return order"), "Fewer than asked for is no answer"),
        "more than may go": (
            evict(refuse="free = [b for b in left if b not in left.values()]"),
            "a running sequence holds was given up",
        ),
        "counts all blocks as free": (
            evict(refuse="raise OutOfBlocks(needed=count, free=len(parents))"),
            "`free` is how many could have gone",
        ),
        "empties its input": (evict(left="parents"), "changed argument 1 in place"),
    },
}
