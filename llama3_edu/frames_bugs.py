"""Frames of a bug hunt: what a trial found in each suspect, and what decides which one it is."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from llama3_edu.bugs import SUSPECTS, Findings, Suspect, Trial, examine
from llama3_edu.model import Llama
from llama3_edu.trace import Frames

__all__ = ["bug_frames", "symptoms", "ROUNDING"]

ROUNDING = 1e-3
"""What no logit of a float32 run is off by for rounding alone, and every bug here exceeds."""

_CLUES = {
    "slot 0 is never written": "Every position is wrong, the first one included, where nothing is cached yet, and there is a "
    "key too many. A key of zeros has a share in every mixture; it fades as others join.",
    "the mask is square": "The first piece is right, where the mask has to be square. After it all is wrong, and yet the first "
    "layer has every key in its place. Nothing is lost; it is not looked at.",
    "beams move, the cache stays": "All is right until the rows change places. From there on the keys are those of the other "
    "row's text, wherever the two texts differ.",
    "all layers write to the last": "The first piece is right: each layer reads what it has just written. Later the first layer "
    "gets the last one's keys. In the last layer the first piece is still right.",
    "a cached token is run again": "It begins one position before the first cut, at the last token of the cached prompt. That "
    "token is there twice: a key too many, and all that follow stand one slot too far.",
    "elements pass for bytes": "Every logit and every key is right. Only the size is wrong, by the bytes of one number.",
    "nothing is wrong": "No logit is off by more than rounding, every key is in its place, and keys and bytes agree.",
}


def bug_frames(model: Llama, trial: Trial, *, order: Sequence[int] = (1, 4, 6, 0, 3, 5, 2)) -> Frames:
    """Put every suspect through a trial, and leave it to the reader to tell which is which: the frames of `BugHunt`.

    Args:
        model: the model to run; its type decides how much rounding there is.
        trial: the rows to feed, and how.
        order: the suspects, as indices of `SUSPECTS`, in the order of the cases.

    Returns:
        `names` (of the suspects, to choose from), `seq_len`, `n_layers`, `cuts`, `swap_at`, `rounding`, `lowest` and `highest`
        (powers of ten between which all errors lie) and `steps`, one per case; a step holds the `answer` (an index of `names`),
        `errors` (of each position's logits), `keys` (for each layer, a string with `1` for every slot that holds a wrong key),
        `surplus`, `nbytes`, `allocated`, `replies` (what to tell whoever names each suspect), and a `summary` that names none.
    """
    found = [examine(model, suspect, trial) for suspect in SUSPECTS]
    largest = max(error for findings in found for error in findings.logit_errors)
    return {
        "names": [suspect.name for suspect in SUSPECTS],
        "seq_len": trial.tokens.shape[1],
        "n_layers": model.config.n_layers,
        "cuts": list(trial.cuts),
        "swap_at": trial.swap_at,
        "rounding": ROUNDING,
        "lowest": math.floor(math.log10(torch.finfo(model.dtype).eps)) - 1,
        "highest": math.ceil(math.log10(largest)),
        "steps": [_case(index, found, case, len(order)) for case, index in enumerate(order)],
    }


def symptoms(findings: Findings) -> dict[str, str]:
    """Return what a trial found, as a sentence about the logits, the first layer's keys, their number and the memory."""
    logits, keys = _wrong(findings.logit_errors), _wrong(findings.key_errors[0])
    part = findings.allocated // findings.nbytes
    return {
        "logits": f"logits are wrong from position {logits[0]} on" if logits else "no logit is off by more than rounding",
        "keys": f"the first layer has {_keys(keys)}",
        "number": f"there {_is(findings.surplus)} more than tokens" if findings.surplus else "there is one key per token",
        "memory": "the cache reports what it takes" if part == 1 else f"the cache reports 1/{part} of what it takes",
    }


def _case(answer: int, found: list[Findings], case: int, cases: int) -> dict[str, Any]:
    findings = found[answer]
    return {
        "answer": answer,
        "errors": [float(f"{error:.3g}") for error in findings.logit_errors],
        "keys": ["".join("1" if error > ROUNDING else "0" for error in layer) for layer in findings.key_errors],
        "surplus": findings.surplus,
        "nbytes": findings.nbytes,
        "allocated": findings.allocated,
        "replies": [_reply(suspect, index, answer, found) for index, suspect in enumerate(SUSPECTS)],
        "summary": _summary(findings, case, cases),
    }


def _reply(suspect: Suspect, index: int, answer: int, found: list[Findings]) -> str:
    """Say what decides: the clue for the right name, the first symptom that differs for a wrong one."""
    if index == answer:
        return f"Right. {_CLUES[suspect.name]}"
    theirs, here = symptoms(found[index]), symptoms(found[answer])
    decides = next(name for name in here if theirs[name] != here[name])
    return f"No. If that were it: {theirs[decides]}. Here, {here[decides]}."


def _summary(findings: Findings, case: int, cases: int) -> str:
    last, parts = _keys(_wrong(findings.key_errors[-1])), symptoms(findings)
    return (
        f"Case {case + 1} of {cases}. {_sentence(parts['logits'])} {_sentence(parts['keys'])} The last layer has {last}. "
        f"{_sentence(parts['number'])} {_sentence(parts['memory'])} Which bug is it, if it is one?"
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _wrong(errors: Sequence[float]) -> list[int]:
    return [index for index, error in enumerate(errors) if error > ROUNDING]


def _keys(wrong: list[int]) -> str:
    return f"wrong keys in {_slots(wrong)}" if wrong else "the right key in every slot"


def _slots(slots: list[int]) -> str:
    unbroken = slots[-1] - slots[0] + 1 == len(slots)
    if len(slots) == 1:
        return f"slot {slots[0]}"
    return f"slots {slots[0]} to {slots[-1]}" if unbroken else f"{len(slots)} slots between {slots[0]} and {slots[-1]}"


def _is(surplus: int) -> str:
    return "is one key" if surplus == 1 else f"are {surplus} keys"
