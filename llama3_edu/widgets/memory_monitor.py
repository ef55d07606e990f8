"""Memory while a cell runs: weights, KV cache and the rest, live in a notebook and replayed on a page."""

import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import traitlets
from IPython import get_ipython
from IPython.display import display
from torch import nn

from llama3_edu.memory_recorder import HasBytes, MemoryRecorder
from llama3_edu.memory_use import MemoryReading, read_memory
from llama3_edu.trace import Frames
from llama3_edu.widgets import schema
from llama3_edu.widgets.base import FrameWidget

__all__ = ["MemoryMonitor"]

# Sending what was recorded may take this share of the sampling thread's time, and happens this often at least.
SHARE, MOST_SECONDS = 0.004, 2.0


class MemoryMonitor(FrameWidget):
    """Shows memory in use while the code inside `with` runs, and replays it afterwards.

    In a notebook it shows itself where the `with` begins, follows the run, and stops at its end, whatever ends it. Given
    `frames`, it replays what was recorded earlier. A picture whose kernel is gone keeps the last it was told. For example::

        with MemoryMonitor(model=model, caches=[cache]):
            generate(model, tokens, max_new_tokens=200, cache=cache)

    Args:
        frames: a recording to replay: what `recording()` returned.
        step: the index of the frame to draw first.
        model: whose parameters are the weights.
        caches: whose bytes are those of keys and values.
        device: what to read; the model's device, or the one chapters run on, where it is left out.
        hz: samples per second.
        read: reads the memory of a device.

    Raises:
        ValueError: the frames are not what can be drawn, `hz` is not above 0, or a recording comes with something to watch.
        TypeError: something to watch is neither a model nor says how many bytes it keeps.
    """

    name = "memory-monitor"
    title = "Memory in use"

    live = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        *,
        frames: Mapping[str, Any] | None = None,
        step: int = 0,
        model: nn.Module | None = None,
        caches: Iterable[HasBytes] = (),
        device: torch.device | str | None = None,
        hz: float = 8.0,
        read: Callable[[torch.device], MemoryReading] = read_memory,
        **kwargs: Any,
    ) -> None:
        caches = list(caches)
        if frames is not None and (model is not None or caches):
            raise ValueError("a monitor replays frames or watches a model and caches; it was given both")
        self._replays = frames is not None
        self._next_news = 0.0
        self._deaf = False
        self._at_end_of_cell = self._end_of_cell  # one object: IPython tells callbacks apart by identity
        recorder = None
        if frames is None:
            recorder = MemoryRecorder(device, model=model, caches=caches, hz=hz, read=read, news=self._tell)
        self._recorder = recorder
        super().__init__(frames=recorder.frames() if recorder else frames, step=step, **kwargs)

    @classmethod
    def fields(cls, frames: Mapping[str, Any]) -> schema.Field:
        step = {
            "seconds": schema.number,
            **{name: schema.count for name in ("weights", "kv", "rest")},
            **{name: schema.optional(schema.count) for name in ("reserved", "card")},
        }
        return {
            **{name: schema.text for name in ("hardware", "source", "rest")},
            **{name: schema.count for name in ("total", "taken", "missed")},
            "steps": schema.each(step),
        }

    @classmethod
    def load(cls, path: str | Path) -> "MemoryMonitor":
        """Return a monitor that replays what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not JSON, or not a recording.
        """
        return cls(frames=json.loads(Path(path).read_text(encoding="utf-8")))

    def save(self, path: str | Path) -> None:
        """Write what was recorded to a JSON file."""
        Path(path).write_text(json.dumps(self.recording(), indent=1) + "\n", encoding="utf-8")

    def recording(self) -> Frames:
        """Return what was recorded up to now: frames for another monitor."""
        return copy.deepcopy(self.frames) if self._recorder is None else self._recorder.frames()

    def watch(self, *things: nn.Module | HasBytes) -> None:
        """Count these models and caches from now on: those made inside the `with`.

        Raises:
            RuntimeError: this monitor replays a recording.
            TypeError: one of them is neither a model nor says how many bytes it keeps.
        """
        self._own_recorder().watch(*things)

    def start(self) -> None:
        """Begin to record, as `with` does. The end of the cell ends it at the latest.

        Raises:
            RuntimeError: this monitor replays a recording, or is recording already.
        """
        self._own_recorder().start()
        self._next_news, self._deaf = 0.0, False
        self._show()
        self.live = True
        shell = get_ipython()
        if shell is not None and hasattr(shell, "kernel"):
            display(self)
            shell.events.register("post_run_cell", self._at_end_of_cell)

    def stop(self) -> None:
        """End the recording. A monitor that is not recording stays as it is."""
        recorder = self._own_recorder()
        if not self.live:
            return
        recorder.stop()
        shell = get_ipython()
        if shell is not None:
            with suppress(ValueError):  # not registered
                shell.events.unregister("post_run_cell", self._at_end_of_cell)
        self._show()
        self.live = False

    def __enter__(self) -> "MemoryMonitor":
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        # How many samples a run gives differs from run to run, and a notebook's output should not.
        return super().__repr__() if self._replays else "MemoryMonitor()"

    def _in_words(self) -> str:
        if self._replays:
            return super()._in_words()
        words = "<p>Memory in use while this cell ran, and what of it held weights, keys and values.</p>"
        return f'<div class="llama3-edu-words" data-page-key="{self.page_key}"><p><strong>{self.title}</strong></p>{words}</div>'

    def _own_recorder(self) -> MemoryRecorder:
        if self._recorder is None:
            raise RuntimeError("this monitor replays a recording; MemoryMonitor() without frames makes a new one")
        return self._recorder

    def _end_of_cell(self, *result: object) -> None:
        self.stop()

    def _tell(self) -> None:
        """Send what there is to the page, from the sampling thread, no more often than its share of time allows."""
        if self._deaf or time.perf_counter() < self._next_news:
            return
        begun = time.thread_time()
        try:
            self._show()
        except Exception:  # the page is gone or the kernel shuts down; recording goes on
            self._deaf = True
        cost = time.thread_time() - begun
        self._next_news = time.perf_counter() + min(MOST_SECONDS, cost / SHARE)

    def _show(self) -> None:
        """Show all that was recorded, at its end. Frames and step leave in one message."""
        frames = self._own_recorder().frames()
        with self.hold_sync():
            self.frames = frames
            self.step = len(frames["steps"]) - 1
