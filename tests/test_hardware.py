import torch

from llama3_edu import hardware


def test_the_line_names_the_torch_and_the_threads_really_in_use():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert f"1 thread, torch {torch.__version__}" in hardware.describe()
    finally:
        torch.set_num_threads(before)
