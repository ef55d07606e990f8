from types import SimpleNamespace

import psutil
import pytest
import torch

from llama3_edu import hardware


def test_the_line_names_the_torch_and_the_threads_really_in_use():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert f"1 thread, torch {torch.__version__}" in hardware.describe()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cuda", "mps", "wanted"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_default_device_is_the_fastest_that_is_there(cuda: bool, mps: bool, wanted: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert hardware.default_device() == torch.device(wanted)


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [("700", 700 - 400 + 150), ("500", 500 - 400 + 150), ("200", 0), ("9999", 1000), ("max", 1000), (None, 1000)],
)
def test_available_is_what_the_machine_and_a_container_s_limit_both_leave(limit, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(hardware, "_CONTAINER", tmp_path)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("400\n")
        (tmp_path / "memory.stat").write_text("anon 250\ninactive_file 150\n")
    assert hardware.available_memory() == wanted


def test_memory_that_cannot_be_asked_for_is_unknown(monkeypatch: pytest.MonkeyPatch):
    def no_proc():
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", no_proc)
    assert hardware.available_memory() is None
