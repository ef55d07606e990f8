"""Requests in, tokens out: many sequences of any length through one model and one pool of blocks."""

from collections.abc import Iterable, Iterator
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor

from llama3_edu.cache.blocks import BlockPool, blocks_for
from llama3_edu.cache.paged import PagedCache
from llama3_edu.cache.prefix import PrefixCache
from llama3_edu.engine.scheduler import Chunk, NoPrefixCache, Prefixes, Scheduler, group
from llama3_edu.engine.sequence import OnToken, Sequence
from llama3_edu.engine.statistics import StepStatistics, Tally, memory_use
from llama3_edu.engine.text import GrowingText
from llama3_edu.events import (
    Event,
    Observer,
    SequenceAdded,
    SequenceExtended,
    SequenceFinished,
    StepFinished,
    StepScheduled,
    ignore,
)
from llama3_edu.kernels import fastest
from llama3_edu.model import Llama
from llama3_edu.positions import PAD, right_pad
from llama3_edu.sampling import Choose, greedy
from llama3_edu.tokenizer import Tokenizer

__all__ = ["Engine"]


class Engine:
    """Runs requests side by side: they join and leave between steps, and share one pool of blocks.

    What a request gets does not depend on what runs beside it, on the order of arrival, on the size of the pool or on how often
    it had to give its blocks back: it is what `generate` returns for it alone, up to rounding in the last bits, where sums are
    added up in another order. (With `bits`, keys and values are rounded block by block as they fill, and how a sequence was cut
    into steps shows.)

    Args:
        model: the model, where it is and in its own type of number.
        num_blocks: blocks of the pool.
        block_size: tokens per block.
        max_batch: sequences that run at once.
        max_tokens_per_step: tokens computed per step. A longer prompt is computed in chunks, beside sequences that are further
            on.
        continuous: let requests join while others run. If not, the next batch begins when the last one has ended, which is
            called static batching: the places of requests that end early stay empty.
        prefix_caching: keep the blocks of sequences that ended, for others that begin alike.
        bits: 8, 4 or 2: full blocks are quantised. None: numbers are kept as they come.
        fast: take a faster way to the same logits where there is one (`llama3_edu.kernels`). False: run the model as `model.py` has it.
        observer: is told everything: what the pool, the prefix cache and the scheduler report, `SequenceAdded`, `StepScheduled`,
            `StepFinished`, `SequenceExtended` and `SequenceFinished`.

    Raises:
        ValueError: a size is below 1, or `bits` is another number.
    """

    def __init__(
        self,
        model: Llama,
        *,
        num_blocks: int,
        block_size: int = 16,
        max_batch: int = 8,
        max_tokens_per_step: int = 256,
        continuous: bool = True,
        prefix_caching: bool = True,
        bits: int | None = None,
        fast: bool = True,
        observer: Observer = ignore,
    ) -> None:
        self.model = model
        self.fast = fast
        self.pool = BlockPool(
            model.config, num_blocks=num_blocks, block_size=block_size, bits=bits, device=model.device, dtype=model.dtype,
            observer=observer,
        )  # fmt: skip
        self.prefix: Prefixes = PrefixCache(self.pool, observer=observer) if prefix_caching else NoPrefixCache()
        self.scheduler = Scheduler(
            self.pool, self.prefix, max_batch=max_batch, max_tokens_per_step=max_tokens_per_step, continuous=continuous,
            observer=self._tell,
        )  # fmt: skip
        self.statistics: list[StepStatistics] = []
        """One record per step."""
        self._tally = Tally()
        self._observer = observer
        self._ids, self._steps = count(), count()

    @property
    def has_work(self) -> bool:
        """Whether any request has not ended."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    # -- Requests --

    def add(
        self,
        token_ids: Iterable[int],
        *,
        max_new_tokens: int,
        choose: Choose = greedy,
        stop_ids: Iterable[int] = (),
        stop_strings: Iterable[str] = (),
        tokenizer: Tokenizer | None = None,
        salt: str = "",
        on_token: OnToken | None = None,
    ) -> Sequence:
        """Take a request. It is computed by `step`, `run` or `stream`.

        Args:
            token_ids: the prompt.
            max_new_tokens: tokens at most.
            choose: from logits to its next token. One that draws at random needs a generator of its own, or requests disturb
                each other.
            stop_ids: it ends with the first of these tokens.
            stop_strings: it ends when its text holds one of these; they need a tokenizer.
            tokenizer: with one, the sequence has `text`.
            salt: it shares blocks with requests of the same salt alone.
            on_token: is called with every token.

        Returns:
            The sequence, to be watched as it grows. One that the pool could never hold has ended already: its `finish_reason` is
            `refused`, and `refusal` says why.

        Raises:
            ValueError: the prompt is empty or has an id outside the vocabulary, `max_new_tokens` is below 1, a stop string is
                empty, or there is one and no tokenizer.
        """
        prompt, stop_strings = [int(token_id) for token_id in token_ids], list(stop_strings)
        self._check(prompt, max_new_tokens)
        if stop_strings and tokenizer is None:
            raise ValueError("stop strings are found in text, so they need a tokenizer; there is none")
        sequence = Sequence(
            id=next(self._ids), token_ids=prompt, prompt_len=len(prompt), max_new_tokens=max_new_tokens, choose=choose,
            stop_ids=frozenset(stop_ids), salt=salt, on_token=on_token,
            growing_text=None if tokenizer is None else GrowingText(tokenizer, stop_strings=stop_strings),
        )  # fmt: skip
        self._tell(SequenceAdded(sequence=sequence.id, num_tokens=len(prompt)))
        if not self._refused(sequence):
            self.scheduler.add(sequence)
        return sequence

    def fork(
        self, sequence: Sequence, *, choose: Choose, max_new_tokens: int | None = None, on_token: OnToken | None = None
    ) -> Sequence:
        """Return a second sequence that goes on from the same tokens by itself.

        Forked before its prompt is computed, it is a parallel sample: the prompt is computed once and both choose their first
        token from the same logits. Forked later, it is another ending of the same beginning. Blocks are shared, and copied where
        the two come to write.

        Args:
            sequence: one that has not ended.
            choose: from logits to the next token of the new sequence. Its randomness starts here, not where the prompt ended.
            max_new_tokens: tokens after the prompt at most, those before the fork included. None: as many as the other.
            on_token: is called with every token after the fork.

        Raises:
            ValueError: the sequence has ended or is not this engine's, or it has `max_new_tokens` tokens already.
        """
        self._check_here(sequence)
        max_new_tokens = sequence.max_new_tokens if max_new_tokens is None else max_new_tokens
        if max_new_tokens <= sequence.num_new_tokens:
            raise ValueError(f"the sequence has {sequence.num_new_tokens} new tokens; a fork needs more, not {max_new_tokens}")
        host = sequence.host or sequence
        child = Sequence(
            id=next(self._ids), token_ids=[*sequence.token_ids], prompt_len=sequence.prompt_len, max_new_tokens=max_new_tokens,
            choose=choose, stop_ids=sequence.stop_ids, salt=sequence.salt, on_token=on_token,
            growing_text=sequence.growing_text and sequence.growing_text.fork(),
        )  # fmt: skip
        self._tell(SequenceAdded(sequence=child.id, num_tokens=len(child.token_ids), parent=sequence.id))
        if not self._refused(child):
            child.host = host
            host.forks.append(child)
        return child

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence now; it keeps the tokens it has. One that has ended stays as it ended.

        Raises:
            ValueError: the sequence is not this engine's.
        """
        if not sequence.finished:
            self._check_here(sequence)
            self._finish(sequence, "cancelled")

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks away, as happens when they run out. It waits, and its tokens are computed again.

        Raises:
            ValueError: the sequence does not run in this engine.
        """
        if sequence not in self.scheduler.running:
            raise ValueError(f"only a sequence that runs here has blocks to give back; {sequence} does not")
        self.scheduler.preempt(sequence)

    # -- Steps --

    def step(self) -> None:
        """Compute the next tokens of as many sequences as there is room for. Where there is nothing to do, nothing happens.

        Raises:
            Exception: what a request's own `choose` or `on_token` raised. That request has failed; the others are where the step
                should have brought them, and the next step may be called.
            RuntimeError: a request waits and not even it alone fits: somebody else holds blocks of the engine's pool.
        """
        chunks = self.scheduler.schedule()
        if not chunks:
            self._check_nothing_waits()
            return
        step = next(self._steps)
        sequences, num_tokens = zip(*((chunk.sequence.id, chunk.num_tokens) for chunk in chunks))
        self._tell(StepScheduled(step=step, sequences=sequences, num_tokens=num_tokens))
        try:
            failures = self._play(step, chunks)
        except BaseException:
            self._give_up_step()
            raise
        self._tell(StepFinished(step=step))
        if failures:
            raise failures[0]

    def run(self) -> None:
        """Step until every request has ended."""
        while self.has_work:
            self.step()

    def stream(self, sequence: Sequence) -> Iterator[int]:
        """Yield a sequence's new tokens, from the first on, and step as long as there are more to come.

        Raises:
            ValueError: the sequence is not this engine's.
        """
        sent = 0
        while not sequence.finished or sent < sequence.num_new_tokens:
            if sent == sequence.num_new_tokens:
                self._check_here(sequence)
                self.step()
            else:
                yield sequence.token_ids[sequence.prompt_len + sent]
                sent += 1

    def stream_text(self, sequence: Sequence) -> Iterator[str]:
        """Yield a sequence's text in pieces that are not empty. Joined, they are its `text` at the end.

        Raises:
            ValueError: the sequence is not this engine's, or has no tokenizer.
        """
        sent = 0
        while not sequence.finished or sent < len(sequence.text):
            new = sequence.text[sent:]
            if not new:
                self._check_here(sequence)
                self.step()
            else:
                yield new
                sent += len(new)

    # -- How --

    def _play(self, step: int, chunks: list[Chunk]) -> list[Exception]:
        """Compute a step's tokens and choose the next ones; return what went wrong in choosing."""
        logits = self._compute(chunks)
        running, memory = len(self.scheduler.running), memory_use(self.pool, self.scheduler.running)
        failures = [failure for chunk, row in zip(chunks, logits) for failure in self._extend(chunk.sequence, row)]
        waiting = len(self.scheduler.waiting)
        self.statistics.append(self._tally.take(step=step, running=running, waiting=waiting, memory=memory))
        return failures

    def _give_up_step(self) -> None:
        """Leave nothing half done behind an interrupt: whoever runs begins again from its tokens."""
        for sequence in reversed(self.scheduler.running[:]):
            if sequence.finished:
                self._leave(sequence)
            else:
                self.scheduler.preempt(sequence)

    def _compute(self, chunks: list[Chunk]) -> list[Float[Tensor, "vocab_size"]]:
        """Run the model over all chunks; return, for each, the logits that follow its last token."""
        logits: dict[int, Tensor] = {}
        for rows in group([chunk.num_tokens for chunk in chunks]):
            logits |= zip(rows, self._forward([chunks[row] for row in rows]))
        return [logits[row] for row in range(len(chunks))]

    @torch.no_grad()
    def _forward(self, chunks: list[Chunk]) -> Float[Tensor, "batch vocab_size"]:
        """Run the model over some chunks at once; afterwards, the blocks they filled can be found by others."""
        sequences = [chunk.sequence for chunk in chunks]
        firsts = [chunk.first for chunk in chunks]
        tables, names = [s.block_table for s in sequences], [s.id for s in sequences]
        cache = PagedCache(self.pool, tables, firsts, names=names, observer=self._observer)
        new = [c.sequence.token_ids[c.first : c.first + c.num_tokens] for c in chunks]
        tokens, positions = right_pad(new, device=self.model.device)
        starts = torch.tensor(firsts, device=positions.device)[:, None]
        positions = torch.where(positions == PAD, PAD, positions + starts)
        logits = fastest(self.model, fast=self.fast)(tokens, cache, positions)
        self._tally.computed(chunks, padding=int((positions == PAD).sum()))
        for sequence, held in zip(sequences, cache.seq_lens.tolist()):
            has_filled = held // self.pool.block_size > sequence.num_cached // self.pool.block_size
            sequence.num_cached, sequence.num_computed = held, max(held, sequence.num_computed)
            if has_filled:
                self.scheduler.publish(sequence)
        return logits

    def _extend(self, sequence: Sequence, logits: Float[Tensor, "vocab_size"]) -> list[Exception]:
        """Choose the next token of a sequence and of those that part from it here; return what went wrong in doing so."""
        if sequence.finished or sequence.num_pending:
            return []  # ended or preempted by what another one's `on_token` did; or this was not its last chunk
        family = [sequence]
        while sequence.forks:
            family.append(sequence.forks.pop(0))
            family[-1].host = None
            self.scheduler.fork(sequence, family[-1])
        return [failure for each in family for failure in self._choose(each, logits)]

    def _choose(self, sequence: Sequence, logits: Float[Tensor, "vocab_size"]) -> list[Exception]:
        """Give a sequence its next token; return what its own functions raised. Then it has failed, and nobody else has."""
        if sequence.finished:
            return []
        try:
            token_id = int(sequence.choose(logits[None].clone()))  # `choose` may write to what it is given
            self._check_known(token_id)
            sequence.append(token_id)
            self._tell(SequenceExtended(sequence=sequence.id, position=len(sequence.token_ids) - 1, token_id=token_id))
            if sequence.finished:
                self._leave(sequence)
            if sequence.on_token is not None:
                sequence.on_token(token_id)
        except Exception as failure:
            if not sequence.finished:
                self._finish(sequence, "failed")
            return [failure]
        return []

    def _finish(self, sequence: Sequence, reason: str) -> None:
        sequence.finish(reason)
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence that has ended out of the engine; those that were to part from it go on without it."""
        if sequence.host is not None:
            sequence.host.forks.remove(sequence)
            sequence.host = None
        else:
            self.scheduler.remove(sequence)
            self._pass_on_forks(sequence)
        self._tell(SequenceFinished(sequence=sequence.id, reason=str(sequence.finish_reason), num_tokens=len(sequence.token_ids)))

    def _pass_on_forks(self, sequence: Sequence) -> None:
        """Let the first of a sequence's forks compute what they have in common, and the others part from that one."""
        if sequence.forks:
            heir, *others = sequence.forks
            sequence.forks, heir.host, heir.forks = [], None, others
            for other in others:
                other.host = heir
            self.scheduler.add(heir)

    def _refused(self, sequence: Sequence) -> bool:
        """End a sequence at once if the pool could not hold it even alone; say whether it did."""
        most = sequence.prompt_len + sequence.max_new_tokens - 1  # the last token is chosen and never computed
        needed = blocks_for(most, self.pool.block_size)
        if needed <= self.pool.num_blocks:
            return False
        sequence.refusal = (
            f"{sequence.prompt_len} tokens and up to {sequence.max_new_tokens} more need {needed} blocks "
            f"of {self.pool.block_size}; the pool has {self.pool.num_blocks}"
        )
        sequence.finish("refused")
        self._tell(SequenceFinished(sequence=sequence.id, reason="refused", num_tokens=len(sequence.token_ids)))
        return True

    def _check_nothing_waits(self) -> None:
        if self.has_work:
            first = self.scheduler.waiting[0]
            raise RuntimeError(f"{first} does not fit although nothing runs: somebody else holds blocks of this engine's pool")

    def _check(self, prompt: list[int], max_new_tokens: int) -> None:
        if not prompt:
            raise ValueError("a request needs at least one token; its prompt is empty")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens should be at least 1; it is {max_new_tokens}")
        for token_id in prompt:
            self._check_known(token_id)

    def _check_known(self, token_id: int) -> None:
        if not 0 <= token_id < self.model.config.vocab_size:
            raise ValueError(f"token ids go from 0 to {self.model.config.vocab_size - 1}; one of those given is {token_id}")

    def _check_here(self, sequence: Sequence) -> None:
        if sequence.finished:
            raise ValueError(f"the sequence has ended by {sequence.finish_reason!r}; nothing goes on from it")
        host = sequence.host or sequence
        if host not in self.scheduler.running and host not in self.scheduler.waiting:
            raise ValueError(f"{sequence} is not a sequence of this engine")

    def _tell(self, event: Event) -> None:
        self._tally(event)
        self._observer(event)
