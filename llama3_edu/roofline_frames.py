"""Frames of the roofline: models, machines, what was measured, and questions to start from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama3_edu.config import PRESETS, LlamaConfig
from llama3_edu.memory import kv_bytes, parameter_count, weight_bytes
from llama3_edu.roofline import MACHINES, Cost, Machine, forward_cost
from llama3_edu.sizes import model_name
from llama3_edu.trace import Frames

__all__ = ["MeasuredPass", "roofline_frames", "roofline_words"]

MAX_BATCH_POWER = 10
MAX_CONTEXT_POWER = 17


@dataclass(frozen=True, kw_only=True)
class MeasuredPass:
    """A forward pass that was timed: a name to show, what it cost, and the seconds it took."""

    label: str
    cost: Cost
    seconds: float


@dataclass(frozen=True)
class _Start:
    """A question the roofline opens with; batch and context are powers of two."""

    name: str
    model: str
    machine: str
    batch_power: int
    context_power: int


_STARTS = (
    _Start("one chat", "llama3-8b", "H100 80 GB", 0, 10),
    _Start("64 chats", "llama3-8b", "H100 80 GB", 6, 10),
    _Start("64 long chats", "llama3-8b", "H100 80 GB", 6, 13),
    _Start("a small card", "llama3.2-3b", "T4 16 GB", 3, 11),
)


def roofline_frames(
    models: Mapping[str, LlamaConfig] = PRESETS,
    machines: Iterable[Machine] = MACHINES.values(),
    *,
    here: Machine | None = None,
    measured: Sequence[MeasuredPass] = (),
    bits: int = 16,
    bits_of_weights: int | None = None,
) -> Frames:
    """Gather what `Roofline` computes with: models, machines, what was measured, and questions to start from.

    Args:
        models: the shapes to choose from, by name.
        machines: the machines to choose from. Their rates should be those of numbers of `bits_of_weights` bits.
        here: what `measure_machine` returned. It stands first among the machines, and the first question is asked of it.
        measured: passes timed on that machine; they are drawn under its roof.
        bits: what the cache keeps a number in; the weights too, unless `bits_of_weights` says otherwise.
        bits_of_weights: what a weight is stored in.

    Returns:
        `models` (`name` and the sizes that costs are counted from), `machines`, `measured`, the `bits`, the ends of both `axes`
        and `steps`, one per question: its `name`, the values it starts from (`model` and `machine` as indices, batch and context
        as powers of two) and a `summary` that `llama3_edu.roofline` worked out.

    Raises:
        ValueError: something was measured and the machine it was measured on is missing, or no question can be asked.
    """
    if measured and here is None:
        raise ValueError(f"{len(measured)} passes were measured; here= should say on which machine")
    bits_of_weights = bits if bits_of_weights is None else bits_of_weights
    all_machines = [*([here] if here else []), *machines]
    starts = _starts(models, all_machines, here)
    return {
        "models": [_model_row(name, config) for name, config in models.items()],
        "machines": [asdict(machine) for machine in all_machines],
        "measured": [_measured_row(one, here) for one in measured],
        "bits": bits,
        "bits_of_weights": bits_of_weights,
        "max_batch_power": MAX_BATCH_POWER,
        "max_context_power": MAX_CONTEXT_POWER,
        "axes": _axes(models.values(), all_machines, measured, bits, bits_of_weights),
        "steps": [_start_step(start, models, all_machines, here, measured, bits, bits_of_weights) for start in starts],
    }


def roofline_words(
    config: LlamaConfig,
    machine: Machine,
    *,
    name: str,
    batch: int,
    context: int,
    bits: int = 16,
    bits_of_weights: int | None = None,
    measured: Sequence[MeasuredPass] = (),
) -> str:
    """Say what decode and prefill cost a machine at least: the summary of `Roofline`.

    Args:
        config: the shape of the model.
        machine: what runs it.
        name: what to call the model.
        batch: rows.
        context: tokens per row.
        bits: what the cache keeps a number in; the weights too, unless `bits_of_weights` says otherwise.
        bits_of_weights: what a weight is stored in.
        measured: passes timed on this machine.
    """
    bits_of_weights = bits if bits_of_weights is None else bits_of_weights
    given = {"batch": batch, "kv_len": context, "bits": bits, "bits_of_weights": bits_of_weights}
    decode, prefill = forward_cost(config, **given), forward_cost(config, new_len=context, **given)
    stored = weight_bytes(config, bits=bits_of_weights) + kv_bytes(config, seq_len=context, batch=batch, bits=bits)
    kept = f"{bits} bits" if bits == bits_of_weights else f"weights in {bits_of_weights} bits, keys and values in {bits}"
    fits = "" if stored <= machine.memory_bytes else f" Weights and cache, {_si(stored, 1, 'B')}, do not fit there."
    numerator, denominator = _seconds(decode, machine)
    return (
        f"{name[:1].upper()}{name[1:]} on {machine.name}, {kept}, {_count(batch, 'row')} of {_count(context, 'token')}. "
        f"Decode, one new token per row: {_pass_words(decode, machine)}, "
        f"at most {_figures(batch * denominator, numerator)} tokens a second. "
        f"Prefill, all tokens at once: {_pass_words(prefill, machine)}.{fits}"
        + "".join(f" Measured: {_measured_words(one, machine)}." for one in measured)
    )


def _starts(models: Mapping[str, LlamaConfig], machines: list[Machine], here: Machine | None) -> list[_Start]:
    names = [machine.name for machine in machines]
    starts = [start for start in _STARTS if start.model in models and start.machine in names]
    if models and (here or not starts) and machines:
        starts.insert(0, _Start("this machine" if here else "one chat", next(iter(models)), names[0], 0, 8))
    if not starts:
        raise ValueError(f"the roofline needs a model and a machine; it was given {len(models)} and {len(machines)}")
    return starts


def _model_row(name: str, config: LlamaConfig) -> dict[str, Any]:
    sizes = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "max_seq_len")
    row = {size: getattr(config, size) for size in sizes}
    return {"name": model_name(config) or name, "parameters": parameter_count(config), **row}


def _measured_row(one: MeasuredPass, here: Machine) -> dict[str, Any]:
    row = {"label": one.label, "flops": one.cost.flops, "bytes": one.cost.nbytes, "seconds": one.seconds}
    return {**row, "words": _measured_words(one, here)}


def _axes(
    models: Iterable[LlamaConfig],
    machines: list[Machine],
    measured: Sequence[MeasuredPass],
    bits: int,
    bits_of_weights: int,
) -> dict[str, list[float]]:
    """The ends of both axes, so that every point that can be asked for is inside, and so is every roof."""
    kept = {"bits": bits, "bits_of_weights": bits_of_weights}
    longest, most = 2**MAX_CONTEXT_POWER, 2**MAX_BATCH_POWER
    costs = [one.cost for one in measured]
    for config in models:
        costs.append(forward_cost(config, kv_len=1, **kept))
        costs.append(forward_cost(config, kv_len=longest, new_len=longest, batch=most, **kept))
    left = min(cost.arithmetic_intensity for cost in costs) / 2
    slowest = min([machine.roof(left) for machine in machines] + [one.cost.flops / one.seconds for one in measured])
    return {
        "intensity": [left, 2 * max(cost.arithmetic_intensity for cost in costs)],
        "flops": [slowest / 1.5, 3 * max(machine.flops_per_second for machine in machines)],
    }


def _start_step(
    start: _Start,
    models: Mapping[str, LlamaConfig],
    machines: list[Machine],
    here: Machine | None,
    measured: Sequence[MeasuredPass],
    bits: int,
    bits_of_weights: int,
) -> dict[str, Any]:
    index = [machine.name for machine in machines].index(start.machine)
    config, machine = models[start.model], machines[index]
    words = roofline_words(
        config, machine, name=model_name(config) or start.model, batch=2**start.batch_power, context=2**start.context_power,
        bits=bits, bits_of_weights=bits_of_weights, measured=measured if machine == here else (),
    )  # fmt: skip
    return {
        "name": start.name,
        "model": list(models).index(start.model),
        "machine": index,
        "batch_power": start.batch_power,
        "context_power": start.context_power,
        "summary": words,
    }


def _seconds(cost: Cost, machine: Machine) -> tuple[int, int]:
    """The least time of a pass as a fraction of whole numbers, so that the page can work out the same."""
    if cost.limit(machine) == "memory":
        return cost.nbytes, machine.bytes_per_second
    return cost.flops, machine.flops_per_second


def _pass_words(cost: Cost, machine: Machine) -> str:
    return (
        f"{_si(cost.flops, 1, 'FLOP')} over {_si(cost.nbytes, 1, 'B')}, {_figures(cost.flops, cost.nbytes)} FLOP per byte; "
        f"{cost.limit(machine)} is the limit: at least {_si(*_seconds(cost, machine), 's')}"
    )


def _measured_words(one: MeasuredPass, machine: Machine) -> str:
    share = round(100 * one.cost.seconds(machine) / one.seconds)
    took = _si(round(one.seconds * 10**9), 10**9, "s")
    return f"{one.label}, {_figures(one.cost.flops, one.cost.nbytes)} FLOP per byte in {took}, {share} % of the roof"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


_PREFIXES = (("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("µ", -6), ("n", -9))


def _si(numerator: int, denominator: int, unit: str) -> str:
    """A fraction of whole numbers to three figures with the prefix that suits it: `4.48 ms`."""
    fits = (prefix for prefix in _PREFIXES if numerator * 10 ** max(0, -prefix[1]) >= denominator * 10 ** max(0, prefix[1]))
    prefix, power = next(fits, _PREFIXES[-1])
    return f"{_figures(numerator * 10 ** max(0, -power), denominator * 10 ** max(0, power))} {prefix}{unit}"


def _figures(numerator: int, denominator: int) -> str:
    """A fraction of whole numbers to three figures, rounded half up from its exact value; whole numbers from 100 on."""
    digits = 0 if numerator >= 100 * denominator else 1 if numerator >= 10 * denominator else 2
    digits = 3 if numerator < denominator else digits
    scale = 10**digits
    whole, rest = divmod((2 * numerator * scale + denominator) // (2 * denominator), scale)
    return f"{whole:,}.{rest:0{digits}d}" if digits else f"{whole:,}"
