"""Frames of the causal mask: which query may look at which key in every pass of a prompt, and what one replaced token changes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llama3_edu.attention import attend, repeat_kv
from llama3_edu.cache import GrowingCache
from llama3_edu.model import Llama
from llama3_edu.positions import PAD, causal_mask, left_pad, right_pad
from llama3_edu.probe import Inside, look_inside
from llama3_edu.trace import Frames, HasPieces, quoted, token_texts

__all__ = ["MOST_TOKENS", "mask_frames", "perturbation_frames"]

MOST_TOKENS = 64
"""A longer text has too many cells to be looked at, and to be drawn."""

_PACK = {"none": right_pad, "before": left_pad, "after": right_pad}


def perturbation_frames(
    model: Llama, tokens: Int[Tensor, "1 new_len"], *, replacement: int, tokenizer: HasPieces | None = None
) -> Frames:
    """Replace one token after another and note all that changes: frames of `CausalMask` whose steps replace tokens.

    The first step is the text as it is. Step t + 1 has the token at position t replaced. A number counts as changed when it is
    not equal bit for bit: both runs have the same shapes, so whatever does not depend on the token is computed by the same
    operations in the same order.

    Args:
        model: the model to run, `new_len + 2` times.
        tokens: one text; 16 tokens are easy to look at, `MOST_TOKENS` are allowed.
        replacement: the token id put in the place of each; none of the tokens may be it.
        tokenizer: turns token ids into text.

    Returns:
        `tokens`, the sizes, `weights` (per layer and head, the row of each query: its weight for every key it may
        see, in thousandths), `changes`, `runs` and `steps`. An item of `changes` is what the token at its index changes:
        `logits` and `layers`; a layer holds `q`, `k`, `v` and `out` as one character per position, `scores` as one string
        per query; `1` is changed. There is one run: the whole text at once. A step holds the `run` it belongs to, the
        position `replaced` (None in the first), the `positions` asked and the `key_positions` that the cache's `reserve` returned.

    Raises:
        ValueError: `tokens` is not one row of at most `MOST_TOKENS`, or holds the replacement.
    """
    frames, texts = _changes_of_each_token(model, tokens, replacement, tokenizer)
    whole = _Run(cached=0, chunk=None, padding="none")
    ((positions, key_positions),) = _passes(model, tokens, whole, pad=0)
    window = {"run": 0, "positions": positions, "key_positions": key_positions}
    steps = [{**window, "replaced": None, "summary": _text_as_it_is(texts)}]
    for position, changes in enumerate(frames["changes"]):
        steps.append({**window, "replaced": position, "summary": _perturbation_summary(position, changes, texts)})
    return {**frames, "runs": [asdict(whole)], "steps": steps}


def mask_frames(
    model: Llama,
    tokens: Int[Tensor, "1 new_len"],
    *,
    replacement: int,
    tokenizer: HasPieces | None = None,
    cached: Sequence[int] | None = None,
    chunks: Sequence[int | None] = (4, 3, 1, None),
    paddings: Sequence[str] = ("none", "before", "after"),
    pad: int = 2,
) -> Frames:
    """Feed a prompt to a cache in pieces of every size asked for: frames of `CausalMask` whose steps are the passes of a run.

    Every run is a real one: the model is given the columns that are cached at the start, then one chunk after another, and what
    the cache's `reserve` returns is noted. Padding comes about as it does in practice: the row shares its batch with a longer one.

    Args:
        model: the model to run.
        tokens: one text; 12 tokens are easy to look at, `MOST_TOKENS` are allowed.
        replacement: the token id put in the place of each to see what it changes; none of the tokens may be it.
        tokenizer: turns token ids into text.
        cached: how many columns may be in the cache before the first pass; 0, a quarter and half of the text when left out.
        chunks: how many columns a pass may take; None for all that are left.
        paddings: where padding may stand: `none`, `before` the text or `after` it.
        pad: columns of padding, where there is some.

    Returns:
        What `perturbation_frames` returns, but the steps are passes: `runs` holds one run (`cached`, `chunk`, `padding`) for each
        combination of the choices, and the passes of a run follow one another in `steps`, with nothing `replaced`.

    Raises:
        ValueError: `tokens` is not one row of at most `MOST_TOKENS`, or holds the replacement; or there is a choice that
            cannot be.
    """
    frames, _ = _changes_of_each_token(model, tokens, replacement, tokenizer)
    length = tokens.shape[1]
    if cached is None:
        cached = tuple(dict.fromkeys((0, length // 4, length // 2)))
    _check_choices(length, cached, chunks, paddings, pad)
    runs = [_Run(held, chunk, padding) for padding, held, chunk in product(paddings, cached, chunks)]
    steps = []
    for index, run in enumerate(runs):
        passes = _passes(model, tokens, run, pad)
        for number, (positions, key_positions) in enumerate(passes):
            window = {"run": index, "replaced": None, "positions": positions, "key_positions": key_positions}
            steps.append({**window, "summary": _pass_summary(number, len(passes), positions, key_positions)})
    return {**frames, "runs": [asdict(run) for run in runs], "steps": steps}


@dataclass(frozen=True)
class _Run:
    """How a prompt is fed: columns in the cache before the first pass, columns per pass (None: all), where padding stands."""

    cached: int
    chunk: int | None
    padding: str


class _NotingCache(GrowingCache):
    """Notes, for its first row, the positions asked in each pass and the key positions handed back."""

    passes: list[tuple[list[int], list[int]]]

    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch kv_len"]:
        key_positions = super().reserve(positions)
        self.passes.append((positions[0].tolist(), key_positions[0].tolist()))
        return key_positions


@torch.no_grad()
def _passes(model: Llama, tokens: Int[Tensor, "1 new_len"], run: _Run, pad: int) -> list[tuple[list[int], list[int]]]:
    """Feed the text as the run says; return positions and key positions of every pass after what was cached."""
    row = tokens[0].tolist()
    rows = [row] if run.padding == "none" else [row, row + row[-1:] * pad]
    batch, positions = _PACK[run.padding](rows, device=model.device)
    cache = _NotingCache(model.config, len(rows), device=model.device, dtype=model.dtype)
    cache.passes = []
    columns = batch.shape[1]
    bounds = sorted({0, *range(run.cached, columns, run.chunk or columns), columns})
    for first, end in pairwise(bounds):
        model(batch[:, first:end], cache, positions[:, first:end])
    return cache.passes[1:] if run.cached else cache.passes


def _check_choices(length: int, cached: Sequence[int], chunks: Sequence[int | None], paddings: Sequence[str], pad: int) -> None:
    if not (cached and chunks and paddings):
        raise ValueError("cached, chunks and paddings should each offer at least one choice")
    if wrong := [held for held in cached if not 0 <= held < length]:
        raise ValueError(f"of {length} tokens, 0 to {length - 1} can be cached before the first pass; cached offers {wrong[0]}")
    if wrong := [chunk for chunk in chunks if chunk is not None and chunk < 1]:
        raise ValueError(f"a pass takes at least 1 column, or None for all; chunks offers {wrong[0]}")
    if wrong := [padding for padding in paddings if padding not in _PACK]:
        raise ValueError(f"padding should be one of {', '.join(_PACK)}; paddings offers {wrong[0]}")
    if pad < 1:
        raise ValueError(f"pad should be at least 1; it is {pad}")


def _changes_of_each_token(
    model: Llama, tokens: Int[Tensor, "1 new_len"], replacement: int, tokenizer: HasPieces | None
) -> tuple[Frames, list[str]]:
    """All that does not depend on the steps, and the texts of the tokens with that of the replacement at the end."""
    rows, length = tokens.shape
    if rows != 1 or length > MOST_TOKENS or (tokens == replacement).any():
        raise ValueError(
            f"the mask is drawn for one row of at most {MOST_TOKENS} tokens without the replacement {replacement}; "
            f"it was given {rows} of {length}: {tokens.tolist()}"
        )
    before = look_inside(model, tokens)
    changes = []
    for position in range(length):
        replaced = tokens.clone()
        replaced[0, position] = replacement
        after = look_inside(model, replaced)
        layers = [_layer_changes(before, after, layer) for layer in range(len(before.q))]
        changes.append({"layers": layers, "logits": _rows_changed(before.logits, after.logits)})
    texts = token_texts([*tokens[0].tolist(), replacement], tokenizer)
    frames = {
        "tokens": texts[:-1],
        "replacement": texts[-1],
        "n_layers": model.config.n_layers,
        "n_heads": model.config.n_heads,
        "weights": [[_lower_triangle(head) for head in (layer[0] * 1000).round().int()] for layer in before.weights],
        "changes": changes,
    }
    return frames, texts


def _layer_changes(before: Inside, after: Inside, layer: int) -> dict[str, Any]:
    changed = {name: _rows_changed(getattr(before, name)[layer], getattr(after, name)[layer]) for name in ("q", "k", "v")}
    scores = (_scores(before, layer) != _scores(after, layer)).any(dim=0)
    out = _rows_changed(_attended(before, layer), _attended(after, layer))
    return {**changed, "scores": [_flags(row) for row in _lower_triangle(scores.int())], "out": out}


def _scores(inside: Inside, layer: int) -> Float[Tensor, "n_heads new_len kv_len"]:
    """Every query times every key, before mask and softmax."""
    q, k = inside.q[layer][0], inside.k[layer]
    return torch.einsum("qhd,khd->hqk", q, repeat_kv(k, q.shape[1] // k.shape[2])[0])


def _attended(inside: Inside, layer: int) -> Float[Tensor, "1 new_len n_heads head_dim"]:
    positions = torch.arange(inside.q[layer].shape[1], device=inside.q[layer].device)[None]
    return attend(inside.q[layer], inside.k[layer], inside.v[layer], causal_mask(positions, positions))


def _rows_changed(before: Tensor, after: Tensor) -> str:
    return _flags((before[0] != after[0]).flatten(start_dim=1).any(dim=1).int().tolist())


def _flags(values: list[int]) -> str:
    return "".join(map(str, values))


def _lower_triangle(square: Int[Tensor, "new_len new_len"]) -> list[list[int]]:
    return [row[: index + 1] for index, row in enumerate(square.tolist())]


def _text_as_it_is(texts: list[str]) -> str:
    return (
        f"The text as it is: {len(texts) - 1} tokens. Each query looks at its own position and at earlier ones; "
        "the upper triangle is masked."
    )


def _perturbation_summary(position: int, changes: dict[str, Any], texts: list[str]) -> str:
    *tokens, replacement = texts
    first, last = changes["layers"][0], changes["layers"][-1]
    moved = "1" in _before(position, changes)
    before = "Something before it changes." if moved else "Nothing before it changes, bit for bit."
    return (
        f"Token {position}, {quoted(tokens[position])}, becomes {quoted(replacement)}. "
        f"Keys and values change in the first layer at {_where(first['k'])}, in the last at {_where(last['k'])}; "
        f"logits change at {_where(changes['logits'])}. {before}"
    )


def _before(position: int, changes: dict[str, Any]) -> str:
    rows = [layer[name] for layer in changes["layers"] for name in ("q", "k", "v", "out")]
    scores = [row for layer in changes["layers"] for row in layer["scores"][:position]]
    return "".join(flags[:position] for flags in (*rows, changes["logits"])) + "".join(scores)


def _where(flags: str) -> str:
    """Say which positions are flagged: `position 3`, `positions 3 to 7`, `no position`."""
    at = [position for position, flag in enumerate(flags) if flag == "1"]
    if not at:
        return "no position"
    if len(at) == 1:
        return f"position {at[0]}"
    return f"positions {at[0]} to {at[-1]}" if len(at) == at[-1] - at[0] + 1 else f"positions {', '.join(map(str, at))}"


def _pass_summary(number: int, count: int, positions: list[int], key_positions: list[int]) -> str:
    held = len(key_positions) - len(positions)
    asked = _where("".join("01"[at in positions] for at in range(max(positions) + 1)))
    asked = "only padding" if max(positions) == PAD else asked
    read = f"{held} of them read from the cache" if held else "none of them from the cache"
    return (
        f"Pass {number + 1} of {count}: {_count(len(positions), 'query', 'queries')} ({asked}) against "
        f"{_count(len(key_positions), 'key', 'keys')}, {read}. {_cells(positions, key_positions)}"
    )


def _cells(positions: list[int], key_positions: list[int]) -> str:
    """Say how many cells of the mask are visible, and why the others are not."""
    visible = int(causal_mask(torch.tensor([positions]), torch.tensor([key_positions])).sum())
    padding = sum(PAD in pair for pair in product(positions, key_positions))
    cells = len(positions) * len(key_positions)
    if visible == cells:
        return f"All {cells} cells are visible." if cells > 1 else "Its only cell is visible."
    later = cells - visible - padding
    because = [f"{later} masked because the key comes later"] * (later > 0)
    because += [f"{padding} masked because key or query is padding"] * (padding > 0)
    seen = {0: "none is", 1: "1 is"}.get(visible, f"{visible} are")
    return f"Of {cells} cells {seen} visible, {' and '.join(because)}."


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
