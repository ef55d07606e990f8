"""One request: its tokens, how it wants them chosen, and when it ends."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from llama3_edu.engine.text import GrowingText
from llama3_edu.sampling import Choose, greedy

__all__ = ["Sequence", "OnToken"]

OnToken: TypeAlias = Callable[[int], None]
"""What a request wants done with each of its tokens, as soon as it is chosen."""


@dataclass(eq=False)
class Sequence:
    """A prompt and what follows it. `Engine.add` and `Engine.fork` make these; the engine moves them along.

    Args:
        id: its number, in order of arrival.
        token_ids: the prompt, and every token chosen so far, a stop token included.
        prompt_len: how many of them are the prompt.
        max_new_tokens: it ends with this many tokens after the prompt.
        choose: from logits to its next token.
        stop_ids: it ends with the first of these.
        salt: whose published blocks it may begin with.
        on_token: is told each token as it is chosen.
        growing_text: turns tokens into text and finds stop strings. None: it has no text.
        block_table: the blocks that hold its keys and values.
        num_cached: tokens whose keys and values are held.
        num_computed: the most tokens that were ever held. Those below it are computed again after a preemption.
        finish_reason: `stop` (a stop id or a stop string came), `length`, `cancelled`, `refused` (it never fits, `refusal` says
            why) or `failed` (its own `choose`, `on_token` or text raised an error); None while it goes on.
        refusal: why it never fits.
        forks: sequences that have the same tokens and part from it at its next token.
        host: the sequence that this one will part from.
    """

    id: int
    token_ids: list[int]
    prompt_len: int
    max_new_tokens: int
    choose: Choose = greedy
    stop_ids: frozenset[int] = frozenset()
    salt: str = ""
    on_token: OnToken | None = None
    growing_text: GrowingText | None = None
    block_table: list[int] = field(default_factory=list)
    num_cached: int = 0
    num_computed: int = 0
    finish_reason: str | None = None
    refusal: str | None = None
    forks: list["Sequence"] = field(default_factory=list)
    host: "Sequence | None" = None

    def __repr__(self) -> str:
        state = self.finish_reason or f"{self.num_cached} cached"
        return f"Sequence(id={self.id}, prompt_len={self.prompt_len}, num_new_tokens={self.num_new_tokens}, {state})"

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def new_token_ids(self) -> list[int]:
        """The tokens chosen so far."""
        return self.token_ids[self.prompt_len :]

    @property
    def num_new_tokens(self) -> int:
        """How many tokens were chosen so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_pending(self) -> int:
        """Tokens that must be computed before the next one can be chosen."""
        return len(self.token_ids) - self.num_cached

    @property
    def text(self) -> str:
        """What was generated, as text: without the stop token, without a stop string and what came after it.

        While the sequence goes on, what may be the beginning of a stop string or of a character is held back.

        Raises:
            ValueError: the request came without a tokenizer.
        """
        if self.growing_text is None:
            raise ValueError("a sequence has text where its request has a tokenizer; this one came without")
        return self.growing_text.text

    def append(self, token_id: int) -> None:
        """Add the next token; the sequence may end with it.

        Raises:
            ValueError: the sequence has ended.
        """
        if self.finished:
            raise ValueError(f"a sequence that has ended takes no more tokens; this one ended by {self.finish_reason!r}")
        self.token_ids.append(token_id)
        if token_id in self.stop_ids:
            self.finish("stop")
            return
        if self.growing_text is not None:
            self.growing_text.push(token_id)
            if self.growing_text.stopped:
                self.finish("stop")
                return
        if self.num_new_tokens == self.max_new_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """End here."""
        self.finish_reason = reason
        if self.growing_text is not None:
            self.growing_text.close()
