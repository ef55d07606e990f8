"""What each step of an engine did, in numbers to be plotted."""

from collections.abc import Iterable
from dataclasses import dataclass

from llama3_edu.cache.blocks import BlockPool
from llama3_edu.engine.scheduler import Chunk
from llama3_edu.engine.sequence import Sequence
from llama3_edu.events import Event, SequenceAdmitted, SequenceFinished, SequencePreempted

__all__ = ["MemoryUse", "StepStatistics", "Tally", "memory_use"]


@dataclass(frozen=True)
class MemoryUse:
    """How the blocks of a pool are used at one moment. A block that several sequences hold counts once, if not said otherwise.

    Args:
        blocks_used: blocks that a sequence holds.
        blocks_shared: of these, blocks that several sequences hold.
        blocks_without_sharing: blocks that the sequences would hold if each had its own.
        blocks_cached: blocks that no sequence holds and the prefix cache keeps until they are needed.
        blocks_free: blocks that nobody holds.
        slots_held: slots in the blocks used.
        tokens_stored: of these, slots that hold a token.
    """

    blocks_used: int
    blocks_shared: int
    blocks_without_sharing: int
    blocks_cached: int
    blocks_free: int
    slots_held: int
    tokens_stored: int

    @property
    def slots_wasted(self) -> int:
        """Slots that a sequence holds and that hold no token."""
        return self.slots_held - self.tokens_stored

    @property
    def share_stored(self) -> float:
        """Tokens stored per slot held; 1 where no slot is held: none is wasted."""
        return self.tokens_stored / self.slots_held if self.slots_held else 1.0


@dataclass(frozen=True)
class StepStatistics:
    """One step of an engine.

    Args:
        step: which step, from 0.
        running: sequences that took part in the step or could have.
        waiting: sequences that wait for their turn, after the step.
        admitted: sequences let in since the step before.
        preempted: times a sequence had to give its blocks back since then.
        finished: sequences that ended since then.
        prompt_tokens: tokens of prompts that were computed for the first time.
        decoded_tokens: tokens after the prompt that were computed for the first time.
        recomputed_tokens: tokens that were computed again after a preemption.
        reused_tokens: tokens that were not computed because the prefix cache had them.
        padding: places that were computed although they hold no token: rows of one forward are equally long.
        memory: how blocks are used when all tokens of the step are computed and no sequence has ended yet.
    """

    step: int
    running: int
    waiting: int
    admitted: int
    preempted: int
    finished: int
    prompt_tokens: int
    decoded_tokens: int
    recomputed_tokens: int
    reused_tokens: int
    padding: int
    memory: MemoryUse

    @property
    def tokens(self) -> int:
        """All tokens computed."""
        return self.prompt_tokens + self.decoded_tokens + self.recomputed_tokens


class Tally:
    """Counts what happened since it was last asked. It is an observer."""

    def __init__(self) -> None:
        self._begin()

    def __call__(self, event: Event) -> None:
        if isinstance(event, SequenceAdmitted):
            self._admitted += 1
            self._reused += event.num_cached
        elif isinstance(event, SequencePreempted):
            self._preempted += 1
        elif isinstance(event, SequenceFinished):
            self._finished += 1

    def computed(self, chunks: Iterable[Chunk], *, padding: int) -> None:
        """Count tokens that are about to be computed in one forward."""
        for chunk in chunks:
            sequence, end = chunk.sequence, chunk.first + chunk.num_tokens
            new = range(max(chunk.first, sequence.num_computed), end)
            prompt = max(0, min(end, sequence.prompt_len) - new.start)
            self._prompt += prompt
            self._decoded += len(new) - prompt
            self._recomputed += chunk.num_tokens - len(new)
        self._padding += padding

    def take(self, *, step: int, running: int, waiting: int, memory: MemoryUse) -> StepStatistics:
        """Return the counts together with what is given, and start again from zero."""
        statistics = StepStatistics(
            step=step, running=running, waiting=waiting, admitted=self._admitted, preempted=self._preempted,
            finished=self._finished, prompt_tokens=self._prompt, decoded_tokens=self._decoded, recomputed_tokens=self._recomputed,
            reused_tokens=self._reused, padding=self._padding, memory=memory,
        )  # fmt: skip
        self._begin()
        return statistics

    def _begin(self) -> None:
        self._admitted = self._preempted = self._finished = 0
        self._prompt = self._decoded = self._recomputed = self._reused = self._padding = 0


def memory_use(pool: BlockPool, sequences: Iterable[Sequence]) -> MemoryUse:
    """Return how the blocks of a pool are used, when these sequences hold all of it that a prefix cache does not."""
    tokens_in: dict[int, int] = {}
    holders: dict[int, int] = {}
    for sequence in sequences:
        for index, block in enumerate(sequence.block_table):
            held = sequence.num_cached - index * pool.block_size
            tokens_in[block] = max(tokens_in.get(block, 0), min(pool.block_size, held))
            holders[block] = holders.get(block, 0) + 1
    return MemoryUse(
        blocks_used=len(holders),
        blocks_shared=sum(count > 1 for count in holders.values()),
        blocks_without_sharing=sum(holders.values()),
        blocks_cached=pool.num_used - len(holders),
        blocks_free=pool.num_free,
        slots_held=len(holders) * pool.block_size,
        tokens_stored=sum(tokens_in.values()),
    )
