"""What opens the book elsewhere, Binder, containers, an editor, names files that exist and installs what `make install` installs."""

import fnmatch
import json
import os
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, each with what it is given."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def given(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def copied() -> list[str]:
    return [source for arguments in given("COPY") for source in shlex.split(arguments)[:-1]]


def is_sent_to_docker(path: str) -> bool:
    """What .dockerignore says of a path: the last rule that fits it or a folder above it decides."""
    sent = True
    for rule in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = rule.removeprefix("!")
        above = [path, *map(str, Path(path).parents)]
        if rule and not rule.startswith("#") and any(fnmatch.fnmatch(place, pattern.replace("**/", "*")) for place in above):
            sent = rule.startswith("!")
    return sent


def test_the_image_is_of_one_stage_with_known_instructions() -> None:
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM" and names.count("FROM") == 1
    assert set(names) <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}
    assert re.fullmatch(r"python:3\.1[0-3]-[\w-]+", given("FROM")[0])


def test_nobody_in_the_container_is_root() -> None:
    names = [name for name, _ in instructions()]
    (user,) = given("USER")
    assert user != "root" and names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :], "what is installed belongs to root; who works in it cannot change it"
    assert any(run.startswith("useradd") and run.endswith(user) for run in given("RUN"))


@pytest.mark.parametrize("source", copied())
def test_what_the_image_copies_is_there_and_is_sent(source: str) -> None:
    assert (ROOT / source).exists() and is_sent_to_docker(source)


def test_what_no_image_needs_is_not_sent() -> None:
    unsent = (".git", ".venv", "_build", "tests", "book/__pycache__", "llama3_edu/cache/__pycache__")
    assert [path for path in unsent if is_sent_to_docker(path)] == []


def test_what_starts_in_the_container_can_be_run() -> None:
    (entry,) = given("ENTRYPOINT")
    (workdir, _) = given("WORKDIR")
    (script,) = json.loads(entry)
    here = ROOT / Path(script).relative_to(workdir)
    assert os.access(here, os.X_OK) and here.relative_to(ROOT).as_posix() in copied()
    assert json.loads(given("CMD")[0])[:2] == ["jupyter", "lab"]


def test_binder_and_image_install_what_make_installs() -> None:
    script = (ROOT / ".binder" / "postBuild").read_text(encoding="utf-8")
    assert os.access(ROOT / ".binder" / "postBuild", os.X_OK)
    environment = (ROOT / "tools" / "environment.sh").read_text(encoding="utf-8")
    (pattern,) = re.findall(r"sed -n 's/(.+?)//p' tools/environment\.sh", script)
    torch = [line for line in environment.splitlines() if re.match(pattern, line)]
    assert len(torch) == 1 and re.fullmatch(r"torch=torch==[\d.]+", torch[0])
    installs = re.compile(r"^install (?!\")(.+)$", re.MULTILINE)
    assert installs.findall(script) == installs.findall(environment)
    assert any(".binder/postBuild" in run for run in given("RUN"))


def test_binder_has_a_python_the_book_supports() -> None:
    assert re.fullmatch(r"python-3\.1[0-3]\n", (ROOT / ".binder" / "runtime.txt").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [".devcontainer/devcontainer.json", ".vscode/extensions.json", ".vscode/settings.json"])
def test_settings_of_the_editor_can_be_read(name: str) -> None:
    settings = json.loads((ROOT / name).read_text(encoding="utf-8"))
    assert settings and all(part for part in settings.values())


def test_the_dev_container_makes_the_environment_the_editor_looks_for() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make install"
    inside = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    outside = json.loads((ROOT / ".vscode/settings.json").read_text(encoding="utf-8"))["python.defaultInterpreterPath"]
    assert inside.endswith("/.venv/bin/python") and outside.endswith("/.venv/bin/python")


def test_pytest_in_the_editor_runs_tests_that_exist() -> None:
    arguments = json.loads((ROOT / ".vscode/settings.json").read_text(encoding="utf-8"))["python.testing.pytestArgs"]
    assert [path for path in arguments if not (ROOT / path.removeprefix("--ignore=")).exists()] == []
