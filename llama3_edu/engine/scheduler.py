"""Who computes what in the next step: decided over lengths and counts, without a model."""

from bisect import insort
from collections.abc import Sequence as Numbers
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from llama3_edu.cache.blocks import BlockPool, blocks_for, fork, release_all
from llama3_edu.cache.paged import PagedCache
from llama3_edu.engine.sequence import Sequence
from llama3_edu.events import Observer, SequenceAdmitted, SequenceForked, SequencePreempted, ignore

__all__ = ["Chunk", "NoPrefixCache", "Prefixes", "Scheduler", "divide", "group"]


@dataclass(frozen=True)
class Chunk:
    """The next tokens of one sequence, to be computed in one step."""

    sequence: Sequence
    num_tokens: int

    @property
    def first(self) -> int:
        """Position of the first of them, before the step."""
        return self.sequence.num_cached


@runtime_checkable
class Prefixes(Protocol):
    """Finds blocks by the tokens they hold: `PrefixCache`, or `NoPrefixCache`."""

    @property
    def blocks(self) -> list[int]: ...

    def match(self, token_ids: Numbers[int], *, salt: str = "") -> list[int]: ...

    def acquire(self, token_ids: Numbers[int], *, salt: str = "") -> list[int]: ...

    def insert(self, token_ids: Numbers[int], block_table: list[int], *, salt: str = "") -> int: ...

    def clear(self) -> None: ...


class NoPrefixCache:
    """The prefix cache that holds nothing and never finds anything."""

    @property
    def blocks(self) -> list[int]:
        return []

    def match(self, token_ids: Numbers[int], *, salt: str = "") -> list[int]:
        return []

    def acquire(self, token_ids: Numbers[int], *, salt: str = "") -> list[int]:
        return []

    def insert(self, token_ids: Numbers[int], block_table: list[int], *, salt: str = "") -> int:
        return 0

    def clear(self) -> None:
        pass


class Scheduler:
    """Lets sequences in, in order of arrival, hands out each step's tokens, and takes blocks away when they run out.

    Three rules keep it going. Sequences that only need their next token come first, so nobody's text stops because a long prompt
    arrived. A sequence is let in when all its tokens so far fit, with a block to spare for each one that runs. When blocks
    run out, the sequence that was let in last gives its own back and waits; so the first one always gets on, and ends.

    Args:
        pool: where the blocks are. Nobody else takes blocks from it.
        prefix: finds blocks that were computed before.
        max_batch: sequences that run at once.
        max_tokens_per_step: tokens computed per step.
        continuous: let sequences in while others run. If not, a batch is let in when the last one has ended: static batching.
        observer: is told `SequenceAdmitted`, `SequenceForked` and `SequencePreempted`.

    Raises:
        ValueError: `max_batch` or `max_tokens_per_step` is below 1.

    Source: arXiv 2309.06180, section 4.5 (preemption by recomputation); Orca, OSDI '22 (sequences join and leave between steps);
    arXiv 2403.02310 (prompts in chunks beside decoding).
    """

    def __init__(
        self, pool: BlockPool, prefix: Prefixes, *, max_batch: int, max_tokens_per_step: int, continuous: bool = True,
        observer: Observer = ignore,
    ) -> None:  # fmt: skip
        for name, value in (("max_batch", max_batch), ("max_tokens_per_step", max_tokens_per_step)):
            if value < 1:
                raise ValueError(f"{name} should be at least 1; it is {value}")
        self.max_batch, self.max_tokens_per_step, self.continuous = max_batch, max_tokens_per_step, continuous
        self.waiting: list[Sequence] = []
        """In order of arrival. They hold no blocks."""
        self.running: list[Sequence] = []
        """In the order they were let in."""
        self._pool, self._prefix = pool, prefix
        self._observer = observer

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait in its place."""
        insort(self.waiting, sequence, key=lambda other: other.id)

    def schedule(self) -> list[Chunk]:
        """Return what the next step computes. There are blocks for all of it."""
        self._make_room()
        self._admit()
        return [Chunk(sequence, share) for sequence, share in zip(self.running, self._shares()) if share]

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let a running sequence's child run beside it, over the same blocks; where the batch is full, the child waits."""
        if len(self.running) < self.max_batch:
            child.block_table, child.num_cached = fork(self._pool, parent.block_table), parent.num_cached
            child.num_computed = parent.num_cached
            self.running.append(child)
        else:
            self.add(child)
        self._observer(SequenceForked(sequence=child.id, parent=parent.id, blocks=tuple(child.block_table)))

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks away and let it wait; its tokens stay and are computed again."""
        num_lost = sequence.num_cached
        self.remove(sequence)
        self.add(sequence)
        self._observer(SequencePreempted(sequence=sequence.id, num_lost=num_lost))

    def publish(self, sequence: Sequence) -> None:
        """Let other sequences find the full blocks of this one."""
        held = sequence.token_ids[: sequence.num_cached]
        self._prefix.insert(held, sequence.block_table, salt=sequence.salt)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        if sequence in self.running:
            self.publish(sequence)  # counts as a use: what was just finished is likely to be asked for again
            self.running.remove(sequence)
            release_all(self._pool, sequence.block_table)
            sequence.num_cached = 0
        else:
            self.waiting.remove(sequence)

    def _make_room(self) -> None:
        """Preempt until the running sequences have blocks for their next tokens."""
        while self._blocks_needed(self._shares()) > self._pool.num_available:
            self.preempt(self.running[-1])

    def _admit(self) -> None:
        if self.running and not self.continuous:
            return
        while self.waiting and self._has_place() and self._fits(self.waiting[0]):
            sequence = self.waiting.pop(0)
            sequence.block_table = self._prefix.acquire(sequence.token_ids, salt=sequence.salt)
            sequence.num_cached = len(sequence.block_table) * self._pool.block_size
            self.running.append(sequence)
            num_tokens = len(sequence.token_ids)
            self._observer(SequenceAdmitted(sequence=sequence.id, num_cached=sequence.num_cached, num_tokens=num_tokens))

    def _has_place(self) -> bool:
        """Say whether there is a place for one more sequence and, unless a whole batch begins, tokens for it in this step."""
        has_tokens = sum(self._pending()) < self.max_tokens_per_step
        return len(self.running) < self.max_batch and (has_tokens or not self.continuous)

    def _fits(self, sequence: Sequence) -> bool:
        """Say whether there are blocks for all tokens so far, this sequence's and the others', and one more for each other."""
        found = self._prefix.match(sequence.token_ids, salt=sequence.salt)
        own = blocks_for(len(sequence.token_ids), self._pool.block_size) - len(found)
        taken_over = sum(self._pool.ref_count(block) == 1 for block in found)  # to be had now, but not once it holds them
        others = self._blocks_needed(self._pending()) + len(self.running)
        return own + others <= self._pool.num_available - taken_over

    def _shares(self) -> list[int]:
        return divide(self._pending(), budget=self.max_tokens_per_step)

    def _pending(self) -> list[int]:
        return [sequence.num_pending for sequence in self.running]

    def _blocks_needed(self, new_lens: list[int]) -> int:
        """Return the blocks that the running sequences would take for so many more tokens each, those for copies included."""
        if not self.running:
            return 0
        tables, seq_lens = [s.block_table for s in self.running], [s.num_cached for s in self.running]
        return PagedCache(self._pool, tables, seq_lens).blocks_needed(new_lens)


def divide(pending: Numbers[int], *, budget: int) -> list[int]:
    """Divide a step's tokens among sequences.

    Args:
        pending: for each sequence, in order of admission, the tokens it has to compute.
        budget: tokens to hand out.

    Returns:
        For each sequence, the tokens it gets: first one for each that needs one, then as many as there are left for the others.
    """
    shares = [0] * len(pending)
    in_turn = sorted(range(len(pending)), key=lambda row: pending[row] > 1)
    for row in in_turn:
        shares[row] = min(pending[row], budget)
        budget -= shares[row]
    return shares


def group(lengths: Numbers[int]) -> list[list[int]]:
    """Put rows of similar length together, to be run in one forward each.

    Rows of one forward are padded to the longest, and padding is computed like tokens. No row is padded to more than twice its
    length.

    Args:
        lengths: for each row, its tokens.

    Returns:
        The rows of each forward, longest first.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and lengths[groups[-1][0]] <= 2 * lengths[row]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
