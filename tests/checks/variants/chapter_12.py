"""Other right answers to the exercises of chapter 12."""

from textwrap import dedent

VARIANTS = {
    "block_names": [
        dedent("""
            def block_names(token_ids, block_size):
                ends = range(block_size, len(token_ids) + 1, block_size)
                return [hashlib.sha256(repr(token_ids[:end]).encode()).digest() for end in ends]
        """),
        dedent("""
            def block_names(token_ids, block_size):
                running, names = hashlib.blake2b(digest_size=16), []
                for index, token_id in enumerate(token_ids, start=1):
                    running.update(b"%d," % token_id)
                    if index % block_size == 0:
                        names.append(running.digest())
                return names
        """),
        dedent("""
            def block_names(token_ids, block_size):
                names = [chain_hash(b"somebody's salt", ())]
                for number in range(len(token_ids) // block_size):
                    names.append(chain_hash(names[-1], token_ids[number * block_size : (number + 1) * block_size]))
                return names[1:]
        """),
    ],
    "reusable_blocks": [
        dedent("""
            def reusable_blocks(token_ids, published, block_size):
                from itertools import takewhile
                names, name = [], b""
                for number in range(max(0, len(token_ids) - 1) // block_size):
                    name = chain_hash(name, token_ids[number * block_size : (number + 1) * block_size])
                    names.append(name)
                return [published[name] for name in takewhile(published.__contains__, names)]
        """),
        dedent("""
            def reusable_blocks(token_ids, published, block_size, parent=b""):
                name = chain_hash(parent, token_ids[:block_size])
                if len(token_ids) <= block_size or name not in published:
                    return []
                return [published[name], *reusable_blocks(token_ids[block_size:], published, block_size, name)]
        """),
    ],
    "blocks_to_evict": [
        dedent("""
            def blocks_to_evict(parents, last_used, holders, count):
                def depth(block):
                    return 0 if parents[block] is None else 1 + depth(parents[block])
                unheld = [block for block in parents if holders[block] == 1]
                if len(unheld) < count:
                    raise OutOfBlocks(needed=count, free=len(unheld))
                return sorted(unheld, key=lambda block: (last_used[block], -depth(block)))[:count]
        """),
    ],
}
