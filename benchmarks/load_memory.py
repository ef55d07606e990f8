"""How much memory does loading a checkpoint take at its peak, in terms of the model's own size?

Writes a checkpoint of a released model's shape with random weights, loads it in a fresh process for every type, and prints the most
memory that process ever held, above what it held before. Linux, or anything with `resource`. No GPU.

    python benchmarks/load_memory.py                       # Llama 3.2 1B: 2.5 GB of disk, 5 GB of memory
    python benchmarks/load_memory.py --preset llama3.2-3b --dtypes bfloat16
    python benchmarks/load_memory.py --dtypes int8         # matrices in 8 bits, rounded on the way
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from llama3_edu import Llama, LlamaConfig, int8_weight_bytes, parameter_count
from llama3_edu.checkpoint import load_checkpoint
from llama3_edu.layout import hugging_face_name

BOUND = 1.15


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--preset", default="llama3.2-1b", help="whose shape (default: %(default)s)")
    options.add_argument(
        "--stored", default="BF16", choices=["BF16", "F16", "F32"], help="type in the file (default: %(default)s)"
    )
    options.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float32"], help="types to load as, int8 among them (default: both)"
    )
    options.add_argument("--measure", nargs=2, metavar=("DIRECTORY", "DTYPE"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.measure:
        print(json.dumps(measure(Path(given.measure[0]), given.measure[1])))
        return
    config = LlamaConfig.from_preset(given.preset)
    print(f"{given.preset}, {parameter_count(config):,} parameters, stored as {given.stored}; torch {torch.__version__}, CPU")
    print(f"{'loaded as':<12}{'model':>12}{'peak above start':>20}{'peak / model':>16}{'seconds':>10}")
    with tempfile.TemporaryDirectory(prefix="load_memory_") as directory:
        write_random_checkpoint(config, Path(directory), stored=given.stored)
        for dtype in given.dtypes:
            report(config, directory, dtype)


def report(config: LlamaConfig, directory: str, dtype: str) -> None:
    """Measure in a fresh process, so that nothing of an earlier load is counted, and print one line."""
    command = [sys.executable, __file__, "--measure", directory, dtype]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    model = int8_weight_bytes(config) if dtype == "int8" else parameter_count(config) * getattr(torch, dtype).itemsize
    ratio = found["peak_bytes"] / model
    verdict = "" if ratio <= BOUND else f"  above {BOUND}"
    print(
        f"{dtype:<12}{model / 1e9:>9.3f} GB{found['peak_bytes'] / 1e9:>17.3f} GB{ratio:>16.3f}{found['seconds']:>10.1f}{verdict}"
    )


def measure(directory: Path, dtype: str) -> dict[str, float]:
    """Load once; return the most memory held above what was held before, in bytes, and the seconds it took."""
    before, start = resident_bytes("VmRSS"), time.perf_counter()
    if dtype == "int8":
        model = load_checkpoint(directory, weight_bits=8)
        assert model.output.weight.dtype == torch.int8
    else:
        model = load_checkpoint(directory, dtype=getattr(torch, dtype))
        assert model.output.weight.dtype == getattr(torch, dtype)
    seconds = time.perf_counter() - start
    return {"peak_bytes": resident_bytes("VmHWM") - before, "seconds": seconds}


def resident_bytes(field: str) -> int:
    """Return this process's memory, now (`VmRSS`) or at its highest (`VmHWM`); elsewhere than on Linux, the highest for both."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_random_checkpoint(config: LlamaConfig, directory: Path, *, stored: str) -> None:
    """Write config.json and one model.safetensors, a block at a time, so that no tensor is ever whole in memory."""
    dtype = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[stored]
    with torch.device("meta"):
        parameters = dict(Llama(config).named_parameters())
    header, end = {}, 0
    for name, parameter in parameters.items():
        begin, end = end, end + parameter.numel() * dtype.itemsize
        header[hugging_face_name(name)] = {"dtype": stored, "shape": list(parameter.shape), "data_offsets": [begin, end]}
    block = (torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype).view(torch.uint8).numpy().tobytes()
    (directory / "config.json").write_text(json.dumps(config.to_hugging_face()))
    raw = json.dumps(header).encode()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for index in range(math.ceil(end / len(block))):
            file.write(block[: end - index * len(block)])


if __name__ == "__main__":
    main()
