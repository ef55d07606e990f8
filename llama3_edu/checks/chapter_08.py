"""Exercises of chapter 8: why decoding is slow."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from llama3_edu.checks.compare import difference
from llama3_edu.checks.exercise import Case, Exercise, Solution, Suspect, Wrong
from llama3_edu.config import LlamaConfig

__all__ = ["EXERCISES", "Stopwatch"]

# -- What a layer costs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one decoder layer multiplies and moves in one pass, part by part."""

    config: LlamaConfig
    batch: int
    new_len: int
    kv_len: int
    bits_of_weights: int
    bits: int

    @property
    def tokens(self) -> int:
        return self.batch * self.new_len

    @property
    def weights(self) -> int:
        c = self.config
        return 2 * c.dim * c.n_heads * c.head_dim + 2 * c.dim * c.kv_dim + 3 * c.dim * c.hidden_dim

    @property
    def weight_bytes(self) -> int:
        return self.weights * self.bits_of_weights // 8

    @property
    def pairs(self) -> int:
        """Queries times the keys each may see, in one head of one row."""
        return sum(range(self.kv_len - self.new_len + 1, self.kv_len + 1))

    def attention_flops(self, pairs: int) -> int:
        return 4 * self.batch * self.config.n_heads * self.config.head_dim * pairs

    @property
    def flops(self) -> int:
        return 2 * self.tokens * self.weights + self.attention_flops(self.pairs)

    @property
    def read(self) -> int:
        return 2 * self.batch * self.kv_len * self.config.kv_dim * self.bits // 8

    @property
    def written(self) -> int:
        return 2 * self.tokens * self.config.kv_dim * self.bits // 8

    @property
    def nbytes(self) -> int:
        return self.weight_bytes + self.read + self.written


def layer_cost_cases(generator: torch.Generator):
    def case(config: LlamaConfig, batch: int, new_len: int, kv_len: int, bits_of_weights: int, bits: int) -> Case:
        sizes = {"batch": batch, "new_len": new_len, "kv_len": kv_len, "bits_of_weights": bits_of_weights, "bits": bits}
        layer = Layer(config=config, **sizes)
        shape = (
            f"dim={config.dim}, hidden_dim={config.hidden_dim}, n_heads={config.n_heads}, "
            f"n_kv_heads={config.n_kv_heads}, head_dim={config.head_dim}"
        )
        named = ", ".join(f"{name}={value}" for name, value in sizes.items())
        return Case(f"{shape}, {named}", (config,), (layer.flops, layer.nbytes), kwargs=sizes)

    def config(dim: int, hidden_dim: int, n_heads: int, n_kv_heads: int, head_dim: int) -> LlamaConfig:
        return LlamaConfig(
            dim=dim, hidden_dim=hidden_dim, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, n_layers=1, vocab_size=2
        )

    small = config(4, 6, 2, 1, 2)
    for sizes in ((1, 1, 3, 16, 16), (3, 1, 3, 16, 16), (1, 2, 5, 16, 16), (1, 4, 4, 16, 16), (2, 3, 7, 4, 16), (2, 3, 7, 16, 8)):
        yield case(small, *sizes)
    yield case(config(6, 8, 4, 2, 4), 3, 2, 9, 8, 4)
    for most in (8, 64, 512):
        draw = torch.randint(1, most, (6,), generator=generator).tolist()
        n_kv_heads = 1 + draw[0] % 4
        drawn = config(2 * draw[1], 2 * draw[2], n_kv_heads * (1 + draw[3] % 4), n_kv_heads, 2 * (1 + draw[3] % 16))
        yield case(drawn, draw[0], draw[4], draw[4] + draw[5], 4, 16)
    for batch, new_len, kv_len in ((1, 1, 2048), (64, 1, 8192), (1, 2048, 2048)):
        yield case(LlamaConfig.from_preset("llama3-8b"), batch, new_len, kv_len, 16, 16)


def _counted(change: Callable[[Layer], tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    return lambda config, **sizes: change(Layer(config=config, **sizes))


LAYER_COST = Exercise(
    name="layer_cost",
    chapter=8,
    title="Count what one layer computes and moves",
    stars=2,
    minutes=15,
    cases=layer_cost_cases,
    look="Count part by part: four matrices of attention, three of the feed-forward, scores, values; then weights and cache.",
    suspects=(
        Suspect("A weight is multiplied and added: two operations, not one.", _counted(lambda x: (x.flops // 2, x.nbytes))),
        Suspect(
            "Attention has two products: queries with keys, and weights with values. One of them is missing.",
            _counted(lambda x: (x.flops - x.attention_flops(x.pairs) // 2, x.nbytes)),
        ),
        Suspect(
            "That counts every query with every key. A new token does not see those behind it.",
            _counted(lambda x: (x.flops - x.attention_flops(x.pairs) + x.attention_flops(x.new_len * x.kv_len), x.nbytes)),
        ),
        Suspect(
            "The weights are counted once per token. All tokens of a pass share one reading of them.",
            _counted(lambda x: (x.flops, x.nbytes + (x.tokens - 1) * x.weight_bytes)),
        ),
        Suspect("Those are bits; wanted are bytes.", _counted(lambda x: (x.flops, 8 * x.nbytes))),
        Suspect(
            "The cache holds KV heads, not query heads.",
            _counted(lambda x: (x.flops, x.weight_bytes + x.config.n_rep * (x.read + x.written))),
        ),
        Suspect(
            "That is either keys or values; the cache holds both.",
            _counted(lambda x: (x.flops, x.nbytes - (x.read + x.written) // 2)),
        ),
        Suspect(
            "The keys and values of the new tokens have to be written as well as read.",
            _counted(lambda x: (x.flops, x.nbytes - x.written)),
        ),
        Suspect(
            "Weights and cache have bits of their own: `bits_of_weights` and `bits`.",
            _counted(lambda x: (x.flops, x.weights * x.bits // 8 + x.read + x.written)),
        ),
        Suspect(
            "The weights are shared by the rows, keys and values are not: every row has its own.",
            _counted(lambda x: (x.flops, x.weight_bytes + (x.read + x.written) // x.batch)),
        ),
    ),
)

# -- Which limit binds ------------------------------------------------------------------------------------------------


def fewest_rows(
    *, flops_per_row: int, weight_bytes: int, bytes_per_row: int, flops_per_second: int, bytes_per_second: int
) -> int | None:
    """Return the least b with b · flops_per_row / flops_per_second >= (weight_bytes + b · bytes_per_row) / bytes_per_second."""
    gained = flops_per_row * bytes_per_second - bytes_per_row * flops_per_second
    return -(-weight_bytes * flops_per_second // gained) if gained > 0 else None


def rows_at_ridge_cases(generator: torch.Generator):
    def case(*numbers: int) -> Case:
        names = ("flops_per_row", "weight_bytes", "bytes_per_row", "flops_per_second", "bytes_per_second")
        given = dict(zip(names, numbers))
        return Case(", ".join(f"{name}={value}" for name, value in given.items()), (), fewest_rows(**given), kwargs=given)

    yield case(4, 8, 1, 2, 1)
    for numbers in ((5, 8, 1, 2, 1), (6, 4, 1, 8, 4), (40, 4, 1, 2, 1), (8, 100, 3, 4, 2), (2, 8, 3, 4, 1), (8, 5, 4, 2, 1)):
        yield case(*numbers)
    for most in (10, 100, 1000):
        for _ in range(8):
            per_row, weights, ridge, bandwidth = torch.randint(1, most, (4,), generator=generator).tolist()
            ridge = 1 << ridge % 6
            more = torch.randint(1, 9, (1,), generator=generator).item()
            yield case(ridge * (per_row + more), ridge * weights, per_row, ridge * bandwidth, bandwidth)
            yield case(ridge * per_row, weights, per_row + more - 1, ridge * bandwidth, bandwidth)
    # Llama 3 8B with 128 and with 1,024 tokens per row, on a card of 989.4 TFLOP/s and 3.35 TB/s
    for flops, per_row in ((15_076_425_728, 16_916_480), (15_546_187_776, 134_356_992)):
        yield case(flops, 15_009_849_344, per_row, 989_400_000_000_000, 3_350_000_000_000)


def _rows(formula: Callable[[float, float, float, float], int]) -> Callable[..., int | None]:
    """A wrong formula over (flops_per_row, weight_bytes, bytes_per_row, ridge), asked where there is an answer."""

    def imitate(
        *, flops_per_row: int, weight_bytes: int, bytes_per_row: int, flops_per_second: int, bytes_per_second: int
    ) -> int | None:
        return formula(flops_per_row, weight_bytes, bytes_per_row, flops_per_second / bytes_per_second)

    return imitate


ROWS_AT_RIDGE = Exercise(
    name="rows_at_ridge",
    chapter=8,
    title="Predict from which batch on computing is the limit",
    stars=2,
    minutes=15,
    cases=rows_at_ridge_cases,
    look="Write down both times for b rows, set them equal, and solve for b.",
    suspects=(
        Suspect(
            "That many rows still wait for memory: at that batch, moving takes longer than computing.",
            _rows(lambda f, w, k, ridge: int(ridge * w / (f - ridge * k)) if f > ridge * k else None),
        ),
        Suspect(
            "One row fewer is enough: where both times are equal, computing is the limit already.",
            _rows(lambda f, w, k, ridge: int(ridge * w / (f - ridge * k)) + 1 if f > ridge * k else None),
        ),
        Suspect(
            "That leaves out `bytes_per_row`: every row brings a cache of its own to read.",
            _rows(lambda f, w, k, ridge: -int(-ridge * w // f)),
        ),
        Suspect(
            "That is the machine's ridge. It is a number of operations per byte, not of rows.",
            _rows(lambda f, w, k, ridge: -int(-ridge // 1)),
        ),
        Suspect(
            "No batch reaches that: every row brings more bytes than its operations make up for. Then `None` is wanted.",
            _rows(lambda f, w, k, ridge: -int(-ridge * w // (f - ridge * k)) if f < ridge * k else None),
        ),
    ),
)

# -- An honest benchmark ----------------------------------------------------------------------------------------------


class Stopwatch:
    """Something to time, with a clock that only it moves. No time passes but the one it makes up.

    Args:
        seconds: what each run takes; the first is the slow one.
        answers_early: whether `work` returns when the work is queued, as on a GPU, and not when it is done.
    """

    def __init__(self, seconds: list[float], *, answers_early: bool) -> None:
        self.seconds, self.answers_early = seconds, answers_early
        self.runs, self.read_early = 0, False
        self._now = 1000.0
        self._done_at = self._now + (64.0 if answers_early else 0.0)  # somebody else's work is queued already

    def work(self) -> None:
        taken = self.seconds[min(self.runs, len(self.seconds) - 1)]
        self.runs += 1
        self._done_at = max(self._now, self._done_at) + taken
        self._now = self._now + 0.25 if self.answers_early else self._done_at

    def clock(self) -> float:
        self.read_early |= self._done_at > self._now
        return self._now

    def synchronise(self) -> None:
        self._now = max(self._now, self._done_at)


def median_seconds_cases(generator: torch.Generator):
    for answers_early in (False, True):
        for repeats in (1, 3, 5, 9):
            usual = torch.randint(4, 9, (repeats,), generator=generator).double()
            usual += torch.arange(repeats) / 16  # so that no two runs take the same time
            usual[torch.randint(repeats, (1,), generator=generator)] += 32.5 if repeats > 1 else 0
            where = "a device that answers before it is done" if answers_early else "a processor"
            runs = f"{repeats} run{'s' if repeats > 1 else ''} on {where}"
            yield Case(runs, (), usual.median().item(), extra=([100.0, *usual.tolist()], answers_early, repeats))


def timed_by(solution: Callable[..., Any], case: Case) -> tuple[Any, Stopwatch]:
    seconds, answers_early, repeats = case.extra
    watch = Stopwatch(seconds, answers_early=answers_early)
    came = solution(watch.work, repeats=repeats, clock=watch.clock, synchronise=watch.synchronise)
    return came, watch


def judge_times(exercise: Exercise, solution: Solution, case: Case) -> None:
    """Let the answer time a made-up device, and compare with what that device really took."""
    came, watch = timed_by(solution, case)
    repeats = case.extra[-1]
    if watch.runs == repeats:
        raise Wrong(
            f"`work` ran {repeats} time{'s' if repeats > 1 else ''}, wanted is once more",
            hint="The first run is not like the others. Run once to warm up.",
        )
    if watch.runs != repeats + 1:
        raise Wrong(f"`work` ran {watch.runs} times, wanted is 1 run to warm up and {repeats} to time", hint=exercise.look)
    problem = difference(came, case.wanted, tolerance=1e-9)
    if not problem:
        return
    if came is None:
        raise Wrong(problem, hint="Is a `return` missing?")
    if watch.read_early:
        early = "The clock was read while the device was still at work. Call `synchronise` before you read it."
        raise Wrong(problem, hint=early)
    for suspect in exercise.suspects:
        if not difference(came, timed_by(suspect.imitate, case)[0], tolerance=1e-9):
            raise Wrong(problem, hint=suspect.hint)
    raise Wrong(problem)


def _summed_up(summary: Callable[[list[float]], float]) -> Callable[..., float]:
    """Time honestly, and sum up all runs, the first included, in another way."""

    def imitate(work: Callable[[], Any], *, repeats: int, clock: Callable[[], float], synchronise: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(repeats + 1):
            synchronise()
            start = clock()
            work()
            synchronise()
            seconds.append(clock() - start)
        return summary(seconds)

    return imitate


MEDIAN_SECONDS = Exercise(
    name="median_seconds",
    chapter=8,
    title="Write an honest benchmark",
    stars=2,
    minutes=20,
    cases=median_seconds_cases,
    look="Warm up once; for each run wait, read the clock, work, wait, read it again; return the median of the differences.",
    judge=judge_times,
    suspects=(
        Suspect("The first run was timed too. It is there to warm up; forget its time.", _summed_up(statistics.median)),
        Suspect(
            "That is the mean. One run that was disturbed moves it; the median stays.",
            _summed_up(lambda seconds: statistics.mean(seconds[1:])),
        ),
        Suspect("That is the fastest run. Wanted is the median.", _summed_up(lambda seconds: min(seconds[1:]))),
        Suspect("That is the time of all runs together. Wanted is that of one.", _summed_up(lambda seconds: sum(seconds[1:]))),
    ),
)

EXERCISES = (LAYER_COST, ROWS_AT_RIDGE, MEDIAN_SECONDS)
