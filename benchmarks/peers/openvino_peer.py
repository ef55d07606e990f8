"""OpenVINO's CPU plugin on the graph that `convert` wrote: keys and values are its state, and everything is float32."""

import time
from pathlib import Path

import numpy as np
import openvino as ov

from benchmarks.peers.serve import main

SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",  # its default on a CPU is 8 bits
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


class OpenVinoPeer:
    """One compiled graph and the state that one prompt left."""

    def __init__(self, model: Path, *, dtype: str, threads: int) -> None:
        if dtype != "float32":
            raise ValueError(f"this peer is measured in float32; asked for {dtype}")
        settings = SETTINGS | {"INFERENCE_NUM_THREADS": str(threads)}
        compiled = ov.Core().compile_model(model / "model.xml", "CPU", settings)
        self._request = compiled.create_infer_request()
        self.version = f"OpenVINO {ov.__version__.split('-')[0]}"
        layers = {node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()}
        if "ScaledDotProductAttention" not in layers:
            raise ValueError("the plugin did not fuse attention, so this graph is not what OpenVINO would be used with")

    def logits(self, tokens: list[int]) -> list[float]:
        """Return the logits that follow the last token."""
        self._request.reset_state()
        return self._run(tokens, 0).tolist()

    def prepare(self, tokens: list[int]) -> None:
        """Keep the keys and values of all tokens but the last, which `decode` starts with."""
        self._request.reset_state()
        self._run(tokens[:-1], 0)
        self._kept = [(state, ov.Tensor(state.state.data.copy())) for state in self._request.query_state()]
        self._last, self._held = tokens[-1], len(tokens) - 1

    def decode(self, steps: int) -> dict[str, object]:
        """Decode greedily from the prepared state: one step that is not timed, then `steps` that are."""
        for state, kept in self._kept:
            state.state = kept
        chosen = [int(self._run([self._last], self._held).argmax())]
        start = time.perf_counter()
        for step in range(steps):
            chosen.append(int(self._run(chosen[-1:], self._held + 1 + step).argmax()))
        return {"seconds": time.perf_counter() - start, "tokens": chosen}

    def _run(self, tokens: list[int], position: int) -> np.ndarray:
        inputs = {
            "input_ids": np.array([tokens]),
            "position_ids": np.arange(position, position + len(tokens))[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        return self._request.infer(inputs, share_inputs=True, share_outputs=True)["logits"][0, -1]


if __name__ == "__main__":
    main(OpenVinoPeer)
