"""CTranslate2 in float32. It has its own loop of decoding, which reports every token: the time between reports is what counts."""

import time
from pathlib import Path

import ctranslate2
import numpy as np

from benchmarks.peers.serve import main


class CTranslate2Peer:
    """One model and one prompt."""

    def __init__(self, model: Path, *, dtype: str, threads: int) -> None:
        self._generator = ctranslate2.Generator(
            str(model), device="cpu", compute_type=dtype, inter_threads=1, intra_threads=threads
        )
        self.version = f"CTranslate2 {ctranslate2.__version__}"

    def logits(self, tokens: list[int]) -> list[float]:
        """Return the logits that follow the last token."""
        return np.array(self._generator.forward_batch([tokens], return_log_probs=False))[0, -1].tolist()

    def prepare(self, tokens: list[int]) -> None:
        """Keep the keys and values of all tokens but the last, which `decode` starts with."""
        self._prompt = [str(token) for token in tokens]
        self.decode(0)

    def decode(self, steps: int) -> dict[str, object]:
        """Decode greedily from the prepared state: one step that is not timed, then `steps` that are."""
        chosen, times = [], []

        def seen(result: ctranslate2.GenerationStepResult) -> bool:
            chosen.append(result.token_id)
            times.append(time.perf_counter())
            return False

        self._generator.generate_batch(
            [self._prompt[-1:]], static_prompt=self._prompt[:-1], cache_static_prompt=True, include_prompt_in_result=False,
            beam_size=1, sampling_topk=1, max_length=steps + 1, min_length=steps + 1, end_token=[], callback=seen,
        )  # fmt: skip
        return {"seconds": times[-1] - times[0], "tokens": chosen}


if __name__ == "__main__":
    main(CTranslate2Peer)
