"""An engine with a tiny pool, and requests that come, part and are cancelled at random: the state machine and its checks."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny_models import CONFIG, random_model
from torch import Tensor

import llama3_edu.engine.engine as engine_module
from llama3_edu import PAD, Engine, GrowingCache, PagedCache, Sequence, generate, greedy, sampler
from llama3_edu.events import Event, SequenceForked
from llama3_edu.sampling import Choose

SHAPE = replace(CONFIG, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=24, vocab_size=7)
MODEL = random_model(SHAPE)


class CheckedCache(PagedCache):
    """A paged cache that never writes to a block with several holders."""

    def reserve(self, positions: Tensor) -> Tensor:
        key_positions = super().reserve(positions)
        written = {slot // self.pool.block_size for row in self.slot_mapping.tolist() for slot in row if slot != PAD}
        assert all(self.pool.ref_count(block) == 1 for block in written), "a shared block was about to be written"
        return key_positions


def choose_with(seed: int | None) -> Choose:
    """A fresh way of choosing: the same seed chooses alike. None: greedy."""
    return greedy if seed is None else sampler(temperature=1.5, top_p=0.9, generator=torch.Generator().manual_seed(seed))


@cache
def alone(start: tuple[int, ...], max_new_tokens: int, seed: int | None, stop_ids: frozenset[int]) -> list[int]:
    """All tokens of a request that runs by itself."""
    tokens = torch.tensor([start])
    kept = GrowingCache(SHAPE, dtype=torch.float64)
    return generate(
        MODEL, tokens, max_new_tokens=max_new_tokens, cache=kept, choose=choose_with(seed), stop_ids=sorted(stop_ids)
    )[0].tolist()


@dataclass(eq=False)
class Request:
    """What a sequence was asked for, to be asked for again alone."""

    sequence: Sequence
    start: tuple[int, ...]
    seed: int | None
    told: list[int]

    def expected(self) -> list[int]:
        sequence = self.sequence
        more = sequence.max_new_tokens - (len(self.start) - sequence.prompt_len)
        return alone(self.start, more, self.seed, sequence.stop_ids)


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=9) | st.lists(st.integers(0, 6), min_size=1, max_size=5)
"""Two tokens only, often, so that prompts begin alike."""

seeds = st.none() | st.integers(0, 3)
stops = st.sets(st.integers(2, 6), max_size=1)
wishes = st.tuples(prompts, st.integers(1, 8), st.lists(seeds, min_size=1, max_size=3), stops, st.sampled_from(["", "b"]))
"""A prompt, how many tokens more, how each of its samples is chosen, where to stop, whose blocks."""


class LifeOfEngine(RuleBasedStateMachine):
    """Adds, forks, cancels, preempts and steps at random; after each step everything must add up, and every output is right."""

    seen: Counter[str] = Counter()
    """What happened in all lives together: a machine that never gets into trouble proves nothing."""

    @initialize(
        num_blocks=st.integers(4, 8), block_size=st.sampled_from([3, 4, 2, 1]), max_batch=st.sampled_from([4, 3, 2, 1]),
        budget=st.sampled_from([12, 7, 3, 1]), prefix_caching=st.booleans(),
    )  # fmt: skip
    def begin(self, num_blocks: int, block_size: int, max_batch: int, budget: int, prefix_caching: bool) -> None:
        self.engine = Engine(
            MODEL, num_blocks=num_blocks, block_size=block_size, max_batch=max_batch, max_tokens_per_step=budget,
            prefix_caching=prefix_caching, observer=self.see,
        )  # fmt: skip
        self.requests: list[Request] = []
        self.limits = (max_batch, budget)

    def see(self, event: Event) -> None:
        self.seen[type(event).__name__] += 1
        self.seen["shared forks"] += isinstance(event, SequenceForked) and len(event.blocks) > 0

    # -- What may happen --

    @rule(requests=st.lists(wishes, min_size=1, max_size=2))
    def arrive(self, requests: list[tuple[list[int], int, list[int | None], set[int], str]]) -> None:
        for prompt, more, (first, *others), stop_ids, salt in requests:
            sequence = self.add(prompt, more, first, stop_ids, salt)
            if not sequence.finished:
                for seed in others:
                    self.fork(sequence, seed)

    def add(self, prompt: list[int], more: int, seed: int | None, stop_ids: set[int], salt: str) -> Sequence:
        told: list[int] = []
        sequence = self.engine.add(
            prompt, max_new_tokens=more, choose=choose_with(seed), stop_ids=stop_ids, salt=salt, on_token=told.append
        )
        size, blocks = self.engine.pool.block_size, self.engine.pool.num_blocks
        assert (sequence.finish_reason == "refused") == (len(prompt) + more - 1 > size * blocks) == (sequence.refusal is not None)
        self.requests.append(Request(sequence, tuple(prompt), seed, told))
        return sequence

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), seed=seeds)
    def part(self, data: st.DataObject, seed: int | None) -> None:
        self.fork(data.draw(st.sampled_from(self.unfinished()), "parent").sequence, seed)

    def fork(self, parent: Sequence, seed: int | None) -> None:
        told: list[int] = []
        child = self.engine.fork(parent, choose=choose_with(seed), on_token=told.append)
        self.requests.append(Request(child, tuple(parent.token_ids), seed, told))

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), kind=st.sampled_from(["cancel", "preempt"]))
    def disturb(self, data: st.DataObject, kind: str) -> None:
        sequence = data.draw(st.sampled_from(self.unfinished()), "disturbed").sequence
        if kind == "cancel":
            self.engine.cancel(sequence)
        elif sequence in self.engine.scheduler.running:
            self.seen["preemptions on request"] += 1
            self.engine.preempt(sequence)

    @precondition(lambda self: self.engine.has_work)
    @rule(steps=st.integers(1, 5))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
            self.everything_adds_up()

    # -- What must hold --

    @invariant()
    def everything_adds_up(self) -> None:
        pool, running, waiting = self.engine.pool, self.engine.scheduler.running, self.engine.scheduler.waiting
        tables = Counter(block for sequence in running for block in sequence.block_table)
        published = Counter(self.engine.prefix.blocks)
        held = tables + published
        assert [pool.ref_count(block) for block in range(pool.num_blocks)] == [held[block] for block in range(pool.num_blocks)]
        assert pool.num_used + pool.num_free == pool.num_blocks and pool.num_used == len(held)
        for sequence in running:
            assert len(set(sequence.block_table)) == len(sequence.block_table) == -(-sequence.num_cached // pool.block_size)
        parked = [fork for sequence in (*running, *waiting) for fork in sequence.forks]
        for sequence in (*waiting, *parked):
            assert (sequence.block_table, sequence.num_cached) == ([], 0)
        alive = [*running, *waiting, *parked]
        assert len(running) <= self.limits[0] and waiting == sorted(waiting, key=lambda sequence: sequence.id)
        asked_for = [request.sequence for request in self.unfinished()]
        assert sorted(map(id, alive)) == sorted(map(id, asked_for)), "one was lost, or is there twice"

    @invariant()
    def what_is_written_so_far_is_right(self) -> None:
        for request in self.requests:
            so_far, expected = request.sequence.token_ids, request.expected()
            assert so_far == expected[: len(so_far)]
            assert request.told == so_far[len(request.start) :]
            if request.sequence.finish_reason in ("stop", "length"):
                assert so_far == expected

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_work:
            self.step()
            self.everything_adds_up()
        self.what_is_written_so_far_is_right()
        assert all(request.sequence.finished for request in self.requests)
        assert self.engine.pool.num_used == len(self.engine.prefix.blocks), "something is leaked"
        self.engine.prefix.clear()
        assert self.engine.pool.num_free == self.engine.pool.num_blocks

    # -- How --

    def unfinished(self) -> list[Request]:
        return [request for request in self.requests if not request.sequence.finished]

    def step(self) -> None:
        with patch.object(engine_module, "PagedCache", CheckedCache):
            self.engine.step()
        done = self.engine.statistics[-1]
        assert 1 <= done.tokens <= self.limits[1], "a step with work to do computes something, and no more than it may"
        memory = done.memory
        assert 0 <= memory.slots_wasted < self.limits[0] * self.engine.pool.block_size
        assert memory.blocks_used + memory.blocks_cached + memory.blocks_free == self.engine.pool.num_blocks
        assert memory.blocks_shared <= memory.blocks_used <= memory.blocks_without_sharing
