"""The released vocabulary: the same ids as Meta's own code gives, as transformers gives, and from either file."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from llama3_edu.tiktoken_file import SPECIAL_TOKENS
from llama3_edu.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

META_PACKAGE = "llama-models==0.3.0"  # carries the released tokenizer.model

TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""What the template of Llama 3 8B Instruct says, in fewer words."""

ANY_LETTER = st.characters(exclude_categories=()) | st.sampled_from(" \t\n'sStT09aé日🐈\u200d")
TEXTS = st.one_of(st.text(ANY_LETTER), st.lists(st.sampled_from(SPECIAL_TOKENS) | st.text(max_size=5)).map("".join))
MANY = settings(max_examples=3000)


class Meta:
    """Meta's tokenizer in a process and an environment of its own."""

    def __init__(self, python: Path) -> None:
        server = Path(__file__).with_name("meta_server.py")
        self._process = subprocess.Popen([python, "-I", server], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str, *arguments: object) -> object:
        self._process.stdin.write(json.dumps([question, *arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Meta:
    environment = tmp_path_factory.mktemp("meta") / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", META_PACKAGE], check=True)
    server = Meta(python)
    yield server
    server.close()


@pytest.fixture(scope="module")
def ours(meta: Meta) -> Tokenizer:
    return Tokenizer.from_pretrained(meta.ask("file"))


@pytest.fixture(scope="module")
def converted(meta: Meta, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `tokenizer.json` that transformers makes of Meta's file: the way the released ones were made."""
    with pytest.MonkeyPatch.context() as patch:
        # It would import tiktoken for nothing more than this.
        patch.setattr(TikTokenConverter, "load_tiktoken_bpe", staticmethod(read_ranks))
        backend = TikTokenConverter(meta.ask("file"), extra_special_tokens=dict.fromkeys(SPECIAL_TOKENS)).converted()
    path = tmp_path_factory.mktemp("converted") / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.fixture(scope="module")
def from_json(converted: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(converted)


@pytest.fixture(scope="module")
def theirs(converted: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(converted), bos_token=SPECIAL_TOKENS[0], chat_template=TEMPLATE)


def read_ranks(path: str) -> dict[bytes, int]:
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}


def test_special_tokens_and_stop_ids_are_metas(meta: Meta, ours: Tokenizer) -> None:
    assert ours.special_ids == meta.ask("special")
    assert min(ours.special_ids.values()) == 128_000 and ours.vocab_size == 128_256
    assert set(ours.stop_ids) == set(meta.ask("stop_ids"))


@MANY
@given(TEXTS)
def test_any_text_has_metas_ids(meta: Meta, ours: Tokenizer, text: str) -> None:
    token_ids = ours.encode(text, bos=True)
    assert token_ids == meta.ask("encode", text)
    assert not set(token_ids[1:]) & set(ours.special_ids.values())


@MANY
@given(TEXTS)
def test_special_tokens_that_are_asked_for_are_read_as_meta_reads_them(meta: Meta, ours: Tokenizer, text: str) -> None:
    assert ours.encode(text, allow_special=True) == meta.ask("encode_special", text)


def test_every_character_is_cut_as_meta_cuts_it(meta: Meta, ours: Tokenizer) -> None:
    # Which of them are letters, digits or white space decides where words end; libraries may know another Unicode.
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(letters), 4096):
        text = "".join(f"a{c}b {c}1{c}' {c}{c} \n'{c} 'd{c}" for c in letters[start : start + 4096])
        assert ours.encode(text, bos=True) == meta.ask("encode", text)


@MANY
@given(st.lists(st.integers(0, 128_255)))
def test_any_ids_decode_as_meta_decodes_them(meta: Meta, ours: Tokenizer, token_ids: list[int]) -> None:
    assert ours.decode(token_ids) == meta.ask("decode", token_ids) == "".join(ours.decode_stream(token_ids))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        " " * 60_001 + "x" * 25_000 + " \n" * 13_000 + "x" * 25_001,
        "To be, or not to be: " * 40_000,
        "=日" * 30_000,
    ],
    ids=["one letter", "runs", "long", "without white space"],
)
def test_long_texts_have_metas_ids(meta: Meta, ours: Tokenizer, text: str) -> None:
    assert ours.encode(text, bos=True) == meta.ask("encode", text)


SPOKEN = st.text(ANY_LETTER).map(lambda text: text.encode("utf-8", "replace").decode().strip())
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": SPOKEN}), min_size=1
)


@MANY
@given(CHATS)
def test_a_chat_is_written_as_meta_writes_it(meta: Meta, ours: Tokenizer, messages: list[dict[str, str]]) -> None:
    assert ours.encode_chat(messages) == meta.ask("chat", messages)


@MANY
@given(TEXTS)
def test_both_files_give_the_same_ids(ours: Tokenizer, from_json: Tokenizer, text: str) -> None:
    assert ours.encode(text, allow_special=True) == from_json.encode(text, allow_special=True)


@MANY
@given(CHATS)
def test_a_chat_is_written_as_the_released_template_writes_it(
    ours: Tokenizer, theirs: PreTrainedTokenizerFast, messages: list[dict[str, str]]
) -> None:
    messages = [{"role": message["role"].replace("tool", "ipython"), "content": message["content"]} for message in messages]
    written = theirs.apply_chat_template(messages, add_generation_prompt=True)
    assert ours.encode_chat(messages) == written["input_ids"]
