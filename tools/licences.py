"""Writes `book/licences.md`: under what licence each package comes that the book, its tests or the instructors' tools install.

    python tools/licences.py          # write the page
    python tools/licences.py --check  # say whether it is current; status 1 where it is not

What a package says of itself is taken from its metadata: here where it is installed, from the package index where it is not.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "licences.md"
PINNED = ("requirements.txt", "requirements-instructors.txt")

SYSTEMS = (
    {"sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "os_name": "nt", "platform_machine": "AMD64"},
)

HEAD = """# Licences of what this is built with

Nothing of this is copied into the book or the package; it is installed beside them. The package alone needs what stands in bold, and what those
packages need. A licence is named as the package's own metadata name it. [How to cite](about.md) says under which licences the book and its code come.

| Package | Licence |
|---|---|
"""

_SHORTER = {
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "BSD License": "BSD",
    "BSD 3-Clause License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "ISC license": "ISC",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "The MIT License (MIT)": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "GNU General Public License (GPL)": "GPL",
}


def pinned() -> dict[str, str]:
    """Return every package that is installed, and how its version is asked for. torch is pinned elsewhere: see tools/environment.sh."""
    lines = [line for name in PINNED for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and line[0] not in "# "]
    found = [requirement for requirement in found if _is_wanted(requirement)]
    return {canonicalize_name(requirement.name): str(requirement.specifier) for requirement in found} | {"torch": ""}


def _is_wanted(requirement: Requirement) -> bool:
    """Tell whether any system or Python that this project runs on installs it."""
    pythons = ({"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"} for minor in range(10, 14))
    places = [{**python, **system} for python in pythons for system in SYSTEMS]
    return requirement.marker is None or any(requirement.marker.evaluate(place) for place in places)


def of_the_package() -> set[str]:
    """Return what `pyproject.toml` asks for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    return {canonicalize_name(Requirement(line).name) for line in re.findall(r'"(.+?)"', listed)}


def licence(fields: Mapping[str, object], texts: Iterable[str] = ()) -> str:
    """Return the licence a package's metadata name: its expression, else its classifiers, else its own word for it.

    Args:
        fields: `license_expression`, `license` and `classifier`, as pip reports them.
        texts: its licence files, for one that says nothing else.
    """
    if fields.get("license_expression"):
        return str(fields["license_expression"])
    labels = [label.split(" :: ") for label in fields.get("classifier") or ()]
    named = [label[-1] for label in labels if label[0] == "License" and label[-1] != "OSI Approved"]
    words = str(fields.get("license") or "").strip()
    if not named and words not in ("", "UNKNOWN"):
        named = [words.splitlines()[0].strip()]
    if not named:
        named = [text.strip().splitlines()[0].strip() for text in texts if text.strip()][:1]
    return ", ".join(_SHORTER.get(name, name) for name in named)


def installed(name: str) -> str | None:
    """Return the licence of a package of this environment, or None if it is not there."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    fields = {key.replace("-", "_").lower(): found.metadata.get(key) for key in ("License-Expression", "License")}
    files = [path for path in found.files or () if re.search(r"licen[cs]e", path.name, re.IGNORECASE)]
    texts = (path.locate().read_text(encoding="utf-8", errors="replace") for path in files)
    return licence({**fields, "classifier": found.metadata.get_all("Classifier")}, texts)


def from_index(name: str, version: str) -> str:
    """Ask the package index: for a package that belongs to another system or to another environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    command += ["--only-binary", ":all:", f"{name}{version}"]
    for_windows = ["--platform", "win_amd64", "--target", "nowhere"]
    done = [subprocess.run([*command, *more], capture_output=True, text=True) for more in ([], for_windows)]
    reports = [json.loads(run.stdout)["install"] for run in done if run.returncode == 0]
    return licence(reports[0][0]["metadata"]) if reports else ""


def written(page: str) -> dict[str, str]:
    """Return the licences that a page lists, by package."""
    rows = page.partition("|---|---|\n")[2]
    return dict(re.findall(r"^\| \*{0,2}([\w.-]+?)\*{0,2} \| (.+) \|$", rows, re.MULTILINE))


def page_of(licences: Mapping[str, str]) -> str:
    bold = of_the_package()
    names = {name: f"**{name}**" if name in bold else name for name in sorted(licences)}
    return HEAD + "".join(f"| {shown} | {licences[name]} |\n" for name, shown in names.items())


def stale(page: str) -> list[str]:
    """Return what is wrong with a page, as far as this environment knows."""
    listed, wanted = written(page), pinned()
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - listed.keys())]
    problems += [f"{name} is installed no more" for name in sorted(listed.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & listed.keys()):
        here = installed(name)
        if here is not None and here != listed[name]:
            problems.append(f"{name} says {here}; the page says {listed[name]}")
    if not problems and page != page_of(listed):
        problems.append("its head or its order is not what this tool writes")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say what is wrong with the page")
    if parser.parse_args().check:
        problems = stale(PAGE.read_text(encoding="utf-8"))
        print(*problems, sep="\n", end="\n" if problems else "")
        return 1 if problems else 0
    licences = {name: installed(name) or from_index(name, version) for name, version in pinned().items()}
    unsaid = [name for name, said in licences.items() if not said]
    if unsaid:
        print(f"no licence is named by {', '.join(unsaid)}; look for it by hand", file=sys.stderr)
        return 1
    PAGE.write_text(page_of(licences), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
