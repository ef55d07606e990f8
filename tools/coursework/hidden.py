"""Hidden checks: Python files that an instructor keeps, each with more inputs for one exercise."""

from typing import Any

from llama3_edu.checks import Exercise

__all__ = ["hidden_exercise"]

FIELDS = ("cases", "judge", "suspects", "look", "points")


def hidden_exercise(name: str, source: str) -> Exercise:
    """Return what a hidden check tries an answer with.

    Args:
        name: the exercise's name.
        source: defines `cases(generator)` and, where it needs to, `judge`, `suspects`, `look` and `points`.

    Raises:
        ValueError: it defines no `cases`.
    """
    given: dict[str, Any] = {"__name__": f"hidden_{name}"}
    exec(compile(source, f"<hidden check of {name}>", "exec"), given)
    if not callable(given.get("cases")):
        has = [field for field in FIELDS if field in given]
        raise ValueError(f"the hidden check of {name!r} should define cases(generator); of {list(FIELDS)} it defines {has}")
    own = {field: given[field] for field in ("judge", "suspects") if field in given}
    look, stars = given.get("look", "See the statement."), given.get("points", 1)
    return Exercise(name=name, chapter=-1, title=name, stars=stars, minutes=1, cases=given["cases"], look=look, **own)
