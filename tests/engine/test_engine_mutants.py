"""Do the tests of beams and of the engine bite? Each mutant changes one small thing, and a test must notice."""

from collections.abc import Callable

import pytest
import test_beam
from engine import test_engine, test_scheduler, test_text
from engine_life import LifeOfEngine
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from test_mutants import Check, Mutant, mutate

from llama3_edu import Engine, Sequence, beam
from llama3_edu.engine import GrowingText, Scheduler, scheduler, statistics

pytestmark = pytest.mark.slow


def life(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state machine, without looking for the shortest way to fail."""
    run_state_machine_as_test(LifeOfEngine, settings=settings(max_examples=40, stateful_step_count=20, phases=[Phase.generate]))


def of(test: Callable[..., object], *args: object) -> Check:
    return lambda monkeypatch: test(*args)


MUTANTS = [
    # Beams
    Mutant(
        "the cache follows other beams",
        beam,
        "_continue",
        "cache.reorder(parents)",
        "cache.reorder(parents.sort().values)",
        of(test_beam.test_scores_are_those_of_the_tokens_and_fall),
    ),
    Mutant(
        "scores start again",
        beam,
        "_best",
        "scores[:, None] + logits",
        "logits",
        of(test_beam.test_scores_are_those_of_the_tokens_and_fall),
    ),
    Mutant(
        "a beam that ended goes on",
        beam,
        "beam_search",
        "for c in candidates if c.token_id not in stops]",
        "for c in candidates]",
        of(test_beam.test_beams_that_end_compete_with_those_that_go_on),
    ),
    Mutant(
        "too few candidates",
        beam,
        "beam_search",
        "max(2, 1 + len(stops)) * num_beams",
        "num_beams",
        of(test_beam.test_beams_can_be_followed_through_their_events),
    ),
    # Blocks and places
    Mutant(
        "a fork's blocks are not counted",
        Scheduler,
        "fork",
        "fork(self._pool, parent.block_table)",
        "list(parent.block_table)",
        life,
    ),
    Mutant(
        "blocks are not given back",
        Scheduler,
        "remove",
        "release_all(self._pool, sequence.block_table)",
        "sequence.block_table = []",
        life,
    ),
    Mutant("what was held is believed to be held", Scheduler, "remove", "sequence.num_cached = 0", "pass", life),
    Mutant("nobody gives way", Scheduler, "_make_room", "self._blocks_needed(self._shares())", "0", life),
    Mutant(
        "the first one in gives way",
        Scheduler,
        "_make_room",
        "self.running[-1]",
        "self.running[0]",
        of(test_scheduler.test_the_last_one_in_gives_way_and_comes_back_before_those_behind_it),
    ),
    Mutant(
        "a static batch is joined",
        Scheduler,
        "_admit",
        "self.running and not self.continuous",
        "False",
        of(test_scheduler.test_a_static_batch_ends_before_the_next_begins),
    ),
    Mutant(
        "blocks that are found count twice",
        Scheduler,
        "_fits",
        "- taken_over",
        "",
        of(test_engine.test_prompts_found_in_a_full_pool_wait_for_what_they_lack),
    ),
    Mutant("tokens that are not computed are published", Scheduler, "publish", "[: sequence.num_cached]", "", life),
    Mutant("those who waited longer are overtaken", Scheduler, "add", "other.id", "-other.id", life),
    Mutant("the budget is overdrawn", scheduler, "divide", "budget -= shares[row]", "pass", life),
    # Tokens
    Mutant(
        "a token is chosen in the middle of a prompt",
        Engine,
        "_extend",
        "sequence.finished or sequence.num_pending",
        "sequence.finished",
        life,
    ),
    Mutant(
        "samples disturb each other",
        Engine,
        "_choose",
        "logits[None].clone()",
        "logits[None]",
        of(test_engine.test_a_sample_that_writes_to_its_logits_disturbs_no_other),
    ),
    Mutant("forks are lost with their host", Engine, "_leave", "self._pass_on_forks(sequence)", "pass", life),
    Mutant(
        "an interrupt leaves half a forward behind",
        Engine,
        "_give_up_step",
        "self.scheduler.preempt(sequence)",
        "pass",
        of(test_engine.test_an_interrupt_in_the_middle_of_a_forward_loses_nothing, 1),
    ),
    Mutant(
        "a stop token ends nothing",
        Sequence,
        "append",
        "token_id in self.stop_ids",
        "False",
        of(test_engine.test_a_stop_id_ends_it_and_is_kept),
    ),
    Mutant(
        "the beginning of a stop string is shown",
        GrowingText,
        "_possible_beginning",
        "return length",
        "return 0",
        of(test_text.test_the_stop_string_that_is_complete_first_ends_the_text, "aab", ["ab"], "a"),
    ),
    Mutant(
        "the last stop string ends the text",
        GrowingText,
        "_add",
        "min(found)",
        "max(found)",
        of(test_text.test_a_stop_string_within_one_token_ends_the_text),
    ),
    Mutant(
        "a shared block counts twice",
        statistics,
        "memory_use",
        "holders[block] = holders.get(block, 0) + 1",
        "holders[block] = 1",
        of(test_engine.test_two_equal_prompts_at_once_end_up_in_the_same_blocks),
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.what for mutant in MUTANTS])
def test_every_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as original:
        if mutant.caught_by is not life:  # that one has a test of its own
            mutant.caught_by(original)
    mutate(mutant, monkeypatch)
    with pytest.raises((AssertionError, ValueError, IndexError, pytest.fail.Exception)):
        mutant.caught_by(monkeypatch)
