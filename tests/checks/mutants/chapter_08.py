"""Wrong answers to the exercises of chapter 8, each with what its learner must be told."""

LAYER = """
def layer_cost(config, *, batch, new_len, kv_len, bits_of_weights, bits):
    heads = config.n_heads * config.head_dim
    weights = 2 * config.dim * (heads + config.kv_dim) + 3 * config.dim * config.hidden_dim
    pairs = sum(range(kv_len - new_len + 1, kv_len + 1))
    flops = 2 * batch * new_len * weights + 4 * batch * heads * pairs
    read = 2 * batch * kv_len * config.kv_dim * bits // 8
    written = 2 * batch * new_len * config.kv_dim * bits // 8
    nbytes = weights * bits_of_weights // 8 + read + written
    return flops, nbytes
"""

ROWS = """
def rows_at_ridge(*, flops_per_row, weight_bytes, bytes_per_row, flops_per_second, bytes_per_second):
    computing, moving = flops_per_row * bytes_per_second, bytes_per_row * flops_per_second
    gained, weights = computing - moving, weight_bytes * flops_per_second
    if gained <= 0:
        return None
    return -(-weights // gained)
"""

MEDIAN = """
import statistics

def median_seconds(work, *, repeats, clock, synchronise):
    seconds = []
    for _ in range(repeats + 1):
        synchronise()
        start = clock()
        work()
        synchronise()
        seconds.append(clock() - start)
    return statistics.median(seconds[1:])
"""


def instead(code: str, *changes: tuple[str, str]) -> str:
    """Return the code with some of it replaced. What is to be replaced has to be there."""
    for before, after in changes:
        assert before in code, before
        code = code.replace(before, after)
    return code


MUTANTS = {
    "layer_cost": {
        "one operation per weight": (
            instead(LAYER, ("flops = 2 *", "flops ="), ("4 * batch", "2 * batch")),
            "two operations, not one",
        ),
        "forgets the values": (instead(LAYER, ("4 * batch", "2 * batch")), "Attention has two products"),
        "a full square of pairs": (
            instead(LAYER, ("sum(range(kv_len - new_len + 1, kv_len + 1))", "new_len * kv_len")),
            "does not see those behind it",
        ),
        "weights once per token": (
            instead(LAYER, ("nbytes = weights", "nbytes = batch * new_len * weights")),
            "All tokens of a pass share one reading",
        ),
        "bits for bytes": (instead(LAYER, (" // 8", "")), "wanted are bytes"),
        "query heads in the cache": (
            instead(LAYER, ("kv_len * config.kv_dim", "kv_len * heads"), ("new_len * config.kv_dim", "new_len * heads")),
            "KV heads, not query heads",
        ),
        "keys alone": (instead(LAYER, ("read = 2 *", "read ="), ("written = 2 *", "written =")), "the cache holds both"),
        "forgets to write": (instead(LAYER, ("+ read + written", "+ read")), "written as well as read"),
        "one width for all": (instead(LAYER, ("bits_of_weights // 8", "bits // 8")), "have bits of their own"),
        "one cache for all rows": (
            instead(LAYER, ("2 * batch * kv_len", "2 * kv_len"), ("2 * batch * new_len * config.kv", "2 * new_len * config.kv")),
            "every row has its own",
        ),
        "dim for the heads": (
            instead(LAYER, ("heads = config.n_heads * config.head_dim", "heads = config.dim")),
            "Count part by part",
        ),
        "divides too late": (instead(LAYER, ("return flops, nbytes", "return flops, nbytes / 1")), "(float) came"),
    },
    "rows_at_ridge": {
        "rounds down": (instead(ROWS, ("-(-weights // gained)", "weights // gained")), "still wait for memory"),
        "one row more": (
            instead(ROWS, ("-(-weights // gained)", "weights // gained + 1")),
            "both times are equal",
        ),
        "no cache to read": (
            instead(ROWS, ("computing - moving", "computing")),
            "a cache of its own to read",
        ),
        "as many rows as the ridge": (
            instead(ROWS, ("weights // gained", "flops_per_second // bytes_per_second")),
            "not of rows",
        ),
        "never thinks of never": (instead(ROWS, ("gained <= 0", "gained == 0")), "`None` is wanted"),
        "infinity for never": (instead(ROWS, ("return None", 'return float("inf")')), "inf came, wanted is None"),
        "the ridge upside down": (
            instead(
                ROWS,
                ("_per_second, bytes_per_row * flops", "_per_second, bytes_per_row * bytes"),
                ("flops_per_row * bytes", "flops_per_row * flops"),
            ),
            "Write down both times",
        ),
    },
    "median_seconds": {
        "no run to warm up": (instead(MEDIAN, ("repeats + 1", "repeats"), ("seconds[1:]", "seconds")), "Run once to warm up"),
        "times the first run too": (instead(MEDIAN, ("seconds[1:]", "seconds")), "forget its time"),
        "never waits": (instead(MEDIAN, ("        synchronise()\n", "")), "still at work"),
        "waits before and not after": (
            instead(MEDIAN, ("        work()\n        synchronise()\n", "        work()\n")),
            "still at work",
        ),
        "waits once, at the end": (
            instead(MEDIAN, ("        synchronise()\n", ""), ("    return", "    synchronise()\n    return")),
            "still at work",
        ),
        "warms up and does not wait for it": (
            "import statistics\n\ndef median_seconds(work, *, repeats, clock, synchronise):\n    work()\n    seconds = []\n"
            "    for _ in range(repeats):\n        start = clock()\n        work()\n        synchronise()\n"
            "        seconds.append(clock() - start)\n    return statistics.median(seconds)",
            "still at work",
        ),
        "the mean": (instead(MEDIAN, ("statistics.median", "statistics.mean")), "That is the mean"),
        "the fastest": (instead(MEDIAN, ("statistics.median", "min")), "the fastest run"),
        "all runs together": (instead(MEDIAN, ("statistics.median", "sum")), "all runs together"),
        "the moment it was done": (instead(MEDIAN, ("clock() - start", "clock()")), "Warm up once; for each run wait"),
        "reads its own clock": (
            instead(MEDIAN, ("    seconds = []", "    import time\n    clock = time.perf_counter\n    seconds = []")),
            "Warm up once; for each run wait",
        ),
    },
}
