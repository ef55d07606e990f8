"""How many tokens a second the engine gives out on a GPU, and whether it takes the memory that the formula says.

python -m benchmarks.gpu_engine
"""

import gc
import statistics
import time
from dataclasses import replace

import torch

from benchmarks.gpu import TOY, Place, options, place, random_llama
from benchmarks.report import Report, percent
from benchmarks.workload import Lengths, random_ids, requests
from llama3_edu import Engine, Llama, LlamaConfig, kv_bytes, weight_bytes
from llama3_edu.config import PRESETS

SEED = 4


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="llama3-8b")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--rounds", type=int, default=2, help="requests per place in the batch")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    config, longest, means = PRESETS[given.model], 1024, {"prompt_mean": 161, "new_mean": 338}
    if given.rehearse:
        config, longest, means = TOY, 24, {"prompt_mean": 6, "new_mean": 5}
        given.concurrent, given.rounds, given.block_size, given.repeats = [1, 2], 1, 4, 1
    config = replace(config, max_seq_len=longest)
    most = max(given.concurrent) * longest
    here = place(rehearse=given.rehearse, memory_bytes=(weight_bytes(config) + kv_bytes(config, seq_len=most)) * 11 // 10)
    model = random_llama(config, here)
    report = Report(
        name="gpu_engine",
        title=f"Throughput and memory of the engine on a GPU: {'a toy' if given.rehearse else given.model}, random weights",
        device=str(here.device),
        notes=[
            f"Requests that are all there at the start, {given.rounds} per place in the batch, lengths log-normal (standard"
            f" deviation of the logarithm 1.0, seed {SEED}; means drawn from are {means['prompt_mean']} and {means['new_mean']}"
            f" tokens, at most {longest:,} together); greedy; blocks of {given.block_size}; no prefix cache.",
            "Tokens a second: new tokens / wall clock from the first request to the last token, prompts computed on the way;"
            f" after a run that is not counted; median of {given.repeats} (smallest to largest).",
            "Live memory: what tensors take on the device when all is done. Formula: `weight_bytes` of the model and `kv_bytes`"
            " of the pool's slots.",
        ],
    )
    for concurrent in given.concurrent:
        mix = requests(given.rounds * concurrent, **means, longest=longest, seed=SEED)
        for fast in (True, False):
            report.add(**row(model, mix, concurrent, here, fast=fast, longest=longest, given=given))
    here.finish(report)


def row(
    model: Llama, mix: list[Lengths], concurrent: int, here: Place, *, fast: bool, longest: int, given: object
) -> dict[str, object]:
    """Run a mix several times; return what it took."""
    blocks = concurrent * -(-longest // given.block_size)
    engine = Engine(
        model, num_blocks=blocks, block_size=given.block_size, max_batch=concurrent, max_tokens_per_step=2048,
        prefix_caching=False, fast=fast,
    )  # fmt: skip
    new_tokens = sum(lengths.new for lengths in mix)
    speeds = [new_tokens / seconds(engine, mix) for _ in range(given.repeats + 1)][1:]  # the first run captures
    live = here.live_bytes(model, engine.pool)
    del engine
    gc.collect()
    formula = formula_bytes(model.config, blocks * given.block_size, here)
    return {
        "concurrent": concurrent, "way": "fast" if fast else "model.py",
        "tokens_a_second": f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
        "live_bytes": live, "formula_bytes": formula, "off": percent(live - formula, formula),
    }  # fmt: skip


def formula_bytes(config: LlamaConfig, slots: int, here: Place) -> int:
    """Weights and the pool, from the configuration alone."""
    bits = 8 * here.dtype.itemsize
    return weight_bytes(config, bits=bits) + kv_bytes(config, seq_len=slots, bits=bits)


def seconds(engine: Engine, mix: list[Lengths]) -> float:
    """Run all requests; return how long it took."""
    generator = torch.Generator().manual_seed(SEED)
    for lengths in mix:
        ids = random_ids(lengths.prompt, vocab_size=engine.model.config.vocab_size, generator=generator)
        engine.add(ids, max_new_tokens=lengths.new)
    start = time.perf_counter()
    engine.run()  # every token is read by the host, so at the end nothing is under way
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
