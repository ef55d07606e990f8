"""Frames of blocks, beams and schedules, folded from real runs: every count is the one that the run itself had."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from long_pool import long_life
from tiny_models import CONFIG, random_model, random_tokens

import llama3_edu as le
from llama3_edu.cache.blocks import fork, release_all
from llama3_edu.events import (
    BeamsPruned,
    BlockAllocated,
    BlockCopied,
    BlockEvicted,
    BlockFreed,
    BlockPublished,
    BlockReleased,
    BlockShared,
    Event,
    PrefixReused,
    SequenceAdmitted,
    SequenceForked,
    SequencePreempted,
    StepFinished,
    TablesChanged,
)
from llama3_edu.trace import Frames
from llama3_edu.trace_pool import makes_step

SMALL = replace(CONFIG, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=24, vocab_size=13)
MODEL = random_model(SMALL)
OF_BLOCKS = (
    BlockAllocated, BlockShared, BlockReleased, BlockFreed, BlockCopied, BlockPublished, PrefixReused, TablesChanged,
)  # fmt: skip


class Watched(le.Trace):
    """A trace that also looks at the world itself at every event of one of these kinds."""

    def __init__(self, look: Callable[[], object], *kinds: type[Event]) -> None:
        super().__init__()
        self.look, self.kinds, self.seen = look, kinds, []

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, self.kinds):
            self.seen.append(self.look())


def states_of(frames: Frames) -> list[dict[str, object]]:
    return [{**step, **state} for step, state in zip(frames["steps"], le.block_states(frames), strict=True)]


class World:
    """A small pool with a prefix cache, and rows that come and go; what is held is written down at every event."""

    def __init__(self, *, num_blocks: int = 10, block_size: int = 3) -> None:
        self.trace = Watched(self.counts, *OF_BLOCKS)
        self.pool = le.BlockPool(SMALL, num_blocks=num_blocks, block_size=block_size, dtype=torch.float64, observer=self.trace)
        self.prefix = le.PrefixCache(self.pool, observer=self.trace)
        self.tables: list[list[int]] = []
        self.ids: list[list[int]] = []

    def counts(self) -> list[int]:
        return [self.pool.ref_count(block) for block in range(self.pool.num_blocks)]

    def frames(self, **options: object) -> Frames:
        return le.block_frames(self.trace, num_blocks=self.pool.num_blocks, block_size=self.pool.block_size, **options)

    def states(self) -> list[dict[str, object]]:
        """Every step, with all that is known of the pool then."""
        return states_of(self.frames())

    def start(self, ids: list[int]) -> None:
        table = self.prefix.acquire(ids)
        self.tables.append(table)
        self.ids.append(ids[: len(table) * self.pool.block_size])
        self.feed(len(self.tables) - 1, ids[len(self.ids[-1]) :])

    def feed(self, row: int, new: list[int]) -> None:
        cache = le.PagedCache(self.pool, [self.tables[row]], [len(self.ids[row])], names=[row], observer=self.trace)
        MODEL(torch.tensor([new]), cache)
        self.ids[row] = [*self.ids[row], *new]
        self.prefix.insert(self.ids[row], self.tables[row])

    def fork(self, row: int) -> None:
        self.tables.append(fork(self.pool, self.tables[row]))
        self.ids.append([*self.ids[row]])

    def drop(self, row: int) -> None:
        release_all(self.pool, self.tables[row])
        self.ids[row] = []


def a_story() -> World:
    """Prefill, a fork, copy-on-write, a prompt found in the prefix cache, a release, an eviction."""
    world = World(num_blocks=5)
    world.start([1, 2, 3, 4, 5])
    world.fork(0)
    world.feed(1, [6])
    world.start([1, 2, 3, 9])
    world.drop(0)
    world.drop(1)
    world.feed(2, [7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5])
    world.drop(2)
    return world


# -- Blocks --


def test_every_step_has_the_counts_the_pool_had():
    world = a_story()
    steps = world.states()
    assert [step["ref_counts"] for step in steps[1:]] == world.trace.seen
    kinds = {step["what"] for step in steps}
    assert kinds == {
        "start", "allocated", "shared", "released", "freed", "copied", "published", "evicted", "reused", "tables",
    }  # fmt: skip
    for step in steps:
        assert sorted(step["free"]) == [block for block, count in enumerate(step["ref_counts"]) if not count]
        assert step["shared"] == [block for block, count in enumerate(step["ref_counts"]) if count > 1]
        assert all(step["filled"][block] == 0 for block in step["free"])


def test_free_blocks_stand_in_the_order_they_are_taken():
    steps = a_story().states()
    taken = [(before["free"][0], *step["blocks"]) for before, step in zip(steps, steps[1:]) if step["what"] == "allocated"]
    assert len(taken) > 4 and all(first == block for first, block in taken)


def test_a_block_given_up_is_free_at_once():
    world = a_story()
    given_up = [step for step in world.states() if step["what"] == "evicted"]
    assert [step["blocks"] for step in given_up] == [[event.block] for event in world.trace.of(BlockEvicted)] != []
    for number, step in enumerate(given_up, start=1):
        (block,) = step["blocks"]
        assert step["num_evicted"] == number and step["free"][0] == block and block not in step["published"]


def test_tables_and_what_is_published_account_for_every_holder():
    world = World()
    world.start([1, 2, 3, 4, 5])
    world.start([1, 2, 3, 9])
    world.feed(0, [6, 7])
    step = world.states()[-1]
    assert {table["name"]: table["blocks"] for table in step["tables"]} == dict(enumerate(world.tables))
    assert {table["name"]: table["num_tokens"] for table in step["tables"]} == {0: 7, 1: 4}
    held = Counter(step["published"]) + Counter(block for table in step["tables"] for block in table["blocks"])
    assert [held[block] for block in range(10)] == step["ref_counts"]
    assert sorted(step["published"]) == sorted(world.prefix.blocks)
    assert [len(owners) for owners in step["owners"]] == [sum(b in table for table in world.tables) for b in range(10)]


def test_blocks_are_filled_with_the_tokens_their_rows_hold():
    world = World(block_size=4)
    world.start([1, 2, 3, 4, 5, 6])
    assert world.states()[-1]["filled"][:2] == [4, 2]
    world.fork(0)
    world.feed(1, [7])
    step = world.states()[-1]
    (copied,) = world.trace.of(BlockCopied)
    assert (step["filled"][copied.source], step["filled"][copied.block]) == (2, 3)
    assert sum(step["filled"]) == 4 + 2 + 3


def test_a_copy_is_told_with_its_source_and_before_it_is_written():
    world = World(block_size=4)
    world.start([1, 2, 3, 4, 5, 6])
    world.fork(0)
    world.feed(1, [7])
    (step,) = [step for step in world.states() if step["what"] == "copied"]
    (block,) = step["blocks"]
    assert (step["source"], step["filled"][step["source"]], step["filled"][block]) == (1, 2, 2)


def test_rows_show_their_tokens():
    world = a_story()
    assert world.frames(token_ids={0: [1, 2], 7: [3]})["rows"] == [
        {"name": 0, "tokens": ["#1", "#2"]},
        {"name": 7, "tokens": ["#3"]},
    ]


def test_a_reordered_cache_tells_its_rows_and_those_that_are_gone():
    trace = le.Trace()
    pool = le.BlockPool(SMALL, num_blocks=20, block_size=3, dtype=torch.float64, observer=trace)
    cache = le.PagedCache(pool, [[], [], []], names=[4, 7, 9], observer=trace)
    MODEL(random_tokens(3, 5, config=SMALL), cache)
    for parents, names in (([2, 0], [4, 7]), ([1, 1, 0], [4, 7, 8])):
        cache.reorder(torch.tensor(parents))
        step = states_of(le.block_frames(trace, num_blocks=20, block_size=3))[-1]
        assert {table["name"]: table["blocks"] for table in step["tables"]} == dict(zip(names, cache.block_tables))
    cache.release()
    step = states_of(le.block_frames(trace, num_blocks=20, block_size=3))[-1]
    assert step["tables"] == [] and step["ref_counts"] == [0] * 20


def test_every_row_needs_a_name():
    pool = le.BlockPool(SMALL, num_blocks=2)
    with pytest.raises(ValueError, match="every row needs a name; there are 2 rows and 1 names"):
        le.PagedCache(pool, [[], []], names=[3])


def test_a_trace_with_a_gap_is_refused():
    world = a_story()
    world.trace.events.remove(world.trace.of(BlockShared)[0])
    with pytest.raises(ValueError, match="should hold all that happened to the pool; block 0 is told to have"):
        world.frames()


# -- Beams --


def search(
    *, num_beams: int = 4, block_size: int = 3, eos_id: int | None = None
) -> tuple[Frames, Watched, le.PagedCache, le.BeamResult]:
    trace = Watched(lambda: (list(map(list, cache.block_tables)), pool.num_used), TablesChanged)
    pool = le.BlockPool(SMALL, num_blocks=60, block_size=block_size, dtype=torch.float64, observer=trace)
    cache = le.PagedCache(pool, [[]], observer=trace)
    found = le.beam_search(
        MODEL, random_tokens(1, 5, config=SMALL), num_beams=num_beams, max_new_tokens=9, cache=cache, eos_id=eos_id,
        observer=trace,
    )  # fmt: skip
    return le.beam_frames(trace), trace, cache, found


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_beams_hold_the_blocks_the_cache_held(num_beams: int, block_size: int):
    frames, trace, cache, _ = search(num_beams=num_beams, block_size=block_size)
    written, followed = trace.seen[::2], trace.seen[1::2]  # one pair per step; nothing follows the last
    assert [step["written"] for step in frames["forwards"]] == [tables for tables, _ in written]
    assert [[beam["blocks"] for beam in step["beams"]] for step in frames["forwards"][:-1]] == [tables for tables, _ in followed]
    at_the_end = [*followed, written[-1]]
    assert [step["num_blocks"] for step in frames["forwards"]] == [used for _, used in at_the_end]
    assert [step["without_sharing"] for step in frames["forwards"]] == [sum(map(len, tables)) for tables, _ in at_the_end]
    for step, (tables, _) in zip(frames["forwards"], at_the_end):
        held = Counter(block for table in tables for block in table)
        assert step["shared"] == sorted(block for block in held if held[block] > 1)
    assert sum(len(step["copied"]) for step in frames["forwards"]) == len(trace.of(BlockCopied))
    assert sum(len(step["freed"]) for step in frames["forwards"]) + cache.pool.num_used == len(trace.of(BlockAllocated))


@pytest.mark.parametrize("eos_id", [None, 1, 3])
def test_following_the_beams_of_all_steps_gives_what_the_search_returned(eos_id: int | None):
    frames, trace, _, found = search(eos_id=eos_id)
    beams, ended = [[]], []
    for step in frames["forwards"]:
        assert step["position"] == 5 + len(beams[0])
        ended += [(end["score"], [*beams[end["parent"]], end["token"]]) for end in step["ended"]]
        continued = {beam["parent"] for beam in step["beams"]}
        assert set(step["closed"]) == (set(range(len(beams))) - continued if continued else set())
        beams = [[*beams[beam["parent"]], beam["token"]] for beam in step["beams"]]
    best = sorted(ended, reverse=True)[: len(found.tokens)]
    assert [score for score, _ in best] == found.scores.tolist()
    for (_, tokens), row in zip(best, found.tokens.tolist()):
        assert [f"#{token_id}" for token_id in row[5 : 5 + len(tokens)]] == tokens
    assert [[beam["score"] for beam in step["beams"]] for step in frames["forwards"] if step["beams"]] == [
        list(event.scores) for event in trace.of(BeamsPruned)
    ]


def test_the_prompt_is_shown_where_it_is_given_and_has_to_be_the_one_that_was_continued():
    frames, trace, *_ = search()
    assert frames["prompt"] == [] and frames["prompt_len"] == 5
    prompt = random_tokens(1, 5, config=SMALL)[0].tolist()
    assert le.beam_frames(trace, prompt=prompt)["prompt"] == [f"#{token_id}" for token_id in prompt]
    with pytest.raises(ValueError, match="a prompt of 5 tokens; it was given as 4"):
        le.beam_frames(trace, prompt=prompt[1:])


def test_a_search_without_blocks_has_beams_all_the_same():
    trace, prompt = le.Trace(), random_tokens(1, 5, config=SMALL)
    le.beam_search(MODEL, prompt, num_beams=3, max_new_tokens=4, observer=trace)
    with_blocks = search(num_beams=3)[0]["forwards"][:3]
    for step, other in zip(le.beam_frames(trace)["forwards"], with_blocks):
        assert [(beam["parent"], beam["token"]) for beam in step["beams"]] == [(b["parent"], b["token"]) for b in other["beams"]]
        assert step["num_blocks"] == 0 and all(beam["blocks"] == [] for beam in step["beams"])
    with pytest.raises(ValueError, match="should hold a run of beam_search"):
        le.beam_frames(le.Trace())


# -- Schedules --


class Requests:
    """An engine with little room, and requests that come, part, are cancelled and preempted between its steps, by one seed."""

    def __init__(self, seed: int, *, num_blocks: int = 9, look_at: str = "schedule") -> None:
        looks = {
            "schedule": Watched(self.look, StepFinished),
            "published": Watched(lambda: self.engine.prefix.blocks, BlockPublished, BlockEvicted),
            "tables": Watched(self.tables, StepFinished),
        }
        self.trace = looks[look_at]
        self.engine = le.Engine(
            MODEL, num_blocks=num_blocks, block_size=3, max_batch=4, max_tokens_per_step=7, observer=self.trace
        )
        self.sequences: list[le.Sequence] = []
        chance = random.Random(seed)
        for _ in range(25):
            self.disturb(chance)
            self.engine.step()
        self.engine.run()

    def look(self) -> tuple[set[int], set[int], list[int]]:
        running, waiting = self.engine.scheduler.running, self.engine.scheduler.waiting
        return {s.id for s in running}, {s.id for s in waiting}, [s.id for s in self.sequences if s.finished]

    def tables(self) -> tuple[int, dict[int, tuple[list[int], int]]]:
        """How much was told so far, and the tables of those who run."""
        running = self.engine.scheduler.running
        return len(self.trace), {s.id: ([*s.block_table], s.num_cached) for s in running if s.block_table}

    def disturb(self, chance: random.Random) -> None:
        alive = [sequence for sequence in self.sequences if not sequence.finished]
        what = chance.choice(["add", "add", "nothing", "fork", "cancel", "preempt"])
        if what == "add":
            prompt = [chance.randrange(2) for _ in range(chance.randint(1, 14))]
            self.sequences.append(self.engine.add(prompt, max_new_tokens=chance.randint(1, 17)))
        elif what == "fork" and alive:
            parent = chance.choice(alive)
            self.sequences.append(self.engine.fork(parent, choose=le.greedy))
        elif what == "cancel" and alive and chance.random() < 0.4:
            self.engine.cancel(chance.choice(alive))
        elif what == "preempt" and self.engine.scheduler.running:
            self.engine.preempt(chance.choice(self.engine.scheduler.running))


def timeline(trace: le.Trace) -> dict[str, list[dict[str, object]]]:
    """The only run of a trace."""
    (run,) = le.schedule_frames(trace)["runs"]
    return run


def total(steps: list[dict[str, object]], key: str) -> list[int]:
    return [len(step[key]) if isinstance(step[key], list) else step[key] for step in steps]


@pytest.mark.parametrize("seed", range(12))
def test_the_timeline_says_what_the_engine_s_statistics_say(seed: int):
    requests = Requests(seed)
    frames = timeline(requests.trace)
    statistics = requests.engine.statistics
    for key in (
        "step", "running", "waiting", "admitted", "preempted", "finished", "prompt_tokens", "decoded_tokens",
        "recomputed_tokens", "reused_tokens",
    ):  # fmt: skip
        ours, theirs = total(frames["steps"], key), [getattr(step, key) for step in statistics]
        assert ours == theirs, key
    assert [sum(step["num_tokens"]) for step in frames["steps"]] == [step.tokens for step in statistics]


@pytest.mark.parametrize("seed", range(12))
def test_states_are_those_of_the_scheduler_after_every_step(seed: int):
    requests = Requests(seed)
    frames = timeline(requests.trace)
    for step, (running, waiting, finished) in zip(frames["steps"], requests.trace.seen, strict=True):
        for request, state, num_tokens in zip(frames["requests"], step["states"], step["num_tokens"], strict=True):
            sequence = request["sequence"]
            assert (num_tokens > 0) == (state in ("prefill", "recompute", "decode"))
            if state in ("waiting", "preempted"):
                assert sequence in waiting
            elif state == "running":
                assert sequence in running
            elif state == "finished":
                assert sequence in finished
            elif state == "attached":
                assert sequence not in running | waiting and sequence not in finished
            elif state == "absent":
                assert sequence >= len(step["states"]) - step["states"].count("absent"), "who comes later has a higher number"
            else:
                assert sequence in running or sequence in finished
    assert [request["reason"] for request in frames["requests"]] == [s.finish_reason for s in requests.sequences]
    assert [request["prompt_len"] for request in frames["requests"]] == [s.prompt_len for s in requests.sequences]
    assert [request["new_tokens"] for request in frames["requests"]] == [s.num_new_tokens for s in requests.sequences]


def test_every_state_comes_up():
    seen = {state for seed in range(12) for step in timeline(Requests(seed).trace)["steps"] for state in step["states"]}
    assert seen >= {"prefill", "recompute", "decode", "running", "waiting", "preempted", "attached", "finished", "absent"}


@pytest.mark.parametrize("seed", range(4))
def test_the_blocks_of_an_engine_can_be_followed_too(seed: int):
    requests = Requests(seed)
    pool = requests.engine.pool
    frames = le.block_frames(requests.trace, num_blocks=pool.num_blocks, block_size=pool.block_size)
    steps = states_of(frames)
    last = steps[-1]
    assert last["ref_counts"] == [pool.ref_count(block) for block in range(pool.num_blocks)]
    assert sorted(last["published"]) == sorted(requests.engine.prefix.blocks) and last["tables"] == []
    for step in steps:
        named = {table["name"]: table["num_tokens"] for table in step["tables"]}
        assert set(named) <= {sequence.id for sequence in requests.sequences}
        assert all(len(table["blocks"]) == -(-table["num_tokens"] // 3) for table in step["tables"])
    admitted = [step["tables"] for step in steps if step["what"] == "admitted"]
    for event, tables in zip(requests.trace.of(SequenceAdmitted), admitted, strict=True):
        assert {table["name"]: table["num_tokens"] for table in tables}.get(event.sequence, 0) == event.num_cached


@pytest.mark.parametrize("seed", range(8))
def test_tables_are_known_at_the_end_of_every_step(seed: int):
    requests = Requests(seed, look_at="tables")
    pool = requests.engine.pool
    steps = states_of(le.block_frames(requests.trace, num_blocks=pool.num_blocks, block_size=pool.block_size, most=100_000))
    assert len(requests.trace.seen) == len(requests.trace.of(StepFinished)) > 0, "tables are compared at every step"
    for told, tables in requests.trace.seen:
        step = steps[sum(map(makes_step, requests.trace.events[:told]))]
        assert {t["name"]: (t["blocks"], t["num_tokens"]) for t in step["tables"]} == tables
        held = Counter(step["published"]) + Counter(block for blocks, _ in tables.values() for block in blocks)
        assert [held[block] for block in range(pool.num_blocks)] == step["ref_counts"]


def test_steps_taken_together_lead_to_the_same_pools():
    requests = Requests(2)
    pool = requests.engine.pool
    sizes = {"num_blocks": pool.num_blocks, "block_size": pool.block_size}
    whole, few = (le.block_frames(requests.trace, **sizes, most=most) for most in (100_000, 20))
    total = len(whole["steps"]) - 1
    every = -(-total // 20)
    assert "note" not in whole
    assert few["note"] == f"One in {every} of {total} steps is shown; what happened between two is taken together."
    shown = [0, *[number for number in range(1, total + 1) if number % every == 0 or number == total]]
    everything, some = states_of(whole), states_of(few)
    assert len(some) == len(shown) <= 22
    for step, index in zip(some, shown):
        assert sorted(step.pop("published")) == sorted(everything[index].pop("published"))
        assert {**step, "changes": None} == {**everything[index], "changes": None}
    assert le.block_state(few, 3) == [*le.block_states(few)][3]
    with pytest.raises(ValueError, match="most should be at least 1; it is 0"):
        le.block_frames(requests.trace, **sizes, most=0)


def test_frames_of_a_chapter_are_small():
    requests = Requests(1, num_blocks=32)
    frames = le.block_frames(
        requests.trace, num_blocks=32, block_size=3, token_ids={s.id: s.token_ids for s in requests.sequences}
    )
    assert len(frames["steps"]) > 200
    assert len(gzip.compress(json.dumps(frames).encode())) <= 10_000
    assert len(json.dumps(frames["steps"])) < 300 * len(frames["steps"])


def test_frames_of_thousands_of_blocks_hold_what_changes():
    trace = long_life()
    frames = le.block_frames(trace, num_blocks=4096, block_size=16, most=100_000)
    assert len(trace) >= 10_000 and len(frames["steps"]) > 9_000
    assert len(json.dumps(frames["steps"])) < 300 * len(frames["steps"])
    few = le.block_frames(trace, num_blocks=4096, block_size=16)
    assert len(few["steps"]) <= 1_001
    assert le.block_state(few, -1)["ref_counts"] == le.block_state(frames, -1)["ref_counts"]


def test_forks_wait_for_the_one_they_part_from_and_the_first_takes_its_place():
    trace = le.Trace()
    engine = le.Engine(MODEL, num_blocks=9, block_size=3, max_tokens_per_step=2, observer=trace)
    first = engine.add([1, 2, 3, 4, 5, 6, 7, 8], max_new_tokens=2)
    second = engine.fork(first, choose=le.greedy)
    third = engine.fork(second, choose=le.greedy)
    fourth = engine.fork(third, choose=le.greedy)
    for ended in (None, second, first):
        if ended is not None:
            engine.cancel(ended)
        engine.step()
    engine.run()
    frames = timeline(trace)
    assert [step["states"] for step in frames["steps"][:3]] == [
        ["prefill", "attached", "attached", "attached"],
        ["prefill", "finished", "attached", "attached"],
        ["finished", "finished", "prefill", "attached"],
    ]
    assert [request["parent"] for request in frames["requests"]] == [None, 0, 1, 2]
    assert [request["reason"] for request in frames["requests"]] == ["cancelled", "cancelled", "length", "length"]
    assert third.token_ids == fourth.token_ids


def test_a_step_that_an_error_broke_off_is_left_out(monkeypatch: pytest.MonkeyPatch):
    trace = le.Trace()
    engine = le.Engine(MODEL, num_blocks=9, block_size=3, fast=False, observer=trace)
    engine.add([1, 2, 3, 4, 5], max_new_tokens=4)
    engine.step()
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(le.Llama, "next_logits", lambda *_: 1 / 0)
        engine.step()
    engine.run()
    steps = timeline(trace)["steps"]
    for key in ("step", "running", "waiting", "preempted", "prompt_tokens", "decoded_tokens", "recomputed_tokens"):
        assert total(steps, key) == [getattr(step, key) for step in engine.statistics], key
    assert [step["preempted"] for step in steps][:2] == [[], [[0, 5]]]


@pytest.mark.parametrize("seed", range(4))
def test_who_came_in_parted_and_gave_way_is_told_with_what_it_found_shared_and_lost(seed: int):
    requests = Requests(seed)
    steps = timeline(requests.trace)["steps"]
    told = {key: [tuple(pair) for step in steps for pair in step[key]] for key in ("admitted", "forked", "preempted")}
    assert told["admitted"] == [(event.sequence, event.num_cached) for event in requests.trace.of(SequenceAdmitted)]
    assert told["forked"] == [(event.sequence, event.parent) for event in requests.trace.of(SequenceForked)]
    assert told["preempted"] == [(event.sequence, event.num_lost) for event in requests.trace.of(SequencePreempted)]
    assert [sum(found for _, found in step["admitted"]) for step in steps] == total(steps, "reused_tokens")
    again = [sum(state == "recompute" for state in step["states"]) for step in steps]
    assert [count > 0 for count in again] == [tokens > 0 for tokens in total(steps, "recomputed_tokens")]


def test_runs_stand_one_above_the_other_and_the_shorter_one_says_when_it_is_over():
    traces = {"static": le.Trace(), "continuous": le.Trace()}
    engines = {}
    for name, trace in traces.items():
        engine = engines[name] = le.Engine(MODEL, num_blocks=30, max_batch=2, continuous=name == "continuous", observer=trace)
        for new in (2, 9, 3, 4):
            engine.add([1, 2, 3], max_new_tokens=new)
        engine.run()
    frames = le.schedule_frames(traces)
    assert [run["name"] for run in frames["runs"]] == ["static", "continuous"]
    lengths = [len(engine.statistics) for engine in engines.values()]
    assert [len(run["steps"]) for run in frames["runs"]] == lengths == [13, 9]
    for run, trace in zip(frames["runs"], traces.values()):
        assert {**run, "name": ""} == timeline(trace)
    assert [step["step"] for step in frames["steps"]] == list(range(13))
    assert frames["steps"][-1]["summary"].startswith("static: step 13 computes 1 token: decode of request 3.")
    assert frames["steps"][-1]["summary"].endswith("continuous: over after 9 steps.")


def test_sixty_requests_are_counted_where_nobody_would_read_their_names():
    trace = le.Trace()
    engine = le.Engine(MODEL, num_blocks=30, observer=trace)
    for _ in range(60):
        engine.add([1, 2, 3], max_new_tokens=2)
    engine.run()
    summaries = [step["summary"] for step in le.schedule_frames(trace)["steps"]]
    assert "Waiting: 52 requests." in summaries[0] and max(map(len, summaries)) < 200


def test_a_trace_of_no_engine_has_no_timeline():
    with pytest.raises(ValueError, match="the trace should hold a run of an engine; it saw no step"):
        le.schedule_frames(le.Trace())
    with pytest.raises(ValueError, match="the trace 'static' should hold a run of an engine; it saw no step"):
        le.schedule_frames({"static": le.Trace()})
    with pytest.raises(ValueError, match="needs at least one trace; it was given none"):
        le.schedule_frames({})


# -- All of them --


@pytest.mark.parametrize(
    "make",
    [lambda: a_story().frames(), lambda: search()[0], lambda: le.schedule_frames(Requests(1).trace)],
    ids=["blocks", "beams", "schedule"],
)
def test_frames_are_plain_json_the_same_every_time_and_every_step_says_what_it_shows(make: Callable[[], Frames]):
    frames = make()
    assert json.loads(json.dumps(frames, allow_nan=False)) == frames == make()
    assert all(step["summary"].endswith(".") for step in frames["steps"])
