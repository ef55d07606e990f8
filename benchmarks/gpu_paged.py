"""How fast one layer's attention reads blocks where they lie, beside PyTorch's over a contiguous cache and beside a plain copy.

python -m benchmarks.gpu_paged
"""

import statistics
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import Place, options, place
from benchmarks.report import Report
from llama3_edu import BlockPool, LlamaConfig, PagedCache, fused_attend
from llama3_edu.kernels.paged_decode import Tiling, paged_decode_attention, paged_decode_attention_int8

Way = tuple[Callable[[], Tensor], int]
"""What computes the answer, and the bytes it has to read."""

CALLS = 10
"""Calls per sample, in one CUDA graph: what is timed is the GPU, not the launching."""


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--heads", type=int, nargs=2, default=[32, 8], help="query heads and KV heads, of 128 each")
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[16, 24, 64])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--sweep", action="store_true", help="try every way to cut the work, too, and show the fastest")
    given = parser.parse_args()
    if given.rehearse:
        given.batch, given.context, given.block_sizes = 2, 40, [16, 24]
    bytes_needed = 8 * given.batch * given.context * 2 * given.heads[1] * 128 * 2
    here = place(rehearse=given.rehearse, memory_bytes=bytes_needed)
    copy = here.copy_bandwidth()
    report = Report(
        name="gpu_paged",
        title="Attention of one new token per row over a paged cache",
        device=str(here.device),
        notes=[
            f"One layer, {given.batch} rows of {given.context:,} tokens, {given.heads[0]} query heads on {given.heads[1]} KV"
            f" heads of 128, {here.dtype}; blocks in random order; 8-bit blocks with 64 channels per group of values.",
            f"Time: of one call, from CUDA graphs of {CALLS}, median of {given.repeats} (smallest to largest).",
            "Bandwidth: bytes of the keys and values (codes, scales and zeros) / time. A copy within this memory reads and"
            f" writes {copy / 1e9:,.0f} GB/s.",
            "Off: the largest difference to the first row's answer.",
        ],
    )
    ways = contenders(given, here)
    times = {name: measured(way, here, repeats=given.repeats) for name, (way, _) in ways.items()}
    best_sdpa = min(statistics.median(times[name]) for name in times if name.startswith("SDPA"))
    reference = next(iter(ways.values()))[0]().float()
    for name, (way, nbytes) in ways.items():
        median = statistics.median(times[name])
        report.add(
            way=name, microseconds=f"{1e6 * median:.1f} ({1e6 * min(times[name]):.1f} to {1e6 * max(times[name]):.1f})",
            times_the_best_SDPA=median / best_sdpa, gigabytes_per_second=nbytes / median / 1e9, of_a_copy=nbytes / median / copy,
            off=(way().float() - reference).abs().max().item(),
        )  # fmt: skip
    here.finish(report)


def contenders(given: object, here: Place) -> dict[str, Way]:
    """Everything that is compared, over the same keys and values."""
    (n_heads, n_kv_heads), batch, context = given.heads, given.batch, given.context
    config = LlamaConfig(
        dim=128 * n_heads, n_layers=1, n_heads=n_heads, n_kv_heads=n_kv_heads, hidden_dim=1, vocab_size=1, max_seq_len=context
    )
    generator = torch.Generator(here.device).manual_seed(0)
    shape = (2, batch, context, n_kv_heads, 128)
    k, v = torch.randn(shape, generator=generator, device=here.device, dtype=here.dtype)
    q = torch.randn(batch, 1, n_heads, 128, generator=generator, device=here.device, dtype=here.dtype)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    rows = torch.arange(batch, device=here.device)[:, None], torch.full((batch,), context, device=here.device)
    ways: dict[str, Way] = {
        "SDPA, query heads as rows of queries": (lambda: fused_attend(q, k, v)[:, 0], 2 * k.nbytes),
        "SDPA, enable_gqa": (
            lambda: F.scaled_dot_product_attention(*heads_first, enable_gqa=True).transpose(1, 2)[:, 0], 2 * k.nbytes,
        ),
        "Triton, contiguous: a block per row": (partial(paged_decode_attention, q[:, 0], k, v, *rows), 2 * k.nbytes),
    }  # fmt: skip
    for size, bits in [*product(given.block_sizes, [None]), (given.block_sizes[0], 8)]:
        cache = shuffled(config, k, v, block_size=size, bits=bits, here=here)
        lens, store = cache.seq_lens, cache.pool.store
        if bits:
            kept = store.coded(0, range(store.num_blocks)), store.staged_layer(0), store.stage_by_block
            way = partial(paged_decode_attention_int8, q[:, 0], *kept, cache.block_table, lens)
            ways[f"Triton, 8-bit blocks of {size}"] = way, store.block_nbytes * pool_blocks(batch, context, size)
        else:
            way = partial(paged_decode_attention, q[:, 0], *store.blocks(0), cache.block_table, lens)
            ways[f"Triton, blocks of {size}"] = way, 2 * k.nbytes
            ways[f"gathered blocks of {size}, then SDPA"] = partial(gathered, q, cache), 2 * k.nbytes
    if given.sweep:
        size = given.block_sizes[0]
        way, nbytes = ways[f"Triton, blocks of {size}"]
        tiling = fastest(way, here, repeats=given.repeats)
        ways[f"Triton, blocks of {size}, cut as {tiling}"] = partial(way, tiling=tiling), nbytes
    return ways


def shuffled(config: LlamaConfig, k: Tensor, v: Tensor, *, block_size: int, bits: int | None, here: Place) -> PagedCache:
    """The same keys and values in blocks that lie in random order."""
    batch, context = k.shape[:2]
    num_blocks = pool_blocks(batch, context, block_size)
    pool = BlockPool(config, num_blocks=num_blocks, block_size=block_size, bits=bits, device=here.device, dtype=here.dtype)
    order = torch.randperm(pool.num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
    pool.allocate_many(pool.num_blocks)
    for block in order:
        pool.release(block)  # the last one released is given first
    cache = PagedCache(pool, [[] for _ in range(batch)])
    for first in range(0, context, 512):  # in pieces: quantising widens what it is given
        piece = slice(first, min(first + 512, context))
        cache.reserve(torch.arange(context, device=here.device)[piece].expand(batch, -1))
        cache.write(0, k[:, piece], v[:, piece])
    return cache


def pool_blocks(batch: int, context: int, block_size: int) -> int:
    return batch * -(-context // block_size)


def gathered(q: Tensor, cache: PagedCache) -> Tensor:
    """What is done without a kernel of one's own: put the blocks side by side, then attend."""
    return fused_attend(q, *cache.read(0))[:, 0]


def fastest(way: Callable[..., Tensor], here: Place, *, repeats: int) -> Tiling:
    """The quickest of all ways to cut the work."""
    tilings = [Tiling(*cut) for cut in product((16, 32, 64, 128), (None, 1, 2, 4, 8, 16), (2, 4, 8), (2, 3, 4, 5))]
    tried = {}
    for tiling in tilings[:2] if here.rehearsed else tilings:
        try:
            tried[tiling] = statistics.median(measured(partial(way, tiling=tiling), here, repeats=min(repeats, 5)))
        except Exception as failure:  # more shared memory than there is: not a way to cut it here
            print(f"{tiling}: {str(failure).splitlines()[0]}")
    return min(tried, key=tried.__getitem__)


def measured(way: Callable[[], Tensor], here: Place, *, repeats: int) -> list[float]:
    """Seconds per call."""

    def calls() -> Tensor:
        for _ in range(1 if here.rehearsed else CALLS - 1):
            way()
        return way()

    replay = here.capture(calls)
    return [seconds / CALLS for seconds in here.seconds(replay, repeats=repeats)]


if __name__ == "__main__":
    main()
