"""Text that grows by tokens: however it is cut up, it ends before the first stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_edu import load_tiny
from llama3_edu.engine import GrowingText

_, TOKENIZER = load_tiny()

letters = st.text(alphabet="ab", max_size=10)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


def ids_of(text: str) -> list[int]:
    """One token per byte."""
    single = {TOKENIZER.token_bytes(token_id): token_id for token_id in range(TOKENIZER.vocab_size)}
    return [single[bytes([byte])] for byte in text.encode()]


def grown(token_ids: list[int], stops: list[str]) -> GrowingText:
    text = GrowingText(TOKENIZER, stop_strings=stops)
    for token_id in token_ids:
        text.push(token_id)
    text.close()
    return text


def cut_by_letter(text: str, stops: list[str]) -> tuple[str, bool]:
    """What should be left, read letter by letter: at the first end of a stop string, cut before the longest that ends there."""
    for end in range(1, len(text) + 1):
        ending_here = [stop for stop in stops if text[:end].endswith(stop)]
        if ending_here:
            return text[: end - max(map(len, ending_here))], True
    return text, False


@pytest.mark.parametrize(
    ("text", "stops", "left"),
    [
        ("aab", ["ab"], "a"),
        ("aaab", ["aab"], "a"),
        ("abab", ["b", "aba"], "a"),
        ("bab", ["ab", "bab"], ""),
        ("aba", ["bb"], "aba"),
    ],
)
def test_the_stop_string_that_is_complete_first_ends_the_text(text: str, stops: list[str], left: str) -> None:
    assert grown(ids_of(text), stops).text == left


def test_a_stop_string_within_one_token_ends_the_text() -> None:
    whole = {TOKENIZER.decode([token_id]): token_id for token_id in range(TOKENIZER.vocab_size)}
    word = next(text for text in whole if len(set(text)) == len(text) == 3)
    a, b, c = word
    for stops, left in (([b], a), ([c, b], a), ([b + c, a + b], ""), (["never", c], a + b)):
        assert grown([whole[word]], stops).text == left


@settings(max_examples=300)
@given(text=letters, stops=stop_lists)
def test_stop_strings_are_found_letter_by_letter(text: str, stops: list[str]) -> None:
    found = grown(ids_of(text), stops)
    assert (found.text, found.stopped) == cut_by_letter(text, stops)


@settings(max_examples=300)
@given(token_ids=st.lists(st.integers(0, 511), max_size=12), data=st.data())
def test_how_tokens_cut_the_text_makes_no_difference(token_ids: list[int], data: st.DataObject) -> None:
    text = TOKENIZER.decode(token_ids)
    places = st.tuples(st.integers(0, len(text)), st.integers(1, 6))
    stops = [text[start : start + length] for start, length in data.draw(st.lists(places, max_size=3), "places")]
    stops = [stop for stop in stops if stop]
    found = grown(token_ids, stops)
    assert (found.text, found.stopped) == cut_by_letter(text, stops)


@settings(max_examples=200)
@given(text=letters, stops=stop_lists)
def test_what_was_shown_is_never_taken_back_and_no_more_is_held_than_must_be(text: str, stops: list[str]) -> None:
    growing, shown = GrowingText(TOKENIZER, stop_strings=stops), ""
    for seen, token_id in enumerate(ids_of(text), start=1):
        growing.push(token_id)
        assert growing.text.startswith(shown)
        shown = growing.text
        if growing.stopped:
            break
        held = text[len(shown) : seen]
        assert shown + held == text[:seen]
        assert held == "" or any(stop.startswith(held) for stop in stops)
    growing.close()
    assert growing.text.startswith(shown)


@given(text=st.text(alphabet="aé€𝄞", max_size=6))
def test_characters_of_several_bytes_come_whole(text: str) -> None:
    growing = GrowingText(TOKENIZER)
    for token_id in ids_of(text):
        growing.push(token_id)
        assert text.startswith(growing.text)
    growing.close()
    assert growing.text == text


def test_half_a_character_at_the_end_is_shown_as_decode_shows_it() -> None:
    token_ids = ids_of("a€")[:-1]
    assert grown(token_ids, []).text == TOKENIZER.decode(token_ids) == "a\ufffd"


def test_after_a_stop_nothing_is_added() -> None:
    growing = GrowingText(TOKENIZER, stop_strings=["b"])
    for token_id in ids_of("abab"):
        growing.push(token_id)
    growing.close()
    assert growing.text == "a" and growing.stopped


def test_a_fork_goes_on_by_itself() -> None:
    growing = GrowingText(TOKENIZER, stop_strings=["bb"])
    for token_id in ids_of("ab") + ids_of("é")[:0]:
        growing.push(token_id)
    first, second = growing.fork(), growing.fork()
    half, other_half = ids_of("é")
    first.push(half)
    second.push(ids_of("b")[0])
    first.push(other_half)
    growing.close()
    assert (first.text, second.text, second.stopped, growing.text) == ("abé", "a", True, "ab")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="a stop string should not be empty"):
        GrowingText(TOKENIZER, stop_strings=["a", ""])


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="token ids go from 0 to 511; one of those given is 512"):
        GrowingText(TOKENIZER).push(512)
