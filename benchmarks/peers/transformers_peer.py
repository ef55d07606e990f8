"""transformers, as its documentation says to run it: eager, fused attention (`sdpa`), its default cache, `inference_mode`."""

import time
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from benchmarks.peers.serve import main


class TransformersPeer:
    """One model and the keys and values of one prompt."""

    def __init__(self, model: Path, *, dtype: str, threads: int) -> None:
        torch.set_num_threads(threads)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self._model = loaded.eval()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> list[float]:
        """Return the logits that follow the last token."""
        return self._model(input_ids=torch.tensor([tokens]), logits_to_keep=1).logits[0, -1].tolist()

    @torch.inference_mode()
    def prepare(self, tokens: list[int]) -> None:
        """Keep the keys and values of all tokens but the last, which `decode` starts with."""
        cache = DynamicCache(config=self._model.config)
        self._model(input_ids=torch.tensor([tokens[:-1]]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._kept = [(layer.keys, layer.values) for layer in cache.layers]
        self._last = tokens[-1]

    @torch.inference_mode()
    def decode(self, steps: int) -> dict[str, object]:
        """Decode greedily from the prepared state: one step that is not timed, then `steps` that are."""
        cache = DynamicCache(config=self._model.config)
        for layer, (keys, values) in zip(cache.layers, self._kept):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        token = self._step(torch.tensor([[self._last]]), cache)
        chosen, start = [token.item()], time.perf_counter()
        for _ in range(steps):
            token = self._step(token, cache)
            chosen.append(token.item())
        return {"seconds": time.perf_counter() - start, "tokens": chosen}

    def _step(self, token: Tensor, cache: DynamicCache) -> Tensor:
        return self._model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(dim=-1)

    @torch.inference_mode()
    def prefill(self, tokens: list[int]) -> dict[str, float]:
        """Time one forward over a prompt into an empty cache, with the logits of its last token."""
        prompt, start = torch.tensor([tokens]), time.perf_counter()
        cache = DynamicCache(config=self._model.config)
        self._model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax().item()
        return {"seconds": time.perf_counter() - start}

    def generate(self, prompts: list[list[int]], new_tokens: list[int]) -> dict[str, object]:
        """Time `generate` over prompts padded on the left, greedily, until the longest answer is done.

        Args:
            prompts: token ids.
            new_tokens: how many tokens each one is given.

        Returns:
            `seconds`, and `tokens`: each prompt's own answer, cut to the length it asked for.
        """
        longest, width = max(new_tokens), max(map(len, prompts))
        start = time.perf_counter()
        tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        plan = GenerationConfig(
            max_new_tokens=longest, min_new_tokens=longest, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        # Left out where nothing is padded: what is not passed cannot cost anything.
        masks = {} if mask.all() else {"attention_mask": mask}
        with torch.inference_mode():
            found = self._model.generate(tokens, generation_config=plan, **masks)
        answers = [row[width:][:wanted] for row, wanted in zip(found.tolist(), new_tokens)]
        return {"seconds": time.perf_counter() - start, "tokens": answers}


if __name__ == "__main__":
    main(TransformersPeer)
