"""Compile every kernel for real GPUs, on a machine that has none: the interpreter takes programs that the compiler refuses.

Run by itself, without the interpreter. The package's own functions are called with tensors of the processor; each kernel they
launch is compiled for the GPU named, down to machine code, and not run. Prints a line of JSON per kernel.

python tests/kernels/compiled.py 90
"""

import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


class NoGpu:
    """As much of a driver as the compiler asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead_of_running(kernels: list[dict[str, object]]) -> None:
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: object, **options: object) -> None:
        compiled = run(self, *args, **{**options, "warmup": True})
        kernels.append(described(compiled, args))

    JITFunction.run = compile_only


def described(compiled: object, args: tuple[object, ...]) -> dict[str, object]:
    """A kernel's name, the type of its first tensor, and what its machine code needs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    ptx = compiled.asm["ptx"]
    return {
        "kernel": compiled.metadata.name,
        "dtype": str(args[0].dtype),
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spilled_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_bytes": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "loads": sorted(set(re.findall(r"(?:ld\.global|cp\.async\.c[ag]\.shared\.global)[.\w:]*", ptx))),
        "products": sorted(set(re.findall(r"(?:wgmma\.)?mma[.\w]*", ptx))),
    }


def launch_everything() -> None:
    """Call each function at the size of an 8B model, in a narrow and a wide type of number."""
    from llama3_edu import BlockPool, LlamaConfig, PagedCache
    from llama3_edu.kernels import paged_decode

    paged_decode.missing = lambda device: None
    config = LlamaConfig(dim=4096, n_layers=1, n_heads=32, n_kv_heads=8, hidden_dim=64, vocab_size=16)
    for dtype in (torch.bfloat16, torch.float32):
        for bits in (None, 8):
            pool = BlockPool(config, num_blocks=8, bits=bits, dtype=dtype)
            cache = PagedCache(pool, [[], []])
            cache.reserve(torch.arange(20).expand(2, 20))
            cache.write(0, *torch.zeros(2, 2, 20, 8, 128, dtype=dtype))
            q = torch.zeros(2, 1, 32, 128, dtype=dtype)
            paged_decode.attend_in_place(q, cache, layer=0, seq_lens=cache.seq_lens)
        for batch in (1, 2):
            launch_operations(dtype, batch=batch)


def launch_operations(dtype: torch.dtype, *, batch: int) -> None:
    """Call every operation of a step but attention, which has been."""
    from llama3_edu.kernels.step_triton import TritonOperations

    do = TritonOperations()
    zeros = partial(torch.zeros, dtype=dtype)
    x, norm = zeros(batch, 4096), zeros(4096)
    do.project(x, norm, zeros(64, 4096), eps=1e-5)
    do.project_gated(x, norm, zeros(64, 4096), eps=1e-5)
    do.project_and_add(zeros(batch, 64), x, zeros(64, 4096))
    blocks = zeros(2, 8, 16, 8, 128)
    do.rotate_and_store(zeros(batch, 48, 128), zeros(batch, 64), zeros(batch, 64), torch.zeros(batch, dtype=torch.long), *blocks)


if __name__ == "__main__":
    found: list[dict[str, object]] = []
    driver.set_active(NoGpu(int(sys.argv[1])))
    compile_instead_of_running(found)
    launch_everything()
    for kernel in found:
        print(json.dumps(kernel))
