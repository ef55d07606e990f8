"""Kernels run under Triton's interpreter where there is no GPU: the conftest above asks for it before anything imports Triton."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def kernels_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a GPU, kernels are interpreted, and that is certain; and the interpreter multiplies bfloat16 as numbers."""
    if request.node.get_closest_marker("triton") is None or torch.cuda.is_available():
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    assert isinstance(tl.sum, InterpretedFunction), "Triton was imported before TRITON_INTERPRET was set"
    multiply = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):  # numpy has no bfloat16: as it is, the interpreter multiplies the bits
        wide = [self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return multiply(self, *wide, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    yield
