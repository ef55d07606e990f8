"""The Python side of every widget: frames are checked, the step stays inside, a notebook is given the same words always."""

import copy
import re
from typing import Any

import pytest
from widget_pages import MAKERS, STATIC, long_frames

from llama3_edu.trace import Frames
from llama3_edu.widgets import CacheGrowth, FrameWidget

CLASSES = list(MAKERS)
FRAMES = {cls: make() for cls, make in MAKERS.items()}
every_widget = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)

BAD: list[tuple[str, tuple[str | int, ...], Any, str]] = [
    ("recompute-triangle", ("steps", 2, "naive"), [0, 99], r"frames\['steps'\]\[2\]\['naive'\] should be \[first, end\)"),
    ("recompute-triangle", ("steps", 1, "naive_total"), -1, r"frames\['steps'\]\[1\]\['naive_total'\] should be a whole number"),
    ("recompute-triangle", ("tokens", 0), 7, r"frames\['tokens'\]\[0\] should be a string; it is 7"),
    (
        "causal-mask",
        ("changes", 3, "layers", 0, "k"),
        "01",
        r"\['changes'\]\[3\].*\['k'\] should be 7 characters 0 or 1; it is '01'",
    ),
    ("causal-mask", ("weights", 1, 2), [[1]], r"frames\['weights'\]\[1\]\[2\] should have 7 items; it has 1"),
    ("causal-mask", ("n_heads",), True, r"frames\['n_heads'\] should be a whole number, 0 or above; it is True"),
    ("causal-mask", ("steps", 2, "positions"), [7], r"\[2\]\['positions'\]\[0\] should be a position from 0 to 6, or -1"),
    ("causal-mask", ("steps", 2, "positions"), [3], r"\['key_positions'\] should end in the positions asked, \[3\]; it is"),
    ("causal-mask", ("runs", 0, "padding"), "left", r"\['runs'\]\[0\]\['padding'\] should be one of none, before, after"),
    ("causal-mask", ("tokens",), ["a"] * 65, r"frames\['tokens'\] should have at most 64 items; it has 65"),
    ("cache-growth", ("steps", 4, "stored"), [1], r"frames\['steps'\]\[4\]\['stored'\] should have 3 items; it has 1"),
    ("cache-growth", ("caches", 0), "growing", r"frames\['caches'\]\[0\] should be a dictionary; it is 'growing'"),
    ("bug-hunt", ("steps", 2, "answer"), 7, r"frames\['steps'\]\[2\]\['answer'\] should be below 7; it is 7"),
    ("bug-hunt", ("steps", 1, "keys", 0), "012", r"\['keys'\]\[0\] should be 16 characters 0 or 1; it is '012'"),
    ("bug-hunt", ("steps", 0, "replies"), ["No."], r"frames\['steps'\]\[0\]\['replies'\] should have 7 items; it has 1"),
    ("decoder-shapes", ("steps", 0, "shape"), [], r"frames\['steps'\]\[0\]\['shape'\] should have at least 1 items"),
    ("head-groups", ("steps", 1, "groups", 3), 4, r"frames\['steps'\]\[1\]\['groups'\]\[3\] should be below 4; it is 4"),
    ("head-groups", ("n_heads",), 3, r"frames\['steps'\]\[0\]\['groups'\] should have 3 items; it has 4"),
    ("memory-calculator", ("steps", 1, "card"), 99, r"frames\['steps'\]\[1\]\['card'\] should be below 6; it is 99"),
    ("memory-calculator", ("models", 2, "parameters"), 8e9, r"frames\['models'\]\[2\]\['parameters'\] should be a whole number"),
    ("memory-monitor", ("steps", 3, "kv"), -1, r"frames\['steps'\]\[3\]\['kv'\] should be a whole number, 0 or above; it is -1"),
    ("memory-monitor", ("hardware",), None, r"frames\['hardware'\] should be a string; it is None"),
    ("roofline", ("steps", 0, "machine"), 7, r"frames\['steps'\]\[0\]\['machine'\] should be below 7; it is 7"),
    ("roofline", ("machines", 1, "bytes_per_second"), 3e11, r"\['bytes_per_second'\] should be a whole number, 0 or above"),
    ("roofline", ("axes", "flops"), [1.0], r"frames\['axes'\]\['flops'\] should have 2 items; it has 1"),
    (
        "beam-tree",
        ("forwards", 2, "beams", 1, "parent"),
        4,
        r"frames\['forwards'\]\[2\]\['beams'\]\[1\]\['parent'\] should be below 4",
    ),
    (
        "beam-tree",
        ("forwards", 0, "ended"),
        [{"parent": 1, "token": "a", "score": 0}],
        r"\['ended'\]\[0\]\['parent'\] should be below 1",
    ),
    ("beam-tree", ("forwards", 1, "beams", 0, "score"), float("-inf"), r"\['beams'\]\[0\]\['score'\] should be a finite number"),
    (
        "beam-tree",
        ("forwards", 1, "copied"),
        [[1, 2, 3]],
        r"frames\['forwards'\]\[1\]\['copied'\]\[0\] should have 2 items; it has 3",
    ),
    ("beam-tree", ("steps", 2, "forward"), 8, r"frames\['steps'\]\[2\]\['forward'\] should be below 8; it is 8"),
    ("scheduler-timeline", ("runs",), [], r"frames\['runs'\] should have at least 1 items; it has 0"),
    ("scheduler-timeline", ("steps", 3, "step"), 99, r"frames\['steps'\]\[3\]\['step'\] should be below 34; it is 99"),
    (
        "scheduler-timeline",
        ("runs", 1, "steps", 2, "states", 0),
        "asleep",
        r"frames\['runs'\]\[1\]\['steps'\]\[2\]\['states'\]\[0\] should be one of absent, .*; it is 'asleep'",
    ),
    (
        "scheduler-timeline",
        ("runs", 0, "steps", 5, "num_tokens"),
        [1],
        r"\['steps'\]\[5\]\['num_tokens'\] should have 8 items; it has 1",
    ),
    (
        "scheduler-timeline",
        ("runs", 0, "requests", 2, "parent"),
        8,
        r"\['requests'\]\[2\]\['parent'\] should be below 8; it is 8",
    ),
    ("block-stepper", ("steps", 2, "blocks"), [12], r"frames\['steps'\]\[2\]\['blocks'\]\[0\] should be below 12; it is 12"),
    ("block-stepper", ("steps", 2, "source"), -1, r"\['steps'\]\[2\]\['source'\] should be a whole number, 0 or above; it is -1"),
    (
        "block-stepper",
        ("steps", 2, "changes", "blocks"),
        [[0, 1]],
        r"\['blocks'\]\[0\] should be a list of 3 items; it is \[0, 1\]",
    ),
    ("block-stepper", ("steps", 2, "changes", "blocks"), [[0, 1, 5]], r"\['blocks'\]\[0\]\[2\] should be below 5; it is 5"),
    ("block-stepper", ("steps", 5, "changes", "tables", 0, 2), [99], r"\['tables'\]\[0\]\[2\]\[0\] should be below 12; it is 99"),
    ("block-stepper", ("steps", 2, "changes", "free"), [1], r"\['changes'\]\['free'\] should be a list of 2 items; it is \[1\]"),
    ("block-stepper", ("steps", 2, "changes", "freed"), [], r"\['changes'\] should be of the fields 'blocks', 'tables', 'free'"),
    ("block-stepper", ("steps", 2, "changes"), [], r"frames\['steps'\]\[2\]\['changes'\] should be a dictionary; it is \[\]"),
    ("block-stepper", ("rows", 0, "tokens"), "abc", r"frames\['rows'\]\[0\]\['tokens'\] should be a list; it is 'abc'"),
    ("prefix-tree", ("nodes", 1, "parent"), 1, r"frames\['nodes'\]\[1\]\['parent'\] should be below 1; it is 1"),
    ("prefix-tree", ("nodes", 0, "tokens"), ["a"], r"frames\['nodes'\]\[0\]\['tokens'\] should have 4 items; it has 1"),
    ("prefix-tree", ("steps", 3, "changes", "added"), [99], r"\['changes'\]\['added'\]\[0\] should be below \d+; it is 99"),
    ("prefix-tree", ("steps", 1, "prompt"), {"name": 0}, r"\['prompt'\] should have a field 'num_cached'; it has 'name'"),
    ("quantisation-error", ("steps", 3, "errors", 2), [1], r"\['steps'\]\[3\]\['errors'\]\[2\] should have 16 items; it has 1"),
    ("quantisation-error", ("steps", 0, "worst", "channel"), 16, r"\['worst'\]\['channel'\] should be below 16; it is 16"),
    ("quantisation-error", ("keys", 0, 1), float("inf"), r"frames\['keys'\]\[0\]\[1\] should be a finite number; it is inf"),
    ("decoder-shapes", ("next", 0, "percent"), float("nan"), r"frames\['next'\]\[0\]\['percent'\] should be a finite number"),
]


def changed(frames: Frames, path: tuple[str | int, ...], value: Any) -> Frames:
    """The frames with one value replaced."""
    frames = copy.deepcopy(frames)
    *way, last = path
    inner: Any = frames
    for key in way:
        inner = inner[key]
    inner[last] = value
    return frames


@every_widget
def test_a_widget_says_the_same_in_every_fresh_run(cls: type[FrameWidget]):
    widget = cls(frames=FRAMES[cls])
    data, _ = widget._repr_mimebundle_()
    steps = len(FRAMES[cls]["steps"])
    assert repr(widget) == data["text/plain"] == f"{cls.__name__}(steps={steps})"
    assert FRAMES[cls]["steps"][0]["summary"].split("“")[0] in data["text/html"]
    assert widget.model_id not in data["text/html"] + data["text/plain"]
    assert re.search(rf'data-page-key="{cls.name}-\d+"', data["text/html"])


@every_widget
def test_two_widgets_of_a_kind_can_be_told_apart(cls: type[FrameWidget]):
    assert cls(frames=FRAMES[cls]).page_key != cls(frames=FRAMES[cls]).page_key


@every_widget
def test_text_in_words_cannot_become_markup(cls: type[FrameWidget]):
    widget = cls(frames=changed(FRAMES[cls], ("steps", 0, "summary"), "<script>alert(1)</script>"))
    assert "<script>" not in widget._repr_mimebundle_()[0]["text/html"]


@every_widget
def test_the_step_stays_inside_the_frames(cls: type[FrameWidget]):
    last = len(FRAMES[cls]["steps"]) - 1
    widget = cls(frames=FRAMES[cls], step=last)
    assert widget.summary == FRAMES[cls]["steps"][last]["summary"]
    for step in (-1, last + 1):
        with pytest.raises(ValueError, match=f"step should be 0 to {last}; it is {step}"):
            widget.step = step
        with pytest.raises(ValueError, match="step should be"):
            cls(frames=FRAMES[cls], step=step)
    assert widget.step == last
    shorter = {**FRAMES[cls], "steps": FRAMES[cls]["steps"][:2]}
    widget.frames = shorter
    assert widget.step == 1


@every_widget
def test_every_field_is_asked_for_by_name(cls: type[FrameWidget]):
    for field in FRAMES[cls]:
        without = {key: value for key, value in FRAMES[cls].items() if key != field}
        with pytest.raises(ValueError, match=f"frames should have a field '{field}'"):
            cls(frames=without)
    for field in FRAMES[cls]["steps"][0]:
        step = {key: value for key, value in FRAMES[cls]["steps"][0].items() if key != field}
        with pytest.raises(ValueError, match=rf"frames\['steps'\]\[0\] should have a field '{field}'"):
            cls(frames={**FRAMES[cls], "steps": [step]})


@pytest.mark.parametrize(("name", "path", "value", "message"), BAD)
def test_a_bad_value_is_named(name: str, path: tuple[str | int, ...], value: Any, message: str):
    cls = next(cls for cls in CLASSES if cls.name == name)
    with pytest.raises(ValueError, match=message):
        cls(frames=changed(FRAMES[cls], path, value))


@every_widget
def test_frames_without_steps_are_refused(cls: type[FrameWidget]):
    with pytest.raises(ValueError, match=r"frames\['steps'\] should have at least 1 items; it has 0"):
        cls(frames={**FRAMES[cls], "steps": []})


@every_widget
def test_of_a_long_run_some_steps_stand_for_all(cls: type[FrameWidget], unchecked: None):
    frames = long_frames(cls, cls.most_steps + 100)
    many = len(frames["steps"])
    first = 2 * many // 3
    widget = cls(frames=frames, step=first)
    assert widget.num_steps == cls.most_steps <= 1000
    summaries = [step["summary"] for step in frames["steps"]]
    assert [step["summary"] for step in (widget.frames["steps"][0], widget.frames["steps"][-1])] == [summaries[0], summaries[-1]]
    assert widget.summary == summaries[first], "the step asked for is kept, and drawn first"
    note = f"{cls.most_steps:,} of {many:,} steps are shown."
    assert widget.frames["note"] == note and note in widget._repr_mimebundle_()[0]["text/html"]
    assert repr(widget) == f"{cls.__name__}(steps={cls.most_steps} of {many})"
    with pytest.raises(ValueError, match=f"step should be 0 to {many - 1}; it is {many}"):
        cls(frames=frames, step=many)
    widget.frames = FRAMES[cls]
    assert widget.num_steps == len(FRAMES[cls]["steps"]) and "note" not in widget.frames
    widget.frames = frames
    assert widget.frames["note"] == note, "frames that come later are thinned as well"


def test_a_thinned_cache_keeps_whole_forward_passes(unchecked: None):
    widget = CacheGrowth(frames=long_frames(CacheGrowth, 4_000))
    assert all(len(set(step["stored"])) == 1 for step in widget.frames["steps"]), "all layers hold the same number of tokens"


@every_widget
def test_a_note_is_words(cls: type[FrameWidget]):
    with pytest.raises(ValueError, match=r"frames\['note'\] should be a string; it is 3"):
        cls(frames={**FRAMES[cls], "note": 3})


@pytest.mark.parametrize("frames", [None, [], "steps", {"steps": {}}, {"steps": [None]}, {"steps": [{"summary": None}]}])
def test_what_are_no_frames_at_all_is_said(frames: Any, unchecked: None):
    with pytest.raises(ValueError, match=r"frames.* should (be|have)"):
        CacheGrowth(frames=frames)


@every_widget
def test_the_script_is_whole_in_itself(cls: type[FrameWidget]):
    script = cls._esm
    assert "export default { render" in script
    foreign = r"^\s*import\b|\bimport\(|\brequire\(|\bfetch\(|https?://(?!www\.w3\.org/2000/svg)"
    assert not re.search(foreign, script, re.MULTILINE)
    assert not re.search(r"@import|url\((?!#)", cls._css)


def luminance(colour: str) -> float:
    """How bright a colour is, from 0 to 1, as WCAG 2 defines it."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(colour: str, ground: str) -> float:
    light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_every_colour_of_the_widgets_and_each_can_be_read(scheme: str):
    page = (STATIC / "custom.css").read_text(encoding="utf-8")
    block = re.search(rf'html\[data-theme="{scheme}"\] \{{(.*?)\}}', page, re.DOTALL)[1]
    colours = dict(re.findall(r"--le-(\w+): (#[0-9a-f]{6});", block))
    wanted = set(re.findall(r"var\(--le-(\w+), #", CacheGrowth._css))
    assert wanted <= set(colours), "a colour that the page lacks falls back to the widget's own"
    for name in wanted - {"bg", "grid"}:
        assert contrast(colours[name], colours["bg"]) >= 4.5, name
