"""Finding blocks by the tokens they hold, so that what two prompts begin with is computed once."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from llama3_edu.cache.blocks import BlockPool
from llama3_edu.events import BlockEvicted, BlockPublished, Observer, PrefixReused, PrefixTouched, ignore

__all__ = ["PrefixCache", "chain_hash"]


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the name of a block: a hash of its tokens and of the name of the block before it.

    So a name stands for everything from the start of the sequence, as keys and values do. The same in every process.
    """
    return hashlib.sha256(parent + b"".join(token_id.to_bytes(8, "little", signed=True) for token_id in token_ids)).digest()


@dataclass(frozen=True, eq=False)
class _Entry:
    """A published block, and what it was computed from."""

    block: int
    token_ids: tuple[int, ...]
    parent: "_Entry | None"
    salt: str

    def stands_for(self, token_ids: tuple[int, ...], parent: "_Entry | None", salt: str) -> bool:
        """Say whether the block holds these tokens after that parent. Equal names prove nothing: hashes can collide."""
        return self.token_ids == token_ids and self.parent is parent and self.salt == salt


class PrefixCache:
    """Full blocks that can be found by the tokens they hold, and by all that came before them.

    A published block is held by this cache and so outlives the sequence that computed it. When the pool runs out,
    blocks that nobody else holds are given up, the one used longest ago first.

    Only whole blocks are shared, and never the one with a prompt's last token: that token must be run, or there are no
    logits, and where it is run its keys are written. So a prompt that is cached to its end has at most `block_size` tokens
    computed again, into a block of its own, and no shared block is ever written.

    Args:
        pool: where the blocks are. The pool asks this cache for blocks when none are free.
        observer: is told `BlockPublished`, `BlockEvicted`, `PrefixReused` and `PrefixTouched`.

    Raises:
        ValueError: the pool has a prefix cache already.

    Source: arXiv 2309.06180, section 4.4 (shared prefixes).
    """

    def __init__(self, pool: BlockPool, *, observer: Observer = ignore) -> None:
        self._pool = pool
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # by name, the one used longest ago first
        self._published: set[int] = set()
        self._observer = observer
        pool.attach(self)

    def __len__(self) -> int:
        """Blocks published."""
        return len(self._entries)

    @property
    def blocks(self) -> list[int]:
        """The blocks published, the one used longest ago first. Each is held once by this cache."""
        return [entry.block for entry in self._entries.values()]

    @property
    def num_reclaimable(self) -> int:
        """Blocks that nobody but this cache holds."""
        return sum(self._pool.ref_count(block) == 1 for block in self.blocks)

    def match(self, token_ids: Sequence[int], *, salt: str = "") -> list[int]:
        """Return the published blocks that a prompt may begin with. Looks, and changes nothing.

        Args:
            token_ids: the whole prompt.
            salt: whose blocks to look among: equal prompts of different salts share nothing, so nobody can learn from the time to
                the first token what somebody else asked.

        Returns:
            The blocks that hold the prompt's first tokens. At least one token is left to be run.
        """
        return [entry.block for _, entry in self._chain(token_ids[: max(0, len(token_ids) - 1)], salt)]

    def acquire(self, token_ids: Sequence[int], *, salt: str = "") -> list[int]:
        """Return what `match` returns, as a block table: every block has the caller as one more holder.

        The blocks hold `len(table) * block_size` tokens. The caller releases them to the pool like any others.
        """
        chain = self._chain(token_ids[: max(0, len(token_ids) - 1)], salt)
        for _, entry in chain:
            self._pool.share(entry.block)
        self._touch([name for name, _ in chain])
        table = [entry.block for _, entry in chain]
        if table:
            num_cached = len(table) * self._pool.block_size
            self._observer(PrefixReused(blocks=tuple(table), num_cached=num_cached, num_tokens=len(token_ids)))
        return table

    def insert(self, token_ids: Sequence[int], block_table: list[int], *, salt: str = "") -> int:
        """Publish the full blocks of a sequence, and count them as just used. Calling it again costs little and changes nothing.

        Where an equal block was published before (two equal prompts ran at once), the table takes that one in place of its
        own, which is released: from then on they share. So call it between forwards, not within one.

        Args:
            token_ids: the tokens whose keys and values are stored, from the first on.
            block_table: the blocks they are in.
            salt: who may find them.

        Returns:
            The number of blocks that were published and not there before.

        Raises:
            ValueError: the table has fewer blocks than the tokens fill, or one of its blocks is published for other tokens or
                under another salt.
        """
        self._check_long_enough(token_ids, block_table)
        before, parent, names = len(self), None, []
        for index, (name, ids) in enumerate(self._named(token_ids, salt)):
            entry = self._entries.get(name)
            if entry is None:
                entry = self._publish(name, _Entry(block_table[index], ids, parent, salt))
            elif not entry.stands_for(ids, parent, salt):
                break  # another prompt's block has this name; what follows could not be found without this one
            elif entry.block != block_table[index]:
                self._pool.share(entry.block)
                self._pool.release(block_table[index])
                block_table[index] = entry.block
            parent = entry
            names.append(name)
        self._touch(names)
        return len(self) - before

    def reclaim(self, count: int) -> None:
        """Give up `count` blocks that nobody else holds, the one used longest ago first.

        Raises:
            ValueError: there are fewer.
        """
        # Whoever holds a block holds its parents, and was counted as using them later. So children come before parents.
        unheld = [name for name, entry in self._entries.items() if self._pool.ref_count(entry.block) == 1]
        if count > len(unheld):
            raise ValueError(f"{len(unheld)} published blocks are held by nobody else; it was asked for {count}")
        for name in unheld[:count]:
            block = self._entries.pop(name).block
            self._published.remove(block)
            self._observer(BlockEvicted(block=block))
            self._pool.release(block)

    def clear(self) -> None:
        """Give up every block that nobody else holds."""
        self.reclaim(self.num_reclaimable)

    def _named(self, token_ids: Sequence[int], salt: str) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """Yield the name and the tokens of every full block."""
        size, name = self._pool.block_size, chain_hash(salt.encode(), ())
        for first in range(0, len(token_ids) - size + 1, size):
            ids = tuple(token_ids[first : first + size])
            name = chain_hash(name, ids)
            yield name, ids

    def _chain(self, token_ids: Sequence[int], salt: str) -> list[tuple[bytes, _Entry]]:
        """The published blocks that hold the first tokens, with their names."""
        chain: list[tuple[bytes, _Entry]] = []
        for name, ids in self._named(token_ids, salt):
            entry, parent = self._entries.get(name), chain[-1][1] if chain else None
            if entry is None or not entry.stands_for(ids, parent, salt):
                break
            chain.append((name, entry))
        return chain

    def _publish(self, name: bytes, entry: _Entry) -> _Entry:
        if entry.block in self._published:
            raise ValueError(f"block {entry.block} is published already, for other tokens or under another salt")
        self._pool.share(entry.block)
        self._published.add(entry.block)
        self._entries[name] = entry
        parent = None if entry.parent is None else entry.parent.block
        self._observer(BlockPublished(block=entry.block, parent=parent, token_ids=entry.token_ids))
        return entry

    def _touch(self, names: list[bytes]) -> None:
        """Count a chain as just used, its first block last: a block is no use without those before it."""
        if list(islice(reversed(self._entries), len(names))) == names:
            return  # nothing else was used since
        for name in reversed(names):
            self._entries.move_to_end(name)
        self._observer(PrefixTouched(blocks=tuple(self._entries[name].block for name in names)))

    def _check_long_enough(self, token_ids: Sequence[int], block_table: Sequence[int]) -> None:
        full = len(token_ids) // self._pool.block_size
        if len(block_table) < full:
            raise ValueError(f"{len(token_ids)} tokens fill {full} blocks; the block table has {len(block_table)}")
