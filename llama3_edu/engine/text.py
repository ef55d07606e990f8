"""Text that grows token by token, and ends before the first stop string."""

import codecs
from collections.abc import Iterable
from copy import copy

from llama3_edu.tokenizer import Tokenizer

__all__ = ["GrowingText"]


class GrowingText:
    """The text of a sequence while its tokens arrive.

    A stop string may begin in one token and end in another. So what could be the beginning of one is held back until more is
    known, as are the bytes of a character that is not whole yet. Which text comes out does not depend on how tokens cut it up:
    the stop string that is complete first ends it.

    Args:
        tokenizer: says which bytes a token stands for.
        stop_strings: the text ends before the first of them.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop_strings: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop_strings = tuple(stop_strings)
        if "" in self._stop_strings:
            raise ValueError("a stop string should not be empty: it would stop every text before it starts")
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held_back = ""
        self.text = ""
        self.stopped = False

    def push(self, token_id: int) -> None:
        """Add what a token stands for; afterwards `text` is longer, or `stopped` is true, or neither: all was held back.

        Raises:
            ValueError: the id is outside the tokenizer's vocabulary.
        """
        self._add(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def close(self) -> None:
        """Let go of what was held back: nothing follows."""
        self._add(self._decoder.decode(b"", final=True))
        self.text, self._held_back = self.text + self._held_back, ""

    def fork(self) -> "GrowingText":
        """Return a text that goes on from here by itself."""
        other = copy(self)
        other._decoder = copy(self._decoder)
        return other

    def _add(self, new: str) -> None:
        if self.stopped:
            return
        text = self._held_back + new
        # Of the stop strings that are there, the one that ends first; of those, the longest.
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stop_strings if stop in text]
        if found:
            _, start = min(found)
            self.text, self._held_back, self.stopped = self.text + text[:start], "", True
            return
        keep = self._possible_beginning(text)
        cut = len(text) - keep
        self.text, self._held_back = self.text + text[:cut], text[cut:]

    def _possible_beginning(self, text: str) -> int:
        """Return how many letters at the end of a text may be the beginning of a stop string."""
        longest = max(map(len, self._stop_strings), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop_strings):
                return length
        return 0
