"""The memory monitor as a context manager, in a kernel, and in a page that hears from it or stops hearing from it."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
import traitlets
from browser import assert_fits, quiet_page, step_of
from IPython.core.events import EventManager
from ipywidgets.embed import embed_data
from nbclient import NotebookClient
from playwright.sync_api import Browser, Locator, Page, expect
from test_drawn import PHONE, show
from widget_pages import CONFIG, memory_frames, page_of, small_model

import llama3_edu as le
from llama3_edu.memory_use import MemoryReading, MemorySample
from llama3_edu.trace import Frames
from llama3_edu.widgets import FrameWidget, MemoryMonitor, memory_monitor

FRAMES = memory_frames()
GIB = 2**30


def reader(used: int = 10**6) -> Callable[[torch.device], MemoryReading]:
    return lambda device: MemoryReading(used=used)


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def on_a_card() -> Frames:
    """A recording with an allocator and a card, and more samples taken than shown."""
    sizes = [(0, 0), (2, 1), (3, 2), (3, 1)]
    same = {"weights": 15 * GIB, "reserved": 19 * GIB}
    samples = [
        MemorySample(seconds=index / 2, kv=kv * GIB, rest=rest * GIB, card=(20 + index) * GIB, **same)
        for index, (kv, rest) in enumerate(sizes)
    ]
    return {**le.memory_frames(samples, taken=1800, missed=2), "total": 24 * GIB}


def test_what_runs_inside_is_recorded_and_the_end_ends_it():
    model, cache = small_model(), le.GrowingCache(CONFIG)
    with MemoryMonitor(model=model, caches=[cache], hz=200) as monitor:
        assert monitor.live
        le.generate(model, torch.zeros(1, 4, dtype=torch.long), max_new_tokens=5, cache=cache)
        until(lambda: monitor.num_steps > 2)
    assert not monitor.live and not monitor._recorder.running
    last = monitor.frames["steps"][-1]
    assert (last["weights"], last["kv"]) == (le.weight_bytes(CONFIG, bits=32), cache.nbytes) and cache.nbytes > 0
    assert monitor.step == monitor.num_steps - 1 and monitor.summary == last["summary"]


def test_an_exception_ends_it_and_comes_out():
    monitor = MemoryMonitor(read=reader(), hz=100)
    with pytest.raises(ZeroDivisionError), monitor:
        1 / 0
    assert not monitor.live and not monitor._recorder.running
    with monitor:
        pass
    assert not monitor.live and monitor.num_steps >= 2, "it can be used again"


def test_monitors_inside_each_other_record_on_their_own():
    with MemoryMonitor(read=reader(1), hz=100) as outer:
        with MemoryMonitor(read=reader(2), hz=100) as inner:
            until(lambda: inner.num_steps > 2)
        assert outer.live and not inner.live
        until(lambda: outer.num_steps > 2)
        with pytest.raises(RuntimeError, match="recording already"):
            outer.start()
    assert {step["rest"] for step in outer.frames["steps"]} == {1} and {step["rest"] for step in inner.frames["steps"]} == {2}


def test_what_is_made_inside_can_be_watched():
    with MemoryMonitor(device="cpu", hz=100) as monitor:
        cache = le.ContiguousCache(CONFIG, max_seq_len=16)
        monitor.watch(cache)
    assert monitor.frames["steps"][0]["kv"] == 0 and monitor.frames["steps"][-1]["kv"] == cache.nbytes


def test_a_page_that_cannot_be_told_does_not_stop_the_recording(monkeypatch: pytest.MonkeyPatch):
    monitor = MemoryMonitor(read=reader(), hz=300)
    with monitor:
        with monkeypatch.context() as patched:
            patched.setattr(type(monitor), "hold_sync", lambda self: (_ for _ in ()).throw(OSError("the comm is closed")))
            until(lambda: monitor._deaf)
            before = monitor.recording()["taken"]
            until(lambda: monitor.recording()["taken"] > before + 2)
    assert monitor.frames["taken"] > before and not monitor.live


def test_a_recording_can_be_kept_and_replayed(tmp_path: Path):
    with MemoryMonitor(read=reader(), hz=100) as monitor:
        until(lambda: monitor.num_steps > 3)
    monitor.save(tmp_path / "run.json")
    replay = MemoryMonitor.load(tmp_path / "run.json")
    assert replay.frames == monitor.frames == replay.recording() == MemoryMonitor(frames=monitor.recording()).frames
    assert repr(replay) == f"MemoryMonitor(steps={monitor.num_steps})" and replay.step == 0 and not replay.live
    for use in (replay.start, replay.watch, replay.__enter__):
        with pytest.raises(RuntimeError, match="replays a recording; MemoryMonitor"):
            use()
    (tmp_path / "other.json").write_text('{"steps": []}')
    with pytest.raises(ValueError, match=r"frames\['steps'\] should have at least 1 items"):
        MemoryMonitor.load(tmp_path / "other.json")


def test_a_recording_and_something_to_watch_are_not_given_together():
    with pytest.raises(ValueError, match="replays frames or watches a model and caches; it was given both"):
        MemoryMonitor(frames=FRAMES, model=small_model())


def test_a_notebook_is_given_the_same_words_whatever_was_recorded():
    monitor = MemoryMonitor(read=reader(), hz=100)
    before = monitor._repr_mimebundle_()[0]
    with monitor:
        until(lambda: monitor.num_steps > 2)
    after = monitor._repr_mimebundle_()[0]
    assert before == after and repr(monitor) == after["text/plain"] == "MemoryMonitor()"
    assert not re.search(r"\d", re.sub(r"<[^>]*>", "", after["text/html"])), "no figure of this run or this machine"


def test_many_samples_stay_few_frames():
    frames = le.memory_frames([MemorySample(seconds=index / 8, weights=1, kv=index, rest=1) for index in range(600)])
    assert len(json.dumps(frames)) < 200_000
    monitor = MemoryMonitor(read=reader(), hz=100)
    monitor._recorder._most = 8
    with monitor:
        until(lambda: monitor.recording()["taken"] > 20)
    assert monitor.num_steps <= 8 < monitor.frames["taken"]


CELLS = """
import torch, time, llama3_edu as le
from llama3_edu.widgets import MemoryMonitor
---
with MemoryMonitor(hz=40) as monitor:
    kept = torch.ones(4_000_000)
    time.sleep(0.4)
---
print(monitor.live, monitor.num_steps > 4, monitor._recorder.running)
---
try:
    with MemoryMonitor(hz=40) as broken:
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print(broken.live)
---
loose = MemoryMonitor(hz=40)
loose.start()
---
print(loose.live, loose._recorder.running)
---
monitor
"""


def test_it_runs_headless_and_its_run_is_in_the_saved_state(tmp_path: Path):
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS.split("---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert not [output for cell in outputs for output in cell if output.get("name") == "stderr" or output.output_type == "error"]
    assert outputs[1][0].data["text/plain"] == outputs[6][0].data["text/plain"] == "MemoryMonitor()"
    assert outputs[2][0].text.strip() == "False True False"
    assert outputs[3][-1].text.strip() == "False"
    assert outputs[5][0].text.strip() == "False False", "the end of a cell ends a monitor that was started in it"
    states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    monitors = [model["state"] for model in states if "hardware" in model["state"].get("frames", {})]
    assert len(monitors) == 3 and not any(state["live"] for state in monitors)
    first = next(state for state in monitors if state["page_key"] == "memory-monitor-1")
    used = [step["rest"] for step in first["frames"]["steps"]]
    assert len(used) > 4 and max(used) - used[0] > 10_000_000 and first["step"] == len(used) - 1


def follow(page: Page, folder: Path, monitor: FrameWidget, *, hidden: bool = False) -> Locator:
    """Open a page whose widget can be told things, as a kernel would: `tell(traits)`."""
    state = embed_data(views=[monitor], drop_defaults=False)["manager_state"]["state"][monitor.model_id]["state"]
    listening = """
    class Model {
      constructor(values) { this.values = values; this.listeners = []; this.sent = 0; }
      get(name) { return this.values[name]; }
      set(name, value) { this.values[name] = value; this.tell({ [name]: value }); }
      tell(traits) {
        Object.assign(this.values, traits);
        for (const [name, heard] of [...this.listeners]) if (name.slice("change:".length) in traits) heard();
      }
      on(name, heard) { this.listeners.push([name, heard]); }
      off(name, heard) { this.listeners = this.listeners.filter(([own, other]) => own !== name || other !== heard); }
      save_changes() { this.sent += 1; }
    }
    const STATE = %s;
    window.model = new Model(STATE);
    const address = URL.createObjectURL(new Blob([STATE._esm], { type: "text/javascript" }));
    import(address).then(({ default: widget }) => {
      window.stop = widget.render({ model: window.model, el: document.querySelector("#here") });
    });
    """
    script = listening % json.dumps(state).replace("</", r"<\/")
    style = f"<style>{monitor._css}</style>"
    body = f'{style}<div id="here"{" hidden" if hidden else ""}></div><script type="module">{script}</script>'
    path = folder / "live.html"
    path.write_text(page_of(monitor, body=body), encoding="utf-8")
    page.goto(path.as_uri())
    found = page.locator('[data-widget="memory-monitor"]')
    expect(found).to_have_count(1)
    return found


def news(frames: Frames, length: int) -> Frames:
    return {**frames, "steps": frames["steps"][:length]}


def tell(page: Page, **traits: object) -> None:
    page.evaluate("traits => window.model.tell(traits)", traits)


def test_a_live_run_is_followed_and_may_be_stepped_through_once_it_is_over(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        page.clock.install()
        widget = follow(page, tmp_path, MemoryMonitor(frames=news(FRAMES, 1)))
        status = widget.locator(".le-status")
        assert status.inner_text() == f"A recording made on {FRAMES['hardware']}"
        tell(page, live=True)
        for length in (3, 6, 9):
            tell(page, frames=news(FRAMES, length), step=length - 1)
            assert step_of(widget) == length - 1
            assert status.inner_text() == f"Live on {FRAMES['hardware']}"
            assert widget.locator(".le-summary").inner_text() == FRAMES["steps"][length - 1]["summary"]
            assert widget.locator(".le-summary").get_attribute("aria-live") == "off", "ten readings a second are not read aloud"
        assert widget.locator(".le-controls").get_attribute("inert") is not None
        widget.focus()
        widget.press("ArrowLeft")
        widget.locator(".le-memory-chart").click(position={"x": 100, "y": 100})
        assert step_of(widget) == 8 and page.evaluate("window.model.sent") == 0
        tell(page, frames=FRAMES, step=len(FRAMES["steps"]) - 1)
        tell(page, live=False)
        assert status.inner_text().startswith("A recording made on") and widget.get_attribute("data-live") is None
        widget.press("ArrowLeft")
        assert step_of(widget) == len(FRAMES["steps"]) - 2


def test_a_page_whose_kernel_is_gone_keeps_what_it_heard_last_and_says_so(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        page.clock.install()
        widget = follow(page, tmp_path, MemoryMonitor(frames=news(FRAMES, 1)))
        tell(page, live=True)
        tell(page, frames=news(FRAMES, 5), step=4)
        page.clock.run_for(6_000)
        status = widget.locator(".le-status")
        assert status.inner_text() == f"Cut off: the last that was heard of a run on {FRAMES['hardware']}"
        widget.focus()
        widget.press("Home")
        assert step_of(widget) == 0, "what is left can be stepped through"
        tell(page, frames=news(FRAMES, 6), step=5)
        assert status.inner_text().startswith("Live on"), "it was slow, and not gone"
        page.evaluate("window.stop()")
        tell(page, frames=news(FRAMES, 2), step=1)


def test_a_page_saved_in_the_middle_of_a_run_does_not_call_it_live(browser: Browser, tmp_path: Path):
    monitor = MemoryMonitor(frames=FRAMES)
    monitor.live = True
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, monitor)
        assert widget.locator(".le-status").inner_text().startswith("Cut off")
        assert widget.locator(".le-controls").get_attribute("inert") is None


def test_a_cell_out_of_sight_is_drawn_once_it_is_seen(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = follow(page, tmp_path, MemoryMonitor(frames=news(FRAMES, 1)), hidden=True)
        tell(page, live=True)
        tell(page, frames=news(FRAMES, 6), step=5)
        assert step_of(widget) == 5
        page.evaluate("document.querySelector('#here').hidden = false")
        expect(widget.locator(".le-now")).to_have_attribute("data-seconds", str(FRAMES["steps"][5]["seconds"]))


def test_fewer_frames_than_before_are_drawn_too(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = follow(page, tmp_path, MemoryMonitor(frames=FRAMES, step=10))
        tell(page, step=4, frames=news(FRAMES, 5))
        assert step_of(widget) == 4


def test_allocator_card_and_capacity_are_drawn_with_words(browser: Browser, tmp_path: Path):
    frames = on_a_card()
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, MemoryMonitor(frames=frames, step=2))
        rows = "nodes => Object.fromEntries(nodes.map(node => [node.dataset.part, Number(node.dataset.bytes)]))"
        found = widget.locator(".le-memory-table tr").evaluate_all(rows)
        in_gib = {"weights": 15, "kv": 3, "rest": 2, "used": 20, "reserved": 19, "card": 22}
        assert found == {part: size * GIB for part, size in in_gib.items()}
        text = widget.inner_text()
        for words in ("all there is: 24 GiB", "peak 20 GiB", "held by the allocator", "by all processes", "of 24 GiB"):
            assert words in text
        assert "1,800 samples were taken, 4 are shown" in text and "2 readings failed." in text
        top = float(widget.locator(".le-total").get_attribute("y1"))
        floor = float(widget.locator(".le-now").get_attribute("y2"))
        highest = float(widget.locator('.le-now-dot[data-part="rest"]').get_attribute("cy"))
        assert (floor - highest) / (floor - top) == pytest.approx(20 / 24)
        assert int(widget.locator(".le-peak").get_attribute("data-step")) == 2


def test_the_end_of_a_cell_is_listened_for_while_recording_and_no_longer(monkeypatch: pytest.MonkeyPatch):
    events = EventManager(None, {"post_run_cell": lambda result: None})
    shell = SimpleNamespace(kernel=None, events=events)
    shown = []
    monkeypatch.setattr(memory_monitor, "get_ipython", lambda: shell)
    monkeypatch.setattr(memory_monitor, "display", shown.append)
    monitor = MemoryMonitor(read=reader(), hz=100)
    for _ in range(2):
        with monitor:
            assert len(events.callbacks["post_run_cell"]) == 1
        assert not events.callbacks["post_run_cell"]
    monitor.start()
    events.trigger("post_run_cell", None)
    assert not monitor.live and not events.callbacks["post_run_cell"] and shown == [monitor] * 3


def test_a_close_up_leaves_the_rest_out(browser: Browser, tmp_path: Path):
    with quiet_page(browser) as page:
        widget = show(page, tmp_path, MemoryMonitor(frames=FRAMES, step=6))
        parts = "nodes => nodes.map(node => node.dataset.part)"
        assert widget.locator(".le-area").evaluate_all(parts) == ["weights", "kv", "rest"]
        widget.get_by_role("radio", name="weights and cache").click()
        assert widget.locator(".le-area").evaluate_all(parts) == ["weights", "kv"]
        own, cursor = FRAMES["steps"][6], widget.locator(".le-now")
        floor = float(cursor.get_attribute("y2"))
        weights, both = (floor - float(dot.get_attribute("cy")) for dot in widget.locator(".le-now-dot").all())
        assert weights / both == pytest.approx(own["weights"] / (own["weights"] + own["kv"]), rel=1e-3)
        assert step_of(widget) == 6


def test_a_finger_on_the_picture_goes_to_the_sample_there(browser: Browser, tmp_path: Path):
    with quiet_page(browser, **PHONE) as page:
        widget = show(page, tmp_path, MemoryMonitor(frames=FRAMES))
        box = widget.locator(".le-area").last.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] * 0.62, box["y"] + box["height"] / 2)
        seconds = [step["seconds"] for step in FRAMES["steps"]]
        assert step_of(widget) == max(index for index, time in enumerate(seconds) if time <= 0.62 * seconds[-1])
        assert_fits(page)
        texts = "nodes => nodes.map(node => parseFloat(getComputedStyle(node).fontSize))"
        assert min(widget.locator(".le-memory-chart text").evaluate_all(texts)) >= 12


def test_traits_are_what_colabs_traitlets_know():
    assert {name for name in MemoryMonitor.class_trait_names(sync=True)} >= {"frames", "step", "live"}
    with pytest.raises(traitlets.TraitError):
        MemoryMonitor(frames=FRAMES).live = "yes"
