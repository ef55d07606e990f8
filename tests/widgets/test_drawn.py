"""Every widget in a real browser, with no kernel: what is drawn is what the frames say, by mouse, keyboard and touch."""

from collections import Counter
from pathlib import Path

import pytest
from browser import WIDGET, assert_fits, assert_steps, press, quiet_page, step_of
from playwright.sync_api import Browser, Locator, Page, expect
from widget_pages import MAKERS, page_of

from llama3_edu import widgets
from llama3_edu.trace import Frames

FRAMES = {cls: make() for cls, make in MAKERS.items()}
FORMS = {widgets.MemoryCalculator}
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
    n, own = len(frames["tokens"]), frames["steps"][step]
    for layer in range(frames["n_layers"]):
        widget.locator(".le-segmented label").nth(layer).click()
        changes = own["layers"][layer]
        cells = state_map(widget, ".le-matrix .le-score", "query", "key")
        for query in range(n):
            for key in range(n):
                state = "masked" if key > query else ("stays", "changed")[int(changes["scores"][query][key])]
                assert cells[str(query), str(key)] == state
        assert widget.locator(".le-segmented input:checked").get_attribute("value") == str(layer)
        strips = state_map(widget, ".le-matrix .le-strip", "kind", "position")
        for kind in ("q", "k", "v", "out", "logits"):
            flags = own["logits"] if kind == "logits" else changes[kind]
            drawn = [strips[kind, str(position)] for position in range(n)]
            assert drawn == [("stays", "changed")[int(flag)] for flag in flags]


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


CHECKS = {
    widgets.RecomputeTriangle: check_recompute,
    widgets.CausalMask: check_mask,
    widgets.CacheGrowth: check_growth,
    widgets.DecoderShapes: check_shapes,
    widgets.HeadGroups: check_groups,
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
        page.clock.run_for(100_000)
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
        assert f"weight {frames['weights'][0][1][5][1] / 1000:.3f} (head 2)" in looked.inner_text()
        widget.locator('.le-matrix [data-query="1"][data-key="5"]').hover()
        assert "masked" in looked.inner_text()
        widget.locator(".le-matrix").press("ArrowDown")
        assert looked.inner_text().startswith("Query 2")
        assert step_of(widget) == 3, "arrows inside the matrix do not step"


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
