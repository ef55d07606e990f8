"""Which tensors of a checkpoint's files make up each of the model's parameters: Hugging Face's way, and Meta's.

Hugging Face renames every tensor. Meta's names are ours, and Meta's files differ in two other ways. Large models are cut across
several files, one for each GPU they were trained to run on: some matrices by rows, some by columns. And a head's numbers stand in
another order. RoPE turns pairs; Meta keeps partners side by side, 0 1 2 3 for two pairs, where we and Hugging Face keep all
first partners before all second ones, 0 2 1 3. Only the rows of `wq` and `wk` feel it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llama3_edu.config import LlamaConfig
from llama3_edu.stored import DTYPES, CheckpointError, StoredTensor, read_header

__all__ = ["SINGLE", "INDEX", "HUGGING_FACE", "META", "META_BELOW", "Source", "Checkpoint", "open_checkpoint", "hugging_face_name"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_META_WEIGHTS = "consolidated*.safetensors"
_OTHERS = ("generation_config.json", "tokenizer.json", "tokenizer.model")

HUGGING_FACE = ("model*.safetensors", INDEX, "config.json", *_OTHERS)
META = (_META_WEIGHTS, "params.json", "config.json", *_OTHERS)
META_BELOW = tuple(f"original/{pattern}" for pattern in META)
"""The files of each layout as shell patterns, what shows the layout first. On the hub Meta's own files are in a folder of theirs."""

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

# Old checkpoints carry RoPE's frequencies along. They follow from the configuration.
_FOLLOWS = re.compile(r".*rotary_emb\.inv_freq|rope\.freqs")


def hugging_face_name(name: str) -> str:
    """Return what Hugging Face calls the parameter that is `name` here: `lm_head.weight` for `output.weight`."""
    for ours, theirs in _HUGGING_FACE_NAMES:
        if name.startswith(ours) or (ours.startswith(".") and ours in name):
            name = name.replace(ours, theirs, 1)
    return name


@dataclass(frozen=True)
class Source:
    """Where one parameter comes from.

    Args:
        name: what its files call it.
        parts: the tensor, or the parts it was cut into, in order.
        axis: along which it was cut: 0 by rows, 1 by columns.
        paired: for rows that Meta pairs with their neighbours, how many make a head; 0 for rows that stay where they are.
    """

    name: str
    parts: tuple[StoredTensor, ...]
    axis: int = 0
    paired: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The parts' shape once they are joined."""
        first = self.parts[0].shape
        if len(self.parts) == 1 or len(first) <= self.axis:
            return first
        return (*first[: self.axis], sum(part.shape[self.axis] for part in self.parts), *first[self.axis + 1 :])

    def pieces(self) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield some whole rows at a time, `[rows width]`, each time with where they go in our order. Each piece overwrites the last."""
        first = 0
        for piece in self._by_columns() if self.axis == 1 else self._by_rows():
            rows = slice(first, first + len(piece))
            yield (self._destination(rows) if self.paired else rows), piece
            first = rows.stop

    def _by_rows(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield from (piece for _, piece in part.pieces())

    def _by_columns(self) -> Iterator[Tensor]:
        # The same rows of every file at once: they are parts of the same rows of the whole.
        together = max(1, min(part.rows_per_piece for part in self.parts) // len(self.parts))
        for pieces in zip(*(part.pieces(together) for part in self.parts)):
            yield torch.cat([piece for _, piece in pieces], dim=1)

    def _destination(self, rows: slice) -> Tensor:
        """Return where rows that are paired with their neighbours go: the even ones of a head to its first half, the odd to its second."""
        given = torch.arange(rows.start, rows.stop)
        within = given % self.paired
        return given - within + within % 2 * (self.paired // 2) + within // 2


@dataclass(frozen=True)
class Checkpoint:
    """A directory's model on disk: its shape, and where each of its parameters comes from, by our names."""

    directory: Path
    described_by: str
    config: LlamaConfig
    sources: Mapping[str, Source]

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raise CheckpointError, with all that is wrong, unless these are the tensors the model wants: the shape of each by our names."""
        needed = wanted.keys() - {"output.weight"} if self.config.tie_embeddings else wanted.keys()
        problems = [
            f"missing: {self._name(name)} {list(wanted[name])}" for name in wanted if name in needed - self.sources.keys()
        ]
        for name, source in self.sources.items():
            problems += _problems(source, wanted.get(name))
        if problems:
            head = f"the weights in {self.directory} do not fit its {self.described_by}:"
            raise CheckpointError("\n  ".join([head, *problems]))

    def _name(self, ours: str) -> str:
        return ours if self.described_by == "params.json" else hugging_face_name(ours)


def _problems(source: Source, wanted: tuple[int, ...] | None) -> list[str]:
    """Return what is wrong with one tensor that was found, if anything."""
    if wanted is None:
        return [] if _FOLLOWS.fullmatch(source.name) else [f"surplus: {source.name} {list(source.shape)}"]
    if source.shape != wanted:
        return [f"wrong shape: {source.name} should be {list(wanted)}; it is {list(source.shape)}"]
    unread = next((part.dtype for part in source.parts if part.dtype not in DTYPES), None)
    return [f"wrong type: {source.name} should be one of {', '.join(DTYPES)}; it is {unread}"] if unread else []


def open_checkpoint(directory: Path) -> Checkpoint:
    """Find what a directory holds, in whichever layout, and read no weights yet.

    Raises:
        CheckpointError: a file is missing, cut short or damaged, or the weights are pickles.
        ValueError: the configuration asks for something this model does not do.
    """
    if (directory / SINGLE).is_file() or (directory / INDEX).is_file():
        return _open_hugging_face(directory)
    files = _meta_files(directory)
    if files:
        return _open_meta(directory, files)
    if not (directory / "config.json").is_file() and not (directory / "params.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json, which says what shape the model has, and no params.json")
    raise CheckpointError(_why_no_weights(directory))


def _open_hugging_face(directory: Path) -> Checkpoint:
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json, which says what shape the model has")
    config, stored = LlamaConfig.from_json(directory / "config.json"), _find_hugging_face_tensors(directory)
    ours = {hugging_face_name(name): name for name in _parameter_names(config)}
    sources = {ours.get(name, name): Source(name=name, parts=(tensor,)) for name, tensor in stored.items()}
    return Checkpoint(directory=directory, described_by="config.json", config=config, sources=sources)


def _parameter_names(config: LlamaConfig) -> list[str]:
    """Return our name of every parameter of a model, a tied output projection included."""
    of_a_layer = ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
                  "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")  # fmt: skip
    layers = [f"layers.{layer}.{name}" for layer in range(config.n_layers) for name in of_a_layer]
    return [f"{name}.weight" for name in ("tok_embeddings", *layers, "norm", "output")]


def _find_hugging_face_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a directory's weight files by its name."""
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    weight_map = _read_index(directory / INDEX)
    stored = {}
    for file in sorted(set(weight_map.values())):
        for name, tensor in read_header(directory / file).items():
            if weight_map.get(name, file) == file:
                stored[name] = tensor
    return stored


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
        raise CheckpointError(
            f"{path} names {len(files)} files; missing: {', '.join(missing)}. If a download was interrupted, load the model by its "
            f"name again while the hub can be reached: what is there is not fetched anew"
        )
    return weight_map


def _meta_files(directory: Path) -> list[Path]:
    """Return Meta's weight files in order: `consolidated.00.safetensors` and so on, or the one without a number."""
    numbered = sorted(directory.glob("consolidated.*.safetensors"))
    return numbered or sorted(directory.glob("consolidated.safetensors"))


def _open_meta(directory: Path, files: Sequence[Path]) -> Checkpoint:
    if not (directory / "params.json").is_file():
        raise CheckpointError(f"{directory} holds no params.json, which says what shape the model in {files[0].name} has")
    config = LlamaConfig.from_json(directory / "params.json")
    headers = [read_header(file) for file in files]
    _check_number_of_files(directory, config, headers)
    if not any("output.weight" in header for header in headers):
        config = replace(config, tie_embeddings=True)  # params.json does not say; without a projection there is no other way
    parts = {name: tuple(header[name] for header in headers if name in header) for header in headers for name in header}
    sources = {name: _joined(name, found, config) for name, found in parts.items()}
    return Checkpoint(directory=directory, described_by="params.json", config=config, sources=sources)


def _check_number_of_files(directory: Path, config: LlamaConfig, headers: Sequence[Mapping[str, StoredTensor]]) -> None:
    """Raise CheckpointError if the first file's embeddings are another share of the whole than there are files."""
    embeddings = headers[0].get("tok_embeddings.weight")
    elements = embeddings.shape[0] * embeddings.width if embeddings and embeddings.shape else 0
    wanted = config.vocab_size * config.dim // elements if elements else len(headers)
    if wanted != len(headers):
        raise CheckpointError(
            f"{directory} holds {len(headers)} of the {wanted} consolidated files that the first of them and params.json ask for"
        )


def _joined(name: str, parts: tuple[StoredTensor, ...], config: LlamaConfig) -> Source:
    """Return how one of Meta's tensors is put together from what the files hold of it."""
    paired = config.head_dim if name.endswith((".attention.wq.weight", ".attention.wk.weight")) else 0
    if len(parts[0].shape) < 2:
        return Source(name=name, parts=parts[:1])  # a vector is whole in every file
    # Read from the shapes rather than the names: Llama 2's embeddings were cut by columns, Llama 3's are by rows.
    inputs = {"attention.wo": config.n_heads * config.head_dim, "feed_forward.w2": config.hidden_dim}
    width = next((inputs[key] for key in inputs if name.endswith(f"{key}.weight")), config.dim)
    return Source(name=name, parts=parts, axis=int(parts[0].shape[1] < width), paired=paired)


def _why_no_weights(directory: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if not pickles:
        return f"{directory} holds neither {SINGLE} nor {INDEX} nor {_META_WEIGHTS}"
    way_out = f"torch.load({pickles[0]!r}, weights_only=True)"
    return (
        f"{directory} holds its weights as pickle files alone ({', '.join(pickles)}). Unpickling runs whatever code the file "
        f"holds, so they are not read. Look for a safetensors version of this checkpoint; or, one file at a time, give what "
        f"{way_out} returns, which refuses code, to safetensors.torch.save_file, and put {Path(pickles[0]).stem}.safetensors here"
    )
