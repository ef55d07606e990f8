"""Weights from disk and back: safetensors in Hugging Face's layout or Meta's, read straight into place.

We read tensors a few rows at a time, from the file to the parameter, so that a model is never held twice, whatever its type in
the file and in memory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llama3_edu.config import LlamaConfig
from llama3_edu.hardware import available_memory
from llama3_edu.hub import local_directory
from llama3_edu.int8 import Int8Embedding, Int8Linear, empty_int8, quantise_rows
from llama3_edu.layout import (
    HUGGING_FACE,
    INDEX,
    META,
    META_BELOW,
    SINGLE,
    Checkpoint,
    Source,
    hugging_face_name,
    open_checkpoint,
)
from llama3_edu.memory import format_bytes, int8_weight_bytes, weight_bytes
from llama3_edu.model import Llama
from llama3_edu.stored import DTYPES, CheckpointError
from llama3_edu.tokenizer import Tokenizer

__all__ = ["load_checkpoint", "load_tiny", "save_checkpoint", "stop_ids"]

_SETTINGS = ("generation_config.json", "config.json")


def load_checkpoint(
    path_or_repo: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    weight_bits: int | None = None,
) -> Llama:
    """Load a Llama 3 from a directory, or from `owner/name` on the Hugging Face hub, in Hugging Face's layout or in Meta's.

    Hugging Face's is `config.json`, and `model.safetensors` or several such files with their index. Meta's is `params.json`, and
    `consolidated.safetensors` or several that each hold a part of every matrix. Where both are, Hugging Face's is read. Pickle
    files are not. The weights go straight to the device and type asked for; beside them, one MiB is in memory at a time.

    Args:
        device: where the weights go; torch's default device when left out.
        dtype: the type the model computes in; the type of the embeddings in the file when left out. Take `torch.float16` on a GPU
            older than Ampere, such as Colab's T4: it has no bfloat16.
        weight_bits: 8 keeps matrices as 8-bit whole numbers with a scale per row (`int8_weight_bytes` in all), rounded while they
            are read; `dtype` is then the type of everything else. Left out, weights are of type `dtype`.

    Returns:
        The model, ready for inference: in eval mode, and no parameter requires a gradient.

    Raises:
        FileNotFoundError: there is no such directory or repository, or it holds no checkpoint.
        PermissionError: the repository is gated or private.
        ConnectionError: the hub cannot be reached, and no copy is on this machine.
        OSError: the disk has no room for the download.
        MemoryError: the weights are meant for the processor, and are larger than the memory that is available there.
        CheckpointError: a file is missing, cut short or damaged, or its tensors do not fit the configuration; the message
            lists every tensor that is missing, surplus, or of the wrong shape or type.
        ValueError: the configuration asks for something this model does not do, `dtype` is no type for weights, or `weight_bits`
            is not 8.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype should be a floating-point type; it is {dtype}")
    if weight_bits not in (None, 8):
        raise ValueError(f"weight_bits should be 8, or left out for weights of type dtype; it is {weight_bits}")
    found = open_checkpoint(local_directory(path_or_repo, files=HUGGING_FACE, otherwise=(META, META_BELOW)))
    with torch.device("meta"), _NothingDrawn():
        model = Llama(found.config)  # shapes without memory
    found.check({name: tuple(weight.shape) for name, weight in model.state_dict().items()})
    if dtype is None:
        dtype = DTYPES[found.sources["tok_embeddings.weight"].parts[0].dtype]
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type == "cpu":  # a GPU's allocator refuses by itself; here the machine would swap until it stands still
        _check_memory(found, dtype=dtype, bits=weight_bits)
    _fill(model, found, device=device, dtype=dtype, bits=weight_bits)
    return model.requires_grad_(False).eval()


def load_tiny(
    *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32, weight_bits: int | None = None
) -> tuple[Llama, Tokenizer]:
    """Load the small Llama 3 that comes with this package, trained on Shakespeare's plays, and its tokenizer.

    Args:
        device: where the weights go; torch's default device when left out.
        dtype: their type. The file holds bfloat16.
        weight_bits: 8 keeps matrices as 8-bit whole numbers: see `load_checkpoint`.

    Returns:
        The model, in eval mode and with no parameter that requires a gradient, and the tokenizer.
    """
    with resources.as_file(resources.files("llama3_edu") / "tiny") as directory:
        model = load_checkpoint(directory, device=device, dtype=dtype, weight_bits=weight_bits)
        return model, Tokenizer.from_pretrained(directory)


def stop_ids(path_or_repo: str | Path) -> tuple[int, ...]:
    """Return the tokens after which a checkpoint's model has finished, as its `generation_config.json` lists them.

    Where that file is not there, or says nothing of it, `config.json` is asked. A base model stops at `<|end_of_text|>`,
    an Instruct model at `<|eot_id|>`, too. Empty if neither file says: take `Tokenizer.stop_ids` then.

    Raises:
        FileNotFoundError: there is no such directory or repository.
        CheckpointError: a file says something else than a token id or a list of them; the message names it.
    """
    others = (_SETTINGS[1:], ("params.json",), ("original/params.json",))
    directory = local_directory(path_or_repo, files=_SETTINGS, otherwise=others)
    for name in _SETTINGS:
        path = directory / name
        if path.is_file():
            found = _read_json(path).get("eos_token_id")
            listed = found if isinstance(found, list) else [] if found is None else [found]
            if not all(type(token_id) is int and token_id >= 0 for token_id in listed):
                raise CheckpointError(f"{path}: eos_token_id should be a token id or a list of them; it is {found!r}")
            if listed:
                return tuple(listed)
    return ()


def save_checkpoint(model: Llama, directory: str | Path, *, shards: int = 1, dtype: torch.dtype | None = None) -> None:
    """Write a model in the Hugging Face layout: `config.json`, and its weights in one file or in several with an index.

    Args:
        directory: where to; made if it is not there. Of what it holds, files of the same name are replaced.
        shards: number of weight files.
        dtype: the type to write; the model's own when left out.

    Raises:
        ValueError: `shards` is below 1, or above the number of tensors, or the model's weights are in 8 bits.
    """
    directory = Path(directory)
    if isinstance(model.tok_embeddings, Int8Embedding):
        raise ValueError("the model's weights are rounded to 8 bits, which this layout cannot say; save the one it was read from")
    names = {hugging_face_name(name): parameter for name, parameter in model.named_parameters()}  # a tied one comes once
    if not 1 <= shards <= len(names):
        raise ValueError(f"shards should be from 1 to {len(names)}, the number of tensors; it is {shards}")
    dtype = model.dtype if dtype is None else dtype
    directory.mkdir(parents=True, exist_ok=True)
    fields = model.config.to_hugging_face() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(directory / "config.json", fields)
    files = _share_out(list(names), shards)
    for file, members in files.items():
        tensors = {name: names[name].detach().to("cpu", dtype).contiguous() for name in members}
        save_file(tensors, directory / file, metadata={"format": "pt"})
    if shards > 1:
        total = sum(parameter.numel() for parameter in names.values()) * dtype.itemsize
        weight_map = {name: file for file, members in files.items() for name in members}
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _check_memory(found: Checkpoint, *, dtype: torch.dtype, bits: int | None) -> None:
    """Raise MemoryError, with a way out where there is one, unless the machine has room for the weights."""
    needed, available = _bytes_of(found.config, dtype, bits), available_memory()
    if available is None or needed <= available:
        return
    ways = [("dtype=torch.bfloat16 (--dtype bfloat16)", torch.bfloat16, bits), ("weight_bits=8 (--weight-bits 8)", dtype, 8)]
    sizes = {way: _bytes_of(found.config, *how) for way, *how in ways}
    smaller = [f"{way} needs {format_bytes(size)}" for way, size in sizes.items() if size < needed and size <= available]
    raise MemoryError(
        f"the weights in {found.directory} take {needed:,} bytes ({format_bytes(needed)}) as {_type_name(dtype, bits)}, before any "
        f"cache; {available:,} bytes ({format_bytes(available)}) of this machine's memory are available. "
        f"{'; '.join([*smaller, 'close other programs, or take a smaller model'])}"
    )


def _bytes_of(config: LlamaConfig, dtype: torch.dtype, bits: int | None) -> int:
    """Return what the weights take in memory once they are loaded that way."""
    return (weight_bytes if bits is None else int8_weight_bytes)(config, bits=8 * dtype.itemsize)


def _type_name(dtype: torch.dtype, bits: int | None) -> str:
    return str(dtype).removeprefix("torch.") if bits is None else f"{bits}-bit whole numbers"


class _NothingDrawn(TorchFunctionMode):
    """Skips `nn.init.normal_`. Tensors without memory need no values, and there it costs a second and 80 MB of imports."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ and "tensor" in kwargs else func(*args, **kwargs)


@dataclass(frozen=True)
class _Held:
    """A parameter's memory, and how rows from a file become rows of it: one tensor, or numbers and their scales."""

    tensors: tuple[Tensor, ...]
    encode: Callable[[Tensor], tuple[Tensor, ...]]

    def fill(self, source: Source) -> None:
        for rows, piece in source.pieces():
            for tensor, values in zip(self.tensors, self.encode(piece)):
                tensor[rows] = values

    def equals(self, source: Source) -> bool:
        """Tell whether filling it from another source would change nothing."""
        return all(
            torch.equal(tensor[rows], values)
            for rows, piece in source.pieces()
            for tensor, values in zip(self.tensors, self.encode(piece))
        )


def _held(shape: torch.Size, *, device: torch.device, dtype: torch.dtype, bits: int | None) -> _Held:
    """Allocate one parameter; vectors, which only norms have, stay in floats."""
    if bits is None or len(shape) < 2:
        matrix = torch.empty(shape, device=device, dtype=dtype).view(shape[0], -1)
        return _Held(tensors=(matrix,), encode=lambda piece: (piece.to(device, dtype),))
    return _Held(
        tensors=empty_int8(*shape, device=device, dtype=dtype), encode=lambda piece: quantise_rows(piece.to(device), dtype)
    )


def _fill(model: Llama, found: Checkpoint, *, device: torch.device, dtype: torch.dtype, bits: int | None) -> None:
    """Give every parameter of a model on the meta device its memory and its values, one after the other."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    # All memory first: what rounding needs for a moment would leave holes between parameters, and a lack of room shows at once.
    memory = {name: _held(shape, device=device, dtype=dtype, bits=bits) for name, shape in shapes.items()}
    for name, held in memory.items():
        held.fill(found.sources[name])
        _put(model, name.removesuffix(".weight"), held.tensors, shapes[name])
        if name == "tok_embeddings.weight" and found.config.tie_embeddings:
            output = found.sources.get("output.weight")
            if output is not None and not held.equals(output):
                where = f"{output.name} in {output.parts[0].path}"
                raise CheckpointError(f"{found.described_by} ties the embeddings, but {where} is not {found.sources[name].name}")
            _put(model, "output", held.tensors, shapes[name])
    if found.config.tie_embeddings and bits is None:
        model.output.weight = model.tok_embeddings.weight


def _put(model: Llama, place: str, tensors: tuple[Tensor, ...], shape: torch.Size) -> None:
    """Put a parameter into its module; where it is numbers and scales, put a module made for those in its place."""
    if len(tensors) == 1:
        model.get_submodule(place).weight = nn.Parameter(tensors[0].view(shape), requires_grad=False)
        return
    parent, _, child = place.rpartition(".")
    kind = Int8Embedding if place == "tok_embeddings" else Int8Linear
    setattr(model.get_submodule(parent), child, kind(*tensors))


def _share_out(names: list[str], shards: int) -> dict[str, list[str]]:
    """Return which tensors go into which file: runs of about the same number, in order."""
    if shards == 1:
        return {SINGLE: names}
    bounds = [len(names) * shard // shards for shard in range(shards + 1)]
    return {
        f"model-{shard + 1:05}-of-{shards:05}.safetensors": names[bounds[shard] : bounds[shard + 1]] for shard in range(shards)
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; raise CheckpointError if it holds none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} should hold a JSON object; it holds a {type(fields).__name__}")
    return fields


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
