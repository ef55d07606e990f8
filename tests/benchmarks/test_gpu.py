"""The GPU's benchmarks run from end to end without one, at toy size, and say what they need when nobody asked for a rehearsal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"gpu_decode": 9, "gpu_paged": 9, "gpu_engine": 4}


def run(script: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{script}", *options]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, cwd=ROOT, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("script", ROWS)
def test_a_rehearsal_runs_all_of_it_and_writes_nothing(script: str) -> None:
    written = {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").iterdir()}
    done = run(script, "--rehearse", *(["--sweep"] if script == "gpu_paged" else []))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + ROWS[script], done.stdout
    assert "nan" not in done.stdout
    assert written == {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").iterdir()}


@pytest.mark.parametrize("script", ROWS)
def test_without_a_gpu_it_says_what_it_needs_in_one_line(script: str) -> None:
    done = run(script)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and done.stdout == ""
    assert "needs a CUDA GPU" in line and "GiB" in line and "this machine has none" in line and "--rehearse" in line


@pytest.mark.triton
@pytest.mark.slow
def test_what_is_off_is_rounding_alone() -> None:
    lines = run("gpu_paged", "--rehearse").stdout.splitlines()
    off = {cells[1].strip(): float(cells[6]) for line in lines if len(cells := line.split("|")) == 8 and "Triton" in line}
    assert len(off) == 4 and all(value < (0.05 if "8-bit" in name else 1e-5) for name, value in off.items())


def test_a_token_reads_every_weight_and_key_once() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.gpu import TOY, Place, random_llama
    from benchmarks.gpu_decode import Wish

    here = Place(torch.device("cpu"), torch.bfloat16, rehearsed=True)
    model = random_llama(TOY, here)
    read = sum(parameter.nbytes for name, parameter in model.named_parameters() if "tok_embeddings" not in name)
    keys = 7 * 2 * TOY.n_layers * TOY.n_kv_heads * TOY.head_dim * 2
    assert Wish(TOY, context=7, new_tokens=2, repeats=1).bytes_per_token == read + keys
