"""The package goes where it says it goes: beside what Colab has, and alone into an empty environment."""

import subprocess
import sys
import zipfile
from pathlib import Path

import colab
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent

COLAB = {**colab.versions(), "torch": "2.11.0"}
"""What Google Colab's GPU runtime had installed on 2026-08-19, of what this project imports."""

PUT_IN_BY_THE_SETUP_CELL = {"jaxtyping"}
PART_OF_EVERY_COLAB = {"tqdm"}

THREE_LINES = """
import llama3_edu as le
model, tokenizer = le.load_tiny()
prompt = torch.tensor([tokenizer.encode("ROMEO:", bos=True)])
naive = le.generate(model, prompt, max_new_tokens=8)
cached = le.generate(model, prompt, max_new_tokens=8, cache=le.ContiguousCache(model.config, max_seq_len=64))
assert torch.equal(naive, cached), (naive, cached)
"""


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


REQUIREMENTS = [Requirement(line) for line in pyproject()["dependencies"]]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_colab_has_what_the_package_asks_for(requirement: Requirement) -> None:
    if requirement.name in COLAB:
        assert requirement.specifier.contains(COLAB[requirement.name])
    else:
        assert requirement.name in PUT_IN_BY_THE_SETUP_CELL | PART_OF_EVERY_COLAB


def test_the_package_sets_no_upper_bounds() -> None:
    assert {specifier.operator for requirement in REQUIREMENTS for specifier in requirement.specifier} == {">="}


def test_what_the_tests_use_is_what_the_package_accepts() -> None:
    pinned = [
        Requirement(line) for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line[0] not in "# "
    ]
    versions = {requirement.name: str(requirement.specifier).removeprefix("==") for requirement in pinned}
    assert "torch" not in versions and not [name for name in versions if name.startswith(("nvidia", "cuda"))]
    versions["torch"] = Version(torch.__version__).public
    for requirement in REQUIREMENTS:
        assert requirement.specifier.contains(versions[requirement.name])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built as it would be published."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("llama3_edu/")}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llama3_edu").rglob("*") if path.is_file()}
    assert packed == {name for name in here if "__pycache__" not in name}
    assert {"llama3_edu/py.typed", "llama3_edu/tiny/model.safetensors"} <= packed


@pytest.mark.slow
def test_the_wheel_works_alone_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    source = subprocess.run([str(ROOT / "tools" / "torch-source.sh"), sys.executable], check=True, capture_output=True, text=True)
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "requirements.txt")]
    subprocess.run([*install, *source.stdout.split(), f"torch=={torch.__version__}", str(wheel)], check=True)
    subprocess.run([python, "-I", "-c", f"import torch\n{THREE_LINES}"], check=True, cwd=tmp_path)
