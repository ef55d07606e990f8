"""What every widget shares: frames that are checked, a step that both sides may move, a name, a summary in words."""

import html
import itertools
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Any, ClassVar

import anywidget
import traitlets

from llama3_edu.thinning import MOST_STEPS, kept_steps, with_steps
from llama3_edu.trace import Frames
from llama3_edu.widgets import schema

__all__ = ["FrameWidget", "source"]


def source(file_name: str) -> str:
    """Return the text of a file that lies beside this one."""
    return resources.files("llama3_edu.widgets").joinpath(file_name).read_text(encoding="utf-8")


class FrameWidget(anywidget.AnyWidget):
    """Draws frames step by step.

    A subclass has a `name`, a `title` and `fields(frames)`, and a file `<name with underscores>.js` beside this one that ends in
    `export default { render }`. The script and style every widget shares are put in front of it, so that each widget's
    script is whole in itself and imports nothing.

    Of frames with more than `most_steps` steps some stand for all: the first, the last, those that `important(frames)`
    names, the one to draw first, and others evenly between them. A note under the picture says so.

    Args:
        frames: what the widget's frame maker returned.
        step: the index of the frame to draw first, in the frames as they are given.

    Raises:
        ValueError: the frames are not what the widget can draw, or there is no such step; the message names the field.
    """

    name: ClassVar[str]
    """What the widget is called in the page: `data-widget` of its root element."""
    title: ClassVar[str]
    """The heading over the picture."""
    most_steps: ClassVar[int] = MOST_STEPS
    """Steps that can be drawn; fewer where every step takes a place of its own in the picture."""

    scripts: ClassVar[tuple[str, ...]] = ()
    """Files that several widgets share, put between `shared.js` and the widget's own."""

    frames = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    page_key = traitlets.Unicode().tag(sync=True)
    heading = traitlets.Unicode().tag(sync=True)

    _counter: ClassVar[Iterator[int]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "name" in cls.__dict__:
            cls._counter = itertools.count(1)
            own = f"{cls.name.replace('-', '_')}.js"
            cls._esm = "".join(source(file_name) for file_name in ("shared.js", *cls.scripts, own))
            cls._css = source("shared.css")
        super().__init_subclass__(**kwargs)

    def __init__(self, *, frames: Mapping[str, Any], step: int = 0, **kwargs: Any) -> None:
        # The n-th widget of its kind in a notebook: the same on every fresh run, which a model id is not.
        key = f"{self.name}-{next(self._counter)}"
        frames = dict(frames) if isinstance(frames, Mapping) else frames
        self._check(frames)
        kept = self._kept(frames, first_drawn=self._inside(step, len(frames["steps"])))
        super().__init__(frames=self.only(frames, kept), heading=self.title, page_key=key, **kwargs)
        self.step = kept.index(step)

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        """Return what `frames` should hold, beside `steps` that each have a `summary`."""
        raise NotImplementedError

    @classmethod
    def important(cls, frames: Mapping[str, Any]) -> Iterable[int]:
        """Return the steps to keep before any other where there are too many."""
        return ()

    @classmethod
    def only(cls, frames: Mapping[str, Any], steps: list[int]) -> Frames:
        """Return frames with these steps alone. A widget whose steps hold what changed since the one before does it its own way."""
        return with_steps(frames, steps)

    @property
    def num_steps(self) -> int:
        """Frames there are to draw."""
        return len(self.frames["steps"])

    @property
    def summary(self) -> str:
        """What the current frame shows, in words."""
        return self.frames["steps"][self.step]["summary"]

    @traitlets.validate("frames")
    def _check_frames(self, proposal: Mapping[str, Any]) -> Frames:
        frames = proposal["value"]
        self._check(frames)
        return self.only(frames, self._kept(frames))

    @traitlets.validate("step")
    def _check_step(self, proposal: Mapping[str, Any]) -> int:
        return self._inside(proposal["value"], self.num_steps)

    @classmethod
    def _check(cls, frames: Mapping[str, Any]) -> None:
        schema.check("frames", frames, {"steps": schema.each({"summary": schema.text}, least=1)})
        schema.check("frames", frames, cls.fields(frames))
        for name, field in {"note": schema.optional(schema.text), "all_steps": schema.count}.items():
            if name in frames:
                schema.check(f"frames[{name!r}]", frames[name], field)

    @classmethod
    def _kept(cls, frames: Mapping[str, Any], *, first_drawn: int = 0) -> list[int]:
        num_steps, most = len(frames["steps"]), cls.most_steps
        if num_steps <= most:
            return list(range(num_steps))
        important = tuple(cls.important(frames))
        kept = kept_steps(num_steps, most=most, important=important)
        if first_drawn not in kept:
            kept = sorted([*kept_steps(num_steps, most=most - 1, important=important), first_drawn])
        return kept

    @staticmethod
    def _inside(step: int, num_steps: int) -> int:
        if not 0 <= step < num_steps:
            raise ValueError(f"step should be 0 to {num_steps - 1}; it is {step}")
        return step

    @traitlets.observe("frames")
    def _stay_inside(self, change: Mapping[str, Any]) -> None:
        self.step = min(self.step, self.num_steps - 1)

    def __repr__(self) -> str:
        of = f" of {self.frames['all_steps']}" if "all_steps" in self.frames else ""
        return f"{type(self).__name__}(steps={self.num_steps}{of})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return {**data, "text/html": self._in_words()}, metadata

    def _in_words(self) -> str:
        """What stands where the widget would be when nothing can run: its title, its first and its last summary, and its note."""
        steps = self.frames["steps"]
        first_and_last = [steps[0]["summary"], steps[-1]["summary"]] if len(steps) > 1 else [steps[0]["summary"]]
        texts = [*first_and_last, *([self.frames["note"]] if self.frames.get("note") else [])]
        paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
        title = f"<p><strong>{html.escape(self.title)}</strong></p>"
        return f'<div class="llama3-edu-words" data-page-key="{self.page_key}">{title}{paragraphs}</div>'
