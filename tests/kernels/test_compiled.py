"""The kernels become machine code for real GPUs, compiled here without one: see `compiled`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""What one program may have, by compute capability."""

NAMES = {"attend_to_floats", "attend_to_int8", "join", "read_matrix", "rotate_and_store", "norm_rows", "gate_rows"}


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_compiles_and_loads_16_bytes_at_a_time(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kernels" / "compiled.py", str(capability)],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} == NAMES
    for kernel in kernels:
        assert kernel["shared_bytes"] <= SHARED_BYTES[capability], kernel
        if kernel["dtype"] == "torch.float32":
            continue  # nobody decodes a large model in float32
        assert kernel["spilled_bytes"] == 0, kernel
        if kernel["kernel"] not in ("rotate_and_store", "join"):
            assert any("v4.b32" in load or "cp.async.cg" in load for load in kernel["loads"]), kernel
        if kernel["kernel"].startswith("attend"):
            assert kernel["products"], kernel  # tensor cores
