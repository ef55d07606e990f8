"""Fast paths behind the same caches: what `generate`, `stream` and `Engine` run where `model.py` would give the same answer later."""

from collections.abc import Callable
from typing import TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor

from llama3_edu.attention import fused_attend
from llama3_edu.hardware import available_memory
from llama3_edu.kernels.forward import FastLlama
from llama3_edu.kernels.packed import PackedLlama, is_plain, pack
from llama3_edu.model import Llama

__all__ = ["FastLlama", "NextLogits", "PackedLlama", "fastest", "pack"]

NextLogits: TypeAlias = Callable[..., Tensor]
"""`Llama.next_logits`, or what returns the same sooner."""


def fastest(model: Llama, *, fast: bool = True) -> NextLogits:
    """Return the quickest way there is to a model's next logits.

    The fast path stands in for the model where the two do the same: where the model is made of the package's own layers, attends with
    `fused_attend`, is not in training, and nobody watches its layers with a hook. Anything else runs as it stands in `model.py`.

    On an x86 processor large matrices are held a second time if that takes less than half of the memory that is free: in bfloat16 in the
    order in which the processor multiplies, in float32 transposed. Who writes into a weight asks anew, and the copy is made anew.

    Args:
        fast: False: the model itself, in any case.
    """
    if not fast or not _does_what_it_says(model):
        return model.next_logits
    weights = pack(model)
    known = _FAST.get(model)
    if known is None or known.weights is not weights:
        known = _FAST[model] = FastLlama(weights, may_copy=_has_room_for_a_copy(weights))
    return known.next_logits


_FAST: "WeakKeyDictionary[Llama, FastLlama]" = WeakKeyDictionary()


def _has_room_for_a_copy(weights: PackedLlama) -> bool:
    """Whether a second copy of all weights would take less than half of the memory that is free."""
    free = available_memory()
    return free is not None and 2 * weights.nbytes < free


def _does_what_it_says(model: Llama) -> bool:
    return (
        is_plain(model)
        and not model.training
        and model.device.type != "meta"
        and all(block.attention.attend is fused_attend for block in model.layers)
    )
