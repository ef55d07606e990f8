"""Real frames of a small random model, and a static page that shows widgets as the book's site does, with no kernel."""

import html
import json
from collections.abc import Callable
from pathlib import Path

import torch
from ipywidgets.embed import embed_data

import llama3_edu as le
from llama3_edu import bugs, widgets
from llama3_edu.trace import Frames

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
CONFIG = le.LlamaConfig(dim=64, n_layers=3, n_heads=4, n_kv_heads=2, hidden_dim=128, vocab_size=40, max_seq_len=64)
WORDS = "The ␣king ␣is ␣dead , ␣long ␣live \\n ␣queen ␣and ␣all ␣her ␣men ␣who ␣never ␣spoke".split()


class Words:
    """A tokenizer of a few words, to have texts of different lengths."""

    def pieces(self, token_ids: list[int]) -> list[str]:
        return [WORDS[token_id % len(WORDS)] for token_id in token_ids]


def small_model() -> le.Llama:
    torch.manual_seed(3)
    model = le.Llama(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


def text(length: int) -> torch.Tensor:
    return torch.arange(length)[None]


def recompute_frames(prompt_len: int = 5, max_new_tokens: int = 9) -> Frames:
    model, naive, cached = small_model(), le.Trace(), le.Trace()
    tokens = le.generate(model, text(prompt_len), max_new_tokens=max_new_tokens, observer=naive)
    cache = le.GrowingCache(CONFIG)
    le.generate(model, text(prompt_len), max_new_tokens=max_new_tokens, cache=cache, observer=cached)
    return le.recompute_frames(naive, cached, tokens=tokens, tokenizer=Words())


def perturbation_frames(length: int = 7) -> Frames:
    return le.perturbation_frames(small_model(), text(length), replacement=39, tokenizer=Words())


def mask_frames(length: int = 7) -> Frames:
    return le.mask_frames(small_model(), text(length), replacement=39, tokenizer=Words(), cached=(0, 2), chunks=(3, 1, None))


def growth_frames(prompt_len: int = 4, max_new_tokens: int = 8, slots: int = 16) -> Frames:
    model, growing, contiguous = small_model(), le.Trace(), le.Trace()
    for cache in (le.GrowingCache(CONFIG, observer=growing), le.ContiguousCache(CONFIG, max_seq_len=slots, observer=contiguous)):
        tokens = le.generate(model, text(prompt_len), max_new_tokens=max_new_tokens, cache=cache)
    return le.growth_frames({"growing": growing, "contiguous": contiguous}, config=CONFIG, tokens=tokens, tokenizer=Words())


def bug_frames() -> Frames:
    tokens = torch.stack((torch.arange(16), torch.arange(16)))
    tokens[1, 7:] += 16
    return le.bug_frames(small_model(), bugs.Trial(tokens, cuts=(5, 8, *range(9, 16)), swap_at=11))


def shape_frames(length: int = 8) -> Frames:
    return le.shape_frames(small_model(), text(length), tokenizer=Words())


MAKERS: dict[type[widgets.FrameWidget], Callable[[], Frames]] = {
    widgets.RecomputeTriangle: recompute_frames,
    widgets.CausalMask: perturbation_frames,
    widgets.CacheGrowth: growth_frames,
    widgets.BugHunt: bug_frames,
    widgets.DecoderShapes: shape_frames,
    widgets.HeadGroups: lambda: le.head_group_frames(CONFIG),
    widgets.MemoryCalculator: le.calculator_frames,
}


def long_recompute_frames(num_steps: int) -> Frames:
    """What 10,000 steps of `generate` come to, from one token on."""
    steps, totals = [], {"naive": 0, "cached": 0}
    for index in range(num_steps):
        spans = {"naive": [0, index + 1], "cached": [index, index + 1]}
        totals = {run: totals[run] + spans[run][1] - spans[run][0] for run in totals}
        summary = f"Step {index + 1} has computed {totals['naive']} tokens without a cache, {totals['cached']} with one."
        steps.append({"chosen": index + 1, **spans, **{f"{run}_total": total for run, total in totals.items()}, "summary": summary})
    tokens = [WORDS[index % len(WORDS)] for index in range(num_steps + 1)]
    return {"tokens": tokens, "prompt_len": 1, "steps": steps}


def long_growth_frames(num_steps: int) -> Frames:
    """Real caches that are given one token after another until every layer of all of them has reported so many steps."""
    length = num_steps // CONFIG.n_layers
    traces = {"growing": le.Trace(), "contiguous": le.Trace()}
    caches = (
        le.GrowingCache(CONFIG, observer=traces["growing"]),
        le.ContiguousCache(CONFIG, max_seq_len=length, observer=traces["contiguous"]),
    )
    one = torch.zeros(1, 1, CONFIG.n_kv_heads, CONFIG.head_dim)
    for cache in caches:
        for position in range(length):
            cache.reserve(torch.tensor([[position]]))
            for layer in range(CONFIG.n_layers):
                cache.update(layer, one, one)
    return le.growth_frames(traces, config=CONFIG, tokens=text(length), tokenizer=Words())


LONG: dict[type[widgets.FrameWidget], Callable[[int], Frames]] = {
    widgets.RecomputeTriangle: long_recompute_frames,
    widgets.CacheGrowth: long_growth_frames,
}
"""Runs as long as asked for, of widgets whose steps are no use when repeated; of the others the steps are repeated."""


def long_frames(cls: type[widgets.FrameWidget], num_steps: int) -> Frames:
    """Frames of a run that has about so many steps."""
    if cls in LONG:
        return LONG[cls](num_steps)
    frames = MAKERS[cls]()
    own = frames["steps"]
    return {**frames, "steps": [{**own[index % len(own)]} for index in range(num_steps)]}


def page_of(*shown: widgets.FrameWidget, body: str | None = None, theme: str = "light") -> str:
    """A page like those of the site: each widget in words, all states as JSON, the site's own host script and palette."""
    state = json.dumps(embed_data(views=list(shown), drop_defaults=False)["manager_state"]).replace("</script>", r"<\/script>")
    words = "".join(widget._repr_mimebundle_()[0]["text/html"] for widget in shown)
    style = "".join((STATIC / name).read_text(encoding="utf-8") for name in ("custom.css", "widget-host.css"))
    return f"""<!doctype html><html lang="en" data-theme="{html.escape(theme)}"><head><meta charset="utf-8"><title>Widgets</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>{style}</style>
<style>body {{ margin: 0; padding: 8px; background: var(--le-bg); }}</style></head>
<body><main>{words if body is None else body}</main>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>
<script>{(STATIC / "widget-host.js").read_text(encoding="utf-8")}</script></body></html>"""
