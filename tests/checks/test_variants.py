"""Right answers that are written otherwise than the solution pass as well: a check tells wrong from right, not from other."""

import importlib
from pathlib import Path

import pytest
from exercise_notebooks import all_written

from llama3_edu.checks import check

MODULES = sorted((Path(__file__).parent / "variants").glob("chapter_*.py"))
VARIANTS = [
    pytest.param(name, code, id=f"{name}-{index}")
    for path in MODULES
    for name, codes in importlib.import_module(f"variants.{path.stem}").VARIANTS.items()
    for index, code in enumerate(codes)
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "code"), VARIANTS)
def test_another_right_answer_is_right(name: str, code: str, seed: int):
    check(name, all_written()[name][1].answer(code), seed=seed)
