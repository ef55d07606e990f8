"""Real frames of a small random model, and a static page that shows widgets as the book's site does, with no kernel."""

import html
import json
from collections.abc import Callable
from pathlib import Path

import torch
from ipywidgets.embed import embed_data

import llama3_edu as le
from llama3_edu import widgets
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


def growth_frames(prompt_len: int = 4, max_new_tokens: int = 8, slots: int = 16) -> Frames:
    model, growing, contiguous = small_model(), le.Trace(), le.Trace()
    for cache in (le.GrowingCache(CONFIG, observer=growing), le.ContiguousCache(CONFIG, max_seq_len=slots, observer=contiguous)):
        tokens = le.generate(model, text(prompt_len), max_new_tokens=max_new_tokens, cache=cache)
    return le.growth_frames({"growing": growing, "contiguous": contiguous}, config=CONFIG, tokens=tokens, tokenizer=Words())


def shape_frames(length: int = 8) -> Frames:
    return le.shape_frames(small_model(), text(length), tokenizer=Words())


def quantisation_frames(length: int = 16) -> Frames:
    return le.quantisation_frames(
        small_model(), text(length), layer=1, head=1, bits=(4, 2), group_sizes=(16, 4), tokenizer=Words()
    )


def served() -> tuple[le.Trace, dict[int, list[int]], le.BlockPool]:
    """An engine with little room: prompts that begin alike, a fork that is copied on write, preemption and eviction."""
    trace = le.Trace()
    engine = le.Engine(small_model(), num_blocks=12, block_size=4, max_batch=4, max_tokens_per_step=24, observer=trace)
    system, sequences = [0, 1, 2, 3, 4, 5, 6, 7], []

    def ask(*prompts: list[int], more: int) -> None:
        sequences.extend(engine.add(prompt, max_new_tokens=more) for prompt in prompts)

    ask([*system, 8, 9], more=4)
    sequences.append(engine.fork(sequences[0], choose=le.sampler(generator=torch.Generator().manual_seed(5))))
    engine.run()
    ask([*system, 8, 9, 10, 11, 12], [*system, 13, 14, 15], [20, 21, 22, 23, 24], more=9)
    engine.run()
    ask([*system, 13, 14, 15, 3, 1], more=2)
    engine.run()
    return trace, {sequence.id: sequence.token_ids for sequence in sequences}, engine.pool


def block_frames(**options: int) -> Frames:
    trace, token_ids, pool = served()
    sizes = {"num_blocks": pool.num_blocks, "block_size": pool.block_size}
    return le.block_frames(trace, **sizes, token_ids=token_ids, tokenizer=Words(), **options)


def prefix_frames(**options: int) -> Frames:
    trace, token_ids, pool = served()
    sizes = {"num_blocks": pool.num_blocks, "block_size": pool.block_size}
    return le.prefix_frames(trace, **sizes, token_ids=token_ids, tokenizer=Words(), **options)


MAKERS: dict[type[widgets.FrameWidget], Callable[[], Frames]] = {
    widgets.RecomputeTriangle: recompute_frames,
    widgets.CausalMask: perturbation_frames,
    widgets.CacheGrowth: growth_frames,
    widgets.DecoderShapes: shape_frames,
    widgets.HeadGroups: lambda: le.head_group_frames(CONFIG),
    widgets.MemoryCalculator: le.calculator_frames,
    widgets.QuantisationError: quantisation_frames,
    widgets.BlockStepper: block_frames,
    widgets.PrefixTree: prefix_frames,
}


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
