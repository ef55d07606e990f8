"""Exercises of chapter 7: the arithmetic of memory."""

import math

import torch

from llama3_edu.checks.exercise import Case, Exercise, Suspect
from llama3_edu.config import PRESETS, LlamaConfig
from llama3_edu.memory import kv_bytes, max_batch, parameter_count, weight_bytes

__all__ = ["EXERCISES"]

RELEASED = ("llama3.2-1b", "llama3.2-3b", "llama3-8b", "llama3-70b", "llama3.1-405b")


def drawn(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high, (1,), generator=generator))


def cache_cases(generator: torch.Generator):
    sizes = [(3, 5, 8), (1, 1, 16), (7, 1, 4)]
    for name in RELEASED:
        own = [(drawn(generator, 1, 10_000), drawn(generator, 1, 70), bits) for bits in (16, 8, 4, 2, 32)]
        for seq_len, batch, bits in (*sizes, (8191, 1, 16), (8191, 32, 16), *own):
            kwargs = {"seq_len": seq_len, "batch": batch, "bits": bits}
            wanted = kv_bytes(PRESETS[name], **kwargs)
            says = f"{name}, {batch} row{'s' * (batch > 1)} of {seq_len} token{'s' * (seq_len > 1)}, {bits} bits"
            yield Case(says, (PRESETS[name],), wanted, kwargs)


def elements(config: LlamaConfig, seq_len: int, batch: int) -> int:
    """Return how many numbers a cache holds."""
    return batch * seq_len * config.kv_elements_per_token


CACHE_BYTES = Exercise(
    name="cache_bytes",
    chapter=7,
    title="The formula, on five models",
    stars=1,
    minutes=10,
    cases=cache_cases,
    look="Multiply one factor at a time: numbers in a key, a value beside it, KV heads, layers, tokens, rows, and bits / 8.",
    suspects=(
        Suspect(
            "That is how many numbers there are, or one byte for each. `bits` says how large they are.",
            lambda config, bits, **k: elements(config, **k),
        ),
        Suspect("Keys and values are kept: there is a factor of 2.", lambda config, **k: kv_bytes(config, **k) // 2),
        Suspect(
            "The query heads keep nothing. Only KV heads are cached: `n_kv_heads`, not `n_heads` and not `dim`.",
            lambda config, **k: kv_bytes(config, **k) * config.n_rep,
        ),
        Suspect("Every layer has a cache of its own: `n_layers` is missing.", lambda c, **k: kv_bytes(c, **k) // c.n_layers),
        Suspect("Every row keeps its own keys and values: `batch` is missing.", lambda c, **k: kv_bytes(c, **k) // k["batch"]),
        Suspect("Those are bits. A byte has 8 of them.", lambda config, **k: kv_bytes(config, **k) * 8),
        Suspect(
            "That takes two bytes for every number; `bits` says how large they are.", lambda c, bits, **k: 2 * elements(c, **k)
        ),
        Suspect(
            "`bits // 8` is 0 for 4 bits. Multiply first, divide by 8 at the end.",
            lambda c, bits, **k: bits // 8 * elements(c, **k),
        ),
        Suspect("Bytes are counted, so all of it can stay an integer: divide with `//`.", lambda c, **k: float(kv_bytes(c, **k))),
    ),
)

GIB = 2**30


def batch_cases(generator: torch.Generator):
    plain = (
        ("llama3-8b", 8192, 24),
        ("llama3.2-1b", 8192, 8),
        ("llama3-70b", 8192, 80),
        ("llama3-70b", 8192, 141),
        ("llama3.1-405b", 1, 800),
    )
    own = [(name, drawn(generator, 1, 9000), drawn(generator, 4, 900)) for name in RELEASED for _ in range(4)]
    for name, seq_len, gib in (*plain, *own):
        config = PRESETS[name]
        wanted = max_batch(config, seq_len=seq_len, memory_bytes=gib * GIB)
        yield Case(f"{name}, {seq_len} tokens a row, {gib} GiB", (config,), wanted, {"seq_len": seq_len, "gib": gib})


def rows(config: LlamaConfig, *, seq_len: int, gib: int, unit: int = GIB, weights: int | None = None) -> float:
    """Return how many rows fit, the last one in part, or less than none where the weights do not."""
    weights = weight_bytes(config) if weights is None else weights
    return (gib * unit - weights) / kv_bytes(config, seq_len=seq_len)


LARGEST_BATCH = Exercise(
    name="largest_batch",
    chapter=7,
    title="The largest batch",
    stars=1,
    minutes=10,
    cases=batch_cases,
    look="Take the weights from the memory; how many rows of `seq_len` tokens go into what is left?",
    suspects=(
        Suspect("The weights lie in the same memory: take them off first.", lambda c, **k: math.floor(rows(c, weights=0, **k))),
        Suspect("A GiB is 2 ** 30 bytes; 10 ** 9 are a GB.", lambda c, **k: max(0, math.floor(rows(c, unit=10**9, **k)))),
        Suspect("The last row of those fits in part only: round down.", lambda c, **k: max(0, math.ceil(rows(c, **k)))),
        Suspect("Each parameter takes two bytes.", lambda c, **k: max(0, math.floor(rows(c, weights=parameter_count(c), **k)))),
        Suspect("Where not even the weights fit, no row does: that is 0, not less.", lambda c, **k: math.floor(rows(c, **k))),
        Suspect("Rows are counted, so the answer is an integer: divide with `//`.", rows),
    ),
)


def errors(nbytes: int, count: int, *, step: int) -> tuple[int, int]:
    """Return how far off a product is when it is rounded before and after, to the nearest multiple of `step`."""
    return (nearest(nbytes, step) * count - nbytes * count, nearest(nbytes * count, step) - nbytes * count)


def nearest(nbytes: int, step: int) -> int:
    return (2 * nbytes + step) // (2 * step) * step


def rounding_cases(generator: torch.Generator):
    tenth_of_gb, tenth_of_mb = 10**8, 10**5
    per_row = kv_bytes(PRESETS["llama3-8b"], seq_len=8191)
    plain = [(17, 3, 10), (14, 2, 10), (per_row, 32, tenth_of_gb), (131_072, 8191 * 32, tenth_of_mb)]
    own = [
        (drawn(generator, 1, 40) * 10**8 + drawn(generator, 1, 10**8), drawn(generator, 2, 70), tenth_of_gb) for _ in range(20)
    ]
    for nbytes, count, step in (*plain, *own):
        if any(2 * total % step == 0 for total in (nbytes, nbytes * count)):  # half-way, where people round differently
            continue
        yield Case(
            f"nbytes = {nbytes:_}, count = {count:_}, step = {step:_}",
            (nbytes, count),
            errors(nbytes, count, step=step),
            {"step": step},
        )


ROUNDING_ERRORS = Exercise(
    name="rounding_errors",
    chapter=7,
    title='Find the rounding in "35.2 GB"',
    stars=2,
    minutes=10,
    cases=rounding_cases,
    look="Early: round nbytes, then multiply. Late: multiply, then round. From each take the exact product, nbytes * count.",
    suspects=(
        Suspect(
            "The two are the wrong way round: rounding before the product comes first.",
            lambda n, c, step: errors(n, c, step=step)[::-1],
        ),
        Suspect(
            "The signs are the wrong way round: more than there is counts above 0.",
            lambda n, c, step: tuple(-error for error in errors(n, c, step=step)),
        ),
        Suspect("Too little counts below 0: keep the sign.", lambda n, c, step: tuple(map(abs, errors(n, c, step=step)))),
        Suspect(
            "That always rounds down. The nearest multiple of `step` may be above.",
            lambda n, c, step: (n // step * step * c - n * c, n * c // step * step - n * c),
        ),
        Suspect(
            "The first is the error of a single one of them; the rounded number is multiplied by `count` as well.",
            lambda n, c, step: (nearest(n, step) - n, errors(n, c, step=step)[1]),
        ),
    ),
)

EXERCISES = (CACHE_BYTES, LARGEST_BATCH, ROUNDING_ERRORS)
