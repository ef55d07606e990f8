"""A small check that frames are what a widget can draw, with errors that name the field."""

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = [
    "Field", "check", "count", "number", "text", "optional", "one_of", "below", "position", "span", "flags", "each", "row", "some_of",
    "triangle",
]  # fmt: skip

Field: TypeAlias = dict[str, Any] | Callable[[str, Any], None]
"""What a value should be: a dictionary of fields, or a function of the value's name and the value that raises ValueError."""


def check(name: str, value: Any, field: Field) -> None:
    """Raise ValueError, naming the field, unless a value is what `field` says."""
    if callable(field):
        field(name, value)
        return
    if not isinstance(value, dict):
        raise ValueError(f"{name} should be a dictionary; it is {short(value)}")
    for key, inner in field.items():
        if key not in value:
            raise ValueError(f"{name} should have a field {key!r}; it has {', '.join(map(repr, value)) or 'none'}")
        check(f"{name}[{key!r}]", value[key], inner)


def each(field: Field, *, least: int = 0, most: int | None = None, length: int | None = None) -> Field:
    """A list of what `field` says, of at least `least` items and at most `most`, or of exactly `length`."""

    def check_each(name: str, value: Any) -> None:
        if not isinstance(value, list):
            raise ValueError(f"{name} should be a list; it is {short(value)}")
        if len(value) < least or (length is not None and len(value) != length):
            wanted = f"{length}" if length is not None else f"at least {least}"
            raise ValueError(f"{name} should have {wanted} items; it has {len(value)}")
        if most is not None and len(value) > most:
            raise ValueError(f"{name} should have at most {most} items; it has {len(value)}")
        for index, item in enumerate(value):
            check(f"{name}[{index}]", item, field)

    return check_each


def row(*fields: Field) -> Field:
    """A list with one item for each of `fields`, which says what the item is."""

    def check_row(name: str, value: Any) -> None:
        _require(isinstance(value, list) and len(value) == len(fields), name, f"a list of {len(fields)} items", value)
        for index, (item, field) in enumerate(zip(value, fields)):
            check(f"{name}[{index}]", item, field)

    return check_row


def some_of(fields: dict[str, Field]) -> Field:
    """A dictionary of some of these fields, and no others."""

    def check_some(name: str, value: Any) -> None:
        _require(isinstance(value, dict), name, "a dictionary", value)
        for key, item in value.items():
            _require(key in fields, name, f"of the fields {', '.join(map(repr, fields))}", value)
            check(f"{name}[{key!r}]", item, fields[key])

    return check_some


def optional(field: Field) -> Field:
    """What `field` says, or None."""
    return lambda name, value: None if value is None else check(name, value, field)


def text(name: str, value: Any) -> None:
    """A string."""
    _require(isinstance(value, str), name, "a string", value)


def number(name: str, value: Any) -> None:
    """A finite number."""
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
    _require(finite, name, "a finite number", value)


def count(name: str, value: Any) -> None:
    """A whole number, 0 or above."""
    _require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, name, "a whole number, 0 or above", value)


def below(end: int) -> Field:
    """A whole number from 0 to `end - 1`."""

    def check_below(name: str, value: Any) -> None:
        count(name, value)
        _require(value < end, name, f"below {end}", value)

    return check_below


def position(end: int) -> Field:
    """A position from 0 to `end - 1`, or -1 for padding."""

    def check_position(name: str, value: Any) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and -1 <= value < end, name, f"a position from 0 to {end - 1}, or -1 for padding", value)

    return check_position


def one_of(*values: str) -> Field:
    """One of these strings."""
    return lambda name, value: _require(value in values, name, f"one of {', '.join(values)}", value)


def span(end: int) -> Field:
    """A run of positions `[first, end)` that stops at `end` at the latest."""

    def check_span(name: str, value: Any) -> None:
        each(count, length=2)(name, value)
        _require(value[0] <= value[1] <= end, name, f"[first, end) with first <= end <= {end}", value)

    return check_span


def flags(length: int) -> Field:
    """A string of `length` characters, each 0 or 1."""

    def check_flags(name: str, value: Any) -> None:
        fits = isinstance(value, str) and len(value) == length and set(value) <= {"0", "1"}
        _require(fits, name, f"{length} characters 0 or 1", value)

    return check_flags


def triangle(row: Callable[[int], Field], length: int) -> Field:
    """A list of `length` rows, the first of one item, each of one more; `row` says what a row of a given length is."""

    def check_triangle(name: str, value: Any) -> None:
        each(lambda name, value: None, length=length)(name, value)
        for index, item in enumerate(value):
            check(f"{name}[{index}]", item, row(index + 1))

    return check_triangle


def short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def _require(condition: bool, name: str, wanted: str, value: Any) -> None:
    if not condition:
        raise ValueError(f"{name} should be {wanted}; it is {short(value)}")
