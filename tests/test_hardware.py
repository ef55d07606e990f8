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
