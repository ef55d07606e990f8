"""From text to token ids and back, with the vocabulary of a Hugging Face `tokenizer.json` or of Meta's `tokenizer.model`."""

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers

from llama3_edu.hub import local_directory
from llama3_edu.tiktoken_file import BYTE_OF, read_tiktoken

__all__ = ["Tokenizer"]

_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython", "ipython": "ipython"}
"""Who may speak in a chat, and the word that Llama 3 was trained to read for it."""

_FILES = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
"""Where a tokenizer may lie, most welcome first; the last is how the hub's repositories of Llama 3 hold Meta's own files."""

_LONGEST_TEXT, _LONGEST_RUN = 400_000, 25_000
"""Letters at most that are encoded at once, and letters at most between two changes from white space to other letters or back.

What is longer is cut, and no token reaches across a cut. Source: Meta's `llama_models/llama3/tokenizer.py`."""

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


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
        """Read a `tokenizer.json`, or a `tokenizer.model` as Meta releases it, where there is no such file.

        Args:
            path_or_repo: a directory, the path of the file itself, or `owner/name` on the Hugging Face hub.

        Raises:
            FileNotFoundError: there is no such file, directory or repository.
            ValueError: the file is of another format, or not of a byte-level tokenizer; the message names it.
        """
        path = Path(path_or_repo)
        if not path.is_file():
            first, *others = ([name] for name in _FILES)
            path = _file_in(local_directory(path_or_repo, files=first, otherwise=others))
        backend = read_tiktoken(path) if path.suffix == ".model" else _read_json(path)
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
        """Return the token ids of a text: those that Meta's own tokenizer gives, whichever file this one was read from.

        Like Meta's, it cuts a text every 400,000 letters, and a run of more than 25,000 letters without white space, or of
        white space alone, every 25,000. Half a surrogate pair, which is no character, is read as `�`.

        Args:
            bos: put `<|begin_of_text|>` in front.
            allow_special: read `<|eot_id|>` and its like in the text as the special tokens they name. Leave it off for text that
                others wrote, or they decide where their turn ends. The text between two special tokens is then a text of its own.
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

        Nothing is added to it. The templates that come with Llama 3.1 and later put today's date and the end of the training
        data into every system message; write them there if you want them.

        Args:
            messages: who said what, in order: `{"role": "user", "content": "…"}`. Roles are `system`, `user`, `assistant` and
                `tool`, which the model reads as `ipython`. White space around the content is dropped; special tokens in it are
                plain text.

        Raises:
            ValueError: there is no message, one lacks its role or content, has `tool_calls`, or the role is another.

        Source: the chat template of the released Llama 3 Instruct models.
        """
        if not messages:
            raise ValueError("a chat needs at least one message; it was given none")
        token_ids = [self.bos_id]
        for index, message in enumerate(messages):
            role, content = _checked(message, index)
            token_ids += self._header(role) + self._encode_plain(content.strip()) + [self.eot_id]
        return token_ids + self._header("assistant")

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
        parts = (_without_halves(part) for part in _parts(text))
        return [token_id for part in parts for token_id in self._backend.encode(part, add_special_tokens=False).ids]

    def _header(self, role: str) -> list[int]:
        start, end = self._special_id("<|start_header_id|>"), self._special_id("<|end_header_id|>")
        return [start, *self._encode_plain(_ROLES[role]), end, *self._encode_plain("\n\n")]

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
        return bytes(BYTE_OF[letter] for letter in token)


def _file_in(directory: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} holds no tokenizer.json and no tokenizer.model")


def _read_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{path} is not a Hugging Face tokenizer.json: {error}") from None


def _parts(text: str, *, longest_text: int = _LONGEST_TEXT, longest_run: int = _LONGEST_RUN) -> Iterator[str]:
    """Yield a text in the pieces that Meta's tokenizer encodes one by one. Almost every text is one piece."""
    for start in range(0, len(text), longest_text):
        yield from _parts_without_long_runs(text[start : start + longest_text], longest_run)


def _parts_without_long_runs(text: str, longest_run: int) -> Iterator[str]:
    start = 0
    if len(text) > longest_run:
        for run in re.finditer(r"\s+|\S+", text):
            for cut in range(run.start() + longest_run, run.end(), longest_run):
                yield text[start:cut]
                start = cut
    yield text[start:]


def _without_halves(text: str) -> str:
    """Join surrogates that are a pair to the character they stand for; put `�` for others, such as JSON that was cut off holds."""
    if not _HALF_A_PAIR.search(text):
        return text
    return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


def _visible(text: str) -> str:
    escaped = (letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return "".join(escaped).replace(" ", "␣")


def _checked(message: Mapping[str, str], index: int) -> tuple[str, str]:
    """Return a message's role and content, once they are known to be there."""
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise ValueError(f"message {index} should have a text as its {key}; it has {message.get(key)!r}")
    if message.get("tool_calls"):
        raise ValueError(f"message {index} has tool_calls, which are not written for you; put the call's text into its content")
    if message["role"] not in _ROLES:
        raise ValueError(f"the role of message {index} should be one of {', '.join(_ROLES)}; it is {message['role']!r}")
    return message["role"], message["content"]
