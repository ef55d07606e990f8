"""Do the tests bite? Each mutant changes one small thing in the caches, and a test must notice.

A mutant is a line of a function's source and what stands there instead. The test that should notice passes first and
fails then, with an assertion or with a refusal of the package's own: a mutant that merely does not run is caught by nobody.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import test_cache_contract as contract
import torch
from block_life import LifeOfBlocks, LifeOfQuantizedBlocks
from cache import test_blocks, test_paged, test_prefix, test_quantized, test_store
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from llama3_edu import BlockPool, FloatStore, PagedCache, PrefixCache, QuantizedCache, QuantizedStore
from llama3_edu.cache import blocks, paged, prefix, store

Check = Callable[[pytest.MonkeyPatch], object]


@dataclass(frozen=True)
class Mutant:
    """`was` becomes `is_now` in the source of `owner.name`; `caught_by` must fail."""

    what: str
    owner: object
    name: str
    was: str
    is_now: str
    caught_by: Check


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """Or a mutant that forgets to write could find there what the test before it wrote."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def life(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state machine, without looking for the shortest way to fail."""
    run_state_machine_as_test(LifeOfBlocks, settings=settings(max_examples=60, stateful_step_count=20, phases=[Phase.generate]))


def quantized_life(monkeypatch: pytest.MonkeyPatch) -> None:
    run_state_machine_as_test(
        LifeOfQuantizedBlocks, settings=settings(max_examples=40, stateful_step_count=20, phases=[Phase.generate])
    )


def of(test: Callable[..., object], *args: object) -> Check:
    return lambda monkeypatch: test(*args)


PAGED, RAGGED = contract.CACHES["paged"], contract.test_a_row_that_pauses_goes_on_where_it_stopped

MUTANTS = [
    # Holders
    Mutant(
        "a shared block is written in place",
        PagedCache,
        "_copy_on_write",
        "or self.pool.ref_count(table[-1]) == 1",
        "or True",
        life,
    ),
    Mutant(
        "a block that was copied keeps its old holder", PagedCache, "_copy_on_write", "self.pool.release(shared)", "pass", life
    ),
    Mutant(
        "the last holder copies as well",
        PagedCache,
        "_copy_on_write",
        "self.pool.ref_count(table[-1]) == 1",
        "False",
        of(test_paged.test_a_row_that_does_not_write_keeps_the_shared_block),
    ),
    Mutant(
        "release before share",
        PagedCache,
        "reorder",
        "tables = [fork(self.pool, self._tables[parent]) for parent in heirs]",
        "old = [table[:] for table in self._tables]; self._release_rows(); tables = [fork(self.pool, old[parent]) for parent in heirs]",
        life,
    ),
    Mutant(
        "reorder shares nothing",
        PagedCache,
        "reorder",
        "fork(self.pool, self._tables[parent])",
        "list(self._tables[parent])",
        life,
    ),
    Mutant("reorder gives nothing back", PagedCache, "reorder", "self._release_rows()", "pass", life),
    Mutant(
        "reorder leaves the lengths as they were",
        PagedCache,
        "reorder",
        "self._seq_lens = own, seq_lens",
        "self._seq_lens = own, (self._seq_lens * 9)[:len(own)]",
        of(contract.test_reordered_rows_continue_what_their_parents_held, PAGED, [1, 0, 2]),
    ),
    Mutant("a free block is forgotten", BlockPool, "release", "self._free.append(block)", "pass", life),
    Mutant("a block is freed while others hold it", BlockPool, "release", "            return\n", "", life),
    Mutant(
        "share counts nobody",
        BlockPool,
        "share",
        "self._ref_counts[block] += 1",
        "pass",
        of(test_blocks.test_a_block_is_free_when_its_last_holder_lets_go),
    ),
    Mutant(
        "a copy starts with two holders",
        BlockPool,
        "copy",
        "self.store.copy(block, target)",
        "self.store.copy(block, target); self.share(target)",
        life,
    ),
    Mutant("a copy is not filled", BlockPool, "copy", "self.store.copy(block, target)", "pass", life),
    Mutant(
        "a copy takes the first layer alone",
        FloatStore,
        "copy",
        "self._blocks[:, :, target] = self._blocks[:, :, source]",
        "self._blocks[0, :, target] = self._blocks[0, :, source]",
        of(test_paged.test_what_was_shared_reads_the_same_after_a_copy, None),
    ),
    # Room
    Mutant("copies are not counted as needed", PagedCache, "blocks_needed", "self.pool.ref_count(block) - 1", "0", life),
    Mutant(
        "one copy too many is counted", PagedCache, "blocks_needed", "min(count, self.pool.ref_count(block) - 1)", "count", life
    ),
    Mutant("rows that write nothing are counted", PagedCache, "blocks_needed", "new_lens[row] and ", "", life),
    Mutant(
        "room is asked for too late",
        PagedCache,
        "reserve",
        "self.pool.check_available(self.blocks_needed([len(row) for row in new]))",
        "pass",
        of(test_paged.test_too_few_blocks_for_all_rows_together_change_nothing, 3, [1, 1, 1], 3, 2),
    ),
    Mutant(
        "one block too few",
        blocks,
        "blocks_for",
        "-(-num_tokens // block_size)",
        "num_tokens // block_size + 1",
        of(test_blocks.test_tokens_round_up_to_blocks),
    ),
    # Where tokens live
    Mutant("the slot is off by one", PagedCache, "_settle", "places % block_size\n", "(places + 1) % block_size\n", life),
    Mutant(
        "the block is that of the next token",
        PagedCache,
        "_settle",
        "[rows, places // block_size]",
        "[rows, (places + 1) // block_size - 1]",
        life,
    ),
    Mutant(
        "positions beyond a row's end are no padding",
        PagedCache,
        "_settle",
        "keys < self.seq_lens[:, None]",
        "(keys < kv_len).expand(len(new), -1)",
        of(contract.test_every_key_comes_back_at_the_position_that_reserve_named, PAGED),
    ),
    Mutant(
        "the newest key is hidden",
        PagedCache,
        "_settle",
        "keys < self.seq_lens[:, None]",
        "keys < self.seq_lens[:, None] - 1",
        of(RAGGED, PAGED),
    ),
    Mutant(
        "key positions are those of the first row",
        PagedCache,
        "_settle",
        "self.seq_lens[:, None]",
        "self.seq_lens[:1].expand(len(new))[:, None]",
        of(RAGGED, PAGED),
    ),
    Mutant(
        "what an earlier holder left stays", BlockPool, "allocate_many", "self.store.clear(blocks)", "pass", of(RAGGED, PAGED)
    ),
    Mutant(
        "a short row is filled up with a block that is free",
        PagedCache,
        "_padded_tables",
        "[table[0] if table else anyones]",
        "[self.pool._free[-1]]",
        of(RAGGED, PAGED),
    ),
    # Attention over blocks
    Mutant(
        "the sum is not scaled down",
        paged,
        "paged_attention",
        "total = total * shrink",
        "total = total",
        of(test_paged.test_one_layer_to_the_last_digit, torch.float64, 1e-12, 2),
    ),
    Mutant(
        "the values are not scaled down",
        paged,
        "paged_attention",
        "gathered = gathered * shrink[..., None]",
        "gathered = gathered",
        of(test_paged.test_one_layer_to_the_last_digit, torch.float64, 1e-12, 2),
    ),
    Mutant(
        "hidden keys weigh in when nothing is visible",
        paged,
        "paged_attention",
        ".exp() * visible",
        ".exp()",
        of(test_paged.test_a_query_that_sees_nothing_gets_zeros),
    ),
    Mutant(
        "the last block is left out",
        paged,
        "paged_attention",
        "range(cache.num_blocks)",
        "range(cache.num_blocks - 1)",
        of(test_paged.test_one_layer_to_the_last_digit, torch.float64, 1e-12, 0),
    ),
    # Prefixes
    Mutant(
        "a name ignores the parent's",
        prefix,
        "chain_hash",
        "(parent + ",
        "(",
        of(test_prefix.test_equal_blocks_after_different_beginnings_are_different),
    ),
    Mutant(
        "an entry ignores its parent",
        prefix._Entry,
        "stands_for",
        " and self.parent is parent",
        "",
        lambda monkeypatch: test_prefix.test_a_collision_of_later_blocks_is_seen_through_their_parents(monkeypatch),
    ),
    Mutant(
        "equal names are enough",
        prefix._Entry,
        "stands_for",
        "return self",
        "return True or self",
        lambda monkeypatch: test_prefix.test_a_collision_of_names_returns_nobody_elses_keys(monkeypatch, ("", "")),
    ),
    Mutant(
        "an entry ignores its salt",
        prefix._Entry,
        "stands_for",
        " and self.salt == salt",
        "",
        lambda monkeypatch: test_prefix.test_a_collision_of_names_returns_nobody_elses_keys(monkeypatch, ("a", "b")),
    ),
    Mutant("names ignore the salt", PrefixCache, "_named", "salt.encode()", "b''", of(test_prefix.test_salts_share_nothing)),
    Mutant(
        "a prompt is cached to its very end",
        PrefixCache,
        "acquire",
        "len(token_ids) - 1",
        "len(token_ids)",
        of(test_prefix.test_a_prompt_cached_to_its_end_still_has_logits_and_writes_no_shared_block, 8),
    ),
    Mutant("what is acquired is not held", PrefixCache, "acquire", "self._pool.share(entry.block)", "pass", life),
    Mutant("looking counts as using", PrefixCache, "match", "return [", "self.acquire(token_ids, salt=salt); return [", life),
    Mutant("what is published is not held", PrefixCache, "_publish", "self._pool.share(entry.block)", "pass", life),
    Mutant(
        "a twin is not given back",
        PrefixCache,
        "insert",
        "self._pool.release(block_table[index])",
        "pass",
        of(test_prefix.test_two_equal_prompts_in_one_step_end_up_sharing),
    ),
    Mutant(
        "held blocks are evicted",
        PrefixCache,
        "reclaim",
        "self._pool.ref_count(entry.block) == 1",
        "True",
        of(test_prefix.test_what_a_sequence_holds_is_never_evicted),
    ),
    Mutant(
        "parents are evicted before their children",
        PrefixCache,
        "_touch",
        "reversed(names)",
        "names",
        of(test_prefix.test_the_one_used_longest_ago_goes_first_and_children_before_parents),
    ),
    Mutant(
        "use is not noted",
        PrefixCache,
        "acquire",
        "self._touch([name for name, _ in chain])",
        "pass",
        lambda monkeypatch: noted_use_matters(),
    ),
    # Few bits
    Mutant(
        "keys are scaled per token",
        QuantizedStore,
        "_quantize",
        "quantize(keys, bits=self.bits, dim=1)",
        "[x if x.dtype == torch.uint8 else x.expand(*keys.shape)[:, :1] for x in quantize(keys, bits=self.bits, dim=2)]",
        of(test_store.test_a_closed_block_is_rounded_by_channel_for_keys_and_by_token_for_values, 8, [4]),
    ),
    Mutant(
        "codes share bits",
        store,
        "pack",
        "<< (bits * place)",
        "<< place",
        of(test_store.test_the_first_code_is_in_the_lowest_bits),
    ),
    Mutant(
        "the zero is rounded inwards",
        store,
        "quantize",
        "-_half_at_least(-low)",
        "low.to(torch.float16)",
        of(test_store.test_no_number_is_off_by_more_than_half_a_scale, 8, 1e-3, 1000.0),
    ),
    Mutant(
        "numbers beyond 16 bits overflow",
        store,
        "_half_at_least",
        "x.clamp(-_LARGEST_HALF, _LARGEST_HALF)",
        "x",
        of(test_store.test_numbers_too_large_for_16_bits_saturate_and_stay_finite, 8, torch.float32, [1.0, -1.0]),
    ),
    Mutant(
        "groups are rounded again",
        QuantizedCache,
        "_closing",
        "range(self._groups_closed(old), ",
        "range(0, ",
        of(test_quantized.test_what_is_rounded_is_never_rounded_again, 8),
    ),
    Mutant(
        "the residual is rounded too",
        QuantizedCache,
        "_groups_closed",
        "held - self.residual",
        "held",
        of(contract.test_a_row_that_pauses_goes_on_where_it_stopped, contract.CACHES["quantised, 4 bits, residual"]),
    ),
    Mutant(
        "an open block that is copied stays behind",
        QuantizedStore,
        "copy",
        "if source in self._stage_of",
        "if False",
        quantized_life,
    ),
    Mutant(
        "what was open in a freed block comes back",
        QuantizedStore,
        "clear",
        "if block in self._stage_of]",
        "if False]",
        quantized_life,
    ),
    Mutant(
        "older tokens of an open block are dropped",
        QuantizedStore,
        "write",
        "at_hand[:, index] = staged[:, stage]",
        "pass",
        quantized_life,
    ),
]


def noted_use_matters() -> None:
    """A prompt that is acquired, and computes nothing new to publish, counts as used."""
    served = test_prefix.Served(num_blocks=5)
    old, young = test_prefix.count(0, 9), test_prefix.count(20, 9)
    served.finish(old)
    served.finish(young)
    blocks.release_all(served.pool, served.prefix.acquire(old))
    served.pool.allocate_many(3)
    assert len(served.prefix.match(old)) == 2 and served.prefix.match(young) == []


def mutate(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the function itself, so that everybody who imported it has the changed one."""
    function = inspect.unwrap(getattr(mutant.owner, mutant.name))
    source = inspect.getsource(function)
    assert source.count(mutant.was) == 1, f"{mutant.name} should hold {mutant.was!r} once"
    changed = textwrap.dedent(source.replace(mutant.was, mutant.is_now))
    scope: dict[str, object] = {}
    exec(compile(changed, str(inspect.getsourcefile(function)), "exec"), function.__globals__, scope)  # noqa: S102
    monkeypatch.setattr(function, "__code__", scope[mutant.name].__code__)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.what for mutant in MUTANTS])
def test_every_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as original:
        if mutant.caught_by not in (life, quantized_life):  # those have tests of their own
            mutant.caught_by(original)
    mutate(mutant, monkeypatch)
    with pytest.raises((AssertionError, ValueError, IndexError, pytest.fail.Exception)):
        mutant.caught_by(monkeypatch)
