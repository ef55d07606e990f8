"""Reads memory again and again while other code runs, from a thread of its own."""

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from llama3_edu.hardware import default_device
from llama3_edu.memory_use import MOST_SAMPLES, MemoryReading, Samples, indexed, memory_frames, read_memory, split, stored_bytes
from llama3_edu.trace import Frames

__all__ = ["HasBytes", "MemoryRecorder"]

MOST_FAILURES = 10


@runtime_checkable
class HasBytes(Protocol):
    """Anything that says how many bytes it keeps, as every cache and every block pool does."""

    @property
    def nbytes(self) -> int: ...


class MemoryRecorder:
    """Samples the memory of a device between `start` and `stop`.

    Models and caches are looked at and never held: what the caller lets go of is gone, and its bytes with it.

    Args:
        device: what to read; the model's device, or the one chapters run on, where it is left out.
        model: whose parameters are the weights.
        caches: whose bytes are those of keys and values; paged caches over one pool count once.
        hz: samples per second.
        most: samples to keep; neighbours are merged when there are more.
        read: reads the memory of a device.
        news: called after every sample, from the sampling thread.

    Raises:
        ValueError: `hz` is not above 0.
        TypeError: something to watch is neither a model nor says how many bytes it keeps.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        model: nn.Module | None = None,
        caches: Iterable[HasBytes] = (),
        hz: float = 8.0,
        most: int = MOST_SAMPLES,
        read: Callable[[torch.device], MemoryReading] = read_memory,
        news: Callable[[], object] = lambda: None,
    ) -> None:
        if not hz > 0:
            raise ValueError(f"hz should be above 0; it is {hz}")
        # With its index: each thread has a current device of its own.
        self.device = indexed(torch.device(device) if device is not None else _device_of(model))
        self._period, self._most, self._read, self._news = 1 / hz, most, read, news
        self._models: list[weakref.ref] = []
        self._caches: list[weakref.ref] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._forget()
        self.watch(*([] if model is None else [model]), *caches)

    @property
    def running(self) -> bool:
        """Whether samples are being taken."""
        return self._thread is not None and self._thread.is_alive()

    def watch(self, *things: nn.Module | HasBytes) -> None:
        """Count these models and caches from now on, beside those given before."""
        for thing in things:
            if not isinstance(thing, (nn.Module, HasBytes)):
                raise TypeError(f"a model or a cache can be watched; it was given {thing!r}")
            watched = self._models if isinstance(thing, nn.Module) else self._caches
            watched.append(weakref.ref(thing))
        self._weights_at = None

    def start(self) -> None:
        """Begin a new recording.

        Raises:
            RuntimeError: one is under way.
        """
        if self.running:
            raise RuntimeError("this monitor is recording already; a second one can be started beside it")
        self._forget()
        self._sample()
        self._stopped = threading.Event()
        run = threading.Thread(target=self._run, args=(self._stopped,), name="memory-recorder", daemon=True)
        self._thread = run
        run.start()

    def stop(self) -> None:
        """End the recording with a last sample. A recorder that is not running stays as it is."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join(timeout=2)
        self._thread = None
        self._sample()

    def frames(self) -> Frames:
        """Return what was recorded up to now as the frames of `MemoryMonitor`."""
        with self._lock:
            kept, taken, missed = self._samples.kept(), self._samples.num_taken, self._missed
        return memory_frames(kept, device=self.device, taken=taken, missed=missed)

    def _forget(self) -> None:
        self._samples = Samples(most=self._most)
        self._missed = self._failures = 0
        self._began = time.perf_counter()
        self._weights, self._weights_at = 0, None

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._period) and self._failures < MOST_FAILURES:
            self._sample()
            self._news()

    def _sample(self) -> None:
        """Take one sample. A reading that fails is left out and counted: watching must not stop what is watched."""
        try:
            seconds = time.perf_counter() - self._began
            reading = self._read(self.device)
            sample = split(reading, seconds=seconds, weights=self._weight_bytes(seconds), kv=self._kv_bytes())
        except Exception:
            self._missed, self._failures = self._missed + 1, self._failures + 1
            return
        self._failures = 0
        with self._lock:
            self._samples.add(sample)

    def _weight_bytes(self, seconds: float) -> int:
        """Weights rarely move, and a large model has many: they are counted anew once a second."""
        if self._weights_at is None or seconds >= self._weights_at + 1:
            self._weights = stored_bytes(_alive(self._models), self.device)
            self._weights_at = seconds
        return self._weights

    def _kv_bytes(self) -> int:
        pools = {id(pool): pool for pool in (getattr(cache, "pool", cache) for cache in _alive(self._caches))}
        here = [pool for pool in pools.values() if getattr(pool, "device", self.device).type == self.device.type]
        return sum(pool.nbytes for pool in here)


def _alive(references: list[weakref.ref]) -> list[Any]:
    return [thing for thing in (reference() for reference in references) if thing is not None]


def _device_of(model: nn.Module | None) -> torch.device:
    parameter = next(model.parameters(), None) if model is not None else None
    return default_device() if parameter is None else parameter.device
