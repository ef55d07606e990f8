"""Every widget in a real browser, with no kernel: what is drawn is what the frames say, by mouse, keyboard and touch."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from browser import WIDGET, assert_fits, assert_steps, press, quiet_page, step_of
from playwright.sync_api import Browser, Locator, Page, expect
from widget_pages import MAKERS, mask_frames, page_of

import llama3_edu as le
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


def line_ends(widget: Locator, selector: str) -> tuple[float, float]:
    """Where a drawn path begins and ends, across."""
    ends = "path => [path.getPointAtLength(0).x, path.getPointAtLength(path.getTotalLength()).x]"
    return tuple(widget.locator(selector).evaluate(ends))


CHECKS = {
    widgets.RecomputeTriangle: check_recompute,
    widgets.CausalMask: check_mask,
    widgets.CacheGrowth: check_growth,
    widgets.BugHunt: check_bugs,
    widgets.DecoderShapes: check_shapes,
    widgets.HeadGroups: check_groups,
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
