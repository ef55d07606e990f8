"""Who may import whom: down a level, or within a level in the order listed. A module without a place here fails the test."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llama3_edu"

LEVELS = (
    ("config", "positions", "events"),
    (
        "rope", "attention", "sampling", "memory", "hub", "stored", "layout", "int8", "tiktoken_file", "tokenizer", "hardware",
        "trace", "thinning", "trace_pool", "trace_blocks", "trace_prefix", "trace_schedule",
        "sizes", "roofline", "roofline_frames", "memory_maths", "memory_use", "memory_recorder",
    ),
    (
        "cache.base", "cache.growing", "cache.contiguous", "cache.store", "cache.quantized", "cache.blocks", "cache.prefix",
        "cache.paged", "cache",
    ),
    ("model", "checkpoint"),
    (
        "kernels.packed", "kernels.projection", "kernels.scratch", "kernels.few_bits", "kernels.paged_triton", "kernels.paged_decode",
        "kernels.attention", "kernels.decode", "kernels.step", "kernels.step_triton", "kernels.graphs", "kernels.forward", "kernels",
        "generate", "probe", "frames", "frames_mask", "quantisation_frames", "beam", "bugs", "frames_bugs",
        "engine.text", "engine.sequence", "engine.scheduler", "engine.statistics", "engine.engine", "engine",
    ),
    (
        "plots", "measured",
        "widgets.schema", "widgets.base", "widgets.pool",
        "widgets.cache_growth", "widgets.causal_mask", "widgets.decoder_shapes", "widgets.recompute_triangle",
        "widgets.head_groups", "widgets.memory_calculator", "widgets.memory_monitor", "widgets.roofline",
        "widgets.beam_tree", "widgets.scheduler_timeline",
        "widgets.block_stepper", "widgets.prefix_tree", "widgets.quantisation_error",
        "widgets.bug_hunt",
        "widgets",
    ),
    (
        "checks.compare", "checks.runaway", "checks.exercise", "checks.material", "checks.hidden_bugs",
        *(f"checks.chapter_{chapter:02d}" for chapter in range(15)),
        "checks.runner", "checks",
    ),
    ("command_line", "__main__"),
)  # fmt: skip
"""From the bottom to the top. The package itself stands above them all: it only gathers names, and nothing inside imports it."""

PLACES = {module: (level, place) for level, modules in enumerate(LEVELS) for place, module in enumerate(modules)}

LATE = {("model", "checkpoint")}
"""Imports up, allowed inside a function alone: `Llama.from_pretrained` is a door for the reader."""


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it; the package itself is the empty name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield what a module's source imports from the package, and whether it does so inside a function."""
    tree = ast.parse(source)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = ["llama3_edu", *module.split(".")] if module else ["llama3_edu"]
            parents = here[: len(here) - node.level + is_package] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "llama3_edu":
                yield owner(name, known), id(node) in inside


def owner(name: str, known: set[str]) -> str:
    """The module that a dotted name lies in: `llama3_edu.cache.base.PAD` lies in `cache.base`."""
    parts = name.split(".")[1:]
    while ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts)


def complaint(module: str, imported: str, is_late: bool) -> str | None:
    """What is wrong with an import, if anything."""
    if imported == "":
        return f"{module} imports the package itself"
    if PLACES[imported] < PLACES[module] or (is_late and (module, imported) in LATE):
        return None
    return f"{module} (level {PLACES[module][0]}) imports {imported} (level {PLACES[imported][0]}), which is not below it"


def all_imports() -> Iterator[tuple[str, str, bool]]:
    found = modules()
    for module, path in found.items():
        if module:
            source = path.read_text(encoding="utf-8")
            for imported, is_late in imports(source, module, path.name == "__init__.py", set(found)):
                yield module, imported, is_late


def test_every_module_has_a_place_and_every_place_a_module() -> None:
    assert sorted(PLACES) == sorted(set(modules()) - {""}), "a new module gets its line in LEVELS, a removed one loses it"


def test_imports_go_down() -> None:
    complaints = [complaint(*found) for found in all_imports()]
    assert len(complaints) > 30, "the imports were not found"
    assert [found for found in complaints if found] == []


def test_the_model_knows_of_no_cache_but_the_contract() -> None:
    of_the_model = {imported for module, imported, _ in all_imports() if module == "model"}
    assert {imported for imported in of_the_model if imported.startswith("cache")} == {"cache.base"}


def test_late_imports_that_are_allowed_are_there() -> None:
    assert LATE <= {(module, imported) for module, imported, is_late in all_imports() if is_late}


def test_importing_the_package_imports_no_view() -> None:
    views = "llama3_edu.plots llama3_edu.widgets matplotlib ipywidgets anywidget IPython transformers".split()
    command = f"import sys, llama3_edu; print([name for name in {views} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", command], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("model", "from llama3_edu.generate import stream", True),
        ("rope", "from llama3_edu.attention import attend", True),
        ("attention", "import llama3_edu.rope", False),
        ("events", "from llama3_edu import config", False),
        ("events", "from llama3_edu import Llama", True),
        ("events", "import llama3_edu", True),
        ("cache.base", "from .growing import GrowingCache", True),
        ("cache.growing", "from . import base", False),
        ("cache.growing", "from .. import trace", False),
        ("cache.growing", "from ..model import Llama", True),
        ("cache.growing", "from llama3_edu.cache import ContiguousCache", True),
        ("generate", "from llama3_edu.cache import ContiguousCache", False),
        ("trace", "def draw():\n    from llama3_edu.widgets import base", True),
        ("model", "def load():\n    from llama3_edu.checkpoint import load_checkpoint", False),
        ("model", "from llama3_edu.checkpoint import load_checkpoint", True),
        ("config", "import torch, json\nfrom torch import nn", False),
    ],
)
def test_a_wrong_import_would_be_seen(module: str, source: str, wrong: bool) -> None:
    found = list(imports(source, module, is_package=False, known=set(modules())))
    assert any(complaint(module, *imported) for imported in found) == wrong
