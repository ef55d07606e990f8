"""The built site, read as files: links lead somewhere, no page needs another host, and every page is fit for a screen reader."""

import re
import types
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml
from book_pages import listed_pages
from bs4 import BeautifulSoup, Tag

import llama3_edu as le

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


PAGES = listed_pages()


LOADED = {"icon", "stylesheet", "preload", "modulepreload", "manifest", "mask-icon"}
"""Kinds of links that a browser follows by itself; others only say what there is."""


@cache
def soup_of(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> Path:
    """The file of every listed page in turn."""
    path = SITE / f"{request.param}.html"
    assert path.exists(), f"{path} is missing: run `make book` first"
    return path


@pytest.fixture
def soup(page: Path) -> BeautifulSoup:
    return soup_of(page)


@pytest.fixture
def article(soup: BeautifulSoup) -> Tag:
    """What the page says, without the theme's frame around it."""
    return soup.select_one("article")


def is_foreign(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def loaded_by(soup: BeautifulSoup) -> list[str]:
    """Every address that a browser fetches in order to show the page."""
    addresses = [tag["src"] for tag in soup.find_all(src=True)]
    addresses += [tag["href"] for tag in soup.find_all("link", href=True) if LOADED & set(tag["rel"])]
    addresses += [tag["data"] for tag in soup.find_all("object", data=True)]
    addresses += [part.split()[0] for tag in soup.find_all(srcset=True) for part in tag["srcset"].split(",")]
    for tag in soup.find_all("svg"):
        addresses += [use.get("href") or use.get("xlink:href") for use in tag.find_all(["use", "image"])]
    styles = [tag["style"] for tag in soup.find_all(style=True)] + [tag.get_text() for tag in soup.find_all("style")]
    return addresses + [address for style in styles for address in css_addresses(style)]


def css_addresses(css: str) -> list[str]:
    """Every address that a style sheet loads."""
    return re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", css)


def test_no_page_loads_anything_from_another_host(soup: BeautifulSoup) -> None:
    assert [address for address in loaded_by(soup) if is_foreign(address)] == []


def test_no_style_sheet_loads_anything_from_another_host(page: Path, soup: BeautifulSoup) -> None:
    sheets = [page.parent / urlsplit(tag["href"]).path for tag in soup.select('link[rel~="stylesheet"]')]
    assert sheets
    foreign = [address for sheet in sheets for address in css_addresses(sheet.read_text(encoding="utf-8")) if is_foreign(address)]
    assert foreign == []


def test_whatever_a_page_loads_is_there(page: Path, soup: BeautifulSoup) -> None:
    paths = [urlsplit(address).path for address in loaded_by(soup) if urlsplit(address).scheme != "data"]
    assert [path for path in paths if path and not (page.parent / unquote(path)).exists()] == []


def test_links_lead_to_pages_and_anchors_that_exist(page: Path, soup: BeautifulSoup) -> None:
    broken = []
    for link in soup.find_all("a", href=True):
        address, anchor = urldefrag(link["href"])
        if is_foreign(address) or urlsplit(address).scheme:
            continue
        target = (page.parent / unquote(urlsplit(address).path)).resolve() if address else page
        lost = not target.exists()
        if not lost and anchor and target.suffix == ".html":
            lost = soup_of(target).find(id=unquote(anchor)) is None
        if lost:
            broken.append(link["href"])
    assert broken == []


def test_links_to_other_hosts_are_encrypted(soup: BeautifulSoup) -> None:
    foreign = [link["href"] for link in soup.find_all("a", href=True) if is_foreign(link["href"])]
    assert [address for address in foreign if not address.startswith("https://")] == []


def test_a_page_says_what_it_is(soup: BeautifulSoup) -> None:
    assert soup.html["lang"] == "en"
    assert soup.title.get_text(strip=True)
    (description,) = soup.select('meta[name="description"]')
    assert description["content"].strip()
    assert soup.select_one('link[rel~="icon"]')


def test_a_page_has_one_title_and_skips_no_level(article: Tag) -> None:
    levels = [int(heading.name[1]) for heading in article.find_all(re.compile("^h[1-6]$"))]
    assert levels[:1] == [1] and levels.count(1) == 1
    assert [pair for pair in zip(levels, levels[1:]) if pair[1] > pair[0] + 1] == []


def test_images_and_figures_have_a_text_alternative(soup: BeautifulSoup, article: Tag) -> None:
    assert [image["src"] for image in soup.find_all("img") if not image.get("alt", "").strip()] == []
    for drawing in article.find_all("svg"):
        around = [drawing, *drawing.parents]
        hidden = any(tag.get("aria-hidden") == "true" for tag in around if isinstance(tag, Tag))
        named = any(tag.get("aria-label", "").strip() for tag in around if isinstance(tag, Tag) and tag.get("role") == "img")
        assert hidden or named, f"a drawing without words: {str(drawing)[:120]}"
    for figure in article.select(".llama3-edu-figure"):
        assert figure.get("role") == "img" and figure.get("aria-label", "").strip()


def test_no_name_stands_for_two_places(article: Tag) -> None:
    names = [tag["id"] for tag in article.find_all(id=True)]
    assert {name for name in names if names.count(name) > 1} == set()


def test_first_address_leads_to_the_first_page() -> None:
    assert f"{PAGES[0]}.html" in (SITE / "index.html").read_text(encoding="utf-8")


def test_notebooks_offer_colab_and_their_own_file(page: Path, soup: BeautifulSoup) -> None:
    name = page.relative_to(SITE).with_suffix(".ipynb").as_posix()
    if not (ROOT / name).exists():
        assert soup.select('a[href*="colab.research.google.com"]') == []
        return
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    tail = repository["url"].removeprefix("https://github.com") + f"/blob/{repository['branch']}/{name}"
    assert soup.select(f'a[href="https://colab.research.google.com/github{tail}"]')
    (download,) = soup.select("a.btn-download-source-button")
    assert (page.parent / download["href"]).resolve().read_bytes() == (ROOT / name).read_bytes()


def written_for_instructors() -> dict[str, str]:
    """Texts of the hidden checks and solutions that the tests keep, without blanks, and words that stand nowhere else."""
    kept = ROOT / "tests" / "course" / "private"
    texts = [path.read_text(encoding="utf-8") for path in kept.glob("*/*.py")]
    lines = {line.strip() for text in texts for line in text.splitlines() if len(line) > 45}
    return {"".join(line.split()): line for line in lines if not line.startswith(("import", "from"))} | {"zebra": "zebra_keys"}


def test_the_site_shows_no_hidden_check_and_no_private_solution() -> None:
    kinds = {".html", ".js", ".json", ".ipynb", ".md", ".txt", ".py", ".inv"}
    texts = [path for path in SITE.rglob("*") if path.suffix in kinds and "mathjax" not in path.parts]
    assert SITE / "searchindex.js" in texts and any("_sources" in path.parts for path in texts)
    marks = [*written_for_instructors(), "###BEGINHIDDENTESTS", "###BEGINSOLUTION"]
    assert len(marks) > 8
    for path in texts:
        bare = "".join(path.read_bytes().decode(errors="replace").split())
        assert [mark for mark in marks if mark in bare] == [], path


def test_the_site_is_made_of_listed_pages_alone() -> None:
    sources = [path.relative_to(SITE / "_sources") for path in (SITE / "_sources").rglob("*") if path.is_file()]
    assert {path.with_suffix("").as_posix() for path in sources} == set(PAGES)


def test_the_reference_has_every_name_of_the_package() -> None:
    public = {name for name, value in vars(le).items() if name[0] != "_" and not isinstance(value, types.ModuleType)}
    documented = {place["id"].rpartition(".")[2] for place in soup_of(SITE / "book/api.html").select("dt.sig[id]")}
    assert public and public - documented == set()


def test_the_reference_has_every_module() -> None:
    package = ROOT / "llama3_edu"
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py") if path.name != "__init__.py"
    }
    headings = {heading.get_text().rstrip("#").strip() for heading in soup_of(SITE / "book/api.html").select("article h3")}
    of_exercises = {module for module in modules if re.fullmatch(r"checks\.(chapter_\d\d|hidden_bugs)", module)}
    assert modules - headings == of_exercises, "what the exercises try is nobody's interface, and no learner's business"


def test_the_address_to_cite_is_that_of_the_repository() -> None:
    url = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    page = (ROOT / "book" / "about.md").read_text(encoding="utf-8")
    assert set(re.findall(r"https://github\.com/[\w./-]+\w", page)) == {url}
