"""What a cache of few bits per number saves, and what it costs: how far the model's predictions move.

    python -m benchmarks.quantised                                 # on text that the bundled model writes
    python -m benchmarks.quantised --corpus tinyshakespeare.txt    # and on text that it was not trained on

Every token goes through the cache by itself, as in decoding, so what each one sees is what the cache holds. On one CPU core,
two minutes, or eight with a corpus.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.report import Report, percent
from llama3_edu import (
    PAD,
    ContiguousCache,
    KVCache,
    Llama,
    LlamaConfig,
    QuantizedCache,
    Tokenizer,
    generate,
    load_tiny,
    right_pad,
    sampler,
)

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from train_tiny import read_corpus, split  # noqa: E402

SEED = 0
LONG = 8192
"""Tokens per row of a cache that is only weighed: the context of Llama 3."""

MakeCache = Callable[[LlamaConfig, int], KVCache]
"""From a model's shape and a number of rows to a cache."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Args:
        bits: 8, 4 or 2; None: full precision.
        group_size: tokens per group of keys, channels per group of values.
        residual: newest tokens kept in full precision at least.
        keys_per_token: round keys on the wrong axis.
    """

    bits: int | None
    group_size: int = 64
    residual: int = 0
    keys_per_token: bool = False

    @property
    def name(self) -> str:
        if self.bits is None:
            return "full precision"
        return f"{self.bits} bits, groups of {self.group_size}{', keys per token' if self.keys_per_token else ''}"

    def make(
        self, config: LlamaConfig, batch: int = 1, *, max_seq_len: int | None = None, dtype: torch.dtype | None = None
    ) -> KVCache:
        """Return an empty cache."""
        if self.bits is None:
            return ContiguousCache(config, batch, max_seq_len=max_seq_len, dtype=dtype)
        options = {"bits": self.bits, "group_size": self.group_size, "residual": self.residual}
        kind = KeysPerToken if self.keys_per_token else QuantizedCache
        return kind(config, batch, max_seq_len=max_seq_len, dtype=dtype, **options)


SETTINGS = (
    Setting(None),
    Setting(8, 64),
    Setting(4, 64),
    Setting(4, 32),
    Setting(4, 16),
    Setting(4, 16, keys_per_token=True),
    Setting(2, 64),
    Setting(2, 32),
    Setting(2, 16),
    Setting(2, 16, residual=16),
    Setting(2, 16, residual=64),
    Setting(2, 16, residual=128),
    Setting(2, 16, keys_per_token=True),
)


class KeysPerToken(KVCache):
    """A quantised cache that rounds keys as values are rounded: per token, in groups of channels.

    Two caches, one of which is told that keys are values.
    """

    def __init__(self, config: LlamaConfig, batch: int, **options: object) -> None:
        self._plain, self._swapped = (QuantizedCache(config, batch, **options) for _ in range(2))

    @property
    def seq_lens(self) -> Int[Tensor, "batch"]:
        return self._plain.seq_lens

    @property
    def nbytes(self) -> int:
        """Bytes of one of the two caches: of each, one half is never looked at."""
        return self._plain.nbytes

    @property
    def effective_bits(self) -> float:
        return self._plain.effective_bits

    def reserve(self, positions: Int[Tensor, "batch new_len"]) -> Int[Tensor, "batch kv_len"]:
        self._swapped.reserve(positions)
        return self._plain.reserve(positions)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        _, v_all = self._plain.update(layer, k, v)
        _, k_all = self._swapped.update(layer, v, k)
        return k_all, v_all

    def reorder(self, parents: Int[Tensor, "new_batch"]) -> None:
        self._plain.reorder(parents)
        self._swapped.reorder(parents)


@torch.no_grad()
def decoded_logits(
    model: Llama,
    tokens: Int[Tensor, "batch length"],
    cache: KVCache,
    *,
    positions: Int[Tensor, "batch length"] | None = None,
) -> Float[Tensor, "batch length vocab_size"]:
    """Give the model given tokens one by one, as if it had chosen them; return the logits behind each."""
    if positions is None:
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    steps = zip(tokens.split(1, dim=1), positions.split(1, dim=1))
    return torch.cat([model(token, cache, position) for token, position in steps], dim=1)


def divergence(
    expected: Float[Tensor, "batch length vocab_size"], found: Float[Tensor, "batch length vocab_size"]
) -> tuple[float, float]:
    """Return the KL divergence of two predictions in nats per token, and the share of tokens where both expect the same most."""
    expected_log, found_log = expected.double().log_softmax(dim=-1), found.double().log_softmax(dim=-1)
    nats = F.kl_div(found_log, expected_log, reduction="none", log_target=True).sum(dim=-1)
    agree = expected.argmax(dim=-1) == found.argmax(dim=-1)
    return nats.mean().item(), agree.double().mean().item()


def sampled_text(model: Llama, tokenizer: Tokenizer, *, rows: int, length: int) -> Int[Tensor, "rows length"]:
    """Let the model write, each token drawn from what it predicts."""
    begin = torch.tensor([tokenizer.encode("", bos=True)] * rows)
    generator = torch.Generator().manual_seed(SEED)
    cache, more = ContiguousCache(model.config, rows, dtype=model.dtype), length - begin.shape[1]
    return generate(model, begin, max_new_tokens=more, cache=cache, choose=sampler(generator=generator))


def windows(tokens: list[int], window: int) -> tuple[list[list[int]], list[int]]:
    """Cut tokens into windows that overlap by half, each with the token behind it; return also where each has new targets."""
    pieces, firsts, predicted = [], [], 0
    for start in range(0, len(tokens) - 1, window // 2):
        pieces.append(tokens[start : start + window + 1])
        firsts.append(predicted - start)
        predicted = start + len(pieces[-1]) - 1
        if predicted == len(tokens) - 1:
            break
    return pieces, firsts


def nats_in_all(
    model: Llama, tokenizer: Tokenizer, text: str, make: MakeCache, *, window: int | None = None
) -> tuple[float, int]:
    """Return how surprised the model is by a text in all, and by how many tokens: the protocol of `tools/train_tiny.py`, decoded.

    The windows are the rows of one batch, so that they run side by side.
    """
    pieces, firsts = windows(tokenizer.encode(text, bos=True), window or model.config.max_seq_len)
    tokens, positions = right_pad([piece[:-1] for piece in pieces])
    targets, _ = right_pad([piece[1:] for piece in pieces])
    logits = decoded_logits(model, tokens, make(model.config, len(pieces)), positions=positions)
    losses = F.cross_entropy(logits.transpose(1, 2).double(), targets, reduction="none")
    counts = (positions != PAD) & (positions >= torch.tensor(firsts)[:, None])
    return losses[counts].sum().item(), int(counts.sum())


def sizes(setting: Setting, config: LlamaConfig) -> dict[str, object]:
    """Weigh a cache with what is new in 16 bits, against one that keeps everything in 16 bits."""
    row: dict[str, object] = {}
    cache = setting.make(config, dtype=torch.bfloat16)
    row["effective_bits"] = getattr(cache, "effective_bits", 16.0)
    row[f"KiB_for_{config.max_seq_len}_tokens"] = cache.nbytes / 1024
    for length in (config.max_seq_len, LONG):
        plain, small = (each.make(config, max_seq_len=length, dtype=torch.bfloat16).nbytes for each in (Setting(None), setting))
        row[f"smaller_at_{length}"] = f"{plain / small:.2f}×"
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--corpus", type=Path, help="tiny Shakespeare; left out, only what needs no corpus is measured")
    options.add_argument("--rows", type=int, default=16, help="rows of sampled text (default: %(default)s)")
    options.add_argument("--characters", type=int, default=16384, help="of the held-out tenth (default: %(default)s)")
    given = options.parse_args()
    model, tokenizer = load_tiny(dtype=torch.float32)
    text = split(read_corpus(given.corpus))[1][: given.characters] if given.corpus else None
    report = Report(
        name="quantised",
        title="Keys and values in few bits: what they save and what they cost",
        notes=notes(model.config, given.rows, text),
        command=f" --corpus {given.corpus.name}" if given.corpus else "",
    )
    sampled = sampled_text(model, tokenizer, rows=given.rows, length=model.config.max_seq_len)
    expected = decoded_logits(model, sampled, ContiguousCache(model.config, given.rows))
    for setting in tqdm(SETTINGS, disable=None):
        row = {"cache": setting.name, "residual": setting.residual, **sizes(setting, model.config)}
        nats, agreement = divergence(expected, decoded_logits(model, sampled, setting.make(model.config, given.rows)))
        row |= {"KL_in_nats_per_token": nats, "same_top_token": percent(agreement, 1)}
        if text is not None:
            total, count = nats_in_all(model, tokenizer, text, setting.make)
            row |= {"nats_per_character": f"{total / len(text):.4f}", "perplexity_per_token": f"{math.exp(total / count):.3f}"}
        report.add(**row)
    report.finish()


def notes(config: LlamaConfig, rows: int, text: str | None) -> list[str]:
    found = [
        f"The bundled model in float32. {rows} rows of {config.max_seq_len} tokens that it wrote itself (temperature 1, seed "
        f"{SEED}), decoded token by token through each cache. KL divergence from the predictions with full precision, mean over "
        "all tokens.",
        "Effective bits: of one number in a full group, its share of the group's two 16-bit numbers (scale and zero) included. "
        f"Full groups of 64 are {16 / 8.5:.2f}× smaller than 16 bits with 8 bits, and {16 / 4.5:.2f}× with 4.",
        "KiB, and how many times smaller than 16 bits: bytes really allocated for one row, room for the newest tokens in 16 bits "
        f"included. That room weighs less in a longer row: {LONG:,} tokens are the context of Llama 3.",
        "The newest tokens stay in full precision: at least `residual`, and a group until it is full. So a larger group also "
        "leaves more tokens unrounded: on average half a group.",
        "Keys are rounded per channel and values per token. “Keys per token”: keys too, in groups of channels: the same bytes, "
        "another axis.",
    ]
    if text is not None:
        found.append(
            f"Nats per character and perplexity: the first {len(text):,} characters of the held-out tenth of tiny Shakespeare, "
            f"in windows of {config.max_seq_len} tokens that overlap by half, decoded token by token; a window counts "
            "for what no earlier one has predicted."
        )
    return found


if __name__ == "__main__":
    main()
