"""Brings the versions of Colab that the tests know up to those Colab has now.

    python tools/colab_versions.py pip-freeze.txt              print what differs
    python tools/colab_versions.py pip-freeze.txt --write      and write it into tests/colab_constraints.txt

The file is what Colab publishes of its runtime: github.com/googlecolab/backend-info, `pip-freeze.gpu.txt`.
"""

import argparse
import re
import sys
from datetime import date
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "tests" / "colab_constraints.txt"


def plain(name: str) -> str:
    """Return a package's name as all its spellings have it in common."""
    return re.sub(r"[-_.]+", "-", name).lower()


def frozen(text: str) -> dict[str, str]:
    """Return the versions that the output of `pip freeze` names; what came from an address of its own has none there."""
    return {plain(name): version for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)==(\S+)$", text, re.MULTILINE)}


def updated(constraints: str, versions: dict[str, str], *, today: date) -> str:
    """Return the constraints with these versions, and with the day in the comment above them.

    Raises:
        ValueError: Colab lacks something the tests count on.
    """
    lines = []
    for line in constraints.splitlines():
        name, pinned, _ = line.partition("==")
        if line.startswith("#"):
            line = re.sub(r"\d{4}-\d{2}-\d{2}", today.isoformat(), line)
        elif pinned:
            if plain(name) not in versions:
                raise ValueError(
                    f"Colab does not have {name} any more: the setup cell must install it, or the package do without"
                )
            line = f"{name}=={versions[plain(name)]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def differences(before: str, after: str) -> list[str]:
    """Return what moved, a line each."""
    pairs = zip(before.splitlines(), after.splitlines())
    return [f"{old} → {new.partition('==')[2]}" for old, new in pairs if old != new and not old.startswith("#")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("freeze", type=Path, metavar="FILE")
    parser.add_argument("--write", action="store_true", help="write the versions where the tests read them")
    arguments = parser.parse_args()
    before = CONSTRAINTS.read_text(encoding="utf-8")
    try:
        after = updated(before, frozen(arguments.freeze.read_text(encoding="utf-8")), today=date.today())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(differences(before, after)) or "Colab has what the tests know.")
    if arguments.write:
        CONSTRAINTS.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
