"""Workflows name what exists, run no action that could change under them, and may do no more than they need."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

PROGRAMS = {"sudo", "curl", "tee"}
"""What runners have, beside `make` and the files of this repository."""

MAY_WRITE = {
    ("site.yml", "deploy"): {"pages", "id-token"},
    ("release.yml", "publish"): {"id-token"},
}
"""The jobs that get more than reading, and what for: Pages and PyPI know who asks by a token of that run alone."""

every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def read(path: Path) -> dict:
    # YAML 1.1 reads the key `on` as true.
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in workflow.items()}


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(script: str) -> list[list[str]]:
    """The commands of a step, each as its words; what `${{ … }}` stands for is not known here."""
    lines = re.sub(r"\\\n", " ", script).splitlines()
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|\||[|;]", line)]
    return [shlex.split(part) for part in parts if part]


def in_environment(program: str) -> bool:
    """Whether a program lies in the environment that `make install` makes: nothing tells here what is in it."""
    return program in (".venv/bin/python", ".venv/bin/jupyter")


def test_there_are_workflows_for_tests_site_colab_and_release() -> None:
    assert {"test.yml", "site.yml", "colab.yml", "release.yml"} <= {path.name for path in WORKFLOWS}


@every_workflow
def test_every_action_is_pinned_to_a_commit(path: Path) -> None:
    used = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"\s*-?\s*uses:", line)]
    assert len(used) == sum("uses" in step for step in steps(read(path))) > 0
    loose = [line for line in used if not re.search(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)]
    assert loose == [], "an action is named by the hash of a commit, with its version in a comment"


def test_an_action_has_one_version_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for name, version in re.findall(r"uses: ([\w./-]+)@(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, set()).add(version)
    assert {name: versions for name, versions in found.items() if len(versions) > 1} == {}


@every_workflow
def test_whatever_runs_is_there(path: Path) -> None:
    for step in steps(read(path)):
        for program, *arguments in commands(step.get("run", "")):
            if program == "make":
                assert set(arguments) <= TARGETS, f"{step['run']}: the Makefile has {sorted(TARGETS)}"
            elif "/" in program and not in_environment(program):
                assert os.access(ROOT / program, os.X_OK), f"{program} should be a file that can be run"
            else:
                assert program in PROGRAMS or in_environment(program), f"{program}: what is it?"
            scripts = [argument for argument in arguments if re.fullmatch(r"(tools|\.ci)/[\w./-]+", argument)]
            assert [script for script in scripts if not (ROOT / script).exists()] == []


@every_workflow
def test_files_that_steps_name_are_there(path: Path) -> None:
    for step in steps(read(path)):
        for named in str(step.get("with", {}).get("cache-dependency-path", "")).split():
            assert (ROOT / named).exists()


@every_workflow
def test_no_workflow_may_do_more_than_it_needs(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        allowed = {what for what, how in job.get("permissions", {}).items() if how == "write"}
        assert allowed == MAY_WRITE.get((path.name, name), set())


@every_workflow
def test_runs_end_and_do_not_pile_up(path: Path) -> None:
    workflow = read(path)
    assert workflow["concurrency"]["group"]
    assert [name for name, job in workflow["jobs"].items() if not 0 < job.get("timeout-minutes", 0) <= 120] == []
    assert [name for name, job in workflow["jobs"].items() if "latest" in job["runs-on"]] == [], "runners change; name one"


@every_workflow
def test_nothing_that_strangers_write_becomes_a_command_or_gets_a_password(path: Path) -> None:
    workflow = read(path)
    assert "pull_request_target" not in workflow["on"] and "workflow_run" not in workflow["on"]
    for step in steps(workflow):
        assert "${{" not in step.get("run", ""), "values go to a script through its environment"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_what_is_published_is_what_was_built_and_tried() -> None:
    jobs = read(ROOT / ".github/workflows/release.yml")["jobs"]
    assert (jobs["try"]["needs"], jobs["publish"]["needs"]) == ("build", "try")
    (uploaded,) = [step["with"]["name"] for step in jobs["build"]["steps"] if "upload-artifact" in step.get("uses", "")]
    for name in ("try", "publish"):
        (fetched,) = [step["with"]["name"] for step in jobs[name]["steps"] if "download-artifact" in step.get("uses", "")]
        assert fetched == uploaded
    assert not [step for step in jobs["publish"]["steps"] if "run" in step], "the job that may publish runs no script"
    assert "environment" in jobs["publish"] and jobs["publish"]["steps"][-1]["with"]["attestations"] is True


def test_every_supported_python_is_tested_on_every_system() -> None:
    matrix = read(ROOT / ".github/workflows/test.yml")["jobs"]["package"]["strategy"]["matrix"]
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert matrix["python"] == supported
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_pages_get_what_was_tested() -> None:
    build = read(ROOT / ".github/workflows/site.yml")["jobs"]["build"]["steps"]
    names = [step.get("run") or step["uses"].partition("@")[0] for step in build]
    assert names.index("make book") < names.index("make test-site") < names.index("actions/upload-pages-artifact")
    folders = {step["with"]["path"] for step in build if "upload" in step.get("uses", "")}
    assert folders == {"_build/html"}


def test_dependabot_follows_the_actions() -> None:
    settings = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))
    assert [update["package-ecosystem"] for update in settings["updates"]] == ["github-actions"]
