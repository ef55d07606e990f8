"""A matrix that activations are multiplied by, held in whatever form this processor reads fastest."""

import platform
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Projection", "PlainProjection", "OneDnnProjection", "make_projection"]

_WORTH_THE_CALL = 2 * 2**20
"""Bytes of a matrix. A call into oneDNN costs ten microseconds more than one into BLAS: a small matrix is read in less."""


class Projection(ABC):
    """Multiplies rows by the transpose of a matrix, as `torch.nn.functional.linear` does without a bias."""

    nbytes_beside: int
    """Bytes held beside the matrix itself."""

    @abstractmethod
    def __call__(self, x: Float[Tensor, "rows in_features"]) -> Float[Tensor, "rows out_features"]:
        """Return `x @ weight.T`."""

    @abstractmethod
    def add_to(
        self, residual: Float[Tensor, "rows out_features"], x: Float[Tensor, "rows in_features"]
    ) -> Float[Tensor, "rows out_features"]:
        """Return `residual + x @ weight.T`, in one pass."""


class PlainProjection(Projection):
    """Multiplies with the BLAS that PyTorch was built with, or with cuBLAS: on every device, in every type.

    Args:
        weight: used where it lies.
    """

    nbytes_beside = 0

    def __init__(self, weight: Float[Tensor, "out_features in_features"]) -> None:
        self._weight, self._transposed = weight, weight.T

    def __call__(self, x: Float[Tensor, "rows in_features"]) -> Float[Tensor, "rows out_features"]:
        return F.linear(x, self._weight)

    def add_to(
        self, residual: Float[Tensor, "rows out_features"], x: Float[Tensor, "rows in_features"]
    ) -> Float[Tensor, "rows out_features"]:
        return torch.addmm(residual, x, self._transposed)


class OneDnnProjection(Projection):
    """Multiplies with oneDNN, which is part of PyTorch's builds for x86 and writes its inner loops for the processor at hand.

    The BLAS of those builds, MKL, reads a matrix at half the speed of the memory or less on some processors; `torch.nn.functional.linear` asks
    oneDNN in 16 bits alone. We call it through the operator that PyTorch's own compiler uses.

    Args:
        weight: used where it lies, or packed.
        packed: keep a copy in the order in which 16-bit numbers are multiplied, two at a time. Without it they are put into
            that order again at every call.
    """

    def __init__(self, weight: Float[Tensor, "out_features in_features"], *, packed: bool) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1) if packed else weight
        self.nbytes_beside = weight.nbytes if packed else 0
        self._linear = torch.ops.mkldnn._linear_pointwise.default
        self._linear_and_add = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Float[Tensor, "rows in_features"]) -> Float[Tensor, "rows out_features"]:
        return self._linear(x, self._weight, None, "none", [], "")

    def add_to(
        self, residual: Float[Tensor, "rows out_features"], x: Float[Tensor, "rows in_features"]
    ) -> Float[Tensor, "rows out_features"]:
        return self._linear_and_add(x, residual, self._weight, None, "add")


def make_projection(weight: Float[Tensor, "out_features in_features"], *, may_copy: bool = True) -> Projection:
    """Return the fastest projection there is for a matrix here.

    Args:
        may_copy: whether a second copy of the matrix may be held, where that is faster.
    """
    if weight.nbytes < _WORTH_THE_CALL or not _has_onednn(weight):
        return PlainProjection(weight)
    in_16_bits = weight.dtype == torch.bfloat16
    return PlainProjection(weight) if in_16_bits and not may_copy else OneDnnProjection(weight, packed=in_16_bits)


def _has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN multiplies this type of number on this processor."""
    if weight.device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
