"""Where the time of a decode step goes: products with weights, attention over keys and values, everything else.

    python -m benchmarks.step_profile

Says why a step takes longer than the limit that memory sets: for each part, how many bytes it reads and how fast it reads them.
"""

import argparse
import math
import statistics
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import models, speed
from benchmarks.ours import prepared, put_back
from benchmarks.report import Report
from benchmarks.workload import random_ids
from llama3_edu import ContiguousCache, Llama, LlamaConfig, kv_bytes, stream

STEP, PRODUCTS, ATTENTION, REST = "a step", "products", "attention", "everything else"
OF_PRODUCTS = ("aten::_embedding_bag_forward_only", "mkldnn::_linear_pointwise", "aten::mv", "aten::addmv", "aten::addmv_")
OF_ATTENTION = ("aten::scaled_dot_product_attention",)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = speed.options(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=models.NAMES, default="110m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--contexts", default="128,2048")
    parser.add_argument("--steps", type=int, default=30)
    given = speed.parsed(parser, {"model": "rehearsal", "contexts": "40", "steps": 3}, arguments)
    model = models.load(given.model, getattr(torch, given.dtype))
    report = speed.report(
        given, name="step_profile", script="step_profile", versions=[],
        title=f"Where the time of a step goes: {models.title(given.model)}, {given.dtype}",
        notes=[
            f"Milliseconds of {given.steps} steps on the fast path, medians, as torch's profiler has them: it adds about a microsecond to "
            "every operation, most of all to those of the last part. GB/s: the bytes of the weights, or of the keys and values, over that time.",
        ],
    )  # fmt: skip
    # One thread of control, one contender: there is nothing to take turns with, so the harness's last note does not apply.
    report.notes.pop()
    for context in map(int, given.contexts.split(",")):
        _add(report, model, context, given)
    speed.finish(report, given)


def _add(report: Report, model: Llama, context: int, given: argparse.Namespace) -> None:
    steps = times(model, context, given.steps)
    weights = sum(weight.nbytes for weight in model.parameters())
    keys = kv_bytes(model.config, seq_len=context + given.steps // 2, bits=8 * model.dtype.itemsize)
    whole = statistics.median(step[STEP] for step in steps)
    for part, nbytes in ((PRODUCTS, weights), (ATTENTION, keys), (REST, 0), (STEP, weights + keys)):
        median = statistics.median(step[part] for step in steps)
        rate = nbytes / median / 1e9
        report.add(
            context=context, part=part, ms=f"{median * 1e3:.2f}", share=f"{median / whole:.0%}", MB=f"{nbytes / 1e6:.1f}" if nbytes else "–",
            GB_a_second=f"{rate:.0f}" if nbytes else "–",
        )  # fmt: skip
        report.record(context=context, part=part, seconds=median, share=median / whole, nbytes=nbytes, gigabytes_a_second=rate)


def times(model: Llama, context: int, steps: int) -> list[dict[str, float]]:
    """Return the seconds of each part, for every step but the first."""
    prompt = random_ids(context, vocab_size=model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    cache = put_back(ContiguousCache(model.config, max_seq_len=context + steps + 2, dtype=model.dtype), prepared(model, prompt))
    tokens = stream(model, torch.tensor([prompt]), max_new_tokens=steps + 1, cache=cache)
    next(tokens)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        for _ in range(steps):
            with record_function(STEP):
                next(tokens)
    return [_parts(step, model.config) for step in profiled.events() if step.name == STEP]


def _parts(step: torch.autograd.profiler_util.FunctionEvent, config: LlamaConfig) -> dict[str, float]:
    """Return the seconds of one step's parts. Events come with times in microseconds."""
    found = {PRODUCTS: 0.0, ATTENTION: 0.0}
    for event in step.cpu_children:
        if event.name in OF_PRODUCTS or event.name == "aten::linear" and _reads_weights(event, config):
            found[PRODUCTS] += event.cpu_time_total / 1e6
        elif event.name in OF_ATTENTION:
            found[ATTENTION] += event.cpu_time_total / 1e6
    whole = step.cpu_time_total / 1e6
    return {STEP: whole, **found, REST: whole - sum(found.values())}


def _reads_weights(event: torch.autograd.profiler_util.FunctionEvent, config: LlamaConfig) -> bool:
    return max(math.prod(shape) for shape in event.input_shapes if shape) >= config.dim * config.kv_dim


if __name__ == "__main__":
    speed.run(main)
