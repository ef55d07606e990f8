"""The memory calculator in a real browser: its arithmetic is `llama3_edu.memory`, its form works by mouse, keyboard and touch."""

import itertools
from pathlib import Path

import pytest
from browser import assert_fits, quiet_page, step_of
from playwright.sync_api import Browser, Locator, Page, expect
from test_drawn import PHONE, show

import llama3_edu as le
from llama3_edu.config import PRESETS
from llama3_edu.sizes import CARDS
from llama3_edu.widgets import MemoryCalculator

FRAMES = le.calculator_frames()
NAMES = ("model", "seq_len", "batch", "weight_bits", "kv_bits", "card")
GRID = [
    (model, seq_len, batch, *bits, (model + seq_len + batch) % len(CARDS))
    for model, seq_len, batch, bits in itertools.product(
        range(len(PRESETS)), (1, 7, 8191, 131_072), (1, 3, 32, 1000), ((16, 16), (32, 2), (8, 4), (4, 8))
    )
]

FILL_AND_READ = """(root, [names, grid]) => {
  const set = (name, value) => {
    const control = root.querySelector(`[data-field="${name}"]`);
    if (control.matches("input, select")) {
      control.value = value;
      control.dispatchEvent(new Event(control.matches("select") ? "change" : "input", { bubbles: true }));
    } else {
      [...control.querySelectorAll("label")].find((label) => label.textContent.trim() === String(value)).click();
    }
  };
  const bytes = (part) => root.querySelector(`tr[data-part="${part}"]`).dataset.bytes;
  const fact = (name) => root.querySelector(`[data-fact="${name}"]`).dataset;
  return grid.map((values) => {
    values.forEach((value, index) => set(names[index], value));
    return [...["weights", "kv", "total", "card", "left"].map(bytes), fact("batch").rows, fact("context").tokens,
            fact("token").bytes, fact("early").tenths, root.querySelector(".le-summary").textContent];
  });
}"""


def opened(page: Page, folder: Path, *, step: int = 0, **options) -> Locator:
    return show(page, folder, MemoryCalculator(frames=FRAMES, step=step), **options)


def bytes_of(widget: Locator, part: str) -> int:
    return int(widget.locator(f'tr[data-part="{part}"]').get_attribute("data-bytes"))


def values_of(widget: Locator) -> dict[str, int]:
    """What the form says now."""
    read = {name: int(widget.locator(f'[data-field="{name}"]').input_value()) for name in ("model", "seq_len", "batch", "card")}
    checked = '[data-field="{}"] label:has(:checked)'
    bits = {name: int(widget.locator(checked.format(name)).inner_text()) for name in ("weight_bits", "kv_bits")}
    return {**read, **bits}


def test_the_page_computes_what_the_package_computes(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path)
        answers = widget.evaluate(FILL_AND_READ, [NAMES, GRID])
    presets = list(PRESETS.values())
    assert len(answers) == len(GRID) > 400
    for values, (*numbers, summary) in zip(GRID, answers):
        model, seq_len, batch, weight_bits, kv_bits, card = values
        config, memory_bytes = presets[model], CARDS[card].memory_bytes
        weights, kv = le.weight_bytes(config, bits=weight_bits), le.kv_bytes(config, seq_len=seq_len, batch=batch, bits=kv_bits)
        found = dict(zip(("weights", "kv", "total", "card", "left", "rows", "longest", "token", "tenths"), map(int, numbers)))
        rows = le.max_batch(config, seq_len=seq_len, memory_bytes=memory_bytes, bits=kv_bits, bits_of_weights=weight_bits)
        assert found["weights"] == weights and found["kv"] == kv and found["rows"] == rows, values
        assert (found["total"], found["card"], found["left"]) == (weights + kv, memory_bytes, memory_bytes - weights - kv)
        assert found["token"] == le.kv_bytes_per_token(config, bits=kv_bits)
        room = max(0, memory_bytes - weights)
        assert le.kv_bytes(config, seq_len=found["longest"], batch=batch, bits=kv_bits) <= room
        assert le.kv_bytes(config, seq_len=found["longest"] + 1, batch=batch, bits=kv_bits) > room
        row = le.kv_bytes(config, seq_len=seq_len, bits=kv_bits)
        assert found["tenths"] == batch * ((row + 50_000_000) // 100_000_000), "one row to a tenth of a GB, then times the batch"
        assert f"{weights:,} bytes" in summary and f"{kv:,} bytes" in summary
        assert ("Both fit" in summary) == (weights + kv <= memory_bytes)


@pytest.mark.parametrize("step", range(len(FRAMES["steps"])))
def test_the_page_says_of_a_question_what_python_said(step: int, browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, step=step)
        assert step_of(widget) == step
        assert widget.locator(".le-summary").inner_text() == FRAMES["steps"][step]["summary"]
        assert values_of(widget) == {name: FRAMES["steps"][step][name] for name in NAMES}
        assert widget.locator('[aria-pressed="true"]').inner_text() == FRAMES["steps"][step]["name"]


def test_rounding_before_multiplying_is_shown(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, step=1)
        assert widget.locator('[data-fact="early"]').inner_text().splitlines()[1:] == ["35.2 GB", "1.1 GB × 32; exact: 34.36 GB"]


def test_the_bar_is_as_long_as_the_bytes(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, step=1)
        wide = {part: float(widget.locator(f'g[data-part="{part}"]').get_attribute("data-width")) for part in ("weights", "kv")}
        drawn = {part: widget.locator(f'g[data-part="{part}"] rect').first.bounding_box()["width"] for part in wide}
        whole = widget.locator(".le-load svg").bounding_box()["width"]
        for part, width in drawn.items():
            assert width == pytest.approx(whole * bytes_of(widget, part) / bytes_of(widget, "card"), abs=1)
            assert width == pytest.approx(wide[part], abs=1)
        widget.locator('[data-field="card"]').select_option("0")
        assert widget.locator(".le-over").bounding_box()["width"] == pytest.approx(
            whole * -bytes_of(widget, "left") / bytes_of(widget, "total"), abs=1
        )
        assert widget.locator(".le-reading").inner_text().startswith("Does not fit")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_mouse_and_keyboard_fill_the_form_in_light_and_dark(theme: str, browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path, theme=theme)
        assert widget.get_attribute("data-scheme") == theme
        widget.get_by_role("button", name="a batch of 32").click()
        assert step_of(widget) == 1 and values_of(widget)["batch"] == 32
        widget.get_by_label("Tokens per row", exact=True).fill("1000")
        assert bytes_of(widget, "kv") == 32 * 1000 * 131_072
        assert widget.locator('[aria-pressed="true"]').count() == 0, "the form says something else now"
        widget.get_by_role("button", name="a batch of 32").click()
        assert values_of(widget)["seq_len"] == 8191, "the same question again fills the form again"
        page.keyboard.press("Tab")  # to the next question
        page.keyboard.press("Enter")
        assert step_of(widget) == 2
        slider = widget.locator('[data-slider="batch"]')
        slider.focus()
        slider.press("ArrowRight")
        assert values_of(widget)["batch"] == 8
        bits = widget.locator('[data-field="kv_bits"] :checked')
        bits.press("ArrowRight")
        assert values_of(widget)["kv_bits"] == 8
        assert widget.locator(".le-summary").get_attribute("aria-live") == "polite"
        assert widget.locator(".le-controls").count() == 0, "a form has no control bar"


@pytest.mark.parametrize("typed", ["", "0", "1.5", "-3", "99999999999"])
def test_an_impossible_number_is_refused_in_words_and_changes_nothing(typed: str, browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path)
        before = bytes_of(widget, "kv")
        field = widget.get_by_label("Rows in the batch", exact=True)
        field.fill(typed)
        expect(field).to_have_attribute("aria-invalid", "true")
        assert widget.get_by_role("alert").filter(has_text="a whole number from 1 to 1,024").is_visible()
        assert bytes_of(widget, "kv") == before
        field.fill("2")
        assert field.get_attribute("aria-invalid") is None and bytes_of(widget, "kv") == 2 * before


def test_a_refused_number_goes_when_a_question_is_asked_again(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = opened(page, tmp_path)
        field = widget.get_by_label("Rows in the batch", exact=True)
        field.fill("0")
        widget.get_by_role("button", name="one long chat").click()
        assert field.input_value() == "1" and field.get_attribute("aria-invalid") is None


def test_a_phone_needs_no_sideways_scroll_and_touch_works(browser: Browser, tmp_path: Path):
    with quiet_page(browser, **PHONE) as page:
        widget = opened(page, tmp_path)
        assert_fits(page)
        widget.locator('[data-field="model"]').select_option(label="Llama 3.1 405B")
        widget.get_by_label("Tokens per row", exact=True).fill("1048576")
        widget.get_by_label("Rows in the batch", exact=True).fill("1024")
        assert_fits(page)
        parts = "[...stage.querySelectorAll('table, dl, svg, form')]"
        inside = f"stage => {parts}.every(node => node.scrollWidth <= stage.clientWidth)"
        assert widget.locator(".le-stage").evaluate(inside), "the longest numbers have room"
        widget.get_by_role("button", name="70B, fewer bits").tap()
        assert step_of(widget) == 3
        widget.locator('[data-field="weight_bits"] label').last.tap()
        assert values_of(widget)["weight_bits"] == 4
        assert_fits(page)
        for box in (control.bounding_box() for control in widget.locator("button, select, input[type=number]").all()):
            assert box["height"] >= 44
