"""The lowest versions that pyproject.toml accepts are enough: in an environment of just those, the package's own tests pass."""

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = {
    requirement.name: Version(next(iter(requirement.specifier)).version)
    for requirement in map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    )
}
TEST_TOOLS = ("beartype", "beautifulsoup4", "hypothesis", "packaging", "playwright", "pytest")
RAISED_BY_OTHERS = {"psutil"}  # ipykernel, which ipywidgets brings, asks for a later one on some Pythons

TESTED = (
    "attention", "beam", "cache_contract", "checkpoint", "config", "generate", "memory", "model", "plots", "positions", "rope",
    "sampling", "tokenizer", "trace",
)  # fmt: skip
FOLDERS = ("tests/cache", "tests/engine")
# Resident memory depends on the build of torch more than on its version; mutants need the package's source beside the tests.
LEFT_OUT = "not never_holds_the_model_twice and not mutant"


@pytest.fixture(scope="module")
def lowest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python, the oldest there is here that is supported, with the lowest versions and today's test tools."""
    environment = tmp_path_factory.mktemp("lowest") / "venv"
    subprocess.run([oldest_python(), "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    source = subprocess.run(
        [ROOT / "tools" / "torch-source.sh", python], check=True, capture_output=True, text=True
    ).stdout.split()
    torch = [*source, "--index-strategy", "unsafe-best-match", f"torch=={BOUNDS['torch']}.0+cpu"] if source else []
    tools = [f"{name}=={metadata.version(name)}" for name in TEST_TOOLS]
    install = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--resolution", "lowest-direct"]
    subprocess.run([*install, *torch, *tools, ROOT], check=True)
    return python


def oldest_python() -> str:
    for name in ("python3.10", "python3.11", "python3.12"):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return path
    return sys.executable


def test_the_environment_has_the_lowest_versions(lowest: Path) -> None:
    command = f"from importlib import metadata; print(*map(metadata.version, {list(BOUNDS)}))"
    installed = subprocess.run([lowest, "-I", "-c", command], check=True, capture_output=True, text=True).stdout.split()
    versions = {name: Version(Version(found).public) for name, found in zip(BOUNDS, installed)}
    assert {name for name, version in versions.items() if version != BOUNDS[name]} <= RAISED_BY_OTHERS


def test_the_package_passes_its_tests_there(lowest: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests", tmp_path / "tests")  # without the package beside them: the installed one is tested
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = [f"tests/test_{name}.py" for name in TESTED]
    run = [lowest, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, *files, *FOLDERS]
    done = subprocess.run(run, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_command_line_runs_there(lowest: Path, tmp_path: Path) -> None:
    command = [
        lowest,
        "-m",
        "llama3_edu",
        "generate",
        "--prompt",
        "ROMEO:",
        "--max-new-tokens",
        "8",
        "--cache",
        "paged",
        "--stats",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() and "blocks    1 of 1 used" in done.stderr


def test_a_widget_shows_itself_there(lowest: Path, tmp_path: Path) -> None:
    # Not under the tests' own type checks: today's beartype and the oldest jaxtyping disagree about some annotations.
    command = (
        "import llama3_edu as le; from llama3_edu.widgets import MemoryCalculator; "
        "bundle, _ = MemoryCalculator(frames=le.calculator_frames())._repr_mimebundle_(); "
        "assert 'application/vnd.jupyter.widget-view+json' in bundle and 'bytes' in str(bundle)"
    )
    subprocess.run([lowest, "-I", "-c", command], cwd=tmp_path, check=True)
