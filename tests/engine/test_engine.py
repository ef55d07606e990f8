"""An engine changes what requests cost, never what they get."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import pytest
import torch
from engine_life import choose_with
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIG, random_model
from torch import Tensor

from llama3_edu import ContiguousCache, Engine, Sequence, generate, greedy, load_tiny
from llama3_edu.events import (
    BlockCopied,
    Event,
    SequenceAdded,
    SequenceAdmitted,
    SequenceExtended,
    SequenceFinished,
    SequenceForked,
    SequencePreempted,
    StepScheduled,
)
from llama3_edu.model import Llama
from llama3_edu.sampling import Choose

MODEL = random_model()
_, TOKENIZER = load_tiny()
READER = random_model(replace(CONFIG, vocab_size=TOKENIZER.vocab_size))


def engine_of(model: Llama = MODEL, *, num_blocks: int = 40, block_size: int = 4, **options: object) -> Engine:
    return Engine(model, num_blocks=num_blocks, block_size=block_size, **options)


def prompt_of(length: int, *, seed: int = 0) -> list[int]:
    return torch.randint(61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(
    prompt: Iterable[int], more: int, *, choose: Choose = greedy, stop_ids: Iterable[int] = (), model: Llama = MODEL
) -> list[int]:
    tokens = torch.tensor([list(prompt)], device=model.device)
    cache = ContiguousCache(model.config, max_seq_len=256, dtype=model.dtype, device=model.device)
    return generate(model, tokens, max_new_tokens=more, cache=cache, choose=choose, stop_ids=list(stop_ids))[0].tolist()


def tables_are_empty(engine: Engine) -> bool:
    return engine.pool.num_used == len(engine.prefix.blocks) and not engine.has_work


# -- The output is that of a lone run --

MIXES = {
    "all at once": {"max_batch": 20, "max_tokens_per_step": 1000, "num_blocks": 200},
    "one at a time": {"max_batch": 1},
    "a token per step": {"max_tokens_per_step": 1},
    "small chunks": {"max_tokens_per_step": 5},
    "hardly any blocks": {"num_blocks": 9, "max_batch": 6},
    "hardly any blocks, nothing shared": {"num_blocks": 9, "max_batch": 6, "prefix_caching": False},
    "blocks of one token": {"num_blocks": 36, "block_size": 1},
    "one block for each": {"num_blocks": 5, "block_size": 64},
    "batch by batch": {"continuous": False, "max_batch": 4},
    "batch by batch, hardly any blocks": {"continuous": False, "max_batch": 6, "num_blocks": 9},
}


@pytest.mark.parametrize("options", MIXES.values(), ids=MIXES)
def test_no_mix_and_no_pool_changes_an_output(options: dict[str, int]) -> None:
    engine = engine_of(**options)
    lengths = [(1 + 7 * index % 23, 1 + 5 * index % 13) for index in range(12)]
    wishes = [(prompt_of(length, seed=index % 5), more, [None, index][index % 2]) for index, (length, more) in enumerate(lengths)]
    sequences = [engine.add(prompt, max_new_tokens=more, choose=choose_with(seed)) for prompt, more, seed in wishes]
    engine.run()
    for sequence, (prompt, more, seed) in zip(sequences, wishes):
        assert sequence.token_ids == alone(prompt, more, choose=choose_with(seed))
        assert (sequence.finish_reason, sequence.prompt_len, sequence.num_new_tokens) == ("length", len(prompt), more)
    assert tables_are_empty(engine)


def test_small_pools_do_preempt() -> None:
    # Or the mixes above would not show that preemption is harmless.
    engine = engine_of(num_blocks=9, max_batch=6)
    for index in range(6):
        engine.add(prompt_of(5, seed=index), max_new_tokens=20)
    engine.run()
    assert sum(step.preempted for step in engine.statistics) > 0
    assert sum(step.recomputed_tokens for step in engine.statistics) > 0


def test_it_runs_on_every_device(device: torch.device) -> None:
    model = random_model(device=device)
    engine = engine_of(model, num_blocks=9)
    sequences = [engine.add(prompt_of(3 + index, seed=index), max_new_tokens=8) for index in range(5)]
    engine.run()
    for index, sequence in enumerate(sequences):
        assert sequence.token_ids == alone(prompt_of(3 + index, seed=index), 8, model=model)


def test_requests_may_arrive_while_others_run() -> None:
    engine = engine_of()
    sequences = []
    for index in range(6):
        sequences.append(engine.add(prompt_of(9, seed=index), max_new_tokens=7))
        engine.step()
    engine.run()
    assert [sequence.token_ids for sequence in sequences] == [alone(prompt_of(9, seed=index), 7) for index in range(6)]


@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_blocks_serve_requests_too(bits: int) -> None:
    engine = engine_of(num_blocks=9, bits=bits)
    sequences = [engine.add(prompt_of(6, seed=index), max_new_tokens=6) for index in range(5)]
    engine.run()
    assert all(sequence.finish_reason == "length" for sequence in sequences) and tables_are_empty(engine)
    assert engine.pool.nbytes < engine_of(num_blocks=9).pool.nbytes


# -- Where a sequence ends --


def test_a_stop_id_ends_it_and_is_kept() -> None:
    prompt = prompt_of(6)
    free = alone(prompt, 12)
    stop = free[9]
    engine = engine_of()
    sequence, other = engine.add(prompt, max_new_tokens=12, stop_ids=[stop, 60]), engine.add(prompt, max_new_tokens=12)
    engine.run()
    assert sequence.token_ids == alone(prompt, 12, stop_ids=[stop, 60]) and sequence.token_ids[-1] in (stop, 60)
    assert (sequence.finish_reason, other.finish_reason, other.token_ids) == ("stop", "length", free)


def text_of(prompt: list[int], more: int) -> str:
    return TOKENIZER.decode(alone(prompt, more, model=READER)[len(prompt) :])


@settings(max_examples=15)
@given(seed=st.integers(0, 5), start=st.integers(0, 20), length=st.integers(1, 6))
def test_a_stop_string_may_span_tokens_and_is_left_out(seed: int, start: int, length: int) -> None:
    prompt = prompt_of(4, seed=seed)
    text = text_of(prompt, 14)
    stop = text[start : start + length] or text[-1]
    engine = engine_of(READER)
    sequence = engine.add(prompt, max_new_tokens=14, stop_strings=[stop, "\0never"], tokenizer=TOKENIZER)
    pieces = list(engine.stream_text(sequence))
    # Bytes that are no character yet may still become one, so text ends where the stop string first does.
    assert sequence.finish_reason == "stop" and sequence.text == text[: text.find(stop)]
    assert "".join(pieces) == sequence.text and all(pieces)
    written = TOKENIZER.decode(sequence.new_token_ids)
    shorter = TOKENIZER.decode(sequence.new_token_ids[:-1])
    assert stop in written and text.find(stop) + len(stop) > len(shorter.rstrip("\ufffd"))


def test_text_is_that_of_the_new_tokens() -> None:
    engine = engine_of(READER)
    sequence = engine.add(prompt_of(4), max_new_tokens=10, tokenizer=TOKENIZER)
    engine.run()
    assert sequence.text == TOKENIZER.decode(sequence.new_token_ids)


def test_a_stop_token_is_no_part_of_the_text() -> None:
    prompt = prompt_of(4)
    free = alone(prompt, 10, model=READER)[4:]
    stop = next(token_id for index, token_id in enumerate(free) if index > 2 and token_id not in free[:index])
    engine = engine_of(READER)
    sequence = engine.add(prompt, max_new_tokens=10, tokenizer=TOKENIZER, stop_ids=[stop])
    engine.run()
    assert sequence.text == TOKENIZER.decode(free[: free.index(stop)])


def test_without_a_tokenizer_there_is_no_text() -> None:
    sequence = engine_of().add([1], max_new_tokens=1)
    with pytest.raises(ValueError, match="a sequence has text where its request has a tokenizer; this one came without"):
        sequence.text


# -- Refusals, cancellations, failures --


def test_a_request_too_large_is_refused_alone() -> None:
    engine = engine_of(num_blocks=5)
    fits, too_large, other = (engine.add(prompt_of(10), max_new_tokens=more) for more in (11, 12, 3))
    assert (too_large.finish_reason, too_large.token_ids) == ("refused", prompt_of(10))
    assert too_large.refusal == "10 tokens and up to 12 more need 6 blocks of 4; the pool has 5"
    engine.run()
    assert fits.token_ids == alone(prompt_of(10), 11) and other.token_ids == alone(prompt_of(10), 3)


@pytest.mark.parametrize("steps", range(7))
def test_a_cancelled_sequence_keeps_its_tokens_and_leaves_its_blocks(steps: int) -> None:
    engine = engine_of(max_tokens_per_step=5)
    sequence, other = engine.add(prompt_of(9), max_new_tokens=9), engine.add(prompt_of(8, seed=1), max_new_tokens=9)
    for _ in range(steps):
        engine.step()
    engine.cancel(sequence)
    engine.cancel(sequence)
    assert sequence.finish_reason == "cancelled" and sequence.block_table == []
    kept = [*sequence.token_ids]
    engine.run()
    assert sequence.token_ids == kept == alone(prompt_of(9), 9)[: len(kept)]
    assert other.token_ids == alone(prompt_of(8, seed=1), 9) and tables_are_empty(engine)


def test_one_that_has_ended_stays_as_it_ended() -> None:
    engine = engine_of()
    sequence = engine.add([1], max_new_tokens=1)
    engine.run()
    engine.cancel(sequence)
    assert sequence.finish_reason == "length"


def broken(logits: Tensor) -> Tensor:
    raise RuntimeError("this request cannot choose")


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        ({"choose": broken}, "this request cannot choose"),
        ({"choose": lambda logits: torch.tensor([61])}, "token ids go from 0 to 60; one of those given is 61"),
        ({"on_token": lambda token_id: broken(torch.zeros(1))}, "this request cannot choose"),
    ],
    ids=["choose", "unknown token", "on_token"],
)
def test_what_goes_wrong_in_a_request_is_raised_and_the_others_go_on(wish: dict[str, object], error: str) -> None:
    engine = engine_of()
    before = engine.add(prompt_of(5), max_new_tokens=6)
    failing = engine.add(prompt_of(5, seed=1), max_new_tokens=6, **wish)
    after = engine.add(prompt_of(5, seed=2), max_new_tokens=6)
    with pytest.raises((RuntimeError, ValueError), match=error):
        engine.run()
    assert (failing.finish_reason, failing.block_table) == ("failed", [])
    assert before.num_new_tokens == after.num_new_tokens == 1
    engine.run()
    assert before.token_ids == alone(prompt_of(5), 6) and after.token_ids == alone(prompt_of(5, seed=2), 6)
    assert tables_are_empty(engine)


@pytest.mark.parametrize("layer", [0, 1])
def test_an_interrupt_in_the_middle_of_a_forward_loses_nothing(layer: int) -> None:
    model = random_model()
    engine = engine_of(model, max_tokens_per_step=6)
    sequences = [engine.add(prompt_of(7, seed=index), max_new_tokens=6) for index in range(3)]
    for _ in range(4):
        engine.step()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model.layers[layer].feed_forward.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    hook.remove()
    assert engine.pool.num_used == len(engine.prefix.blocks)
    engine.run()
    assert [sequence.token_ids for sequence in sequences] == [alone(prompt_of(7, seed=index), 6) for index in range(3)]
    assert tables_are_empty(engine)


@pytest.mark.parametrize("where", ["choose", "on_token"])
@pytest.mark.parametrize("which", [0, 1, 3])
def test_an_interrupt_while_tokens_are_chosen_loses_nothing(where: str, which: int) -> None:
    engine, calls = engine_of(), []

    def interrupt_once(row: int, result: object = None) -> None:
        calls.append(row)
        if calls.count(which) == 3 and row == which:
            raise KeyboardInterrupt

    def wish(row: int) -> dict[str, object]:
        def choose(logits: Tensor) -> Tensor:
            interrupt_once(row)
            return greedy(logits)

        return {"choose": choose} if where == "choose" else {"on_token": lambda token_id: interrupt_once(row), "choose": greedy}

    sequences = [engine.add(prompt_of(5, seed=row), max_new_tokens=3 + row, **wish(row)) for row in range(3)]
    sequences.append(engine.fork(sequences[2], **wish(3)))
    with pytest.raises(KeyboardInterrupt):
        engine.run()
    assert engine.pool.num_used == len(engine.prefix.blocks)
    engine.run()
    for row, sequence in enumerate(sequences):
        assert sequence.token_ids == alone(prompt_of(5, seed=min(row, 2)), 3 + min(row, 2))
    assert tables_are_empty(engine)


def test_blocks_that_somebody_else_holds_do_not_hang_it() -> None:
    engine = engine_of(num_blocks=3)
    blocks = engine.pool.allocate_many(2)
    sequence = engine.add(prompt_of(5), max_new_tokens=2)
    with pytest.raises(
        RuntimeError, match=r"Sequence\(id=0, .*\) does not fit although nothing runs: somebody else holds blocks"
    ):
        engine.run()
    for block in blocks:
        engine.pool.release(block)
    engine.run()
    assert sequence.token_ids == alone(prompt_of(5), 2)


def test_a_preempted_sequence_goes_on_where_it_was() -> None:
    engine = engine_of()
    sequence = engine.add(prompt_of(9), max_new_tokens=9)
    for _ in range(4):
        engine.step()
        engine.preempt(sequence)
        assert sequence.block_table == []
    engine.run()
    assert sequence.token_ids == alone(prompt_of(9), 9)


# -- Forks --


@pytest.mark.parametrize("options", [{}, {"num_blocks": 10}, {"max_batch": 2}, {"block_size": 1, "num_blocks": 60}], ids=str)
def test_parallel_samples_are_what_independent_runs_with_the_same_generators_are(options: dict[str, int]) -> None:
    engine = engine_of(**options)
    first = engine.add(prompt_of(10), max_new_tokens=9, choose=choose_with(0))
    samples = [first, *(engine.fork(first, choose=choose_with(seed)) for seed in range(1, 4))]
    engine.run()
    for seed, sample in enumerate(samples):
        assert sample.token_ids == alone(prompt_of(10), 9, choose=choose_with(seed))
    assert len({tuple(sample.token_ids) for sample in samples}) > 1 and tables_are_empty(engine)


def test_a_prompt_with_several_samples_is_computed_and_held_once() -> None:
    events: list[Event] = []
    engine = engine_of(observer=events.append, prefix_caching=False)
    first = engine.add(prompt_of(10), max_new_tokens=3, choose=choose_with(0))
    others = [engine.fork(first, choose=choose_with(seed)) for seed in (1, 2)]
    engine.run()
    assert sum(step.prompt_tokens for step in engine.statistics) == 10
    assert engine.statistics[1].memory.blocks_without_sharing == 9 and engine.statistics[1].memory.blocks_used == 5
    assert [event for event in events if isinstance(event, SequenceForked)] == [
        SequenceForked(sequence=other.id, parent=first.id, blocks=(0, 1, 2)) for other in others
    ]
    # Three hold the half-filled block: two copy it, the last one has it to itself.
    assert sum(isinstance(event, BlockCopied) for event in events) == 2


def test_a_sample_that_writes_to_its_logits_disturbs_no_other() -> None:
    def never_the_best(logits: Tensor) -> Tensor:
        return logits.scatter_(1, logits.argmax(dim=-1, keepdim=True), -torch.inf).argmax(dim=-1)

    engine = engine_of()
    first = engine.add(prompt_of(5), max_new_tokens=4, choose=never_the_best)
    second = engine.fork(first, choose=greedy)
    engine.run()
    assert first.token_ids == alone(prompt_of(5), 4, choose=never_the_best)
    assert second.token_ids == alone(prompt_of(5), 4)


@pytest.mark.parametrize("steps", range(1, 6))
def test_a_fork_later_on_continues_the_tokens_so_far(steps: int) -> None:
    engine = engine_of(max_tokens_per_step=6)
    parent = engine.add(prompt_of(9), max_new_tokens=8, choose=choose_with(0))
    for _ in range(steps):
        engine.step()
    so_far = [*parent.token_ids]
    child = engine.fork(parent, choose=choose_with(5), max_new_tokens=12)
    engine.run()
    assert parent.token_ids == alone(prompt_of(9), 8, choose=choose_with(0))
    assert child.token_ids == alone(so_far, 12 - (len(so_far) - 9), choose=choose_with(5))
    assert child.prompt_len == 9


@pytest.mark.parametrize("steps", [0, 1])
def test_forks_outlive_the_one_they_were_to_part_from(steps: int) -> None:
    engine = engine_of(max_tokens_per_step=6)
    parent = engine.add(prompt_of(9), max_new_tokens=5)
    children = [engine.fork(parent, choose=choose_with(seed)) for seed in range(3)]
    grandchild = engine.fork(children[1], choose=choose_with(7))
    for _ in range(steps):
        engine.step()
    engine.cancel(parent)
    engine.cancel(children[0])
    engine.run()
    for child, seed in ((children[1], 1), (children[2], 2), (grandchild, 7)):
        assert child.token_ids == alone(prompt_of(9), 5, choose=choose_with(seed))
    assert tables_are_empty(engine)


def test_a_fork_has_a_text_of_its_own() -> None:
    engine = engine_of(READER)
    parent = engine.add(prompt_of(4), max_new_tokens=9, tokenizer=TOKENIZER)
    for _ in range(4):
        engine.step()
    child = engine.fork(parent, choose=choose_with(3))
    engine.run()
    assert child.text == TOKENIZER.decode(child.new_token_ids) != parent.text == TOKENIZER.decode(parent.new_token_ids)


def test_a_fork_too_large_is_refused_alone() -> None:
    engine = engine_of(num_blocks=5)
    parent = engine.add(prompt_of(10), max_new_tokens=5)
    child = engine.fork(parent, choose=greedy, max_new_tokens=30)
    assert child.finish_reason == "refused" and "need 10 blocks of 4; the pool has 5" in str(child.refusal)
    engine.run()
    assert parent.token_ids == alone(prompt_of(10), 5)


# -- While it runs --


def test_streams_yield_every_token_and_may_be_read_side_by_side() -> None:
    engine = engine_of()
    first, second = (engine.add(prompt_of(6, seed=seed), max_new_tokens=7) for seed in (0, 1))
    pairs = list(zip(engine.stream(first), engine.stream(second)))
    assert [list(tokens) for tokens in zip(*pairs)] == [alone(prompt_of(6, seed=seed), 7)[6:] for seed in (0, 1)]
    assert list(engine.stream(first)) == first.new_token_ids, "one that has ended is read from the start"


def test_tokens_are_told_as_they_are_chosen() -> None:
    engine, told = engine_of(), []
    sequence = engine.add(prompt_of(6), max_new_tokens=5, on_token=told.append)
    while engine.has_work:
        engine.step()
        assert told == sequence.new_token_ids


@pytest.mark.parametrize("what", ["cancel", "preempt", "fork"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_a_request_does_when_told_of_a_token_may_concern_any_other(what: str, which: int) -> None:
    engine = engine_of()
    sequences: list[Sequence] = []

    def meddle(token_id: int) -> None:
        target = sequences[which]
        if sequences[1].num_new_tokens == 3 and not target.finished:
            act: dict[str, Callable[[], object]] = {
                "cancel": lambda: engine.cancel(target),
                "preempt": lambda: engine.preempt(target),
                "fork": lambda: sequences.append(engine.fork(target, choose=greedy)),
            }
            act[what]()

    for index in range(3):
        sequences.append(engine.add(prompt_of(5, seed=index), max_new_tokens=6, on_token=meddle if index == 1 else None))
    engine.run()
    for index, sequence in enumerate(sequences[:3]):
        expected = alone(prompt_of(5, seed=index), 6)
        if what == "cancel" and index == which:
            assert sequence.finish_reason == "cancelled" and sequence.token_ids == expected[: len(sequence.token_ids)]
        else:
            assert sequence.token_ids == expected
    if what == "fork":
        assert sequences[3].token_ids == sequences[which].token_ids
    assert tables_are_empty(engine)


# -- Shared beginnings --


def test_equal_beginnings_are_computed_once() -> None:
    system = prompt_of(12)
    engine = engine_of()
    first = engine.add([*system, 1], max_new_tokens=2)
    engine.run()
    others = [engine.add([*system, number, 3], max_new_tokens=2) for number in (1, 2)]
    engine.run()
    assert sum(step.reused_tokens for step in engine.statistics) == 24
    assert sum(step.prompt_tokens for step in engine.statistics) == 13 + 2 + 2
    assert first.token_ids == alone([*system, 1], 2)
    assert [other.token_ids for other in others] == [alone([*system, number, 3], 2) for number in (1, 2)]


def test_a_prompt_that_is_held_to_its_end_is_answered_all_the_same() -> None:
    engine = engine_of()
    for _ in range(3):
        sequence = engine.add(prompt_of(12), max_new_tokens=4)
        engine.run()
        assert sequence.token_ids == alone(prompt_of(12), 4)
    assert [step.reused_tokens for step in engine.statistics if step.admitted] == [0, 8, 8]


def test_prompts_found_in_a_full_pool_wait_for_what_they_lack() -> None:
    # The pool is full but for what the prefix cache alone holds, and that is what the second prompt begins with.
    engine = engine_of(num_blocks=6)
    engine.add(prompt_of(8), max_new_tokens=1)
    engine.run()
    other = engine.add(prompt_of(14, seed=1), max_new_tokens=2)
    engine.step()
    again = engine.add([*prompt_of(8), 1, 2, 3], max_new_tokens=2)
    engine.run()
    assert other.token_ids == alone(prompt_of(14, seed=1), 2)
    assert again.token_ids == alone([*prompt_of(8), 1, 2, 3], 2)
    assert sum(step.preempted for step in engine.statistics) == 0


def test_other_salts_share_nothing() -> None:
    engine = engine_of()
    for salt in ("a", "b", "a"):
        engine.add(prompt_of(12), max_new_tokens=1, salt=salt)
        engine.run()
    assert [step.reused_tokens for step in engine.statistics] == [0, 0, 8]


def test_two_equal_prompts_at_once_end_up_in_the_same_blocks() -> None:
    engine = engine_of()
    for _ in range(2):
        engine.add(prompt_of(12), max_new_tokens=3)
    engine.step()
    first, second = engine.scheduler.running
    assert first.block_table == second.block_table
    assert engine.statistics[0].memory.blocks_shared == 3 == engine.statistics[0].memory.blocks_used


# -- Statistics and events --


def test_every_token_is_counted_once() -> None:
    engine = engine_of(num_blocks=12, max_batch=5, max_tokens_per_step=9, prefix_caching=False)
    sequences = [engine.add(prompt_of(5 + index, seed=index), max_new_tokens=12) for index in range(6)]
    engine.run()
    names = [name for name in vars(engine.statistics[0]) if name != "memory"]
    total = {name: sum(getattr(step, name) for step in engine.statistics) for name in names}
    assert total["prompt_tokens"] == sum(sequence.prompt_len for sequence in sequences)
    assert total["decoded_tokens"] == sum(sequence.num_new_tokens - 1 for sequence in sequences)
    assert total["finished"] == 6 and total["admitted"] == 6 + total["preempted"] and total["preempted"] > 0
    assert total["recomputed_tokens"] > 0 and total["reused_tokens"] == 0
    assert [step.step for step in engine.statistics] == list(range(len(engine.statistics)))
    assert all(step.tokens <= 9 for step in engine.statistics)


def test_memory_is_what_the_tables_say() -> None:
    engine = engine_of(num_blocks=20)
    engine.add(prompt_of(10), max_new_tokens=2)
    engine.add(prompt_of(5, seed=1), max_new_tokens=2)
    engine.step()
    memory = engine.statistics[0].memory
    assert (memory.blocks_used, memory.slots_held, memory.tokens_stored, memory.slots_wasted) == (5, 20, 15, 5)
    assert (memory.blocks_free, memory.blocks_cached, memory.share_stored) == (15, 0, 0.75)
    engine.run()
    engine.add(prompt_of(3, seed=2), max_new_tokens=1)
    engine.run()
    assert engine.statistics[-1].memory.blocks_cached == 3


def test_padding_is_counted() -> None:
    engine = engine_of(max_tokens_per_step=100)
    engine.add(prompt_of(9), max_new_tokens=1)
    engine.add(prompt_of(6, seed=1), max_new_tokens=1)
    engine.add(prompt_of(1, seed=2), max_new_tokens=1)
    engine.run()
    assert [step.padding for step in engine.statistics] == [3]


def test_a_run_can_be_followed_through_its_events() -> None:
    events: list[Event] = []
    engine = engine_of(num_blocks=9, observer=events.append)
    sequences = [engine.add(prompt_of(6, seed=index), max_new_tokens=9) for index in range(4)]
    engine.run()
    tokens: dict[int, list[int]] = {}
    running: set[int] = set()
    finished: dict[int, str] = {}
    for event in events:
        if isinstance(event, SequenceAdded):
            tokens[event.sequence] = [*prompt_of(event.num_tokens, seed=event.sequence)]
        elif isinstance(event, SequenceAdmitted):
            running.add(event.sequence)
            assert event.num_tokens == len(tokens[event.sequence])
        elif isinstance(event, StepScheduled):
            assert set(event.sequences) <= running and all(event.num_tokens)
        elif isinstance(event, SequenceExtended):
            assert event.position == len(tokens[event.sequence])
            tokens[event.sequence].append(event.token_id)
        elif isinstance(event, SequencePreempted):
            running.remove(event.sequence)
        elif isinstance(event, SequenceFinished):
            running.remove(event.sequence)
            finished[event.sequence] = event.reason
            assert event.num_tokens == len(tokens[event.sequence])
    assert tokens == {sequence.id: sequence.token_ids for sequence in sequences}
    assert finished == dict.fromkeys(range(4), "length") and not running
    assert sum(isinstance(event, SequencePreempted) for event in events) == sum(step.preempted for step in engine.statistics) > 0


# -- What makes no sense --


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token_ids": []}, "a request needs at least one token; its prompt is empty"),
        ({"token_ids": [3, 61]}, "token ids go from 0 to 60; one of those given is 61"),
        ({"token_ids": [-1]}, "token ids go from 0 to 60; one of those given is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens should be at least 1; it is 0"),
        ({"stop_strings": ["a"]}, "stop strings are found in text, so they need a tokenizer; there is none"),
        ({"stop_strings": [""], "tokenizer": TOKENIZER}, "a stop string should not be empty"),
    ],
)
def test_requests_that_make_no_sense_are_refused_when_they_come(wrong: dict[str, object], message: str) -> None:
    engine = engine_of()
    with pytest.raises(ValueError, match=message):
        engine.add(**{"token_ids": [1, 2], "max_new_tokens": 3, **wrong})
    assert not engine.has_work


def test_what_is_not_here_or_has_ended_is_refused() -> None:
    engine, other = engine_of(), engine_of()
    strange, ended = other.add([1], max_new_tokens=3), engine.add([1], max_new_tokens=1)
    engine.run()
    not_here = r"Sequence\(id=0, prompt_len=1, num_new_tokens=0, 0 cached\) is not a sequence of this engine"
    for act in (engine.cancel, partial(engine.fork, choose=greedy), lambda sequence: next(engine.stream(sequence))):
        with pytest.raises(ValueError, match=not_here):
            act(strange)
    with pytest.raises(ValueError, match="the sequence has ended by 'length'; nothing goes on from it"):
        engine.fork(ended, choose=greedy)
    with pytest.raises(ValueError, match="only a sequence that runs here has blocks to give back"):
        engine.preempt(ended)
    with pytest.raises(ValueError, match="a sequence that has ended takes no more tokens; this one ended by 'length'"):
        ended.append(3)


def test_a_fork_without_room_for_a_token_is_refused() -> None:
    engine = engine_of()
    sequence = engine.add([1], max_new_tokens=5)
    for _ in range(2):
        engine.step()
    with pytest.raises(ValueError, match="the sequence has 2 new tokens; a fork needs more, not 2"):
        engine.fork(sequence, choose=greedy, max_new_tokens=2)


@pytest.mark.parametrize("wrong", ["num_blocks", "block_size", "max_batch", "max_tokens_per_step"])
def test_sizes_below_one_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"{wrong} should be at least 1; it is 0"):
        engine_of(**{wrong: 0})


def test_a_step_with_nothing_to_do_does_nothing() -> None:
    engine = engine_of()
    engine.step()
    engine.run()
    assert engine.statistics == []
