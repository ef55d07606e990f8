"""What the core reports while it works: frozen dataclasses of plain values, for anyone who cares to watch.

A part that does something worth watching takes `observer=`, a function of one event. The default, `ignore`, does nothing.
The core never knows who watches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Event", "Observer", "ignore", "TokensComputed", "TokenChosen", "KeysStored"]


@dataclass(frozen=True)
class Event:
    """Something that happened. Subclasses say what."""


@dataclass(frozen=True)
class TokensComputed(Event):
    """The model ran once, over the tokens at these positions.

    Args:
        positions: for each row, the position of every token the model was given, padding left out.
    """

    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TokenChosen(Event):
    """A row was given its next token.

    Args:
        row: the row of the batch.
        position: where the token will stand.
        token_id: which token it is.
    """

    row: int
    position: int
    token_id: int


@dataclass(frozen=True)
class KeysStored(Event):
    """A cache stored one layer's new keys and values.

    Args:
        layer: index of the layer.
        positions: for each row, the positions stored.
        seq_lens: tokens held per row, afterwards.
        nbytes: bytes allocated by the whole cache, afterwards.
        bytes_copied: bytes of *older* keys and values that were moved to make room for these.
    """

    layer: int
    positions: tuple[tuple[int, ...], ...]
    seq_lens: tuple[int, ...]
    nbytes: int
    bytes_copied: int


Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that watches nothing."""
