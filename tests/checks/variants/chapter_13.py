"""Other right answers to the exercises of chapter 13."""

from textwrap import dedent

VARIANTS = {
    "fork": ["def fork(pool, table):\n    return [pool.share(block) or block for block in table]"],
    "append_slot": [
        dedent("""
            def append_slot(pool, table, num_tokens):
                index, offset = divmod(num_tokens, pool.block_size)
                if index == len(table):
                    table.append(pool.allocate())
                elif pool.ref_count(table[index]) != 1:
                    pool.release(table[index])
                    table[index] = pool.copy(table[index])
                return table[index] * pool.block_size + offset
        """),
    ],
    "reorder_tables": [
        dedent("""
            def reorder_tables(pool, tables, parents):
                for row, table in enumerate(tables):
                    heirs = parents.count(row)
                    for block in table:
                        for _ in range(heirs - 1):
                            pool.share(block)
                new = [[*tables[parent]] for parent in parents]
                for row, table in enumerate(tables):
                    if row not in parents:
                        while table:
                            pool.release(table.pop())
                return new
        """),
        dedent("""
            def reorder_tables(pool, tables, parents):
                from llama3_edu.cache.blocks import fork, release_all
                new = [fork(pool, tables[parent]) for parent in parents]
                for table in tables:
                    release_all(pool, table)
                return new
        """),
        dedent("""
            def reorder_tables(pool, tables, parents):
                new = [tables[parent] if parents.index(parent) == i else [*tables[parent]] for i, parent in enumerate(parents)]
                old = [[*table] for table in tables]
                for table in new:
                    for block in table:
                        pool.share(block)
                for table in old:
                    for block in table:
                        pool.release(block)
                return new
        """),
    ],
    "use_fork": [
        dedent("""
            def use_fork(pool, table, use):
                from llama3_edu.cache.blocks import fork, release_all
                attempt = fork(pool, table)
                try:
                    came = use(attempt)
                except BaseException:
                    release_all(pool, attempt)
                    raise
                release_all(pool, attempt)
                return came
        """),
    ],
}
