"""Sequences that live in a small pool, beside a plain list of the tokens each has seen: the state machine and its checks."""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny_models import CONFIG
from torch import Tensor

from llama3_edu import PAD, BlockPool, OutOfBlocks, PagedCache, PrefixCache
from llama3_edu.cache.blocks import fork, release_all
from llama3_edu.events import BlockAllocated, Event

SHAPE = replace(CONFIG, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=2)
NUM_BLOCKS, SIZE = 7, 3
few_tokens = st.lists(st.integers(0, 1), min_size=1, max_size=8)
"""Two tokens only, so that prompts begin alike."""


@dataclass(eq=False)
class Life:
    """One sequence: its tokens, the blocks that hold them, and who may find those."""

    ids: list[int]
    table: list[int]
    salt: str


def key_of(ids: list[int]) -> list[float]:
    """The key of a sequence's last token. As in a model, it stands for all tokens up to there: no two beginnings share one."""
    return [float(ids[-1]), int("1" + "".join(map(str, ids)), 3) * 0.618033988749895 % 1]


class LifeOfBlocks(RuleBasedStateMachine):
    """Starts, forks, appends, reorders, finishes and evicts at random; after each step everything must add up."""

    bits: int | None = None

    @initialize()
    def begin(self) -> None:
        self.events: list[Event] = []
        self.pool = BlockPool(
            SHAPE, num_blocks=NUM_BLOCKS, block_size=SIZE, bits=self.bits, dtype=torch.float64, observer=self.events.append
        )
        self.prefix = PrefixCache(self.pool)
        self.lives: list[Life] = []

    # -- What may happen --

    @rule(ids=few_tokens, salt=st.sampled_from(["", "b"]))
    def start(self, ids: list[int], salt: str) -> None:
        before = self.snapshot()
        matched = self.prefix.match(ids, salt=salt)
        assert self.snapshot() == before, "looking changed something"
        life = Life([], self.prefix.acquire(ids, salt=salt), salt)
        assert life.table == matched and len(life.table) * SIZE < len(ids), "one token must be left to run"
        life.ids = ids[: len(life.table) * SIZE]
        if self.append([life], [ids[len(life.ids) :]]):
            self.lives.append(life)
            self.prefix.insert(life.ids, life.table, salt=salt)
        else:
            release_all(self.pool, life.table)

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def append_some(self, data: st.DataObject) -> None:
        lives = data.draw(st.lists(st.sampled_from(self.lives), min_size=1, unique_by=id), "lives")
        new = [data.draw(st.lists(st.integers(0, 1), max_size=3), "new") for _ in lives]
        if any(new):
            self.append(lives, new)

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def fork_one(self, data: st.DataObject) -> None:
        life = data.draw(st.sampled_from(self.lives), "life")
        self.lives.append(Life([*life.ids], fork(self.pool, life.table), life.salt))

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def reorder_some(self, data: st.DataObject) -> None:
        lives = data.draw(st.lists(st.sampled_from(self.lives), min_size=1, unique_by=id), "lives")
        parents = data.draw(st.lists(st.integers(0, len(lives) - 1), min_size=1, max_size=3), "parents")
        cache = self.view(lives)
        past = [([*lives[parent].ids], lives[parent].salt) for parent in parents]
        cache.reorder(torch.tensor(parents))
        self.lives = [life for life in self.lives if life not in lives]
        self.lives += [Life(ids, table, salt) for (ids, salt), table in zip(past, cache.block_tables, strict=True)]

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def publish_one(self, data: st.DataObject) -> None:
        life = data.draw(st.sampled_from(self.lives), "life")
        self.prefix.insert(life.ids, life.table, salt=life.salt)
        assert self.prefix.match([*life.ids, 0], salt=life.salt) == life.table[: len(life.ids) // SIZE]

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), publish=st.booleans())
    def finish_one(self, data: st.DataObject, publish: bool) -> None:
        life = data.draw(st.sampled_from(self.lives), "life")
        if publish:
            self.prefix.insert(life.ids, life.table, salt=life.salt)
        release_all(self.pool, life.table)
        self.lives = [other for other in self.lives if other is not life]

    @rule()
    def evict_all(self) -> None:
        self.prefix.clear()

    # -- What must hold --

    @invariant()
    def holders_are_counted(self) -> None:
        tables = Counter(block for life in self.lives for block in life.table)
        held = tables + Counter(self.prefix.blocks)
        assert [self.pool.ref_count(block) for block in range(NUM_BLOCKS)] == [held[block] for block in range(NUM_BLOCKS)]
        assert max(Counter(self.prefix.blocks).values(), default=0) <= 1

    @invariant()
    def used_and_free_add_up(self) -> None:
        assert self.pool.num_used + self.pool.num_free == NUM_BLOCKS
        assert self.pool.num_used == sum(self.pool.ref_count(block) > 0 for block in range(NUM_BLOCKS))

    @invariant()
    def every_row_reads_what_it_was_fed(self) -> None:
        for life in self.lives:
            keys, values = self.view([life]).read(0)
            expected = torch.tensor([key_of(life.ids[: end + 1]) for end in range(len(life.ids))], dtype=torch.float64)
            self.check_contents(keys[0, :, 0], expected)
            self.check_contents(values[0, :, 0], -expected)

    def check_contents(self, found: Tensor, expected: Tensor) -> None:
        assert torch.equal(found, expected)

    def teardown(self) -> None:
        for life in self.lives:
            release_all(self.pool, life.table)
        self.prefix.clear()
        assert self.pool.num_free == NUM_BLOCKS and len(self.prefix) == 0, "something is leaked"

    # -- How --

    def view(self, lives: list[Life]) -> PagedCache:
        return PagedCache(self.pool, [life.table for life in lives], [len(life.ids) for life in lives])

    def snapshot(self) -> tuple[object, ...]:
        counts = [self.pool.ref_count(block) for block in range(NUM_BLOCKS)]
        return counts, self.prefix.blocks, [(life.ids[:], life.table[:]) for life in self.lives]

    def append(self, lives: list[Life], new: list[list[int]]) -> bool:
        """Feed each sequence its new tokens in one forward; say whether there was room."""
        before, cache = (self.snapshot(), [life.table[:] for life in lives]), self.view(lives)
        needed, available = cache.blocks_needed([len(tokens) for tokens in new]), self.pool.num_available
        width, num_events = max(map(len, new)), len(self.events)
        rows = [[*range(len(life.ids), len(life.ids) + len(n)), *[PAD] * (width - len(n))] for life, n in zip(lives, new)]
        try:
            cache.reserve(torch.tensor(rows))
        except OutOfBlocks as refused:
            assert (refused.needed, refused.free) == (needed, available) and needed > available
            assert (self.snapshot(), [life.table[:] for life in lives]) == before, "a refusal changed something"
            return False
        taken = sum(isinstance(event, BlockAllocated) for event in self.events[num_events:])
        assert taken == needed <= available
        written = [slot // SIZE for row in cache.slot_mapping.tolist() for slot in row if slot != PAD]
        assert all(self.pool.ref_count(block) == 1 for block in written), "a shared block was about to be written"
        keys = torch.zeros(len(lives), width, 1, 2, dtype=torch.float64)
        for row, (life, tokens) in enumerate(zip(lives, new)):
            for column, token_id in enumerate(tokens):
                life.ids.append(token_id)
                keys[row, column, 0] = torch.tensor(key_of(life.ids), dtype=torch.float64)
        cache.update(0, keys, -keys)
        return True


class LifeOfQuantizedBlocks(LifeOfBlocks):
    """The same with 8-bit blocks: what is read is near what was fed."""

    bits = 8

    def check_contents(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=0, atol=1 / 255 / 2 * 1.01)  # no group spans more than 1
