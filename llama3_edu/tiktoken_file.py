"""Meta's `tokenizer.model`: byte strings in the order in which a tokenizer learned them, in tiktoken's format."""

import base64
import binascii
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

__all__ = ["read_tiktoken", "BYTE_OF", "LETTER_OF", "LLAMA3_SPLIT", "SPECIAL_TOKENS"]

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text into words before it looks for tokens in them. Source: Meta's `llama_models/llama3/tokenizer.py`."""

_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
    11: "<|image|>",
}


def _special_tokens() -> tuple[str, ...]:
    numbers = count()
    return tuple(_NAMED.get(place) or f"<|reserved_special_token_{next(numbers)}|>" for place in range(256))


SPECIAL_TOKENS = _special_tokens()
"""The special tokens behind the vocabulary, in order: from 128000 on in the released file, which does not list them.

Names are those of Llama 3.1 and later. In Llama 3 the five that came later (4, 5, 8, 10 and 11) were reserved, too, so other
reserved ones bore other numbers; ids are the same. Source: Meta's `llama_models/llama3/tokenizer.py`, version 0.3.0.
"""


def read_tiktoken(path: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer that a `tokenizer.model` of Llama 3 describes, special tokens included.

    Raises:
        ValueError: the file is of another format, or its tokens leave out a rank or a byte; the message names it.
    """
    ranks = _read_ranks(path)
    vocabulary = {_letters(token): rank for token, rank in ranks.items()}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, _merges(ranks), ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    return backend


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Return the rank of every token: of two neighbours that can be joined, the pair that makes the lowest one is joined first."""
    content = path.read_bytes()
    if b"<unk>" in content[:100]:
        raise ValueError(f"{path} is a SentencePiece model, as Llama 2 has it; Llama 3's tokenizer.model is in tiktoken's format")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path} is not a tokenizer.model: line {number} should be a token in base64, a space and its rank; "
                f"it is {line[:40]!r}"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path} should give its {len(ranks)} tokens the ranks 0 to {len(ranks) - 1}, each once")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{path} should have a token for every single byte; it has none for {', '.join(map(hex, missing[:4]))}")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Return every pair of tokens that makes a third one, by the rank of what it makes.

    tiktoken joins whichever pair makes the lowest token; Hugging Face's library is told the pairs. Several may make one token:
    all are listed, not only the one that training joined.
    """
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return [(_letters(left), _letters(right)) for left, right in merges]


def _byte_letters() -> dict[str, int]:
    """Return the letter that a byte-level vocabulary writes for each byte, the other way round.

    Bytes that print in Latin-1 are their own letter; the others take the letters from 256 on, in order.

    Source: the GPT-2 tokenizer, whose files Hugging Face's format follows.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _byte_letters()
"""The byte that each letter of a byte-level vocabulary stands for."""

LETTER_OF = {byte: letter for letter, byte in BYTE_OF.items()}
"""The letter that a byte-level vocabulary writes for each byte."""


def _letters(token: bytes) -> str:
    return "".join([LETTER_OF[byte] for byte in token])
