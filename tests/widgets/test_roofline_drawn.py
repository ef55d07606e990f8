"""The roofline in a real browser: its arithmetic is `llama3_edu.roofline`, its points stand where the costs say."""

import itertools
import math
from pathlib import Path

import pytest
from browser import assert_fits, quiet_page, step_of
from playwright.sync_api import Browser, Locator, Page
from test_drawn import PHONE, show
from widget_pages import CONFIG

import llama3_edu as le
from llama3_edu.config import PRESETS
from llama3_edu.roofline import MACHINES
from llama3_edu.sizes import model_name
from llama3_edu.trace import Frames
from llama3_edu.widgets import Roofline

FRAMES = le.roofline_frames()
NAMES = ("model", "machine", "batch_power", "context_power")
GRID = [
    (model, (model + batch + context) % len(MACHINES), batch, context)
    for model, batch, context in itertools.product(range(len(PRESETS)), range(11), (0, 1, 7, 13, 17))
]
HERE = le.Machine(name="here", flops_per_second=10**11, bytes_per_second=4 * 10**10, memory_bytes=2**34)
COSTS = {f"decode, {batch} rows": le.forward_cost(CONFIG, kv_len=32, batch=batch, bits=32) for batch in (2, 64)}
MEASURED = [le.MeasuredPass(label=name, cost=cost, seconds=3 * cost.seconds(HERE)) for name, cost in COSTS.items()]
AT_HOME = le.roofline_frames({"small": CONFIG}, MACHINES.values(), here=HERE, measured=MEASURED, bits=32)

FILL_AND_READ = """(root, [names, grid]) => grid.map((values) => {
  values.forEach((value, index) => {
    const control = root.querySelector(`[data-field="${names[index]}"]`);
    control.value = value;
    control.dispatchEvent(new Event(control.matches("select") ? "change" : "input", { bubbles: true }));
  });
  const points = [...root.querySelectorAll("[data-point]")].map(({ dataset }) => [dataset.point, { ...dataset }]);
  const cache = root.querySelector(".le-cache-line").dataset;
  return [Object.fromEntries(points), root.querySelector(".le-summary").textContent, cache.above, cache.below];
})"""


def opened(page: Page, folder: Path, *, frames: Frames = FRAMES, step: int = 0, **options) -> Locator:
    return show(page, folder, Roofline(frames=frames, step=step), **options)


def value_of(widget: Locator, field: str) -> int:
    return int(widget.locator(f'[data-field="{field}"]').input_value())


def point(widget: Locator, name: str) -> tuple[float, float]:
    found = widget.locator(f'[data-point="{name}"]')
    return float(found.get_attribute("data-x")), float(found.get_attribute("data-y"))


@pytest.mark.parametrize(("bits", "bits_of_weights"), [(16, 16), (4, 8)])
def test_the_page_computes_what_the_package_computes(bits: int, bits_of_weights: int, browser: Browser, tmp_path: Path):
    kept = {"bits": bits, "bits_of_weights": bits_of_weights}
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, frames=le.roofline_frames(**kept))
        answers = widget.evaluate(FILL_AND_READ, [NAMES, GRID])
    models, machines = list(PRESETS.values()), list(MACHINES.values())
    assert len(answers) == len(GRID) > 300
    for (model, machine, batch, context), (points, summary, above, below) in zip(GRID, answers):
        config, size = models[model], {"batch": 2**batch, "kv_len": 2**context, **kept}
        costs = {
            "decode": le.forward_cost(config, **size),
            "prefill": le.forward_cost(config, new_len=2**context, **size),
            "alone": le.forward_cost(config, **{**size, "kv_len": 1}),
        }
        for name, cost in costs.items():
            assert (int(points[name]["flops"]), int(points[name]["bytes"])) == (cost.flops, cost.nbytes), (name, size)
            assert points[name]["limit"] == cost.limit(machines[machine])
        assert (int(above), int(below)) == (costs["decode"].attention_flops, costs["decode"].kv_read_bytes)
        size = {"batch": 2**batch, "context": 2**context}
        assert summary == le.roofline_words(config, machines[machine], name=model_name(config), **size, **kept)


@pytest.mark.parametrize("step", range(len(FRAMES["steps"])))
def test_the_page_says_of_a_question_what_python_said(step: int, browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, step=step)
        assert step_of(widget) == step
        assert widget.locator(".le-summary").inner_text() == FRAMES["steps"][step]["summary"]
        assert {name: value_of(widget, name) for name in NAMES} == {name: FRAMES["steps"][step][name] for name in NAMES}
        assert widget.locator('[aria-pressed="true"]').inner_text() == FRAMES["steps"][step]["name"]


def test_points_stand_where_their_costs_say_and_the_roof_turns_at_the_ridge(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, step=2)
        ends = "path => [path.getPointAtLength(0), path.getPointAtLength(path.getTotalLength())].map(({x, y}) => [x, y])"
        (left, _), (right, top) = widget.locator(".le-roof").evaluate(ends)
        machine, config = MACHINES["H100 80 GB"], PRESETS["llama3-8b"]
        low, high = FRAMES["axes"]["intensity"]

        def across(intensity: float) -> float:
            return left + (right - left) * math.log(intensity / low) / math.log(high / low)

        for name, new_len in (("decode", 1), ("prefill", 8192)):
            cost = le.forward_cost(config, batch=64, kv_len=8192, new_len=new_len)
            assert point(widget, name)[0] == pytest.approx(across(cost.arithmetic_intensity), abs=0.1)
        assert point(widget, "prefill")[1] == pytest.approx(top, abs=0.1), "computing is the limit: on the flat part"
        assert point(widget, "decode")[1] > top, "memory is the limit: below it"
        ridge = widget.locator(".le-roof").get_attribute("data-ridge")
        assert float(ridge) == pytest.approx(machine.ridge)
        assert float(widget.locator(".le-ridge").get_attribute("x1")) == pytest.approx(across(machine.ridge), abs=0.1)


def test_a_long_context_pulls_a_batch_back_to_the_left_and_one_row_not(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, step=2)
        slider = widget.locator('[data-field="context_power"]')
        across = []
        for power in (3, 10, 17):
            slider.fill(str(power))
            across.append(point(widget, "decode")[0])
        assert across == sorted(across, reverse=True) and across[0] - across[-1] > 50
        assert widget.locator(".le-pull").count() == 1
        cache_alone = float(widget.locator(".le-cache-line").get_attribute("x1"))
        assert abs(across[-1] - cache_alone) < 12 < point(widget, "alone")[0] - cache_alone
        centres = "nodes => nodes.map(node => Number(node.getAttribute('cx')))"
        dots = widget.locator(".le-roofline .le-trail").evaluate_all(centres)
        assert len(dots) == 11 and dots == sorted(dots) and dots[-1] < cache_alone + 12, (
            "no batch gets past what the cache allows"
        )


def test_measured_passes_are_drawn_under_the_roof_of_their_machine_alone(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, frames=AT_HOME)
        found = widget.locator("[data-measured]")
        names = found.evaluate_all("nodes => nodes.map(node => node.dataset.measured)")
        assert names == [one.label for one in MEASURED]
        left, right = (float(found.nth(index).get_attribute("data-x")) for index in (0, 1))
        assert left < right
        assert widget.locator(".le-legend").inner_text().count("33 % of the roof") == 2
        assert AT_HOME["measured"][0]["words"] in widget.locator(".le-summary").inner_text()
        widget.locator('[data-field="machine"]').select_option("1")
        assert found.count() == 0 and "Measured" not in widget.locator(".le-summary").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_mouse_and_keyboard_fill_the_form_in_light_and_dark(theme: str, browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, theme=theme)
        assert widget.get_attribute("data-scheme") == theme
        widget.get_by_role("button", name="64 long chats").click()
        assert step_of(widget) == 2 and value_of(widget, "context_power") == 13
        batch = widget.get_by_label("Rows in the batch")
        batch.focus()
        batch.press("ArrowRight")
        assert value_of(widget, "batch_power") == 7 and batch.get_attribute("aria-valuetext") == "128"
        assert widget.locator('[aria-pressed="true"]').count() == 0, "the form says something else now"
        assert "do not fit there" in widget.locator(".le-note").inner_text()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("End")
        assert value_of(widget, "machine") == len(MACHINES) - 1
        assert widget.locator(".le-controls").count() == 0, "a form has no control bar"
        widget.get_by_role("button", name="64 long chats").click()
        assert value_of(widget, "batch_power") == 6, "the same question again fills the form again"


def test_a_phone_needs_no_sideways_scroll_and_touch_works(browser: Browser, tmp_path: Path):
    with quiet_page(browser, **PHONE) as page:
        widget = opened(page, tmp_path)
        assert_fits(page)
        widget.get_by_role("button", name="a small card").tap()
        assert step_of(widget) == 3
        for field, value in (("context_power", "17"), ("batch_power", "10")):
            widget.locator(f'[data-field="{field}"]').fill(value)
        assert_fits(page)
        parts = "[...stage.querySelectorAll('table, svg, form')]"
        assert widget.locator(".le-stage").evaluate(f"stage => {parts}.every(node => node.scrollWidth <= stage.clientWidth)")
        texts = "nodes => nodes.map(node => parseFloat(getComputedStyle(node).fontSize))"
        assert min(widget.locator(".le-roofline text").evaluate_all(texts)) >= 12
        for box in (control.bounding_box() for control in widget.locator("button, select, input").all()):
            assert box["height"] >= 44
