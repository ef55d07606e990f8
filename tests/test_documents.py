"""The documents at the top of the repository keep their word: links lead somewhere, addresses and versions agree, pictures are small."""

import re
from pathlib import Path
from urllib.parse import urldefrag

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
OWNER, NAME = REPOSITORY["url"].removeprefix("https://github.com/").split("/")
SITE = f"https://{OWNER.lower()}.github.io/{NAME}/"
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
REPEATING = [*DOCUMENTS, ROOT / "CITATION.cff", ROOT / "pyproject.toml", *sorted((ROOT / ".github").rglob("*.*ml"))]
"""Files that name the repository beside _config.yml, or may."""

OWN = (
    REPOSITORY["url"],
    SITE,
    f"https://colab.research.google.com/github/{OWNER}/{NAME}/blob/{REPOSITORY['branch']}/",
    f"https://mybinder.org/v2/gh/{OWNER}/{NAME}/{REPOSITORY['branch']}?",
)
"""Addresses that are made of the repository's."""

MOST_PICTURE_BYTES = 150_000


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", prose(path))


def anchors(path: Path) -> set[str]:
    """The anchors GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_is_what_a_visitor_looks_for() -> None:
    wanted = {"README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"}
    assert {name for name in wanted if not (ROOT / name).exists()} == set()
    assert {"docs/add-a-chapter.md", "docs/add-a-widget.md", "docs/add-an-exercise.md"} <= set(map(named, DOCUMENTS))


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    broken = []
    for address in (one or other for one, other in links(path)):
        if address.startswith(("https://", "mailto:")):
            continue
        file, anchor = urldefrag(address)
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(address)
    assert broken == []


@pytest.mark.parametrize("path", REPEATING, ids=named)
def test_the_repository_has_one_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in (f"/{NAME}", f"{OWNER.lower()}.github.io"):
        for found in re.finditer(rf"https://[^\s)\"'>]*{re.escape(word)}[^\s)\"'>]*", text):
            assert found[0].startswith(OWN), f"{found[0]} should begin with the address in _config.yml"
    elsewhere = re.findall(r"https://github\.com/(?:\w[\w-]*edu\w*)/[\w-]+", text)
    assert set(elsewhere) <= {REPOSITORY["url"]}


def test_the_file_to_cite_agrees_with_the_rest() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["repository-code"], cited["url"], cited["version"]) == (REPOSITORY["url"], SITE, VERSION)
    first_line = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert f"# {cited['title']}" == first_line


def test_the_site_is_built_by_executing_every_chapter_as_the_readme_says() -> None:
    execute = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["execute"]
    assert execute["execute_notebooks"] == "force" and "cache" not in execute and "exclude_patterns" not in execute


def test_pictures_are_small_and_come_in_light_and_dark() -> None:
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    assert {path.stem.rsplit("-", 1)[1] for path in pictures} == {"light", "dark"}
    brightness = {}
    for path in pictures:
        assert path.stat().st_size < MOST_PICTURE_BYTES, path
        with Image.open(path) as picture:
            brightness[path.stem] = picture.convert("L").resize((1, 1)).getpixel((0, 0))
    assert all((value > 128) == stem.endswith("light") for stem, value in brightness.items())


def test_the_readme_lists_every_chapter() -> None:
    chapters = {f"book/{path.name}" for path in (ROOT / "book").glob("[0-9][0-9]_*.ipynb")}
    linked = {one or other for one, other in links(ROOT / "README.md")}
    assert chapters and chapters <= linked
