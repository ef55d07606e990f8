"""The package goes where it says it goes: beside what Colab has, and alone into an empty environment."""

import subprocess
import sys
import tarfile
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
        assert requirement.name in (*colab.PUT_IN_BY_THE_SETUP_CELL, *colab.PART_OF_EVERY_COLAB)


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


def built(folder: Path, kind: str, source: Path) -> Path:
    """Build the package, as it would be published, from a folder that holds its source."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"), "wheel", ROOT)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("sdist"), "sdist", ROOT)


def package_files() -> set[str]:
    """Every file of the package as it lies here, but for what Python leaves behind."""
    paths = {path.relative_to(ROOT) for path in (ROOT / "llama3_edu").rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


KINDS = {".py", ".typed", ".js", ".css", ".json", ".safetensors", ".md"}
"""Code, the scripts and styles of widgets, the bundled model with its README."""


def test_the_package_holds_nothing_else() -> None:
    assert {Path(name).suffix or Path(name).name for name in package_files()} <= KINDS
    tiny = {name for name in package_files() if Path(name).suffix in (".json", ".safetensors", ".md")}
    assert tiny and {Path(name).parent.as_posix() for name in tiny} == {"llama3_edu/tiny"}
    drawn = {name for name in package_files() if Path(name).suffix in (".js", ".css")}
    assert drawn and {Path(name).parent.as_posix() for name in drawn} == {"llama3_edu/widgets"}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_what_says_so(wheel: Path) -> None:
    name = f"llama3_edu-{pyproject()['version']}.dist-info"
    about = {f"{name}/{file}" for file in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}
    assert set(contents(wheel)) == package_files() | about
    assert {"llama3_edu/py.typed", "llama3_edu/tiny/model.safetensors", "llama3_edu/checks/runner.py"} <= set(contents(wheel))


@pytest.mark.slow
def test_the_sdist_holds_what_a_wheel_is_built_from(sdist: Path) -> None:
    folder = f"llama3_edu-{pyproject()['version']}"
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{folder}/") for member in archive.getmembers() if member.isfile()}
    assert names == package_files() | {"README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    again = built(tmp_path / "again", "wheel", source)
    assert again.name == wheel.name and contents(again) == contents(wheel)


@pytest.mark.slow
def test_the_wheel_works_alone_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    source = subprocess.run([str(ROOT / "tools" / "torch-source.sh"), sys.executable], check=True, capture_output=True, text=True)
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "requirements.txt")]
    subprocess.run([*install, *source.stdout.split(), f"torch=={torch.__version__}", str(wheel)], check=True)
    subprocess.run([python, "-I", "-c", f"import torch\n{THREE_LINES}"], check=True, cwd=tmp_path)
