"""What every widget shares: frames that are checked, a step that both sides may move, a name, a summary in words."""

import html
import itertools
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, ClassVar

import anywidget
import traitlets

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

    Args:
        frames: what the widget's frame maker returned.
        step: the index of the frame to draw first.

    Raises:
        ValueError: the frames are not what the widget can draw, or there is no such step; the message names the field.
    """

    name: ClassVar[str]
    """What the widget is called in the page: `data-widget` of its root element."""
    title: ClassVar[str]
    """The heading over the picture."""

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
        super().__init__(frames=dict(frames), heading=self.title, page_key=key, **kwargs)
        self.step = step

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        """Return what `frames` should hold, beside `steps` that each have a `summary`."""
        raise NotImplementedError

    @property
    def num_steps(self) -> int:
        """Frames there are to draw."""
        return len(self.frames["steps"])

    @property
    def summary(self) -> str:
        """What the current frame shows, in words."""
        return self.frames["steps"][self.step]["summary"]

    @traitlets.validate("frames")
    def _check_frames(self, proposal: Mapping[str, Any]) -> dict[str, Any]:
        frames = proposal["value"]
        schema.check("frames", frames, {"steps": schema.each({"summary": schema.text}, least=1)})
        schema.check("frames", frames, self.fields(frames))
        return frames

    @traitlets.validate("step")
    def _check_step(self, proposal: Mapping[str, Any]) -> int:
        last = self.num_steps - 1
        if not 0 <= proposal["value"] <= last:
            raise ValueError(f"step should be 0 to {last}; it is {proposal['value']}")
        return proposal["value"]

    @traitlets.observe("frames")
    def _stay_inside(self, change: Mapping[str, Any]) -> None:
        self.step = min(self.step, self.num_steps - 1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(steps={self.num_steps})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return {**data, "text/html": self._in_words()}, metadata

    def _in_words(self) -> str:
        """What stands where the widget would be when nothing can run: its title, its first and its last summary."""
        steps = self.frames["steps"]
        first_and_last = [steps[0]["summary"], steps[-1]["summary"]] if len(steps) > 1 else [steps[0]["summary"]]
        paragraphs = "".join(f"<p>{html.escape(summary)}</p>" for summary in first_and_last)
        title = f"<p><strong>{html.escape(self.title)}</strong></p>"
        return f'<div class="llama3-edu-words" data-page-key="{self.page_key}">{title}{paragraphs}</div>'
