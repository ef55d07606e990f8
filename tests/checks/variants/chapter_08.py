"""Other right answers to the exercises of chapter 8."""

VARIANTS = {
    "layer_cost": [
        # what the package counts for two layers, less what it counts for one and less the weights of two norms
        """
from dataclasses import replace

def layer_cost(config, **sizes):
    one, two = (le.forward_cost(replace(config, n_layers=n), **sizes) for n in (1, 2))
    norms = 2 * config.dim * sizes["bits_of_weights"] // 8
    return two.flops - one.flops, two.nbytes - one.nbytes - norms
""",
        """
def layer_cost(config, *, batch, new_len, kv_len, bits_of_weights, bits):
    flops = nbytes = 0
    for rows, columns in (
        (config.dim, config.n_heads * config.head_dim), (config.dim, config.kv_dim), (config.dim, config.kv_dim),
        (config.n_heads * config.head_dim, config.dim), (config.dim, config.hidden_dim), (config.dim, config.hidden_dim),
        (config.hidden_dim, config.dim),
    ):
        flops += batch * new_len * 2 * rows * columns
        nbytes += rows * columns * bits_of_weights // 8
    for query in range(new_len):
        flops += batch * config.n_heads * (kv_len - new_len + query + 1) * config.head_dim * 2 * 2
    nbytes += (kv_len + new_len) * batch * config.n_kv_heads * config.head_dim * 2 * bits // 8
    return flops, nbytes
""",
    ],
    "rows_at_ridge": [
        """
import math

def rows_at_ridge(*, flops_per_row, weight_bytes, bytes_per_row, flops_per_second, bytes_per_second):
    gained = flops_per_row / flops_per_second - bytes_per_row / bytes_per_second
    ridge = flops_per_second / bytes_per_second
    return math.ceil(ridge * weight_bytes / (flops_per_row - ridge * bytes_per_row)) if gained > 0 else None
""",
        """
def rows_at_ridge(*, flops_per_row, weight_bytes, bytes_per_row, flops_per_second, bytes_per_second):
    for b in range(1, 40_000):
        if b * flops_per_row / flops_per_second >= (weight_bytes + b * bytes_per_row) / bytes_per_second:
            return b
    return None
""",
    ],
    "median_seconds": [
        """
def median_seconds(work, *, repeats, clock, synchronise):
    work()
    synchronise()
    seconds = []
    for _ in range(repeats):
        start = clock()
        work()
        synchronise()
        seconds.append(clock() - start)
    return sorted(seconds)[repeats // 2]
""",
        """
def median_seconds(work, *, repeats, clock, synchronise):
    synchronise()
    at = []
    for _ in range(repeats + 1):
        work()
        synchronise()
        at.append(clock())
    return (torch.tensor(at[1:], dtype=torch.float64) - torch.tensor(at[:-1], dtype=torch.float64)).median().item()
""",
    ],
}
