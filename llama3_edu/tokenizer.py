"""From text to token ids and back, with the vocabulary of a Hugging Face `tokenizer.json`."""

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers

from llama3_edu.hub import local_directory

__all__ = ["Tokenizer"]

_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}
"""Who may speak in a chat, and the word that Llama 3 was trained to read for it."""


class Tokenizer:
    """A byte-level tokenizer with Llama 3's special tokens.

    Args:
        backend: the `tokenizers` object that does the splitting. It is changed: it no longer pads or cuts, and no longer reads
            special tokens in text.

    Raises:
        ValueError: the tokenizer is not byte-level, as Llama 3's is.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            raise ValueError(f"the tokenizer should have a ByteLevel decoder, as Llama 3's has; it has {backend.decoder!r}")
        backend.no_padding()
        backend.no_truncation()
        # Text may come from anyone: `<|eot_id|>` typed into it stays ten characters. `encode` finds special tokens itself.
        backend.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special = {token.content: token_id for token_id, token in added.items() if token.special}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path) -> "Tokenizer":
        """Read `tokenizer.json` from a directory, from its own path, or from `owner/name` on the Hugging Face hub.

        Raises:
            FileNotFoundError: there is no such file, directory or repository.
            ValueError: the file is not a `tokenizer.json`, or not of a byte-level tokenizer; the message names it.
        """
        path = Path(path_or_repo)
        if not path.is_file():
            path = local_directory(path_or_repo, files=["tokenizer.json"]) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} holds no tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None
        try:
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> Mapping[str, int]:
        """The id of every special token, by its text."""
        return dict(self._special)

    @property
    def bos_id(self) -> int:
        """`<|begin_of_text|>`, the first token of everything the model reads."""
        return self._special_id("<|begin_of_text|>")

    @property
    def eos_id(self) -> int:
        """`<|end_of_text|>`, after which there is nothing more."""
        return self._special_id("<|end_of_text|>")

    @property
    def eot_id(self) -> int:
        """`<|eot_id|>`, the end of one speaker's turn."""
        return self._special_id("<|eot_id|>")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens after which a model has finished: end of text, of message and of turn, as far as they exist here."""
        names = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        return tuple(self._special[name] for name in names if name in self._special)

    def encode(self, text: str, *, bos: bool = False, allow_special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            bos: put `<|begin_of_text|>` in front.
            allow_special: read `<|eot_id|>` and its like in the text as the special tokens they name. Leave it off for text that
                others wrote, or they decide where their turn ends.
        """
        token_ids = [self.bos_id] if bos else []
        if not allow_special:
            return token_ids + self._encode_plain(text)
        start = 0
        for found in self._special_pattern.finditer(text):
            token_ids += self._encode_plain(text[start : found.start()])
            token_ids.append(self._special[found.group()])
            start = found.end()
        return token_ids + self._encode_plain(text[start:])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return a conversation in Llama 3's chat format, up to where the assistant is to speak.

        Args:
            messages: who said what, in order: `{"role": "user", "content": "…"}`. Roles are `system`, `user`, `assistant` and
                `tool`. White space around the content is dropped; special tokens in it are plain text.

        Raises:
            ValueError: there is no message, one lacks its role or content, or the role is another.

        Source: the chat template of the released Llama 3 Instruct models.
        """
        if not messages:
            raise ValueError("a chat needs at least one message; it was given none")
        token_ids = [self.bos_id]
        for index, message in enumerate(messages):
            role, content = _checked(message, index)
            token_ids += self._header(role) + self._encode_plain("\n\n" + content.strip()) + [self.eot_id]
        return token_ids + self._header("assistant") + self._encode_plain("\n\n")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens written out; `�` stands for bytes that are no whole character.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def decode_stream(self, token_ids: Iterable[int]) -> Iterator[str]:
        """Yield text while the ids arrive, never part of a character: one that spans tokens comes with its last token.

        Joined, it is what `decode` returns, and so are its errors.
        """
        waiting = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in token_ids:
            text = waiting.decode(self.token_bytes(token_id))
            if text:
                yield text
        rest = waiting.decode(b"", final=True)
        if rest:
            yield rest

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Return each token so that all of it can be seen: `␣` for a space, `\\n` for a new line, `\\xe2` for part of a character.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return [_visible(self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")) for token_id in token_ids]

    def _encode_plain(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _header(self, role: str) -> list[int]:
        start, end = self._special_id("<|start_header_id|>"), self._special_id("<|end_header_id|>")
        return [start, *self._encode_plain(_ROLES[role]), end]

    def _special_id(self, name: str) -> int:
        if name not in self._special:
            raise ValueError(f"this tokenizer has no special token {name}; it has {', '.join(self._special) or 'none'}")
        return self._special[name]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for."""
        token_id = int(token_id)
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            raise ValueError(f"token ids go from 0 to {self.vocab_size - 1}; one of those given is {token_id}")
        return bytes(_BYTE_OF[letter] for letter in token)


def _byte_letters() -> dict[str, int]:
    """Return the letter that a byte-level vocabulary writes for each byte, the other way round.

    Bytes that print in Latin-1 are their own letter; the others take the letters from 256 on, in order.

    Source: the GPT-2 tokenizer, whose files Hugging Face's format follows.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


def _visible(text: str) -> str:
    escaped = (letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return "".join(escaped).replace(" ", "␣")


def _checked(message: Mapping[str, str], index: int) -> tuple[str, str]:
    """Return a message's role and content, once they are known to be there."""
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise ValueError(f"message {index} should have a text as its {key}; it has {message.get(key)!r}")
    if message["role"] not in _ROLES:
        raise ValueError(f"the role of message {index} should be one of {', '.join(_ROLES)}; it is {message['role']!r}")
    return message["role"], message["content"]
