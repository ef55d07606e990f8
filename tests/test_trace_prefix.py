"""Frames of a prefix tree, folded from real runs: what is in the tree, and in what order, is what the prefix cache had."""

import json
from typing import Any

import pytest
from long_pool import long_life
from pool_checks import tree_order
from test_trace_blocks import MODEL, Requests, Watched, World, a_story, states_of

import llama3_edu as le
from llama3_edu.events import BlockEvicted, BlockPublished, PrefixReused, SequenceAdmitted
from llama3_edu.trace import Frames


def frames_of(requests: Requests, **options: Any) -> Frames:
    pool = requests.engine.pool
    token_ids = {sequence.id: sequence.token_ids for sequence in requests.sequences}
    return le.prefix_frames(
        requests.trace, num_blocks=pool.num_blocks, block_size=pool.block_size, token_ids=token_ids, **options
    )


def path_to(frames: Frames, node: int) -> list[int]:
    parent = frames["nodes"][node]["parent"]
    return [node] if parent is None else [*path_to(frames, parent), node]


def tokens_on(frames: Frames, nodes: list[int]) -> list[str]:
    return [token for node in nodes for token in frames["nodes"][node]["tokens"]]


@pytest.mark.parametrize("seed", range(6))
def test_the_tree_holds_what_the_prefix_cache_held_in_its_order(seed: int):
    requests = Requests(seed, look_at="published")
    frames = frames_of(requests)
    steps = [index for index, step in enumerate(frames["steps"]) if step["what"] in ("published", "evicted")]
    assert len(steps) > 10
    for step, published in zip(steps, requests.trace.seen, strict=True):
        assert [frames["nodes"][node]["block"] for node in tree_order(frames, step)] == published
    last = tree_order(frames, len(frames["steps"]) - 1)
    assert [frames["nodes"][node]["block"] for node in last] == requests.engine.prefix.blocks


@pytest.mark.parametrize("seed", range(6))
def test_every_prompt_that_comes_in_walks_down_the_tokens_it_begins_with(seed: int):
    requests = Requests(seed)
    frames = frames_of(requests)
    tokens = {row["name"]: row["tokens"] for row in frames["rows"]}
    arrived = [step for step in frames["steps"] if step["what"] in ("reused", "missed")]
    admitted = requests.trace.of(SequenceAdmitted)
    assert [step["prompt"] for step in arrived] == [
        {"name": event.sequence, "num_cached": event.num_cached, "num_tokens": event.num_tokens} for event in admitted
    ]
    for step in arrived:
        assert step["names"] == [step["prompt"]["name"]]
        assert tokens_on(frames, step["nodes"]) == tokens[step["names"][0]][: step["prompt"]["num_cached"]]
        assert not step["nodes"] or step["nodes"] == path_to(frames, step["nodes"][-1])
        assert step["blocks"] == [frames["nodes"][node]["block"] for node in step["nodes"]]
    assert len(requests.trace.of(PrefixReused)) == sum(step["what"] == "reused" for step in arrived)


@pytest.mark.parametrize("seed", range(6))
def test_a_node_given_up_was_held_by_nobody_and_had_nothing_behind_it(seed: int):
    requests = Requests(seed)
    frames = frames_of(requests)
    before: dict[str, Any] = {}
    evicted = 0
    for index, step in enumerate(states_of(frames)):
        if step["what"] == "evicted":
            (node,) = step["nodes"]
            evicted += 1
            present = tree_order(frames, index)
            assert node not in present and all(frames["nodes"][other]["parent"] != node for other in present)
            assert step["free"][0] == frames["nodes"][node]["block"]
            held = [frames["nodes"][n]["block"] for n in tree_order(frames, index - 1)]
            oldest = next(block for block in held if step["ref_counts"][block] <= 1)
            assert oldest == frames["nodes"][node]["block"], "of those that nobody holds, the one used longest ago"
        before = step
    assert evicted == len(requests.trace.of(BlockEvicted)) and before["what"] != "start"


@pytest.mark.parametrize("seed", range(3))
def test_the_pool_beside_the_tree_is_the_pool_of_the_stepper(seed: int):
    requests = Requests(seed)
    pool = requests.engine.pool
    ours, theirs = frames_of(requests), le.block_frames(requests.trace, num_blocks=pool.num_blocks, block_size=pool.block_size)
    assert states_of(ours)[-1]["published"] == states_of(theirs)[-1]["published"]
    for step in states_of(ours):
        nodes = [node["block"] for node in ours["nodes"]]
        assert set(step["blocks"]) <= {*nodes, *range(pool.num_blocks)}
        if step["what"] == "computed":
            held = {block for table in step["tables"] if table["name"] in step["names"] for block in table["blocks"]}
            assert set(step["blocks"]) <= held and all(step["ref_counts"][block] == 1 for block in step["blocks"])


def test_rows_without_an_engine_are_named_by_the_table_that_begins_with_what_was_found():
    world = a_story()
    frames = le.prefix_frames(world.trace, num_blocks=5, block_size=3)
    (reused,) = [step for step in frames["steps"] if step["what"] == "reused"]
    assert (reused["names"], reused["prompt"]) == ([2], {"name": 2, "num_cached": 3, "num_tokens": 4})
    assert frames["holder"] == "row" and tokens_on(frames, reused["nodes"]) == ["#1", "#2", "#3"]


def test_a_reuse_that_nobody_goes_on_from_has_no_name():
    world = World()
    world.start([1, 2, 3, 4, 5])
    world.prefix.acquire([1, 2, 3, 9])
    frames = le.prefix_frames(world.trace, num_blocks=10, block_size=3)
    assert frames["steps"][-1]["what"] == "reused" and frames["steps"][-1]["prompt"] is None


def test_steps_taken_together_lead_to_the_same_trees():
    requests = Requests(3)
    whole, few = frames_of(requests), frames_of(requests, most=12)
    total = len(whole["steps"]) - 1
    every = -(-total // 12)
    assert few["note"].startswith(f"One in {every} of {total} steps") and "note" not in whole
    shown = [0, *[number for number in range(1, total + 1) if number % every == 0 or number == total]]
    assert len(few["steps"]) == len(shown) <= 14
    everything, some = states_of(whole), states_of(few)
    for index, step in enumerate(shown):
        for key in ("ref_counts", "filled", "tables", "free", "num_evicted", "what", "nodes", "prompt", "summary"):
            assert some[index][key] == everything[step][key], key
        assert sorted(some[index]["published"]) == sorted(everything[step]["published"])
        assert tree_order(few, index) == tree_order(whole, step)


def test_frames_are_plain_json_the_same_every_time():
    frames = frames_of(Requests(1))
    assert json.loads(json.dumps(frames, allow_nan=False)) == frames == frames_of(Requests(1))
    assert all(step["summary"].endswith(".") for step in frames["steps"])


def test_everything_that_can_happen_comes_up():
    seen = {step["what"] for seed in range(6) for step in frames_of(Requests(seed))["steps"]}
    assert seen == {"start", "reused", "missed", "computed", "published", "evicted", "forked", "finished", "preempted"}


def test_a_long_run_in_a_large_pool_stays_small():
    trace = long_life()
    frames = le.prefix_frames(trace, num_blocks=4096, block_size=16)
    assert len(trace) >= 10_000 and len(frames["steps"]) <= 1_001
    assert len(frames["nodes"]) == len(trace.of(BlockPublished)) > 2_000
    assert len(json.dumps(frames["steps"])) < 600 * len(frames["steps"])


def test_an_engine_without_a_prefix_cache_has_an_empty_tree():
    trace = Watched(lambda: None)
    engine = le.Engine(MODEL, num_blocks=4, block_size=3, observer=trace, prefix_caching=False)
    engine.add([1, 2, 3, 4], max_new_tokens=2)
    engine.run()
    frames = le.prefix_frames(trace, num_blocks=4, block_size=3)
    assert frames["nodes"] == [] and [step["what"] for step in frames["steps"]] == ["start", "missed", "computed", "finished"]
