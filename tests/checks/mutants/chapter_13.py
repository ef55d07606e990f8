"""Wrong answers to the exercises of chapter 13, each with what its learner must be told."""

from textwrap import dedent


def fork(body: str = "pool.share(block)", give: str = "list(table)", blocks: str = "table") -> str:
    return dedent(f"""
        def fork(pool, table):
            for block in {blocks}:
                {body}
            return {give}
    """)


def append(
    is_full: str = "num_tokens % pool.block_size == 0",
    more: str = "table.append(pool.allocate())",
    is_shared: str = "pool.ref_count(last) > 1",
    copied: str = "pool.copy(last)",
    release: str = "pool.release(last)",
    slot: str = "table[-1] * pool.block_size + num_tokens % pool.block_size",
) -> str:
    return dedent(f"""
        def append_slot(pool, table, num_tokens):
            last = table[-1] if table else None
            if {is_full}:
                {more}
            elif {is_shared}:
                table[-1] = {copied}
                {release}
            return {slot}
    """)


def reorder(
    fork: str = "[pool.share(block) or block for block in tables[parent]]", release: str = "tables", new: str = "new"
) -> str:
    return dedent(f"""
        def reorder_tables(pool, tables, parents):
            new = []
            for parent in parents:
                new.append({fork})
            for row, table in enumerate({release}):
                for block in table:
                    pool.release(block)
            return {new}
    """)


def use(
    share: str = "pool.share(block)",
    fork: str = "[*table]",
    given: str = "fork",
    after: str = "finally",
    released: str = "fork",
    give: str = "return",
) -> str:
    return dedent(f"""
        def use_fork(pool, table, use):
            for block in table:
                {share}
            fork = {fork}
            try:
                {give} use({given})
            {after}:
                for block in {released}:
                    pool.release(block)
    """)


MUTANTS = {
    "fork": {
        "not counted": (fork("pass"), "The pool was not told"),
        "the same list": (fork(give="table"), "Two texts need two lists"),
        "copies each block": (fork(give="[pool.copy(block) for block in table]"), "A fork copies nothing"),
        "counted twice": (fork("pool.share(block); pool.share(block)"), "no more than one"),
        "the last block alone": (fork(blocks="table[-1:]"), "share every block"),
        "all but the last": (fork(blocks="table[:-1]"), "share every block"),
        "moves instead": (fork("pass", give="[table.pop(0) for _ in range(len(table))]"), "The first text goes on"),
        "backwards": (fork(give="table[::-1]"), "in the same order"),
        "returns nothing": (fork(give="None"), "None came"),
    },
    "append_slot": {
        "never copies": (append(is_shared="False"), "What has other holders must not be written"),
        "always copies": (append(is_shared="True"), "Nobody else holds this block"),
        "never grows": (append("num_tokens == 0"), "All blocks are full"),
        "copies before it allocates": (
            dedent("""
                def append_slot(pool, table, num_tokens):
                    if table and pool.ref_count(table[-1]) > 1:
                        last = table[-1]
                        table[-1] = pool.copy(last)
                        pool.release(last)
                    if num_tokens % pool.block_size == 0:
                        table.append(pool.allocate())
                    return table[-1] * pool.block_size + num_tokens % pool.block_size
            """),
            "A full block is never written again",
        ),
        "a block early": (append("(num_tokens + 1) % pool.block_size == 0 or not table"), "no new one is needed"),
        "no release": (append(release="pass"), "held for ever"),
        "a fresh block": (append(copied="pool.allocate()"), "A fresh block is empty"),
        "releases too much": (append(release="pool.release(last); pool.release(last)"), "still in a table"),
        "the new block in front": (append(more="table.insert(0, pool.allocate())"), "Only the block that is written to"),
        "slot in the block": (append(slot="num_tokens % pool.block_size"), "Block b holds the slots from"),
        "one slot late": (
            append(slot="table[-1] * pool.block_size + num_tokens % pool.block_size + 1"),
            "the new token is number num_tokens",
        ),
        "index for block": (append(slot="num_tokens"), "Block b holds the slots from"),
        "replaces the first block": (
            append().replace("table[-1] = pool.copy(last)", "table[0] = pool.copy(last); table[-1] = pool.copy(last)"),
            "One copy is enough",
        ),
    },
    "reorder_tables": {
        "releases first": (
            dedent("""
                def reorder_tables(pool, tables, parents):
                    for table in tables:
                        for block in table:
                            pool.release(block)
                    for parent in parents:
                        for block in tables[parent]:
                            pool.share(block)
                    return [list(tables[parent]) for parent in parents]
            """),
            "Share what is wanted first",
        ),
        "counts nothing": (reorder("[*tables[parent]]", release="[]"), "Every heir is one more holder"),
        "releases only who has no heir": (
            reorder(release="[t for i, t in enumerate(tables) if i not in parents]"),
            "whether it has heirs or not",
        ),
        "never releases": (reorder(release="[]"), "lets go of each of its blocks"),
        "one list for two heirs": (
            reorder(
                "[pool.share(b) for b in tables[parent]] and tables[parent]",
                release="[[*table] for table in tables]",
            ),
            "Two heirs of one parent need two lists",
        ),
        "copies": (reorder("[pool.copy(block) for block in tables[parent]]"), "A reorder copies nothing"),
        "the wrong way round": (
            reorder("[pool.share(b) or b for b in tables[parents.index(parent) % len(tables)]]"),
            "what row parents[i] held",
        ),
        "empties what it returns": (
            reorder(new="[tables[parent] for parent in parents if tables[parent].clear() is None]"),
            "wanted is",
        ),
    },
    "use_fork": {
        "no finally": (
            dedent("""
                def use_fork(pool, table, use):
                    fork = [*table]
                    for block in fork:
                        pool.share(block)
                    came = use(fork)
                    for block in fork:
                        pool.release(block)
                    return came
            """),
            "try … finally",
        ),
        "releases what the fork began with": (use(released="table"), "the fork at the end"),
        "empties the table": (use(released="[table.pop() for _ in range(len(table))]"), "The text itself goes on"),
        "never releases": (use(released="[]"), "Blocks are left behind"),
        "not counted": (use("pass", released="[]"), "takes shared blocks for its own"),
        "the table itself": (use(given="table"), "a second list"),
        "an empty fork": (use(fork="[]"), "A fork begins with the same blocks"),
        "swallows the error": (use(after="except Exception"), "Blocks are left behind"),
        "swallows the error, cleans up": (
            use().replace("return use(fork)", "return use(fork)\n    except Exception:\n        pass"),
            "`finally`, not `except`",
        ),
        "returns nothing": (use(give=""), "Return what use returns"),
        "twice": (use(given="fork) and use(fork"), "wanted is once"),
    },
}
