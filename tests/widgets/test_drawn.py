"""Every widget in a real browser, with no kernel: what is drawn is what the frames say, by mouse, keyboard and touch."""

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from browser import WIDGET, assert_fits, assert_steps, press, quiet_page, step_of
from playwright.sync_api import Browser, Locator, Page, expect
from pool_checks import check_blocks, check_tree
from widget_pages import MAKERS, beam_frames, engine_trace, mask_frames, page_of, small_model, text

import llama3_edu as le
from llama3_edu import widgets
from llama3_edu.trace import Frames

FRAMES = {cls: make() for cls, make in MAKERS.items()}
FORMS = {widgets.MemoryCalculator, widgets.Roofline}
every_stepped_widget = pytest.mark.parametrize("cls", [cls for cls in MAKERS if cls not in FORMS], ids=lambda cls: cls.name)
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


def show(page: Page, folder: Path, *shown: widgets.FrameWidget, **options) -> Locator:
    """Open a page with these widgets from a file, as a downloaded site would be, and wait for all of them."""
    path = folder / "page.html"
    path.write_text(page_of(*shown, **options), encoding="utf-8")
    page.goto(path.as_uri())
    found = page.locator(WIDGET)
    expect(found).to_have_count(len(shown))
    return found


def states(widget: Locator, selector: str) -> Counter:
    """How many elements are drawn in each state."""
    return Counter(widget.locator(selector).evaluate_all("nodes => nodes.map(node => node.dataset.state)"))


def state_map(widget: Locator, selector: str, *names: str) -> dict[tuple[str, ...], str]:
    """The state of each element by the data attributes that name it."""
    script = "(nodes, names) => nodes.map(node => [names.map(name => node.dataset[name]), node.dataset.state])"
    return {tuple(key): state for key, state in widget.locator(selector).evaluate_all(script, list(names))}


def check_recompute(widget: Locator, frames: Frames, step: int) -> None:
    for run in ("naive", "cached"):
        panel = f'[data-run="{run}"]'
        drawn = states(widget, f"{panel} .le-cell")
        lengths = [end - first for first, end in (own[run] for own in frames["steps"][: step + 1])]
        assert drawn["new"] + drawn["again"] == sum(lengths) == frames["steps"][step][f"{run}_total"]
        assert drawn["new"] == frames["steps"][step][run][1], "each position is computed for the first time once"
        assert drawn["chosen"] == step + 1
        assert drawn["kept"] == sum(own[run][0] for own in frames["steps"][: step + 1])
        assert widget.locator(f'{panel} [data-total="{run}"]').inner_text() == str(sum(lengths))
        assert widget.locator(f"{panel} .le-formula").inner_text().endswith(str(sum(lengths)))


def check_mask(widget: Locator, frames: Frames, step: int) -> None:
    """Compare every cell and strip with `causal_mask` and with what the frames say is changed by the token replaced."""
    own = frames["steps"][step]
    replaced = own["replaced"]
    if len(frames["runs"]) > 1:
        replaced = int(widget.get_by_label("Replace").input_value()) - 1
        replaced = None if replaced < 0 else replaced
    for layer in range(frames["n_layers"]):
        widget.get_by_role("radiogroup", name="Layer").locator("label").nth(layer).click()
        assert widget.get_by_role("radiogroup", name="Layer").locator(":checked").get_attribute("value") == str(layer)
        changes = None if replaced is None else frames["changes"][replaced]["layers"][layer]
        logits = None if replaced is None else frames["changes"][replaced]["logits"]
        check_cells(widget, own, changes, replaced)
        check_strips(widget, own, changes and {**changes, "logits": logits}, replaced)


def columns_of_the_pass(own: dict) -> tuple[list[int], int]:
    """The positions of all its columns, and how many of them were cached before it."""
    return own["key_positions"], len(own["key_positions"]) - len(own["positions"])


def effect(changed: bool, keys: list[int], cached: int, replaced: int | None) -> str:
    """What is shown of something that the replaced token changes, or not."""
    if not changed:
        return "stays"
    return "stale" if replaced in keys[:cached] else "changed"


def check_cells(widget: Locator, own: dict, changes: dict | None, replaced: int | None) -> None:
    keys, cached = columns_of_the_pass(own)
    mask = le.causal_mask(torch.tensor([own["positions"]]), torch.tensor([keys]))[0].tolist()
    drawn = state_map(widget, ".le-matrix .le-score", "query", "key")
    for row, seen in enumerate(mask):
        for column, visible in enumerate(seen):
            query, key = own["positions"][row], keys[column]
            state = drawn.pop((str(cached + row), str(column)))
            changed = visible and changes is not None and changes["scores"][query][key] == "1"
            assert state == (effect(changed, keys, cached, replaced) if visible else "masked"), (query, key)
    assert set(drawn.values()) <= {"outside"}, "what is not in this pass is not drawn as if it were"
    outline = widget.locator(".le-pass")
    assert outline.get_attribute("data-queries") == str(len(own["positions"]))
    assert outline.get_attribute("data-keys") == str(len(keys))


def check_strips(widget: Locator, own: dict, changes: dict | None, replaced: int | None) -> None:
    keys, cached = columns_of_the_pass(own)
    drawn = state_map(widget, ".le-matrix .le-strip", "kind", "index")
    came = "nodes => nodes.map(node => [`${node.dataset.kind}${node.dataset.index}`, node.dataset.from])"
    came_from = dict(widget.locator(".le-matrix .le-strip").evaluate_all(came))
    for (kind, index), state in drawn.items():
        column = int(index)
        inside = column < len(keys) and (kind in "kv" or column >= cached)
        if not inside:
            assert state == "outside"
        elif keys[column] < 0:
            assert state == "padding"
        else:
            changed = changes is not None and changes[kind][keys[column]] == "1"
            assert state == effect(changed, keys, cached, replaced), (kind, column)
        if kind in "kv" and inside:
            assert came_from[f"{kind}{index}"] == ("cached" if column < cached else "new")


def check_growth(widget: Locator, frames: Frames, step: int) -> None:
    own = frames["steps"][step]
    earlier = [other["caches"] for other in frames["steps"][:step] if other["forward"] != own["forward"]]
    before = earlier[-1] if earlier else None
    arrived = own["arrived"][1] - own["arrived"][0]
    cells_per_token = frames["n_layers"] * frames["n_kv_heads"]
    for index, cache in enumerate(frames["caches"]):
        panel = widget.locator(f'[data-cache="{cache["name"]}"]')
        drawn = states(panel, ".le-kv")
        copied = own["caches"][index]["copied_total"] - (before[index]["copied_total"] if before else 0)
        assert drawn["new"] == arrived * cells_per_token
        assert drawn["new"] + drawn["held"] + drawn["copied"] == sum(own["stored"]) * frames["n_kv_heads"]
        assert drawn["copied"] * frames["bytes_per_cell"] == copied
        stored = sum(own["stored"]) * frames["n_kv_heads"]
        assert drawn["empty"] == (cache["slots"] * cells_per_token - stored if cache["slots"] else 0)
        assert panel.locator('[data-kind="held"]').get_attribute("data-bytes") == str(own["caches"][index]["held"])
        assert panel.locator('[data-kind="copied"]').get_attribute("data-bytes") == str(own["caches"][index]["copied_total"])


def check_shapes(widget: Locator, frames: Frames, step: int) -> None:
    own = frames["steps"][step]
    assert widget.locator(".le-detail").get_attribute("data-shape") == ",".join(map(str, own["shape"]))
    assert widget.locator(".le-axis-name").all_inner_texts() == own["axes"]
    assert widget.locator(".le-axis-size").all_inner_texts() == [f"{size:,}" for size in own["shape"]]
    assert widget.locator("[aria-current]").inner_text() == own["name"]
    if own["preview"] and own["group"] != "next":
        values = widget.locator(".le-number").evaluate_all("nodes => nodes.map(node => Number(node.dataset.value))")
        assert values == [value for row in own["preview"]["rows"] for group in row for value in group]


def check_groups(widget: Locator, frames: Frames, step: int) -> None:
    own = frames["steps"][step]
    assert widget.locator(".le-query-head").count() == frames["n_heads"]
    assert widget.locator(".le-kv-head").count() == widget.locator(".le-band").count() == own["n_kv_heads"]
    ends = "nodes => nodes.map(node => [node.dataset.query, node.dataset.kv].map(Number))"
    lines = widget.locator(".le-reads").evaluate_all(ends)
    assert sorted(lines) == [[query, kv] for query, kv in enumerate(own["groups"])]
    for query, kv in lines:
        begins, ends = line_ends(widget, f'.le-reads[data-query="{query}"]')
        boxes = {f'.le-query-head[data-query="{query}"] .le-head-box': begins, f'.le-kv-head[data-kv="{kv}"] .le-kv-k': ends}
        for box, x in boxes.items():
            left, width = (float(widget.locator(box).get_attribute(name)) for name in ("x", "width"))
            assert left <= x <= left + width, "a line goes from the query head to the KV head it is about"
    assert f"= {own['bytes_per_token']:,} bytes" in widget.locator(".le-factors").inner_text()
    assert widget.locator(".le-heads-aside").inner_text().count(f"= {own['n_rep']}\n") == 1
    rungs = widget.locator("button.le-rung .le-bar").evaluate_all("nodes => nodes.map(node => parseFloat(node.style.width))")
    most = frames["steps"][0]["bytes_per_token"]
    assert rungs == pytest.approx([100 * other["bytes_per_token"] / most for other in frames["steps"]])
    assert widget.locator("[aria-current] .le-rung-count").inner_text() == str(own["n_kv_heads"])
    assert widget.locator("[data-own] .le-rung-count").inner_text() == str(frames["own"])


def dataset(widget: Locator, selector: str) -> list[dict[str, str]]:
    """The data attributes of every element drawn, those apart that are hidden."""
    script = "nodes => nodes.filter(n => n.getAttribute('visibility') !== 'hidden').map(n => ({...n.dataset}))"
    return widget.locator(selector).evaluate_all(script)


def attributes(widget: Locator, selector: str, *names: str) -> list[list[float]]:
    script = "(nodes, names) => nodes.map(node => names.map(name => Number(node.getAttribute(name))))"
    return widget.locator(selector).evaluate_all(script, list(names))


def nodes_of(step: dict) -> list[dict]:
    """The rows of a step: its beams, then those that ended."""
    return [*step["beams"], *step["ended"]]


def way_back(steps: list[dict], place: tuple[int, int]) -> list[tuple[int, int]]:
    """The nodes from the prompt to one of them, the prompt left out."""
    way = [place]
    while way[0][0] > 0:
        step, row = way[0]
        way.insert(0, (step - 1, nodes_of(steps[step])[row]["parent"]))
    return way


def fates_at(steps: list[dict], at: int) -> dict[tuple[int, int], str]:
    """What has become of every node by a step."""
    places = [(step, row) for step in range(at + 1) for row in range(len(nodes_of(steps[step])))]
    ends = {(step, row) for step, row in places if row >= len(steps[step]["beams"])}
    led = {place for tip in places if tip in ends or tip[0] == at for place in way_back(steps, tip)}
    parents = {(step - 1, nodes_of(steps[step])[row]["parent"]) for step, row in places}
    fate = {place: "alive" if place in led else "left" if place in parents else "closed" for place in places}
    for step in range(at):
        if steps[step + 1]["beams"]:
            closed = {(step, row) for row in steps[step + 1]["closed"]}
            assert {p for p in fate if p[0] == step and p not in parents and p not in ends} <= closed
    return fate | dict.fromkeys(ends, "ended")


def best_at(steps: list[dict], at: int) -> tuple[int, int]:
    if steps[at]["beams"]:
        return at, 0
    ended = [
        (beam["score"], step, len(own["beams"]) + row) for step, own in enumerate(steps) for row, beam in enumerate(own["ended"])
    ]
    return max(ended, key=lambda one: one[0])[1:]


def check_beams(widget: Locator, frames: Frames, step: int) -> None:
    steps, at = frames["forwards"], frames["steps"][step]["forward"]
    own, fate, best = steps[at], fates_at(steps, at), set(way_back(steps, best_at(steps, at)))
    columns = [int(text) - frames["prompt_len"] for text in widget.locator(".le-tree .le-row").all_text_contents() if text != "…"]
    assert columns == list(range(columns[0], at + 1))
    shown = {place: state for place, state in fate.items() if place[0] in columns}
    drawn = {(int(node["step"]), int(node["row"])): node for node in dataset(widget, ".le-tree .le-beam")}
    edges = {(int(edge["step"]), int(edge["row"])): edge for edge in dataset(widget, ".le-tree .le-edge")}
    assert {place: node["state"] for place, node in drawn.items()} == shown == {p: e["state"] for p, e in edges.items()}
    assert {place for place, node in drawn.items() if "best" in node} == {p for p in best if p in shown}
    assert {place for place, edge in edges.items() if "best" in edge} == {p for p in best if p in shown}
    for (step, row), node in drawn.items():
        beam = nodes_of(steps[step])[row]
        assert (node["token"], float(node["score"])) == (beam["token"], beam["score"])
        assert int(edges[step, row]["parent"]) == beam["parent"]
    check_table_of_beams(widget, frames, at)
    for kind, key in (("held", "num_blocks"), ("without", "without_sharing")):
        assert widget.locator(f'.le-meter[data-kind="{kind}"]').get_attribute("data-count") == str(own[key])
    assert f" copied, {len(own['freed'])} freed" in widget.locator(".le-block-counts").inner_text()


def check_table_of_beams(widget: Locator, frames: Frames, at: int) -> None:
    own = frames["forwards"][at]
    tables = [beam["blocks"] for beam in own["beams"]] or own["written"]
    drawn = dataset(widget, ".le-beam-blocks .le-held")
    first = min(int(node["index"]) for node in drawn)
    held = {(int(n["index"]), int(n["block"])): n["rows"].split() for n in drawn if n["state"] != "freed"}
    expected: dict[tuple[int, int], list[str]] = {}
    for row, table in enumerate(tables):
        for index, block in enumerate(table):
            if index >= first:
                expected.setdefault((index, block), []).append(str(row))
    assert held == expected, "every block stands once, beside all rows that hold it"
    for node in drawn:
        if node["state"] != "freed":
            assert (node["state"] == "shared") == (int(node["block"]) in own["shared"])
    ghosts = {int(node["block"]) for node in drawn if node["state"] == "freed"}
    assert ghosts == {b for b in own["freed"] if any(b in table[first:] for table in own["written"])}
    visible = {int(node["block"]) for node in drawn}
    arrows = [(int(arrow["source"]), int(arrow["block"])) for arrow in dataset(widget, ".le-copy")]
    assert arrows and set(arrows) <= {tuple(pair) for pair in own["copied"]} if own["copied"] else arrows == []
    assert {pair for pair in map(tuple, own["copied"]) if set(pair) <= visible} == set(arrows)


def check_timeline(widget: Locator, frames: Frames, step: int) -> None:
    at = frames["steps"][step]["step"]
    places = max(sum(working(state) for state in own["states"]) for run in frames["runs"] for own in run["steps"])
    for index, run in enumerate(frames["runs"]):
        panel = widget.locator(f'[data-run="{index}"]')
        through = min(at, len(run["steps"]) - 1)
        check_rows(panel, run, through)
        check_moments(panel, run, through)
        own, so_far = run["steps"][through], run["steps"][: through + 1]
        taken = sum(working(state) for earlier in so_far for state in earlier["states"])
        ended = sum(len(earlier["finished"]) for earlier in so_far)
        said = {"taken": taken, "offered": len(so_far) * places, "ended": ended}
        assert {key: panel.get_attribute(f"data-{key}") for key in said} == {key: str(value) for key, value in said.items()}
        formula, batch = panel.locator(".le-formula").inner_text(), sum(map(working, own["states"]))
        if at > through:
            assert formula == f"Over after {len(run['steps'])} steps."
        else:
            assert formula.startswith(f"Step {own['step'] + 1}: {batch} of {places} places, {sum(own['num_tokens'])} token")
            assert formula.endswith(
                f"{own['prompt_tokens']} of prompts, {own['decoded_tokens']} decoded, {own['recomputed_tokens']} computed again."
            )


def working(state: str) -> bool:
    return state in ("prefill", "recompute", "decode")


def check_rows(panel: Locator, run: dict, through: int) -> None:
    """Every request in every step that is drawn, where the clip has not cut it off, and the bars under them."""
    drawn: dict[tuple[int, int], str] = {}
    spans = dataset(panel, ".le-span")
    for span in spans:
        drawn |= {(int(span["request"]), step): span["state"] for step in range(int(span["from"]), int(span["to"]))}
    assert len(drawn) == sum(int(span["to"]) - int(span["from"]) for span in spans), "no two spans of a request overlap"
    bars = {(bar["kind"], int(bar["step"])): int(bar["amount"]) for bar in dataset(panel, ".le-total")}
    steps = sorted({step for kind, step in bars if kind == "batch"})
    assert steps == list(range(steps[0], steps[-1] + 1)) and steps[0] <= through <= steps[-1]
    for step in steps:
        own = run["steps"][step]
        states = {request: state for request, state in enumerate(own["states"]) if state not in ("absent", "finished")}
        assert states == {request: state for (request, at), state in drawn.items() if at == step}
        amounts = {"batch": sum(map(working, own["states"]))}
        for kind, key in (("prompt", "prompt_tokens"), ("decoded", "decoded_tokens"), ("again", "recomputed_tokens")):
            amounts |= {kind: own[key]} if own[key] else {}
        assert amounts == {kind: amount for (kind, at), amount in bars.items() if at == step}
    assert panel.locator("[data-through]").get_attribute("data-through") == str(through)
    ((cell,),) = attributes(panel, ".le-now", "width")
    ((left, wide),) = attributes(panel, "clipPath rect", "x", "width")
    edges = attributes(panel, '.le-total[data-kind="batch"]', "x", "width")
    past = [x for x, width in edges if x + width <= left + wide + 0.01]
    assert len(past) == through - steps[0] + 1, "the clip ends with the step"
    assert wide == pytest.approx(6 + cell * len(past))


def check_moments(panel: Locator, run: dict, through: int) -> None:
    moments = {(m["kind"], int(m["request"]), int(m["step"])) for m in dataset(panel, ".le-moment")}
    window = {int(bar["step"]) for bar in dataset(panel, '.le-total[data-kind="batch"]')}
    expected = set()
    for step in window:
        own = run["steps"][step]
        expected |= {("found", request, step) for request, found in own["admitted"] if found}
        expected |= {(kind, request, step) for kind in ("forked", "preempted") for request, _ in own[kind]}
        expected |= {("finished", request, step) for request in own["finished"]}
    assert moments == expected


def check_bugs(widget: Locator, frames: Frames, step: int) -> None:
    own = frames["steps"][step]
    drawn = "nodes => nodes.map(node => [Number(node.dataset.error), node.dataset.state, node.lastChild.getBBox().y])"
    errors = widget.locator(".le-error").evaluate_all(drawn)
    assert [error for error, _, _ in errors] == own["errors"]
    assert [state for _, state, _ in errors] == [("right", "wrong")[error > frames["rounding"]] for error in own["errors"]]
    higher = sorted((error, -y) for error, state, y in errors if state == "wrong")
    assert [y for _, y in higher] == sorted(y for _, y in higher), "a larger error stands higher"
    keys = state_map(widget, ".le-key-check", "layer", "slot")
    for layer, flags in enumerate(own["keys"]):
        assert [keys[str(layer), str(slot)] for slot in range(len(flags))] == [("right", "wrong")[int(flag)] for flag in flags]
    books = widget.locator(".le-book").evaluate_all("nodes => nodes.map(node => [node.dataset.state, node.textContent])")
    seq_len, memory = frames["seq_len"], f"{own['nbytes']:,} bytes reported, {own['allocated']:,} taken"
    for book, equal, words in (
        (books[0], own["surplus"] == 0, f"{seq_len + own['surplus']} keys, {seq_len} tokens"),
        (books[1], own["nbytes"] == own["allocated"], memory),
    ):
        assert book == (["right", f"={words}"] if equal else ["wrong", f"≠{words}"])
    assert widget.locator("button.le-suspect span:last-child").all_inner_texts() == frames["names"]
    assert states(widget, "button.le-suspect") == {"untried": len(frames["names"])}, "nothing is given away"


def check_quantisation(widget: Locator, frames: Frames, step: int) -> None:
    own = frames["steps"][step]
    script = "nodes => nodes.map(({ dataset, width, height }) => [dataset.error, width.baseVal.value, height.baseVal.value].map(Number))"
    drawn = widget.locator(".le-matrix .le-quant-error").evaluate_all(script)
    errors = [error for row in own["errors"] for error in row]
    assert [error for error, _, _ in drawn] == errors
    full = max(width for _, width, _ in drawn) / (own["worst"]["error"] / frames["largest"]) ** 0.5
    areas = [(width / full, height / full) for _, width, height in drawn]
    assert areas == [(pytest.approx((abs(error) / frames["largest"]) ** 0.5, abs=1e-3),) * 2 for error in errors]
    lines = widget.locator(".le-quant-groups").get_attribute("d")
    across, down = len(frames["tokens"]), frames["num_channels"]
    bands = (across // own["group_size"], down) if own["axis"] == "channel" else (across, down // own["group_size"])
    assert (lines.count("H") - 1, lines.count("V") - 1) == bands
    for fact, value in (("worst", f"{own['worst']['error'] / 1000:.3f}"), ("mean", own["mean"]), ("bits", own["effective_bits"])):
        assert float(widget.locator(f'[data-fact="{fact}"]').inner_text()) == float(value)
    for field in ("tensor", "bits", "group_size"):
        assert widget.locator(f'[data-field="{field}"] input:checked + span').inner_text() == str(own[field])
    assert widget.locator('[data-field="axis"] input:checked + span').inner_text() == f"one {own['axis']}"
    check_looked_at(widget, own, frames[own["tensor"]], own["worst"]["token"], own["worst"]["channel"])


def check_looked_at(widget: Locator, own: Frames, numbers: list[list[int]], token: int, channel: int) -> None:
    """One number is told as it was, as it became, and by how much it is off."""
    before, error = numbers[token][channel], own["errors"][token][channel]
    told = widget.locator(".le-looked").inner_text().replace("\N{MINUS SIGN}", "-")
    assert f"Token {token}, " in told and f"channel {channel}\n" in told
    assert f"{before / 1000:.3f} becomes {(before + error) / 1000:.3f}: off by {abs(error) / 1000:.3f}." in told


def line_ends(widget: Locator, selector: str) -> tuple[float, float]:
    """Where a drawn path begins and ends, across."""
    ends = "path => [path.getPointAtLength(0).x, path.getPointAtLength(path.getTotalLength()).x]"
    return tuple(widget.locator(selector).evaluate(ends))


def check_memory(widget: Locator, frames: Frames, step: int) -> None:
    own = frames["steps"][step]
    cursor = widget.locator(".le-now")
    assert float(cursor.get_attribute("data-seconds")) == own["seconds"]
    sizes = {"weights": own["weights"], "kv": own["kv"], "rest": own["rest"]}
    sizes["used"] = sum(sizes.values())
    rows = "nodes => Object.fromEntries(nodes.map(node => [node.dataset.part, Number(node.dataset.bytes)]))"
    assert widget.locator(".le-memory-table tr").evaluate_all(rows) == sizes
    floor = float(cursor.get_attribute("y2"))
    dots = (widget.locator(f'.le-now-dot[data-part="{part}"]') for part in ("weights", "rest"))
    weights, used = (floor - float(dot.get_attribute("cy")) for dot in dots)
    assert weights / used == pytest.approx(own["weights"] / sizes["used"], rel=1e-3)
    last = frames["steps"][-1]["seconds"]
    ends = "path => { const box = path.getBBox(); return [box.x, box.x + box.width]; }"
    left, right = widget.locator(".le-area").first.evaluate(ends)
    assert float(cursor.get_attribute("x1")) == pytest.approx(left + (right - left) * own["seconds"] / last, abs=0.1)
    totals = [one["weights"] + one["kv"] + one["rest"] for one in frames["steps"]]
    assert int(widget.locator(".le-peak").get_attribute("data-step")) == totals.index(max(totals))


CHECKS = {
    widgets.RecomputeTriangle: check_recompute,
    widgets.CausalMask: check_mask,
    widgets.CacheGrowth: check_growth,
    widgets.BugHunt: check_bugs,
    widgets.DecoderShapes: check_shapes,
    widgets.HeadGroups: check_groups,
    widgets.MemoryMonitor: check_memory,
    widgets.BeamTree: check_beams,
    widgets.SchedulerTimeline: check_timeline,
    widgets.BlockStepper: check_blocks,
    widgets.PrefixTree: check_tree,
    widgets.QuantisationError: check_quantisation,
}


@every_stepped_widget
def test_what_is_drawn_is_what_the_frames_say(cls: type[widgets.FrameWidget], browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, cls(frames=FRAMES[cls]))
        assert widget.get_attribute("data-widget") == cls.name
        visited = []
        while not visited or step_of(widget) != visited[-1]:
            visited.append(step_of(widget))
            CHECKS[cls](widget, FRAMES[cls], visited[-1])
            assert widget.locator(".le-summary").inner_text() == FRAMES[cls]["steps"][visited[-1]]["summary"]
            press(widget, "forward")
        assert visited[0] == 0 and visited[-1] == len(FRAMES[cls]["steps"]) - 1


@every_stepped_widget
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_mouse_and_keyboard_step_in_light_and_dark(cls: type[widgets.FrameWidget], theme: str, browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, cls(frames=FRAMES[cls]), theme=theme)
        assert widget.get_attribute("data-scheme") == theme
        assert_steps(widget)
        other = {"light": "dark", "dark": "light"}[theme]
        page.evaluate("theme => { document.documentElement.dataset.theme = theme }", other)
        expect(widget).to_have_attribute("data-scheme", other)


@every_stepped_widget
def test_a_phone_needs_no_sideways_scroll_and_touch_steps(cls: type[widgets.FrameWidget], browser: Browser, tmp_path: Path):
    with quiet_page(browser, **PHONE) as page:
        widget = show(page, tmp_path, cls(frames=FRAMES[cls]))
        assert_fits(page)
        widget.locator('[data-action="forward"]').tap()
        assert step_of(widget) > 0
        assert_fits(page)
        box = widget.locator('[data-action="forward"]').bounding_box()
        assert min(box["width"], box["height"]) >= 44
        CHECKS[cls](widget, FRAMES[cls], step_of(widget))


@every_stepped_widget
def test_play_runs_to_the_end_and_pause_stops_it(cls: type[widgets.FrameWidget], browser: Browser, tmp_path: Path):
    with quiet_page(browser, reduced_motion="reduce") as page:
        page.clock.install()
        widget = show(page, tmp_path, cls(frames=FRAMES[cls]))
        page.clock.run_for(5_000)
        assert step_of(widget) == 0, "nothing plays by itself"
        widget.focus()
        widget.press("Space")
        page.clock.run_for(2_000)
        assert step_of(widget) > 0
        assert widget.locator(".le-summary").get_attribute("aria-live") == "off", "playing is not read aloud step by step"
        widget.press("Space")
        reached = step_of(widget)
        page.clock.run_for(5_000)
        assert step_of(widget) == reached
        press(widget, "play")
        page.clock.run_for(1_000 * len(FRAMES[cls]["steps"]))
        assert step_of(widget) == len(FRAMES[cls]["steps"]) - 1
        assert widget.locator('[data-action="play"]').get_attribute("aria-label") == "Play"
        at_once = "nodes => nodes.every(node => getComputedStyle(node).transitionDuration === '0s')"
        assert widget.locator(".le-cell, .le-bar").evaluate_all(at_once)


def test_a_cell_of_the_mask_tells_its_weight_by_pointer_and_by_key(browser: Browser, tmp_path: Path):
    frames = FRAMES[widgets.CausalMask]
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.CausalMask(frames=frames, step=3))
        looked = widget.locator(".le-looked")
        widget.locator("select").select_option("2")
        widget.locator('.le-matrix [data-query="5"][data-key="1"]').hover()
        assert "may look at position 1" in looked.inner_text() and "0 ≤ 1 ≤ 5" in looked.inner_text()
        assert f"Weight {frames['weights'][0][1][5][1] / 1000:.3f} (head 2)" in looked.inner_text()
        widget.locator('.le-matrix [data-query="1"][data-key="5"]').hover()
        assert "5 ≤ 1 does not hold" in looked.inner_text() and "Masked" in looked.inner_text()
        widget.locator(".le-matrix").press("ArrowDown")
        assert looked.inner_text().startswith("Position 2")
        assert step_of(widget) == 3, "arrows inside the matrix do not step"


EXPLORER = mask_frames()


def pick(widget: Locator, group: str, choice: str) -> None:
    widget.get_by_role("radiogroup", name=group).locator("label", has_text=re.compile(f"^{choice}$")).click()


@pytest.mark.parametrize("padding", ["none", "before", "after"])
@pytest.mark.parametrize("chunk", ["3", "1", "all"])
def test_every_pass_of_every_run_is_the_mask_of_its_positions(padding: str, chunk: str, browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.CausalMask(frames=EXPLORER))
        pick(widget, "Padding", padding)
        pick(widget, "Chunk", chunk)
        for cached in (0, 2):
            pick(widget, "Cached at the start", str(cached))
            press(widget, "reset")
            run = {"cached": cached, "chunk": None if chunk == "all" else int(chunk), "padding": padding}
            steps = [index for index, step in enumerate(EXPLORER["steps"]) if EXPLORER["runs"][step["run"]] == run]
            for number, step in enumerate(steps):
                assert step_of(widget) == step
                assert widget.locator(".le-count").inner_text() == f"{number + 1} / {len(steps)}"
                widget.get_by_label("Replace").select_option(str((number * 3 + cached) % 8))
                check_mask(widget, EXPLORER, step)
                press(widget, "forward")
            assert step_of(widget) == steps[-1], "the control bar stays in the run that was chosen"


def test_a_choice_keeps_the_others_and_the_columns_taken_in(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.CausalMask(frames=EXPLORER))
        press(widget, "forward")
        assert EXPLORER["steps"][step_of(widget)]["key_positions"] == [0, 1, 2, 3, 4, 5]
        pick(widget, "Chunk", "1")
        assert EXPLORER["steps"][step_of(widget)]["key_positions"] == [0, 1, 2, 3, 4, 5]
        pick(widget, "Padding", "before")
        step = EXPLORER["steps"][step_of(widget)]
        assert EXPLORER["runs"][step["run"]] == {"cached": 0, "chunk": 1, "padding": "before"}
        assert step["key_positions"] == [-1, -1, 0, 1, 2, 3]


def test_a_cell_tells_why_it_is_hidden_by_pointer_and_by_key(browser: Browser, tmp_path: Path):
    def text_at(row: int, column: int) -> str:
        widget.locator(f'.le-matrix [data-query="{row}"][data-key="{column}"]').hover()
        return widget.locator(".le-looked").inner_text()

    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.CausalMask(frames=EXPLORER))
        pick(widget, "Padding", "before")
        press(widget, "forward")  # columns 3 to 5, positions 1 to 3
        assert "0 ≤ 0 ≤ 2" in text_at(4, 2) and "read from the cache" in text_at(4, 2)
        assert "0 ≤ 1 ≤ 2" in text_at(4, 3) and "cache" not in text_at(4, 3)
        assert "3 ≤ 2 does not hold" in text_at(4, 5)
        assert "This column is padding" in text_at(4, 1)
        assert "never asked again" in text_at(2, 2)
        assert "later pass" in text_at(7, 2)
        widget.locator(".le-matrix").press("ArrowUp")
        assert "later pass" in widget.locator(".le-looked").inner_text()
        press(widget, "reset")
        assert "This query is padding" in text_at(1, 2)


def test_a_token_in_the_cache_makes_it_stale_and_a_later_one_does_not(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.CausalMask(frames=EXPLORER, step=1))  # three cached, three asked
        told = widget.locator(".le-swap")
        for position, words in ((1, "stale"), (4, "The cache stays valid"), (6, "later pass")):
            widget.get_by_label("Replace").select_option(str(position + 1))
            assert words in told.inner_text()
            drawn = states(widget, ".le-matrix .le-strip") + states(widget, ".le-matrix .le-score")
            assert (drawn["stale"] > 0) == (position == 1) and (drawn["changed"] > 0) == (position == 4)
        widget.get_by_label("Replace").select_option("0")
        assert "No token is replaced" in told.inner_text()


def test_the_explorer_fits_a_phone_and_is_tapped(browser: Browser, tmp_path: Path):
    with quiet_page(browser, **PHONE) as page:
        widget = show(page, tmp_path, widgets.CausalMask(frames=EXPLORER))
        assert_fits(page)
        widget.locator('[data-action="forward"]').tap()
        widget.locator('.le-matrix [data-query="4"][data-key="2"]').tap()
        assert "0 ≤ 2 ≤ 4" in widget.locator(".le-looked").inner_text()
        widget.get_by_role("radiogroup", name="Padding").locator("label").last.tap()
        assert_fits(page)
        check_mask(widget, EXPLORER, step_of(widget))


def test_the_cache_steps_by_layer_when_asked(browser: Browser, tmp_path: Path):
    frames = FRAMES[widgets.CacheGrowth]
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.CacheGrowth(frames=frames))
        widget.get_by_role("radio", name="layer").click()
        for step in (1, 2):
            press(widget, "forward")
            assert step_of(widget) == step
            drawn = state_map(widget, f'[data-cache="{frames["caches"][0]["name"]}"] .le-kv', "layer", "head", "position")
            assert {int(layer) for (layer, _, _), state in drawn.items() if state == "new"} == {frames["steps"][step]["layer"]}


def test_a_stage_can_be_picked(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.DecoderShapes(frames=FRAMES[widgets.DecoderShapes]))
        widget.get_by_role("button", name="Logits").click()
        assert FRAMES[widgets.DecoderShapes]["steps"][step_of(widget)]["name"] == "Logits"


def test_a_head_tells_whom_it_reads_by_pointer_and_by_key(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.HeadGroups(frames=FRAMES[widgets.HeadGroups], step=1))
        looked, picture = widget.locator(".le-looked"), widget.locator(".le-heads")
        widget.locator('.le-query-head[data-query="2"] .le-head-box').hover()
        assert looked.inner_text() == "Query head 2 reads KV head 1, and so does 3."
        marked = "nodes => nodes.map(node => node.dataset.query)"
        assert widget.locator(".le-reads[data-looked]").evaluate_all(marked) == ["2", "3"]
        picture.press("ArrowLeft")
        assert looked.inner_text() == "Query head 1 reads KV head 0, and so does 0."
        assert step_of(widget) == 1, "arrows inside the picture do not step"
        press(widget, "back")
        assert looked.inner_text().startswith("Point at a head"), "the pointer has left the picture"
        picture.press("ArrowRight")
        assert looked.inner_text() == "Query head 0 reads KV head 0, and no other does."
        widget.get_by_role("button", name="1 ").last.click()
        assert step_of(widget) == 2


def test_a_beam_tells_its_text_and_its_blocks_by_pointer_by_touch_and_by_key(browser: Browser, tmp_path: Path):
    frames = FRAMES[widgets.BeamTree]
    steps, at = frames["forwards"], 4

    def lit(kind: str) -> set[str]:
        return {node[kind] for node in dataset(widget, ".le-held[data-looked]")}

    def chosen() -> list[tuple[int, int]]:
        return sorted((int(node["step"]), int(node["row"])) for node in dataset(widget, ".le-tree .le-beam[data-looked]"))

    with quiet_page(browser, **{**PHONE, "viewport": {"width": 1000, "height": 900}}) as page:
        widget = show(page, tmp_path, widgets.BeamTree(frames=frames, step=at))
        looked, tree = widget.locator(".le-looked"), widget.locator(".le-tree")
        assert chosen() == way_back(steps, (at, 0)) and "the best beam so far" in looked.inner_text()
        for row, choose in ((2, "click"), (3, "tap")):
            getattr(widget.locator(f'.le-beam[data-step="{at}"][data-row="{row}"]'), choose)()
            way = way_back(steps, (at, row))
            assert chosen() == way
            found = "".join(nodes_of(steps[step])[own]["token"] for step, own in way).replace("␣", " ").strip()
            assert widget.locator(".le-found").inner_text() == found and "The king is dead," in looked.inner_text()
            blocks = steps[at]["beams"][row]["blocks"]
            assert f"Blocks {', '.join(map(str, blocks))}." in looked.inner_text() and lit("block") == set(map(str, blocks))
        tree.press("ArrowUp")
        assert chosen() == way_back(steps, (at, 2)) and step_of(widget) == at
        tree.press("ArrowRight")
        assert step_of(widget) == at + 1, "sideways arrows step"
        assert chosen() == way_back(steps, (at, 2)), "what was chosen stays chosen"
        tree.press("Escape")
        assert chosen() == way_back(steps, (at + 1, 0))
        widget.locator('.le-beam[data-state="closed"]').first.click()
        assert "closed: nothing continues it" in looked.inner_text()
        widget.locator('.le-beam[data-state="ended"]').first.click()
        assert "Final score, length penalty included" in looked.inner_text()


def test_a_search_without_blocks_is_drawn_without_tables(browser: Browser, tmp_path: Path):
    trace = le.Trace()
    le.beam_search(small_model(), text(5), num_beams=3, max_new_tokens=4, observer=trace)
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.BeamTree(frames=le.beam_frames(trace), step=2))
        assert widget.locator(".le-beam-blocks").count() == 0
        assert widget.locator('.le-tree .le-beam[data-step="2"]').count() == 3
        assert "prompt of 5 tokens" in widget.locator(".le-looked").inner_text()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("num_beams", [2, 12])
def test_a_long_search_shows_a_window_that_follows_the_step(num_beams: int, width: int, browser: Browser, tmp_path: Path):
    frames = beam_frames(num_beams=num_beams, max_new_tokens=36, block_size=4, eos_id=None)
    with quiet_page(browser, viewport={"width": width, "height": 800}) as page:
        widget = show(page, tmp_path, widgets.BeamTree(frames=frames))
        for step in (0, 1, 9, 20, len(frames["steps"]) - 1):
            widget.locator("input[type=range]").fill(str(step))
            assert step_of(widget) == step
            check_beams(widget, frames, step)
            assert_fits(page)
            inside = "(stage) => [...stage.querySelectorAll('svg')].every(svg => { const room = svg.getBoundingClientRect();"
            inside += (
                " return [...svg.querySelectorAll('rect, text')].every(n => n.getBoundingClientRect().right <= room.right + 1) })"
            )
            assert widget.locator(".le-stage").evaluate(inside), "nothing is drawn outside its picture"


def test_a_request_tells_its_life_by_pointer_by_touch_and_by_key(browser: Browser, tmp_path: Path):
    frames = le.schedule_frames(engine_trace())
    (run,) = frames["runs"]
    lost = {pair[0]: (index, pair[1]) for index, step in enumerate(run["steps"]) for pair in step["preempted"]}
    request, (step, tokens) = next(iter(lost.items()))
    last = len(frames["steps"]) - 1
    with quiet_page(browser, **{**PHONE, "viewport": {"width": 900, "height": 900}}) as page:
        widget = show(page, tmp_path, widgets.SchedulerTimeline(frames=frames, step=last))
        looked, picture = widget.locator(".le-looked"), widget.locator(".le-schedule")
        row = widget.locator(f'.le-row[data-request="{request}"]')
        row.hover()
        words = looked.inner_text()
        assert f"gives way in step {step + 1}, {tokens} tokens lost" in words
        assert f"with {run['requests'][request]['new_tokens']} new tokens (all it asked for)" in words
        widget.locator(".le-title").hover()
        assert looked.inner_text().startswith("Point at a request"), "the pointer has left the picture"
        row.tap()
        assert looked.inner_text() == words and widget.locator("select").input_value() == str(request + 1)
        picture.press("ArrowDown")
        assert looked.inner_text().startswith(f"Request {request + 1},") and step_of(widget) == last
        picture.press("ArrowLeft")
        assert step_of(widget) == last - 1, "sideways arrows step"
        for number, expected in enumerate(run["requests"]):
            widget.locator("select").select_option(label=str(number))
            said = looked.inner_text()
            assert said.startswith(f"Request {number},") and f"of {expected['prompt_len']} token" in said
            found = [pair[1] for own in run["steps"] for pair in own["admitted"] if pair[0] == number and pair[1]]
            assert said.count("found in the prefix cache") == len(found)
            assert ("(cancelled)" in said) == (expected["reason"] == "cancelled")
        press(widget, "reset")
        widget.locator("select").select_option(label=str(last_to_come(run)))
        assert "ends in" not in looked.inner_text(), "what is still to come is not told"


def last_to_come(run: dict) -> int:
    return max(range(len(run["requests"])), key=lambda request: run["requests"][request]["arrived"])


def test_forks_are_told_of_their_parents(browser: Browser, tmp_path: Path):
    frames = le.schedule_frames(engine_trace())
    (run,) = frames["runs"]
    ((child, parent),) = [(r["sequence"], r["parent"]) for r in run["requests"] if r["parent"] is not None]
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.SchedulerTimeline(frames=frames, step=len(frames["steps"]) - 1))
        widget.locator("select").select_option(label=str(child))
        assert f"a fork, prompt of request {parent}" in widget.locator(".le-looked").inner_text()
        assert f"parts from request {parent} in step" in widget.locator(".le-looked").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_sixty_four_requests_over_hundreds_of_steps_stay_readable(width: int, browser: Browser, tmp_path: Path):
    frames = le.schedule_frames(engine_trace(64, longest=40, num_blocks=40, max_batch=4))
    assert len(frames["steps"]) > 400 and len(frames["runs"][0]["requests"]) == 65
    with quiet_page(browser, viewport={"width": width, "height": 800}) as page:
        widget = show(page, tmp_path, widgets.SchedulerTimeline(frames=frames))
        for step in (0, 30, 200, 201, len(frames["steps"]) - 1):
            widget.locator("input[type=range]").fill(str(step))
            assert step_of(widget) == step
            check_timeline(widget, frames, step)
            assert_fits(page)
            boxes = [
                label.bounding_box()
                for label in widget.locator(".le-schedule .le-row").all()
                if label.get_attribute("visibility") != "hidden"
            ]
            for one, other in itertools.combinations(boxes, 2):
                apart = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
                assert apart or one["y"] + one["height"] <= other["y"] + 4 or other["y"] + other["height"] <= one["y"] + 4
            assert widget.locator(".le-schedule *").count() < 6_000


@pytest.mark.parametrize("how", ["mouse", "keyboard", "touch"])
def test_a_name_is_judged_at_once_and_each_case_keeps_its_verdict(how: str, browser: Browser, tmp_path: Path):
    frames = FRAMES[widgets.BugHunt]
    answer, replies = frames["steps"][1]["answer"], frames["steps"][1]["replies"]
    other = (answer + 1) % len(frames["names"])
    with quiet_page(browser, **(PHONE if how == "touch" else {})) as page:
        widget = show(page, tmp_path, widgets.BugHunt(frames=frames, step=1))
        names, reply = widget.locator("button.le-suspect"), widget.locator(".le-reply")
        method, arguments = {"mouse": ("click", ()), "touch": ("tap", ()), "keyboard": ("press", ("Enter",))}[how]
        assert names.nth(other).bounding_box()["height"] >= (44 if how == "touch" else 30)
        height = widget.bounding_box()["height"]
        for index, verdict in ((other, "wrong"), (answer, "right")):
            getattr(names.nth(index), method)(*arguments)
            assert reply.inner_text() == replies[index]
            assert names.nth(index).get_attribute("data-state") == verdict
            assert names.nth(index).get_attribute("aria-description") == verdict
        assert widget.bounding_box()["height"] == height, "nothing moves"
        assert step_of(widget) == 1
        press(widget, "forward")
        assert states(widget, "button.le-suspect") == {"untried": len(frames["names"])}
        press(widget, "back")
        assert states(widget, "button.le-suspect") == {"untried": len(frames["names"]) - 2, "right": 1, "wrong": 1}
        assert reply.inner_text() == replies[answer]


def test_a_rounded_number_is_told_by_pointer_and_by_key_and_choices_lead_to_their_step(browser: Browser, tmp_path: Path):
    frames = FRAMES[widgets.QuantisationError]
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, widgets.QuantisationError(frames=frames))
        matrix, numbers = widget.locator(".le-matrix"), frames["keys"]
        matrix.focus()
        cell = widget.locator(".le-cursor").evaluate("node => node.width.baseVal.value")
        first = widget.locator(".le-quant-groups").get_attribute("d")[1:].split("H")[0].split()
        x, y = (float(at) + cell * (index + 0.5) for at, index in zip(first, (5, 3)))
        matrix.locator("svg").hover(position={"x": x, "y": y})
        check_looked_at(widget, frames["steps"][0], numbers, 3, 5)
        matrix.press("ArrowDown")
        matrix.press("ArrowLeft")
        check_looked_at(widget, frames["steps"][0], numbers, 4, 4)
        assert step_of(widget) == 0, "arrows inside the matrix do not step"
        for choice in ("values", "one token", "2", "4"):
            field = {"values": "tensor", "one token": "axis", "2": "bits", "4": "group_size"}[choice]
            widget.locator(f'[data-field="{field}"] label').filter(has_text=choice).click()
        own = frames["steps"][step_of(widget)]
        assert (own["tensor"], own["axis"], own["bits"], own["group_size"]) == ("values", "token", 2, 4)


def test_widgets_on_one_page_do_not_disturb_each_other(browser: Browser, tmp_path: Path):
    fifth = widgets.RecomputeTriangle(frames=FRAMES[widgets.RecomputeTriangle], step=4)
    shown = [*(cls(frames=FRAMES[cls]) for cls in MAKERS), fifth]
    with quiet_page(browser) as page:
        found = show(page, tmp_path, *shown)
        names = found.evaluate_all("nodes => nodes.map(node => node.dataset.widget)")
        assert names == [widget.name for widget in shown]
        press(found.first, "forward")
        assert [step_of(widget) for widget in found.all()] == [1, *[0] * (len(MAKERS) - 1), 4]
        identifiers = page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
        assert len(identifiers) == len(set(identifiers))


def test_a_view_script_is_enough(browser: Browser, tmp_path: Path):
    widget = widgets.DecoderShapes(frames=FRAMES[widgets.DecoderShapes])
    view = f'<script type="application/vnd.jupyter.widget-view+json">{{"model_id": "{widget.model_id}"}}</script>'
    with quiet_page(browser) as page:
        assert step_of(show(page, tmp_path, widget, body=view)) == 0


def test_one_broken_widget_keeps_its_words_and_stops_no_other(browser: Browser, tmp_path: Path):
    broken, whole = (widgets.RecomputeTriangle(frames=FRAMES[widgets.RecomputeTriangle]) for _ in range(2))
    broken._esm = "export default { render() { throw new Error('broken on purpose'); } };"
    path = tmp_path / "page.html"
    path.write_text(page_of(broken, whole), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    expect(page.locator(WIDGET)).to_have_count(1)
    assert broken.summary in page.locator(".llama3-edu-words").inner_text()
    assert_steps(page.locator(WIDGET))
    page.close()


def test_without_scripts_the_words_stand_in_for_the_widget(browser: Browser, tmp_path: Path):
    widget = widgets.CacheGrowth(frames=FRAMES[widgets.CacheGrowth])
    path = tmp_path / "page.html"
    path.write_text(page_of(widget), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    words = page.locator(".llama3-edu-words")
    assert words.is_visible() and widget.summary in words.inner_text()
    context.close()
