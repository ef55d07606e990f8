"""What watching memory costs the code that is watched: the same generation with and without a monitor, side by side.

python -m benchmarks.monitor_overhead
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.report import Report
from llama3_edu import ContiguousCache, Llama, default_device, generate, load_tiny
from llama3_edu.widgets import MemoryMonitor

SEED = 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=11)
    options.add_argument("--new-tokens", type=int, default=400)
    options.add_argument("--hz", type=float, nargs="+", default=[5.0, 8.0, 10.0])
    given = options.parse_args()
    torch.set_num_threads(1)
    model, _ = load_tiny(device=default_device())
    report = Report(
        name="monitor_overhead",
        title="What a memory monitor costs",
        notes=[
            f"The bundled model generates {given.new_tokens} tokens for 4 rows, greedily, with a contiguous cache.",
            "Ratio: the time with the monitor over the time without, of two runs one after the other, in turns first; median of "
            f"{given.repeats} pairs (quartiles). The same without a monitor in either run says what the clock can tell apart.",
            "Of one core: processor time of the sampling thread (that of the process less that of its main thread; torch has one "
            "thread) over the time of the run.",
            "There is no page here: frames are made, checked and written as JSON as for one, and are sent nowhere.",
        ],
    )
    run(model, given.new_tokens)  # warm-up
    report.add(**measure("none", lambda: None, model, given.new_tokens, given.repeats))
    for hz in given.hz:
        report.add(**measure(f"{hz:g} Hz", lambda hz=hz: watched(model, hz), model, given.new_tokens, given.repeats))
    report.finish()


def measure(
    name: str, make: Callable[[], MemoryMonitor | None], model: Llama, new_tokens: int, repeats: int
) -> dict[str, object]:
    """Time pairs of runs, with a monitor and without."""
    ratios, shares, samples = [], [], []
    for pair in range(repeats):
        without = None if pair % 2 else run(model, new_tokens)
        monitor = make()
        before = time.process_time(), time.thread_time()
        with_monitor = run(model, new_tokens, monitor)
        others = (time.process_time() - before[0]) - (time.thread_time() - before[1])
        ratios.append(with_monitor / (without or run(model, new_tokens)))
        shares.append(others / with_monitor)
        samples.append(monitor.frames["taken"] if monitor else 0)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "monitor": name,
        "time_with_over_without": f"{middle:.3f} ({low:.3f} to {high:.3f})",
        "of_one_core": f"{100 * statistics.median(shares):.2f} %",
        "samples_per_run": int(statistics.median(samples)),
    }


def watched(model: Llama, hz: float) -> MemoryMonitor:
    monitor = MemoryMonitor(model=model, hz=hz)
    monitor.observe(lambda change: json.dumps(change["new"]), "frames")
    return monitor


def run(model: Llama, new_tokens: int, monitor: MemoryMonitor | None = None) -> float:
    """Generate; return the seconds that took, the monitor's beginning and end left out."""
    prompt = torch.randint(0, 256, (4, 8), generator=torch.Generator().manual_seed(SEED)).to(model.device)
    cache = ContiguousCache(model.config, 4, max_seq_len=new_tokens + 8, device=model.device, dtype=model.dtype)
    if monitor:
        monitor.watch(cache)
        monitor.start()
    start = time.perf_counter()
    generate(model, prompt, max_new_tokens=new_tokens, cache=cache)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds = time.perf_counter() - start
    if monitor:
        monitor.stop()
    return seconds


if __name__ == "__main__":
    main()
