"""Weights from disk and back: safetensors in the Hugging Face layout, read straight into place.

A safetensors file is a JSON header that says where each tensor's bytes lie, and then the bytes. We read them in small pieces,
from the file to the parameter, so that a model is never held twice, whatever its type in the file and in memory.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llama3_edu.config import LlamaConfig
from llama3_edu.hub import local_directory
from llama3_edu.model import Llama
from llama3_edu.tokenizer import Tokenizer

__all__ = ["CheckpointError", "load_checkpoint", "load_tiny", "save_checkpoint", "stop_ids", "hugging_face_name"]

_PIECE_BYTES = 2**20
_LARGEST_HEADER_BYTES = 100 * 10**6  # the format's own limit
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SETTINGS = ("generation_config.json", "config.json")
_FILES = ("config.json", "model*.safetensors", _INDEX, "tokenizer.json")
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")

_HUGGING_FACE_NAMES = (
    ("tok_embeddings.", "model.embed_tokens."),
    ("layers.", "model.layers."),
    (".attention.wq.", ".self_attn.q_proj."),
    (".attention.wk.", ".self_attn.k_proj."),
    (".attention.wv.", ".self_attn.v_proj."),
    (".attention.wo.", ".self_attn.o_proj."),
    (".attention_norm.", ".input_layernorm."),
    (".feed_forward.w1.", ".mlp.gate_proj."),
    (".feed_forward.w2.", ".mlp.down_proj."),
    (".feed_forward.w3.", ".mlp.up_proj."),
    (".ffn_norm.", ".post_attention_layernorm."),
    ("norm.weight", "model.norm.weight"),
    ("output.", "lm_head."),
)
"""What a parameter's name starts with or holds here, and what Hugging Face calls it."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read as a Llama 3; the message names the file and all that is wrong with it."""


@dataclass(frozen=True)
class _StoredTensor:
    """Where one tensor lies on disk."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the tensor flat, in pieces, each with the index of its first element. Each piece overwrites the one before."""
        dtype = _DTYPES[self.dtype]
        buffer = bytearray(min(_PIECE_BYTES, max(1, math.prod(self.shape)) * dtype.itemsize))
        piece = torch.frombuffer(buffer, dtype=dtype)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            for first in range(0, math.prod(self.shape), len(piece)):
                count = min(len(piece), math.prod(self.shape) - first)
                wanted = count * dtype.itemsize
                if file.readinto(memoryview(buffer)[:wanted]) != wanted:
                    raise CheckpointError(f"{self.path} became shorter while it was read")
                yield first, piece[:count]


def load_checkpoint(
    path_or_repo: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Llama:
    """Load a Llama 3 from a directory in the Hugging Face layout, or from `owner/name` on the Hugging Face hub.

    The directory holds `config.json`, and `model.safetensors` or several such files with their index. Pickle files are not
    read. The weights go straight to the device and type asked for; beside them, one MiB is in memory at a time.

    Args:
        device: where the weights go; torch's default device when left out.
        dtype: their type; the type of the embeddings in the file when left out.

    Returns:
        The model, ready for inference: in eval mode, and no parameter requires a gradient.

    Raises:
        FileNotFoundError: there is no such directory or repository.
        CheckpointError: a file is missing, cut short or damaged, or its tensors do not fit the configuration; the message
            lists every tensor that is missing, surplus, or of the wrong shape or type.
        ValueError: `config.json` asks for something this model does not do, or `dtype` is no type for weights.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype should be a floating-point type; it is {dtype}")
    directory = local_directory(path_or_repo, files=_FILES)
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json, which says what shape the model has")
    config = LlamaConfig.from_json(directory / "config.json")
    with torch.device("meta"), _NothingDrawn():
        model = Llama(config)  # shapes without memory
    stored = _find_tensors(directory)
    _check_tensors(model, stored, directory)
    if dtype is None:
        dtype = _DTYPES[stored["model.embed_tokens.weight"].dtype]
    _fill(model, stored, device=torch.get_default_device() if device is None else torch.device(device), dtype=dtype)
    _check_tied(model, stored)
    return model.requires_grad_(False).eval()


def load_tiny(
    *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Llama, Tokenizer]:
    """Load the small Llama 3 that comes with this package, trained on Shakespeare's plays, and its tokenizer.

    Args:
        device: where the weights go; torch's default device when left out.
        dtype: their type. The file holds bfloat16.

    Returns:
        The model, in eval mode and with no parameter that requires a gradient, and the tokenizer.
    """
    with resources.as_file(resources.files("llama3_edu") / "tiny") as directory:
        return load_checkpoint(directory, device=device, dtype=dtype), Tokenizer.from_pretrained(directory)


def stop_ids(path_or_repo: str | Path) -> tuple[int, ...]:
    """Return the tokens after which a checkpoint's model has finished, as its `generation_config.json` lists them.

    Where that file is not there, or says nothing of it, `config.json` is asked. A base model stops at `<|end_of_text|>`,
    an Instruct model at `<|eot_id|>`, too. Empty if neither file says: take `Tokenizer.stop_ids` then.

    Raises:
        FileNotFoundError: there is no such directory or repository.
        CheckpointError: a file says something else than a token id or a list of them; the message names it.
    """
    directory = local_directory(path_or_repo, files=_SETTINGS)
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
        ValueError: `shards` is below 1, or above the number of tensors.
    """
    directory = Path(directory)
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
        _write_json(directory / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def hugging_face_name(name: str) -> str:
    """Return what Hugging Face calls the parameter that is `name` here: `lm_head.weight` for `output.weight`."""
    for ours, theirs in _HUGGING_FACE_NAMES:
        if name.startswith(ours) or (ours.startswith(".") and ours in name):
            name = name.replace(ours, theirs, 1)
    return name


def _find_tensors(directory: Path) -> dict[str, _StoredTensor]:
    """Return every tensor of a directory's weight files by its name."""
    if (directory / _SINGLE).is_file():
        return _read_header(directory / _SINGLE)
    if not (directory / _INDEX).is_file():
        raise CheckpointError(_why_no_weights(directory))
    weight_map = _read_index(directory / _INDEX)
    stored = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in _read_header(directory / file).items():
            if weight_map.get(name, file) == file:
                stored[name] = tensor
    return stored


def _why_no_weights(directory: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if not pickles:
        return f"{directory} holds neither {_SINGLE} nor {_INDEX}"
    return (
        f"{directory} holds its weights as pickle files alone ({', '.join(pickles)}). Unpickling runs whatever code the file "
        f"holds, so they are not read. Look for a safetensors version of this checkpoint, or have its author convert it"
    )


def _read_index(path: Path) -> dict[str, str]:
    """Return which file each tensor is in, once every file is known to be there."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
        outside = [file for file in files if Path(file).name != file]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not the index of a checkpoint: {error!r}") from None
    if outside:
        raise CheckpointError(f"{path} should name files beside it; it names {', '.join(outside)}")
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise CheckpointError(f"{path} names {len(files)} files; missing: {', '.join(missing)}")
    return weight_map


def _read_header(path: Path) -> dict[str, _StoredTensor]:
    """Return where each tensor of one safetensors file lies, once the file is known to be whole.

    Source: the format's description in the README of the safetensors project.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > _LARGEST_HEADER_BYTES:
            raise CheckpointError(f"{path} is not a safetensors file: it starts with {header_bytes} as the length of its header")
        data_start = 8 + header_bytes
        if size < max(data_start, 10):
            raise CheckpointError(f"{path} is cut short: it needs {max(data_start, 10)} bytes for its header alone; it has {size}")
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        stored = {name: _stored(path, entry, data_start) for name, entry in header.items()}
        expected = data_start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header cannot be read ({error!r})") from None
    if size != expected:
        state = "is cut short" if size < expected else "is too long"
        raise CheckpointError(f"{path} {state}: its header describes {expected} bytes; it has {size}")
    return stored


def _stored(path: Path, entry: Mapping[str, Any], data_start: int) -> _StoredTensor:
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"])  # a type we do not read is reported later, with all else that does not fit
    if begin < 0 or end < begin or (dtype and end - begin != math.prod(shape) * dtype.itemsize):
        raise ValueError(f"bytes {begin} to {end} do not hold {entry['dtype']} of shape {list(shape)}")
    return _StoredTensor(path=path, dtype=entry["dtype"], shape=shape, start=data_start + begin)


def _check_tensors(model: Llama, stored: Mapping[str, _StoredTensor], directory: Path) -> None:
    """Raise CheckpointError, with all that is wrong, unless the stored tensors are those of the model."""
    wanted = {hugging_face_name(name): tuple(weight.shape) for name, weight in model.state_dict().items()}
    needed = wanted.keys() - {"lm_head.weight"} if model.config.tie_embeddings else wanted.keys()
    problems = [f"missing: {name} {list(wanted[name])}" for name in wanted if name in needed - stored.keys()]
    for name, tensor in stored.items():
        if name not in wanted:
            # Old checkpoints carry RoPE's frequencies along. They follow from the configuration.
            if not name.endswith("rotary_emb.inv_freq"):
                problems.append(f"surplus: {name} {list(tensor.shape)}")
        elif tensor.shape != wanted[name]:
            problems.append(f"wrong shape: {name} should be {list(wanted[name])}; it is {list(tensor.shape)}")
        elif tensor.dtype not in _DTYPES:
            problems.append(f"wrong type: {name} should be one of {', '.join(_DTYPES)}; it is {tensor.dtype}")
    if problems:
        raise CheckpointError("\n  ".join([f"the weights in {directory} do not fit its config.json:", *problems]))


class _NothingDrawn(TorchFunctionMode):
    """Skips `nn.init.normal_`. Tensors without memory need no values, and there it costs a second and 80 MB of imports."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ and "tensor" in kwargs else func(*args, **kwargs)


def _fill(model: Llama, stored: Mapping[str, _StoredTensor], *, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter of a model on the meta device its memory and its values, one after the other."""
    weights = {}
    for name, shape in [(name, parameter.shape) for name, parameter in model.named_parameters()]:
        weight = torch.empty(shape, device=device, dtype=dtype)
        for first, piece in stored[hugging_face_name(name)].pieces():
            weight.view(-1)[first : first + len(piece)].copy_(piece)
        weights[name] = nn.Parameter(weight, requires_grad=False)
    if model.config.tie_embeddings:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    model.load_state_dict(weights, assign=True)


def _check_tied(model: Llama, stored: Mapping[str, _StoredTensor]) -> None:
    """Raise CheckpointError if a tied model's file holds an output projection of its own."""
    output = stored.get("lm_head.weight")
    if not model.config.tie_embeddings or output is None:
        return
    weight = model.output.weight.view(-1)
    for first, piece in output.pieces():
        if not torch.equal(weight[first : first + len(piece)], piece.to(weight.device, weight.dtype)):
            raise CheckpointError(f"config.json ties the embeddings, but lm_head.weight in {output.path} is not model.embed_tokens.weight")


def _share_out(names: list[str], shards: int) -> dict[str, list[str]]:
    """Return which tensors go into which file: runs of about the same number, in order."""
    if shards == 1:
        return {_SINGLE: names}
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
