"""The directive `versions`: what this site was built with, read from the environment of the build."""

import hashlib
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import llama3_edu

ROOT = Path(__file__).resolve().parents[2]
TINY = Path(llama3_edu.__file__).parent / "tiny"


def asked_for(requirements: str) -> dict[str, list[str]]:
    """Return the packages that a `.in` file names, by the comment they stand under."""
    groups: dict[str, list[str]] = {}
    for line in requirements.splitlines():
        if line.startswith("# "):
            heading = line.removeprefix("# ")
        elif name := re.match(r"[A-Za-z0-9][\w.-]*", line):
            groups.setdefault(heading, []).append(name[0])
    return groups


def installed(name: str) -> str:
    """Return a package's version, or a dash for one that this machine has no use for."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "–"


def own_version() -> str:
    """Return the book's version; its package need not be installed to be read from this folder."""
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows() -> list[tuple[str, str]]:
    """Everything in order: the book and what runs it, its packages in the groups of requirements.in, the model's files."""
    first = [("llama3-edu", own_version()), ("Python", platform.python_version()), ("torch", torch.__version__)]
    groups = asked_for((ROOT / "requirements.in").read_text(encoding="utf-8"))
    packages = [(name, installed(name)) for group in groups.values() for name in group]
    files = [
        (f"`tiny/{path.name}`", f"SHA-256 `{checksum(path)}`")
        for path in sorted(TINY.glob("*.safetensors")) + [TINY / "tokenizer.json"]
    ]
    return [*first, *packages, *files]


class Versions(SphinxDirective):
    """A table with a row for everything that the build was made with."""

    def run(self) -> list[nodes.Node]:
        lines = ["| What | Version |", "|---|---|", *(f"| {name} | {which} |" for name, which in rows())]
        place = nodes.container()
        self.state.nested_parse(StringList(lines, source="versions"), 0, place)
        return place.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("versions", Versions)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
