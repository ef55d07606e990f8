"""Turns a checkpoint in the layout of Hugging Face into what OpenVINO and CTranslate2 read. Runs in the peers' own environment.

    .venv-peers/bin/python -m benchmarks.peers.convert .venv-peers/models/110m

Both get the weights as transformers loads them, in float32. OpenVINO's graph is traced from transformers' own model, and its
keys and values are made the graph's state, which is the form its CPU plugin has a fused attention for.
"""

import argparse
from pathlib import Path
from typing import Any

import ctranslate2
import openvino as ov
import torch
from ctranslate2.converters import TransformersConverter
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache


class _Vocabulary:
    """As much of a tokenizer as a conversion asks for: one made-up word per token."""

    bos_token = eos_token = "0"
    unk_token = None

    def __init__(self, size: int) -> None:
        self._size = size

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(self._size)}


class _Converter(TransformersConverter):
    """CTranslate2's own converter, for a model without a tokenizer."""

    def load_model(self, model_class: type, path: str, **options: Any) -> nn.Module:
        model = super().load_model(model_class, path, **options)
        self._size = model.config.vocab_size
        return model

    def load_tokenizer(self, tokenizer_class: type, path: str, **options: Any) -> _Vocabulary:
        return _Vocabulary(self._size)


class _Forward(nn.Module):
    """transformers' model as a function of tensors: keys and values come in and go out, a key and a value per layer in turns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = DynamicCache(config=self.model.config)
        for layer, keys, values in zip(cache.layers, past[::2], past[1::2]):
            # Not by `update`, which would join them to an empty tensor: that step does not belong into the graph.
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        key_positions = torch.arange(past[0].shape[2] + input_ids.shape[1])
        mask = key_positions[None, None, None, :] <= position_ids[:, None, :, None]
        out = self.model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=mask, past_key_values=cache, use_cache=True
        )
        present = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return out.logits[:, -1:], *present


def to_ctranslate2(checkpoint: Path, target: Path) -> None:
    _Converter(str(checkpoint)).convert(str(target), quantization="float32", force=True)


def to_openvino(checkpoint: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa").eval()
    config = model.config
    past = [torch.randn(1, config.num_key_value_heads, 3, config.head_dim) for _ in range(2 * config.num_hidden_layers)]
    example = (torch.tensor([[1, 2]]), torch.tensor([[3, 4]]), *past)
    with torch.no_grad():
        graph = ov.convert_model(_Forward(model), example_input=example)
    names = ["input_ids", "position_ids", *(f"past.{index}" for index in range(len(past)))]
    for name, port in zip(names, graph.inputs, strict=True):
        port.get_tensor().set_names({name})
        shape = [-1, -1] if name in names[:2] else [-1, config.num_key_value_heads, -1, config.head_dim]
        port.get_node().set_partial_shape(ov.PartialShape(shape))
    for name, port in zip(["logits", *(f"present.{index}" for index in range(len(past)))], graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()
    _make_stateful(graph, len(past))
    ov.save_model(graph, target / "model.xml", compress_to_fp16=False)


def _make_stateful(graph: ov.Model, count: int) -> None:
    """Turn keys and values into variables of the graph, rows of which `beam_idx` may choose from, as OpenVINO's fusion expects."""
    beam_idx = ops.parameter(ov.PartialShape([-1]), ov.Type.i32, name="beam_idx")
    beam_idx.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([beam_idx])
    batch = ops.gather(ops.shape_of(graph.input("input_ids"), "i64"), ops.constant([0]), ops.constant(0))
    for index in range(count):
        port = graph.input(f"past.{index}")
        readers = port.get_target_inputs()
        chosen = ops.gather(port, beam_idx, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, {f"past.{index}": f"present.{index}" for index in range(count)})
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = node.get_output_partial_shape(0)
            sizes = [batch, *(ops.constant([0 if size.is_dynamic else size.get_length()]) for size in list(shape)[1:])]
            empty = ops.broadcast(ops.constant(0.0, dtype=node.get_output_element_type(0)), ops.concat(sizes, axis=0))
            node.set_arguments([empty])
    graph.validate_nodes_and_infer_types()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", type=Path, help="a folder that holds a checkpoint in `huggingface/`")
    home = options.parse_args().model
    to_ctranslate2(home / "huggingface", home / "ctranslate2")
    (home / "openvino").mkdir(exist_ok=True)
    to_openvino(home / "huggingface", home / "openvino")
    print(f"{home}: OpenVINO {ov.__version__}, CTranslate2 {ctranslate2.__version__}")


if __name__ == "__main__":
    main()
