"""What a page of widgets stands: runs of any length, frames that change, two views of one widget, many widgets, print."""

from pathlib import Path

import pytest
import widget_states
from browser import WIDGET, assert_fits, press, quiet_page, step_of
from playwright.sync_api import Browser, Locator, Page, expect
from widget_pages import MAKERS, long_frames, page_of

import llama3_edu as le
from llama3_edu import widgets
from llama3_edu.widgets.base import source

FRAMES = {cls: make() for cls, make in MAKERS.items()}
MOST_NODES = 12_000
"""Elements a widget may draw, however long the run is that it shows."""

every_widget = pytest.mark.parametrize("cls", list(MAKERS), ids=lambda cls: cls.name)


def show(page: Page, folder: Path, *shown: widgets.FrameWidget, **options) -> Locator:
    return show_html(page, folder, page_of(*shown, **options))


def show_html(page: Page, folder: Path, html: str) -> Locator:
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    page.goto(path.as_uri())
    return page.locator(WIDGET)


@pytest.mark.slow
@every_widget
def test_ten_thousand_steps_are_drawn_and_stepped(
    cls: type[widgets.FrameWidget], browser: Browser, tmp_path: Path, unchecked: None
):
    frames = long_frames(cls, 10_000)
    widget = cls(frames=frames)
    with quiet_page(browser) as page:
        drawn = show(page, tmp_path, widget)
        expect(drawn).to_have_attribute("data-step", "0")
        assert drawn.locator(".le-thinned").inner_text() == f"{cls.most_steps:,} of {len(frames['steps']):,} steps are shown."
        assert drawn.locator("*").count() <= MOST_NODES
        assert_fits(page)
        if drawn.locator(".le-controls").count():
            last = len(widget.frames["steps"]) - 1
            assert int(drawn.locator('.le-controls input[type="range"]').get_attribute("max")) <= last
            for action, least in (("forward", 1), ("forward", 2)):
                press(drawn, action)
                assert step_of(drawn) >= least
            drawn.focus()
            drawn.press("End")
            assert step_of(drawn) == last
            assert drawn.locator(".le-summary").inner_text() == widget.frames["steps"][last]["summary"]
            drawn.press("Home")
            assert step_of(drawn) == 0
        assert drawn.locator("*").count() <= MOST_NODES, "nothing heaps up from step to step"


def test_a_widget_writes_sizes_as_python_does(browser: Browser):
    sizes = [0, 1, 1023, *(int(factor * 2**power) for power in range(10, 60) for factor in (1, 1.3, 1.9997, 1.9999999))]
    with quiet_page(browser) as page:
        written = page.evaluate(f"sizes => {{ {source('shared.js')}; return sizes.map(formatBytes); }}", sizes)
    assert written == [le.format_bytes(size) for size in sizes]


LIVE = """async ([script, style, state]) => {
  const sheet = document.createElement("style");
  sheet.textContent = style;
  document.head.append(sheet);
  const { default: widget } = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  const listeners = {};
  window.model = {
    get: (name) => state[name],
    set(name, value) {
      state[name] = value;
      (listeners[`change:${name}`] || []).forEach((listener) => listener());
    },
    on: (name, listener) => (listeners[name] ||= []).push(listener),
    off: (name, listener) => { listeners[name] = listeners[name].filter((other) => other !== listener); },
    save_changes() {},
    listening: () => Object.values(listeners).flat().length,
  };
  window.leave = [0, 1].map(() => {
    const el = document.createElement("div");
    document.body.append(el);
    return widget.render({ model: window.model, el });
  });
}"""


def live(page: Page, folder: Path, cls: type[widgets.FrameWidget]) -> Locator:
    """Draw one widget twice on a page whose script plays the part of the kernel."""
    path = folder / "live.html"
    path.write_text("<!doctype html><html><head><meta charset=utf-8><link rel=icon href='data:,'></head><body></body></html>")
    page.goto(path.as_uri())
    widget = cls(frames=FRAMES[cls])
    page.evaluate(LIVE, [cls._esm, cls._css, {"frames": widget.frames, "step": 0, "heading": widget.heading}])
    return page.locator(WIDGET)


def told(widget: Locator) -> str:
    return widget.locator(".le-summary").inner_text()


@every_widget
def test_two_views_of_one_widget_stay_in_step(cls: type[widgets.FrameWidget], browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        one, other = live(page, tmp_path, cls).all()
        if one.locator(".le-controls").count():
            press(one, "forward")
            assert step_of(one) == step_of(other) > 0
            other.focus()
            other.press("End")
        else:
            page.evaluate("model.set('step', 1)")
        assert step_of(one) == step_of(other) > 0
        assert told(one) == told(other)


@every_widget
def test_frames_that_are_replaced_are_drawn(cls: type[widgets.FrameWidget], browser: Browser, tmp_path: Path):
    steps = FRAMES[cls]["steps"]
    fewer = {**FRAMES[cls], "steps": steps[:2], "note": "2 of 9 steps are shown."}
    with quiet_page(browser) as page:
        one, other = live(page, tmp_path, cls).all()
        page.evaluate(f"model.set('step', {len(steps) - 1})")
        page.evaluate("frames => model.set('frames', frames)", fewer)
        for widget in (one, other):
            assert step_of(widget) == 1, "the step stays inside"
            assert widget.locator(".le-thinned").inner_text() == fewer["note"]
        page.evaluate("frames => { model.set('step', 0); model.set('frames', frames); }", FRAMES[cls])
        for widget in (one, other):
            assert step_of(widget) == 0 and not widget.locator(".le-thinned").is_visible()
            if widget.locator(".le-controls").count():
                assert told(widget) == steps[0]["summary"]
                assert widget.locator(".le-stage > *").count() > 0
        page.evaluate("leave.forEach((leave) => leave())")
        assert page.evaluate("model.listening()") == 0, "a view that is closed listens no more"


def test_a_widget_shown_twice_on_a_static_page_is_one(browser: Browser, tmp_path: Path):
    widget = widgets.HeadGroups(frames=FRAMES[widgets.HeadGroups])
    words = widget._repr_mimebundle_()[0]["text/html"]
    with quiet_page(browser) as page:
        found = show(page, tmp_path, widget, body=words + words)
        expect(found).to_have_count(2)
        press(found.first, "forward")
        assert step_of(found.first) == step_of(found.last) == 1


IDLE = "window.requestIdleCallback = (callback) => { (window.waiting ||= []).push(callback); };"
"""The page is never idle, unless the test says so."""


def many(count: int) -> list[widgets.FrameWidget]:
    return [widgets.DecoderShapes(frames=FRAMES[widgets.DecoderShapes]) for _ in range(count)]


def test_what_is_seen_is_drawn_first_then_the_nearest(browser: Browser, tmp_path: Path):
    shown = many(5)
    with quiet_page(browser, viewport={"width": 1000, "height": 500}) as page:
        page.add_init_script(IDLE)
        body = "".join(f'<div style="min-height: 1500px">{widget._repr_mimebundle_()[0]["text/html"]}</div>' for widget in shown)
        found = show(page, tmp_path, *shown, body=body)
        expect(found).to_have_count(1)
        words = page.locator(".llama3-edu-words")
        assert words.count() == 4 and all(place.is_visible() for place in words.all()), "words stand in for the others"
        assert step_of(found.first) == 0
        press(found.first, "forward")
        assert step_of(found.first) == 1, "it answers before the others are there"
        page.evaluate("scrollTo(0, 1500 * 3)")
        page.wait_for_function("window.waiting.length === 1")
        page.evaluate("waiting.pop()()")
        expect(found).to_have_count(2)
        box = found.last.bounding_box()
        assert 0 <= box["y"] < 500, "the one that has come into sight is next"


def test_idle_pages_draw_all_and_print_waits_for_none(browser: Browser, tmp_path: Path):
    with quiet_page(browser, viewport={"width": 1000, "height": 300}) as page:
        found = show(page, tmp_path, *many(4))
        expect(found).to_have_count(4)
        page.add_init_script(IDLE)
        found = show(page, tmp_path, *many(4))
        expect(found).to_have_count(1)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        expect(found).to_have_count(4)
        expect(page.locator(".llama3-edu-words")).to_have_count(0)


def test_states_written_small_draw_the_same(browser: Browser, tmp_path: Path):
    shown = [cls(frames=FRAMES[cls]) for cls in MAKERS]
    whole = page_of(*shown)
    small = widget_states.smaller_page(whole)
    assert widget_states.smaller_page(small) == small, "written small twice is written small once"
    assert widget_states.smaller_page("<p>no widgets</p>") == "<p>no widgets</p>"
    assert small.count("function frameWidget(") == 1, "what all share is written once"
    assert small.count("export default { render") == len(shown), "of all widgets of the kernel those of the page alone"
    drawn = []
    with quiet_page(browser) as page:
        for html in (whole, small):
            found = show_html(page, tmp_path, html)
            expect(found).to_have_count(len(shown))
            drawn.append(
                found.evaluate_all("nodes => nodes.map(node => [node.dataset.widget, node.offsetHeight, node.innerText])")
            )
    assert drawn[0] == drawn[1]
