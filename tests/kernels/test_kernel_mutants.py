"""Do the tests of the kernels bite? Each mutant changes one small thing in a kernel, and a test must notice."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernels.test_paged_decode import Case, Held, check
from kernels import test_step
from tiny_models import CONFIG

from llama3_edu import kernels

pytestmark = [pytest.mark.triton, pytest.mark.slow]
Check = Callable[[torch.device], object]


@dataclass(frozen=True)
class Mutant:
    """`was` becomes `is_now` in the source of a kernel; `caught_by` must fail."""

    what: str
    kernel: str
    was: str
    is_now: str
    caught_by: Check
    module: str = "paged_triton"


def floats(device: torch.device) -> None:
    check(Case((70, 16, 0, 33), block_size=5, splits=3, shared=1), device)


def int8(device: torch.device) -> None:
    config = replace(CONFIG, n_heads=6, n_kv_heads=2, head_dim=12)
    Held(config, [[9], [13, 26, 3, 6]], block_size=4, group_size=8, bits=8, splits=3).check(device)


def one_row(device: torch.device) -> None:
    test_step.test_kernels_do_what_plain_operations_do.hypothesis.inner_test(1, 37, 11, 4, 8, True, 3)


def rows(device: torch.device) -> None:
    test_step.test_kernels_do_what_plain_operations_do.hypothesis.inner_test(3, 37, 11, 4, 8, True, 3)


def rotation(device: torch.device) -> None:
    test_step.test_rotation_and_storing_by_kernel.hypothesis.inner_test(4, 2, 12, [3, -1, 14])


STEP = "step_triton"
MUTANTS = [
    Mutant("a token too few", "share_of", "TILE, num_tokens)", "TILE, num_tokens - 1)", floats),
    Mutant("a token too many", "share_of", "TILE, num_tokens)", "TILE, num_tokens + 1)", floats),
    Mutant("shares overlap", "share_of", "first + tiles_each * TILE", "first + (tiles_each + 1) * TILE", floats),
    Mutant("shares leave tokens out", "share_of", "tl.cdiv(tl.cdiv(num_tokens, TILE),", "tl.maximum(1, num_tokens // TILE // ",
           floats),
    Mutant("heads of another group", "load_queries", "tl.program_id(0) * N_REP + reps", "tl.program_id(0) + 2 * reps", floats),
    Mutant("the total keeps its old scale", "take_in", "total * shrink", "total", floats),
    Mutant("the sums keep their old scale", "take_in", "gathered * shrink[:, None]", "gathered", floats),
    Mutant("hidden keys weigh something", "take_in", "tl.where(visible[None, :], scores, LOWEST)", "scores", floats),
    Mutant("scores are not scaled", "take_in", " * scale", "", floats),
    Mutant("found in another head's place", "leave", "tl.program_id(0) * N_REP + reps", "tl.program_id(0) + 2 * reps", floats),
    Mutant("slots are not counted within their block", "attend_to_floats", "places % BLOCK_SIZE", "tile % BLOCK_SIZE", floats),
    Mutant("every row reads the first row's table", "attend_to_floats", "row * table_row + places", "places", floats),
    Mutant("every head reads the first head's keys", "attend_to_floats", " + kv_head * head_stride", "", floats),
    Mutant("shares are added up as they are", "join", "weight * total", "total", floats),
    Mutant("shares' values are added up as they are", "join", "weight[:, None] * gathered", "gathered", floats),
    Mutant("a row of no tokens is divided by nothing", "join", "tl.where(total == 0, 1.0, total)", "total", floats),
    Mutant("values of one group for all", "attend_to_int8", "(kv_head * HEAD_DIM + parts * PART) // GROUP", "parts * 0", int8),
    Mutant("groups counted from the head's beginning", "attend_to_int8", "(kv_head * HEAD_DIM + parts * PART) // GROUP",
           "kv_head * (HEAD_DIM // GROUP) + parts * PART // GROUP", int8),
    Mutant("keys without their zeros", "attend_to_int8", "(k_zero + k.to", "(k.to", int8),
    Mutant("keys' levels of the first block", "attend_to_int8", "(blocks * KV_DIM + kv_head", "(blocks * 0 + kv_head", int8),
    Mutant("values' scales for zeros", "attend_to_int8", "levels + levels_of_zeros_v", "levels", int8),
    Mutant("values read from the keys' codes", "attend_to_int8", "codes + codes_of_values", "codes", int8),
    Mutant("an open block is taken for closed", "attend_to_int8", "tl.where(stage >= 0, last * BLOCK_SIZE, seq_len)", "seq_len",
           int8),
    Mutant("an open block is forgotten", "attend_to_int8", "== tl.num_programs(1) - 1, seq_len, closed)",
           "< 0, seq_len, closed)", int8),
    Mutant("an open block is counted in every share", "attend_to_int8", "== tl.num_programs(1) - 1", ">= 0", int8),
    Mutant("another row's open block", "attend_to_int8", "(stage * BLOCK_SIZE", "(0 * BLOCK_SIZE", int8),
    Mutant("a last piece of the vector is left out", "read_matrix", "range(0, WIDTH, COLUMNS)",
           "range(0, WIDTH - COLUMNS, COLUMNS)", one_row, STEP),
    Mutant("the mean of the squares is a sum", "read_matrix", "tl.sum(squares, axis=0) / WIDTH", "tl.sum(squares, axis=0)",
           one_row, STEP),
    Mutant("a norm that weighs nothing", "read_matrix", "part *= tl.load", "part += 0 * tl.load", one_row, STEP),
    Mutant("what is gated is not normed", "read_matrix", "(tl.sum(others, axis=1) * shrink)", "tl.sum(others, axis=1)",
           one_row, STEP),
    Mutant("the gate gates itself", "read_matrix", "below = num_rows", "below = 0 * num_rows", one_row, STEP),
    Mutant("the stream is forgotten", "read_matrix", "if ADDED:", "if ADDED and NORMED:", one_row, STEP),
    Mutant("no epsilon", "norm_rows", "/ DIM + eps", "/ DIM + 1.0", rows, STEP),
    Mutant("gate and gated change places", "gate_rows", "gate * tl.sigmoid(gate) * up", "up * tl.sigmoid(up) * gate", rows, STEP),
    Mutant("turned the other way", "rotate_and_store", "first * c - second * s", "first * c + second * s", rotation, STEP),
    Mutant("resting rows are stored", "rotate_and_store", "real & (slot >= 0)", "real & (slot >= -1)", rotation, STEP),
    Mutant("values are turned, too", "rotate_and_store", "first.to(values", "turned.to(values", rotation, STEP),
    Mutant("all heads in one place", "rotate_and_store", "(head - N_HEADS) * head_stride", "0 * head_stride", rotation, STEP),
]  # fmt: skip


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.fail("a mutant may read where nothing is: run this file without a GPU, CUDA_VISIBLE_DEVICES= pytest …")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = importlib.import_module(f"llama3_edu.kernels.{mutant.module}")
    mutant.caught_by(torch.device("cpu"))
    source = Path(module.__file__).read_text(encoding="utf-8")
    before, this, after = split(source, f"@kernel\ndef {mutant.kernel}(")
    assert this.count(mutant.was) == 1, f"{mutant.was!r} stands {this.count(mutant.was)} times in {mutant.kernel}"
    path = tmp_path / "mutated.py"  # a file, because Triton reads a kernel's source again
    path.write_text(before + this.replace(mutant.was, mutant.is_now) + after, encoding="utf-8")
    monkeypatch.setattr(kernels, mutant.module, loaded(path))
    with pytest.raises(AssertionError):
        mutant.caught_by(torch.device("cpu"))


def split(source: str, start: str) -> tuple[str, str, str]:
    """A file's text before a function, the function, and what follows it."""
    before, _, rest = source.partition(start)
    body, decorator, after = rest.partition("\n\n\n")
    return before, start + body, decorator + after


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
