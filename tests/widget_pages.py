"""Real frames of a small random model, and a static page that shows widgets as the book's site does, with no kernel."""

import html
import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from ipywidgets.embed import embed_data
from long_pool import long_life

import llama3_edu as le
from llama3_edu import bugs, widgets
from llama3_edu.memory_use import split, stored_bytes
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


def memory_frames(new_tokens: int = 11) -> Frames:
    """A recording with one sample per token: what this process really had in memory, and what of it was weights and cache."""
    model, cache, samples = small_model(), le.GrowingCache(CONFIG), []
    for index, _ in enumerate(le.stream(model, text(5), max_new_tokens=new_tokens, cache=cache)):
        weights = stored_bytes([model], "cpu")
        samples.append(split(le.read_memory(), seconds=index / 8, weights=weights, kv=cache.nbytes))
    return le.memory_frames(samples)


def beam_frames(num_beams: int = 4, max_new_tokens: int = 8, block_size: int = 3, eos_id: int | None = 35) -> Frames:
    """A search in which beams are closed, blocks are copied, freed and shared by rows far apart, and beams end before the last."""
    trace, prompt = le.Trace(), text(5)
    pool = le.BlockPool(CONFIG, num_blocks=200, block_size=block_size, observer=trace)
    cache = le.PagedCache(pool, [[]], observer=trace)
    le.beam_search(
        small_model(), prompt, num_beams=num_beams, max_new_tokens=max_new_tokens, cache=cache, eos_id=eos_id, observer=trace
    )
    return le.beam_frames(trace, prompt=prompt[0].tolist(), tokenizer=Words())


def engine_trace(
    num_requests: int = 7, *, longest: int = 14, num_blocks: int = 11, max_batch: int = 3, continuous: bool = True, seed: int = 9
) -> le.Trace:
    """An engine with little room: requests begin alike, one parts in two, one is cancelled, and some give way."""
    trace, chance = le.Trace(), random.Random(seed)
    engine = le.Engine(
        small_model(), num_blocks=num_blocks, block_size=4, max_batch=max_batch, max_tokens_per_step=24, continuous=continuous,
        observer=trace,
    )  # fmt: skip
    common = [chance.randrange(40) for _ in range(8)]
    for number in range(num_requests):
        start = common if number % 2 else []
        prompt = [*start, *(chance.randrange(40) for _ in range(chance.randint(3, 16)))]
        sequence = engine.add(prompt, max_new_tokens=chance.randint(longest // 3, longest))
        if number == 2:
            engine.fork(sequence, choose=le.greedy)
        if number == 4:
            engine.step()
            engine.cancel(sequence)
    engine.run()
    return trace


def schedule_frames() -> Frames:
    return le.schedule_frames({"static": engine_trace(continuous=False, num_blocks=40), "continuous": engine_trace()})


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
    widgets.BugHunt: bug_frames,
    widgets.DecoderShapes: shape_frames,
    widgets.HeadGroups: lambda: le.head_group_frames(CONFIG),
    widgets.MemoryCalculator: le.calculator_frames,
    widgets.MemoryMonitor: memory_frames,
    widgets.Roofline: le.roofline_frames,
    widgets.BeamTree: beam_frames,
    widgets.SchedulerTimeline: schedule_frames,
    widgets.QuantisationError: quantisation_frames,
    widgets.BlockStepper: block_frames,
    widgets.PrefixTree: prefix_frames,
}


def long_recompute_frames(num_steps: int) -> Frames:
    """What 10,000 steps of `generate` come to, from one token on."""
    steps, totals = [], {"naive": 0, "cached": 0}
    for index in range(num_steps):
        spans = {"naive": [0, index + 1], "cached": [index, index + 1]}
        totals = {run: totals[run] + spans[run][1] - spans[run][0] for run in totals}
        summary = f"Step {index + 1} has computed {totals['naive']} tokens without a cache, {totals['cached']} with one."
        steps.append(
            {"chosen": index + 1, **spans, **{f"{run}_total": total for run, total in totals.items()}, "summary": summary}
        )
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


def long_block_frames(num_steps: int) -> Frames:
    return le.block_frames(long_life(num_blocks=1024, num_events=num_steps + 999), num_blocks=1024, block_size=16, most=99_999)


def long_prefix_frames(num_steps: int) -> Frames:
    return le.prefix_frames(long_life(num_blocks=1024, num_events=4 * num_steps), num_blocks=1024, block_size=16, most=99_999)


LONG: dict[type[widgets.FrameWidget], Callable[[int], Frames]] = {
    widgets.RecomputeTriangle: long_recompute_frames,
    widgets.CacheGrowth: long_growth_frames,
    widgets.BlockStepper: long_block_frames,
    widgets.PrefixTree: long_prefix_frames,
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
