"""An answer may be right in many ways: no check prefers the one in the notebook."""

import importlib
from pathlib import Path

import pytest
from exercise_notebooks import all_written

from llama3_edu.checks import check

MODULES = sorted((Path(__file__).parent / "variants").glob("chapter_*.py"))
VARIANTS = [
    pytest.param(name, code, id=f"{name}-{number}")
    for path in MODULES
    for name, codes in importlib.import_module(f"variants.{path.stem}").VARIANTS.items()
    for number, code in enumerate(codes)
]
"""Right answers: the exercise and the code."""


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "code"), VARIANTS)
def test_another_right_answer_is_right(name: str, code: str, seed: int):
    check(name, all_written()[name][1].answer(code), seed=seed)
