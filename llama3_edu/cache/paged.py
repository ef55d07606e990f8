"""The cache whose rows live in blocks of a shared pool, and attention that reads them where they are."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.cache.base import RowCache, checked_parents, continued, real_tokens
from llama3_edu.cache.blocks import BlockPool, blocks_for, fork, release_all
from llama3_edu.cache.store import Blocks, Store, Writes, as_table, run_of
from llama3_edu.events import Observer, TablesChanged, ignore
from llama3_edu.positions import PAD, causal_mask

__all__ = ["PagedCache", "paged_attention"]


class PagedCache(RowCache):
    """Rows of tokens in the blocks of a pool: position p lives in block `block_table[p // block_size]`, slot `p % block_size`.

    A view, cheap to make anew for every step. The block tables belong to the sequences: `reserve` appends to them and
    replaces a block that others hold before the row writes into it (copy-on-write). Several views may use one pool, one
    after another.

    Args:
        pool: where the blocks are.
        block_tables: for each row, the blocks that hold its tokens, in order. The lists are changed in place.
        seq_lens: tokens held, per row. None: every row is empty.
        names: what to call each row in what is reported, where rows are sequences with numbers of their own. None: 0, 1, 2, …
            A row that `reorder` adds gets the next number.
        observer: is told `TablesChanged` when rows grow or change places, and `KeysStored` for every layer of every forward. What
            happens to blocks is told by the pool.

    Raises:
        ValueError: there are no rows, a table has more or fewer blocks than its tokens need, two rows have the same list, or
            there are more or fewer names than rows.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_tables: Sequence[list[int]],
        seq_lens: Sequence[int] | None = None,
        *,
        names: Sequence[int] | None = None,
        observer: Observer = ignore,
    ) -> None:
        super().__init__([0] * len(block_tables) if seq_lens is None else seq_lens, observer=observer)
        if names is not None and len(names) != len(block_tables):
            raise ValueError(f"every row needs a name; there are {len(block_tables)} rows and {len(names)} names")
        self.pool = pool
        self._tables = list(block_tables)
        self._check_tables()
        self._num_copied = 0
        self._settle_nothing_new()
        self._names = list(range(len(block_tables)) if names is None else names)

    @property
    def device(self) -> torch.device:
        return self.pool.device

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self.pool.nbytes

    @property
    def block_tables(self) -> list[list[int]]:
        """For each row, the blocks that hold its tokens, in order: the very lists the cache was given."""
        return self._tables

    @property
    def block_table(self) -> Int[Tensor, "batch blocks_per_row"]:
        """The same as one tensor, where the blocks are, as of the last `reserve`; shorter tables are filled up."""
        return self._table

    @property
    def slot_mapping(self) -> Int[Tensor, "batch new_len"]:
        """The slot of every token of the last `reserve`; `PAD` for padding."""
        return self._slot_mapping

    def blocks_needed(self, new_lens: Sequence[int]) -> int:
        """Return how many blocks `reserve` would take if row i were given `new_lens[i]` tokens, those for copies included."""
        longer = [held + new for held, new in zip(self._seq_lens, new_lens, strict=True)]
        fresh = sum(blocks_for(length, self.pool.block_size) - len(table) for length, table in zip(longer, self._tables))
        # Rows that write into one block take a copy each, but the last holder of all writes in place.
        writers = Counter(table[-1] for row, table in enumerate(self._tables) if new_lens[row] and self._is_partly_filled(row))
        return fresh + sum(min(count, self.pool.ref_count(block) - 1) for block, count in writers.items())

    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch kv_len"]:
        """Make room for new tokens, once per forward: see `KVCache.reserve`.

        Raises:
            OutOfBlocks: the pool has fewer blocks than all rows need together. Nothing is changed then.
            ValueError: a row does not continue where it stopped, or the batch has another size.
        """
        new = continued(positions, self._seq_lens)
        self.pool.check_available(self.blocks_needed([len(row) for row in new]))
        self._num_copied = sum(self._copy_on_write(row) for row, tokens in enumerate(new) if tokens)
        self._seq_lens = [held + len(row) for held, row in zip(self._seq_lens, new)]
        for table, length in zip(self._tables, self._seq_lens):
            table += self.pool.allocate_many(blocks_for(length, self.pool.block_size) - len(table))
        self._settle(positions, new)
        self._tell_tables()
        return self._key_positions

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_len n_kv_heads head_dim"], Float[Tensor, "batch kv_len n_kv_heads head_dim"]]:
        self.write(layer, k, v)
        return self.read(layer)

    def write(
        self,
        layer: int,
        k: Float[Tensor, "batch new_len n_kv_heads head_dim"],
        v: Float[Tensor, "batch new_len n_kv_heads head_dim"],
    ) -> None:
        """Store one layer's new keys and values at the slots reserved: the first half of `update`."""
        self.pool.store.check_fits(k, v)
        self.pool.store.write(layer, self._writes, real_tokens(k, self._real), real_tokens(v, self._real))
        self.report(layer, bytes_copied=self._num_copied * self.pool.block_nbytes // self.pool.config.n_layers)

    def read(
        self, layer: int, *, out: Float[Tensor, "2 blocks block_size n_kv_heads head_dim"] | None = None
    ) -> tuple[Float[Tensor, "batch kv_len n_kv_heads head_dim"], Float[Tensor, "batch kv_len n_kv_heads head_dim"]]:
        """Gather one layer's keys and values of all rows, block by block: the second half of `update`.

        Args:
            out: where to, in a pool of floats. None: new memory.
        """
        k, v = self.pool.store.read(layer, self.blocks) if out is None else self.pool.store.read(layer, self.blocks, out=out)
        kv_len = max(self._seq_lens, default=0)
        return k[:, :kv_len], v[:, :kv_len]

    def read_block(
        self, layer: int, index: int
    ) -> tuple[
        Float[Tensor, "batch block_size n_kv_heads head_dim"],
        Float[Tensor, "batch block_size n_kv_heads head_dim"],
        Int[Tensor, "batch block_size"],
    ]:
        """Return one layer's keys and values of every row's block number `index`, and the position of each key.

        A row without that many blocks gets keys and values that are finite and mean nothing, all at `PAD`.
        """
        k, v = self.pool.store.read(layer, self._table[:, index, None])
        first = index * self.pool.block_size
        positions = torch.arange(first, first + self.pool.block_size, device=k.device)
        return k, v, torch.where(positions < self.seq_lens[:, None], positions, PAD)

    def reorder(self, parents: Int[Tensor, "new_batch"]) -> None:
        """Let row i continue what row `parents[i]` held, by holding the same blocks. No key is copied.

        The list that was row i's block table still is. Where there are fewer rows, the lists left over are emptied; where
        there are more, new lists follow in `block_tables`.
        """
        heirs = checked_parents(parents, len(self._tables))
        # Share first: releasing could free a block that an heir still wants.
        tables = [fork(self.pool, self._tables[parent]) for parent in heirs]
        seq_lens = [self._seq_lens[parent] for parent in heirs]
        self._release_rows()
        own = [*self._tables, *([] for _ in heirs)][: len(heirs)]
        for table, blocks in zip(own, tables):
            table[:] = blocks
        self._tables, self._seq_lens = own, seq_lens
        self._settle_nothing_new()
        next_name = max(self._names) + 1
        names = [*self._names, *range(next_name, next_name + len(own))]
        self._names, gone = names[: len(own)], self._names[len(own) :]
        self._tell_tables(gone)

    def release(self) -> None:
        """Give back the blocks of all rows. The rows stay, empty."""
        self._release_rows()
        self._settle_nothing_new()
        self._tell_tables()

    @property
    def store(self) -> Store:
        """Where the pool keeps keys and values."""
        return self.pool.store

    @property
    def num_blocks(self) -> int:
        """Blocks of the longest row."""
        return self._table.shape[1]

    def _is_partly_filled(self, row: int) -> bool:
        return self._seq_lens[row] % self.pool.block_size != 0

    def _copy_on_write(self, row: int) -> bool:
        """Give a row its own copy of the block it will write into, if others hold that block too; say whether it did."""
        table = self._tables[row]
        if not self._is_partly_filled(row) or self.pool.ref_count(table[-1]) == 1:
            return False
        shared = table[-1]
        table[-1] = self.pool.copy(shared)
        self.pool.release(shared)
        return True

    def _release_rows(self) -> None:
        for table in self._tables:
            release_all(self.pool, table)
        self._seq_lens = [0] * len(self._tables)

    def _tell_tables(self, gone: Sequence[int] = ()) -> None:
        """Report all rows, and behind them those that are no more."""
        tables, nothing = map(tuple, self._tables), [()] * len(gone)
        self._observer(
            TablesChanged(
                names=(*self._names, *gone),
                block_tables=(*tables, *nothing),
                seq_lens=(*self._seq_lens, *map(len, nothing)),
            )
        )

    def _settle_nothing_new(self) -> None:
        self._settle(torch.full((len(self._tables), 0), PAD), [[] for _ in self._tables])

    def _settle(self, positions: Int[Tensor, "batch new_len"], new: list[list[int]]) -> None:
        """Work out, once for all layers, where new tokens go and which blocks are read."""
        self._new = new
        device, block_size = self.pool.device, self.pool.block_size
        positions = positions.to(device)
        padded = self._padded_tables()
        self._table = as_table(padded, device)
        self.blocks: Blocks = run_of(padded) or self._table
        """What `read` reads: all rows' blocks, shorter rows filled up with one of their own."""
        rows, columns = self._real = (positions != PAD).nonzero(as_tuple=True)
        places = positions[rows, columns]
        slots = self._table[rows, places // block_size] * block_size + places % block_size
        self._slot_mapping = torch.full_like(positions, PAD).index_put((rows, columns), slots)
        self._writes: Writes = self.pool.store.plan(slots, closing=self._filled_now())
        kv_len = max(self._seq_lens, default=0)
        keys = torch.arange(kv_len, device=device)
        self._key_positions = torch.where(keys < self.seq_lens[:, None], keys, PAD)

    def _padded_tables(self) -> list[list[int]]:
        """All block tables equally long: shorter ones filled up with a block of their own, for what lies there is finite."""
        longest = max(map(len, self._tables), default=0)
        anyones = next((table[0] for table in self._tables if table), 0)
        return [table + [table[0] if table else anyones] * (longest - len(table)) for table in self._tables]

    def _filled_now(self) -> list[int]:
        """The blocks whose last slot is among the new tokens' slots."""
        size = self.pool.block_size
        return [self._tables[row][p // size] for row, new in enumerate(self._new) for p in new if (p + 1) % size == 0]

    def _check_tables(self) -> None:
        if len(self._seq_lens) != len(self._tables):
            raise ValueError(
                f"every row needs a length; there are {len(self._tables)} block tables and {len(self._seq_lens)} lengths"
            )
        if len(set(map(id, self._tables))) != len(self._tables):
            raise ValueError("every row needs a block table of its own; two rows were given the same list")
        for row, (table, held) in enumerate(zip(self._tables, self._seq_lens)):
            needed = blocks_for(held, self.pool.block_size)
            if len(table) != needed:
                raise ValueError(
                    f"{held} tokens lie in {needed} blocks of {self.pool.block_size}; "
                    f"the block table of row {row} has {len(table)}"
                )


def paged_attention(
    q: Float[Tensor, "batch new_len n_heads head_dim"],
    cache: PagedCache,
    *,
    layer: int,
    positions: Int[Tensor, "batch new_len"],
) -> Float[Tensor, "batch new_len n_heads head_dim"]:
    """Let every query gather from the values of its row, one block at a time, without ever putting the blocks side by side.

    A softmax needs the sum over all keys, and the largest score to keep the exponentials from overflowing. Both can be had on
    the way: when a larger score turns up, what was added up so far is scaled down to it.

    Args:
        q: the queries, rotated.
        cache: holds the keys and values of all tokens up to the queries', theirs included.
        layer: index of the layer.
        positions: where the queries stand. A query at `PAD` sees nothing and gets zeros.

    Source: arXiv 2309.06180, equation 4 (attention over blocks); arXiv 2205.14135, section 3.1 (the running softmax).
    """
    batch, new_len, n_heads, head_dim = q.shape
    n_kv_heads = cache.pool.config.n_kv_heads
    wide = torch.promote_types(q.dtype, torch.float32)
    q_in_groups = q.to(wide).view(batch, new_len, n_kv_heads, n_heads // n_kv_heads, head_dim) / math.sqrt(head_dim)
    positions = positions.to(q.device)

    largest = torch.full(q_in_groups.shape[:-1], torch.finfo(wide).min, dtype=wide, device=q.device)
    total = torch.zeros_like(largest)  # the sum of exp(score - largest)
    gathered = torch.zeros_like(q_in_groups)  # the sum of exp(score - largest) * value
    for index in range(cache.num_blocks):
        k, v, key_positions = cache.read_block(layer, index)
        visible = causal_mask(positions, key_positions)[:, :, None, None]  # [batch new_len 1 1 block_size]
        scores = torch.einsum("bqhrd,bkhd->bqhrk", q_in_groups, k.to(wide))
        scores = scores.masked_fill(~visible, torch.finfo(wide).min)
        larger = torch.maximum(largest, scores.amax(dim=-1))
        weights = (scores - larger[..., None]).exp() * visible  # where nothing is visible yet, every difference is 0
        shrink = (largest - larger).exp()
        total = total * shrink + weights.sum(dim=-1)
        gathered = gathered * shrink[..., None] + torch.einsum("bqhrk,bkhd->bqhrd", weights, v.to(wide))
        largest = larger
    out = gathered / torch.where(total == 0, 1, total)[..., None]
    return out.reshape(batch, new_len, n_heads, head_dim).to(q.dtype)
