"""What is read, what it is made of, how many samples are kept, and how the recorder behaves when things go wrong."""

import gc
import json
import mmap
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIG, SHAPES, random_model

import llama3_edu as le
from llama3_edu import memory_recorder, memory_use
from llama3_edu.memory_recorder import MemoryRecorder
from llama3_edu.memory_use import MemoryReading, MemorySample, Samples, memory_frames, read_memory, split, stored_bytes

MIB = 2**20


def sample(seconds: float, rest: int, **more: int) -> MemorySample:
    return MemorySample(seconds=seconds, weights=0, kv=0, rest=rest, **more)


class Script:
    """A reader that gives what it was told to, one after another, and raises what is an exception; then the last one for ever."""

    def __init__(self, *readings: int | Exception) -> None:
        self.readings = list(readings)

    def __call__(self, device: torch.device) -> MemoryReading:
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, Exception):
            raise reading
        return MemoryReading(used=reading)


def until(holds: object, seconds: float = 20) -> None:
    """Wait for another thread to do something."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def written_to(nbytes: int, device: torch.device) -> object:
    """Memory that is new to the process. A tensor on a CPU may be given what other tests have left."""
    if device.type != "cpu":
        return torch.ones(nbytes // 4, device=device)
    fresh = mmap.mmap(-1, nbytes)
    fresh.write(b"\x01" * nbytes)
    return fresh


def test_a_process_has_what_it_has_written_to(device: torch.device) -> None:
    before = read_memory(device).used
    held = written_to(64 * MIB, device)
    after = read_memory(device).used
    assert 60 * MIB < after - before < 80 * MIB
    assert before < le.memory_use.total_memory(device)
    del held


def test_other_systems_are_asked_by_other_means(monkeypatch: pytest.MonkeyPatch) -> None:
    on_linux = read_memory().used
    monkeypatch.setattr(memory_use, "sys", SimpleNamespace(platform="darwin"))
    assert read_memory().used == pytest.approx(on_linux, rel=0.2)


def test_apples_gpu_is_asked_through_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 50)
    assert read_memory("mps") == MemoryReading(used=30, reserved=50)


class FakeNvml:
    """NVML that knows one card, by its UUID."""

    def __init__(self, *, works: bool = True) -> None:
        self.works = works

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.works:
            raise OSError("no driver")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        assert uuid == "GPU-abc"
        return "card"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        assert handle == "card"
        return SimpleNamespace(used=77)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA GPU that is not there: 10 bytes live, 20 reserved, 60 of 100 in use on the whole card."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (40, 100))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fake GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="abc", total_memory=100))
    memory_use._nvml_handle.cache_clear()
    yield
    memory_use._nvml_handle.cache_clear()


@pytest.mark.parametrize(("nvml", "card"), [(FakeNvml(), 77), (FakeNvml(works=False), 60), (None, 60)])
def test_a_cuda_gpu_is_asked_through_its_allocator_and_for_the_whole_card(
    nvml: FakeNvml | None, card: int, fake_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    for device in ("cuda", "cuda:0"):
        assert read_memory(device) == MemoryReading(used=10, reserved=20, card=card)


def test_the_current_gpu_is_that_of_the_thread_that_asks(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert MemoryRecorder("cuda").device == torch.device("cuda:3")
    assert MemoryRecorder("cuda:1").device == torch.device("cuda:1")


def test_frames_of_a_gpu_name_it_and_what_was_read(fake_cuda: None) -> None:
    samples = [split(MemoryReading(used=10, reserved=20, card=60), seconds=0.0, weights=6, kv=3)]
    frames = memory_frames(samples, device="cuda")
    assert frames["hardware"].startswith("Fake GPU") and "CUDA allocator" in frames["source"] and frames["total"] == 100
    assert frames["steps"][0] | {"weights": 6, "kv": 3, "rest": 1, "reserved": 20, "card": 60} == frames["steps"][0]


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_the_bytes_of_the_parameters_and_shared_ones_count_once(shape: str) -> None:
    model = random_model(SHAPES[shape], dtype=torch.float16)
    assert stored_bytes([model, model], "cpu") == le.weight_bytes(model.config, bits=16)
    assert stored_bytes([model], "cuda:0" if model.device.type == "cpu" else "cpu") == 0
    assert stored_bytes([torch.nn.Linear(4, 4, device="meta")], "cpu") == 0, "a shape without storage takes nothing"


def test_the_rest_is_never_below_nothing() -> None:
    assert split(MemoryReading(used=5), seconds=1.0, weights=4, kv=3).rest == 0
    assert split(MemoryReading(used=9), seconds=1.0, weights=4, kv=3) == MemorySample(seconds=1.0, weights=4, kv=3, rest=2)


@given(rests=st.lists(st.integers(0, 50), min_size=1, max_size=300), most=st.integers(4, 20))
def test_however_many_samples_come_few_are_kept_and_no_peak_is_lost(rests: list[int], most: int) -> None:
    samples = Samples(most=most)
    given_in = [sample(float(index), rest) for index, rest in enumerate(rests)]
    for number, one in enumerate(given_in, start=1):
        samples.add(one)
        kept = samples.kept()
        assert len(kept) <= most
        assert kept[0] is given_in[0] and kept[-1] is one
        assert [own.seconds for own in kept] == sorted({own.seconds for own in kept})
        assert max(own.used for own in kept) == max(rests[:number])
        assert all(own is given_in[int(own.seconds)] for own in kept)
    assert samples.num_taken == len(rests)
    if len(rests) <= most - 2:
        assert samples.kept() == given_in
    else:
        assert len(samples.kept()) > most // 4


def test_keeping_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="most should be at least 4; it is 3"):
        Samples(most=3)


def test_summaries_say_where_the_peak_is_and_frames_can_be_written() -> None:
    frames = memory_frames([sample(0, MIB), sample(0.12345, 3 * MIB), sample(1, 2 * MIB)], taken=9, missed=1)
    assert (frames["taken"], frames["missed"]) == (9, 1)
    assert [step["seconds"] for step in frames["steps"]] == [0, 0.123, 1]
    assert "This is the peak." in frames["steps"][1]["summary"]
    assert "2 MiB in use" in frames["steps"][2]["summary"] and "The peak is 3 MiB at 0.1 s." in frames["steps"][2]["summary"]
    assert frames["hardware"] == le.hardware.describe()
    assert json.loads(json.dumps(frames)) == frames
    assert len(memory_frames([])["steps"]) == 1, "nothing read yet is a frame too"


def test_a_recorder_splits_what_a_model_and_its_cache_hold() -> None:
    model = random_model(dtype=torch.float32)
    cache = le.ContiguousCache(CONFIG, max_seq_len=8)
    recorder = MemoryRecorder(model=model, caches=[cache], hz=200, read=Script(10 * MIB))
    recorder.start()
    until(lambda: len(recorder.frames()["steps"]) > 3)
    late = le.GrowingCache(CONFIG)
    model(torch.zeros(1, 3, dtype=torch.long), late)
    recorder.watch(late)
    recorder.stop()
    first, last = recorder.frames()["steps"][0], recorder.frames()["steps"][-1]
    weights = le.weight_bytes(CONFIG, bits=32)
    assert (first["weights"], first["kv"]) == (weights, cache.nbytes)
    assert (last["weights"], last["kv"]) == (weights, cache.nbytes + le.kv_bytes(CONFIG, seq_len=3, bits=32))
    assert last["weights"] + last["kv"] + last["rest"] == 10 * MIB
    assert recorder.device == model.device


def test_paged_caches_over_one_pool_count_once() -> None:
    pool = le.BlockPool(CONFIG, num_blocks=4)
    recorder = MemoryRecorder("cpu", caches=[le.PagedCache(pool, [[]]), pool], read=Script(MIB))
    caches = [le.PagedCache(pool, [[]]) for _ in range(2)]
    recorder.watch(*caches)
    recorder.start()
    recorder.stop()
    assert recorder.frames()["steps"][-1]["kv"] == pool.nbytes


def test_watching_keeps_nothing_alive() -> None:
    model, cache = random_model(), le.ContiguousCache(CONFIG, max_seq_len=8)
    recorder = MemoryRecorder("cpu", model=model, caches=[cache], read=Script(MIB))
    del model, cache
    gc.collect()
    recorder.start()
    recorder.stop()
    last = recorder.frames()["steps"][-1]
    assert (last["weights"], last["kv"], last["rest"]) == (0, 0, MIB)


def test_a_reading_that_fails_is_left_out_and_counted() -> None:
    recorder = MemoryRecorder("cpu", hz=500, read=Script(MIB, OSError("once"), 2 * MIB, 3 * MIB))
    recorder.start()
    until(lambda: recorder.frames()["taken"] > 3)
    recorder.stop()
    frames = recorder.frames()
    assert frames["missed"] == 1
    assert [step["rest"] for step in frames["steps"][:3]] == [MIB, 2 * MIB, 3 * MIB]


def test_a_reader_that_always_fails_ends_the_recording_and_nothing_else() -> None:
    recorder = MemoryRecorder("cpu", hz=1000, read=Script(OSError("never")))
    recorder.start()
    until(lambda: not recorder.running)
    recorder.stop()
    frames = recorder.frames()
    assert frames["taken"] == 0 and memory_recorder.MOST_FAILURES <= frames["missed"] <= memory_recorder.MOST_FAILURES + 1
    assert len(frames["steps"]) == 1


def test_each_start_is_a_new_recording_and_two_at_once_are_refused() -> None:
    recorder = MemoryRecorder("cpu", hz=500, read=Script(*[5 * MIB] * 3, MIB))
    recorder.start()
    with pytest.raises(RuntimeError, match="recording already"):
        recorder.start()
    until(lambda: recorder.frames()["taken"] > 5)
    recorder.stop()
    recorder.stop()
    recorder.start()
    recorder.stop()
    frames = recorder.frames()
    assert frames["steps"][0]["seconds"] < 1 and frames["steps"][0]["rest"] == MIB and frames["taken"] < 5


def test_nothing_is_left_running() -> None:
    recorder = MemoryRecorder("cpu", hz=500, read=Script(MIB))
    recorder.start()
    thread = recorder._thread
    assert thread.daemon, "it never keeps the interpreter from ending"
    recorder.stop()
    assert not thread.is_alive() and thread not in threading.enumerate()


def test_what_cannot_be_watched_is_refused(unchecked: None) -> None:
    with pytest.raises(TypeError, match="a model or a cache can be watched; it was given 'cache'"):
        MemoryRecorder("cpu").watch("cache")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hz should be above 0; it is 0"):
        MemoryRecorder("cpu", hz=0.0)


def test_without_a_device_the_models_own_is_read() -> None:
    assert MemoryRecorder(model=torch.nn.Linear(2, 2, device="meta")).device == torch.device("meta")
    assert MemoryRecorder().device == le.default_device()
