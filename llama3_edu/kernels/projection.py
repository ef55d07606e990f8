"""A matrix that activations are multiplied by, held in whatever form this processor reads fastest."""

import platform
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from llama3_edu.kernels.packed import PackedLayer

__all__ = ["Projection", "PlainProjection", "OneDnnProjection", "WeightedRowsProjection", "LayerProjections", "make_projection"]

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

    def of_row(self, x: Float[Tensor, "in_features"]) -> Float[Tensor, "out_features"]:
        """Return `weight @ x`."""
        return self(x[None])[0]

    def add_row_to(
        self, residual: Float[Tensor, "out_features"], x: Float[Tensor, "in_features"]
    ) -> Float[Tensor, "out_features"]:
        """Return `residual + weight @ x`, in one pass."""
        return self.add_to(residual[None], x[None])[0]


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

    def of_row(self, x: Float[Tensor, "in_features"]) -> Float[Tensor, "out_features"]:
        return torch.mv(self._weight, x)

    def add_row_to(
        self, residual: Float[Tensor, "out_features"], x: Float[Tensor, "in_features"]
    ) -> Float[Tensor, "out_features"]:
        return torch.addmv(residual, self._weight, x)


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


class WeightedRowsProjection(OneDnnProjection):
    """Multiplies one row by adding up rows of the transposed matrix, each times its number; more rows with oneDNN.

    Adding up rows that each have a weight is what an embedding bag does, and FBGEMM, which does it in PyTorch's builds for x86, reads a
    matrix faster than oneDNN's loop for one row does. Each thread adds up a share of the rows.

    Args:
        weight: used where it lies; its transpose is held beside it.
    """

    def __init__(self, weight: Float[Tensor, "out_features in_features"]) -> None:
        super().__init__(weight, packed=False)
        self._columns = weight.T.contiguous()
        self.nbytes_beside = weight.nbytes
        in_features = len(self._columns)
        share = -(-in_features // torch.get_num_threads())
        self._every_column = torch.arange(in_features, dtype=torch.int32)
        self._shares = torch.arange(0, in_features, share, dtype=torch.int32)
        self._embedding_bag = torch.ops.aten._embedding_bag_forward_only.default

    def of_row(self, x: Float[Tensor, "in_features"]) -> Float[Tensor, "out_features"]:
        first, *others = self._sums(x)
        return reduce(Tensor.add_, others, first)

    def add_row_to(
        self, residual: Float[Tensor, "out_features"], x: Float[Tensor, "in_features"]
    ) -> Float[Tensor, "out_features"]:
        first, *others = self._sums(x)
        return reduce(Tensor.add_, others, residual + first)

    def _sums(self, x: Float[Tensor, "in_features"]) -> tuple[Float[Tensor, "out_features"], ...]:
        """Return what each thread's share of the columns adds up to."""
        add = 0  # and not the mean, or the largest
        sums, *_ = self._embedding_bag(self._columns, self._every_column, self._shares, False, add, False, x, False, -1)
        return sums.unbind()


@dataclass(frozen=True)
class LayerProjections:
    """One decoder block: `PackedLayer` with its matrices ready to multiply."""

    attention_norm: Float[Tensor, "dim"]
    wqkv: Projection
    wo: Projection
    ffn_norm: Float[Tensor, "dim"]
    w13: Projection
    w2: Projection

    @classmethod
    def of(cls, layer: PackedLayer, *, may_copy: bool) -> "LayerProjections":
        """Return the fastest projections there are for a block's matrices. `may_copy`: see `make_projection`."""
        wqkv, wo, w13, w2 = (make_projection(weight, may_copy=may_copy) for weight in (layer.wqkv, layer.wo, layer.w13, layer.w2))
        return cls(layer.attention_norm, wqkv, wo, layer.ffn_norm, w13, w2)

    @property
    def nbytes_beside(self) -> int:
        """Bytes held beside the matrices themselves."""
        return sum(projection.nbytes_beside for projection in (self.wqkv, self.wo, self.w13, self.w2))


def make_projection(weight: Float[Tensor, "out_features in_features"], *, may_copy: bool = True) -> Projection:
    """Return the fastest projection there is for a matrix here.

    Args:
        may_copy: whether a second copy of the matrix may be held, where that is faster.
    """
    if weight.nbytes < _WORTH_THE_CALL or not _has_onednn(weight):
        return PlainProjection(weight)
    if weight.dtype == torch.bfloat16:
        return OneDnnProjection(weight, packed=True) if may_copy else PlainProjection(weight)
    return WeightedRowsProjection(weight) if may_copy and _has_fbgemm() else OneDnnProjection(weight, packed=False)


def _has_onednn(weight: Tensor) -> bool:
    """Whether oneDNN multiplies this type of number on this processor."""
    if weight.device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if (
        not torch.backends.mkldnn.is_available()
        or not torch.backends.mkldnn.enabled
        or not hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _has_fbgemm() -> bool:
    """Whether PyTorch was built with FBGEMM: without it, an embedding bag takes its rows one call at a time."""
    return "fbgemm" in torch.backends.quantized.supported_engines
