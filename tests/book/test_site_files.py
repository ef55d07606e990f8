"""What the site tells search engines, feed readers, link previews and servers; and that no page holds a script of its own."""

import hashlib
import re
import struct
from functools import cache
from importlib.metadata import version
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import changelog
import content_policy
import pytest
import yaml
from book_pages import listed_pages
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
PAGES = listed_pages()
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]

# GitHub Pages puts the site of OWNER/NAME there.
OWNER, NAME = REPOSITORY["url"].removeprefix("https://github.com/").split("/")
HOME = f"https://{OWNER.lower()}.github.io/{NAME}/"

ATOM = {"": "http://www.w3.org/2005/Atom"}
MOST_CARD_BYTES = 150_000


@cache
def soup_of(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> str:
    assert (SITE / f"{request.param}.html").exists(), f"{request.param}.html is missing: run `make book` first"
    return request.param


@pytest.fixture
def soup(page: str) -> BeautifulSoup:
    return soup_of(SITE / f"{page}.html")


def graph(soup: BeautifulSoup) -> dict[str, str]:
    """What a page says to whoever shows a link to it."""
    return {tag["property"].removeprefix("og:"): tag["content"] for tag in soup.select('meta[property^="og:"]')}


def file_of(address: str) -> Path:
    """The file that a full address of the site leads to."""
    assert address.startswith(HOME), f"{address} should be below {HOME}"
    return SITE / unquote(urlsplit(address).path).removeprefix(urlsplit(HOME).path)


def test_a_link_to_a_page_says_what_is_there(page: str, soup: BeautifulSoup) -> None:
    told = graph(soup)
    heading = soup.select_one("article h1")
    heading.select_one("a.headerlink") and heading.select_one("a.headerlink").extract()
    assert told["title"] == heading.get_text(strip=False).strip()
    (description,) = soup.select('meta[name="description"]')
    assert told["description"] == description["content"] and len(told["description"]) <= 200
    assert told["url"] == soup.select_one('link[rel="canonical"]')["href"] == f"{HOME}{page}.html"
    assert file_of(told["image"]).exists() and told["image:alt"]


def test_no_two_pages_say_the_same_of_themselves() -> None:
    told = [graph(soup_of(SITE / f"{page}.html")) for page in PAGES]
    titles = [one["title"] for one in told]
    descriptions = [one["description"] for one in told]
    assert {title for title in titles if titles.count(title) > 1} == set()
    assert {text for text in descriptions if descriptions.count(text) > 1} == set()


def test_the_bare_address_leads_to_the_first_page_and_says_the_same_to_others() -> None:
    soup = soup_of(SITE / "index.html")
    assert soup.select_one('meta[http-equiv="refresh"]')["content"] == f"0; url={PAGES[0]}.html"
    assert graph(soup)["url"] == f"{HOME}{PAGES[0]}.html" and file_of(graph(soup)["image"]).exists()


def test_the_picture_of_link_previews_has_the_size_they_show() -> None:
    data = (SITE / "_static" / "social-card.png").read_bytes()
    assert data.startswith(b"\x89PNG") and struct.unpack(">II", data[16:24]) == (1200, 630)
    assert len(data) <= MOST_CARD_BYTES


def test_the_sitemap_lists_every_page_once() -> None:
    places = ElementTree.parse(SITE / "sitemap.xml").getroot().iter("{http://www.sitemaps.org/schemas/sitemap/0.9}loc")
    addresses = [place.text for place in places]
    assert sorted(addresses) == sorted(f"{HOME}{page}.html" for page in PAGES)
    assert f"Sitemap: {HOME}sitemap.xml" in (SITE / "robots.txt").read_text(encoding="utf-8").splitlines()


def test_the_feed_has_every_release_and_leads_to_it() -> None:
    feed = ElementTree.parse(SITE / "feed.xml").getroot()
    entries = feed.findall("entry", ATOM)
    releases = changelog.releases((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert [entry.find("title", ATOM).text for entry in entries] == [release.title for release in releases] != []
    for part in (feed, *entries):
        assert all(part.find(name, ATOM).text for name in ("id", "title", "updated"))
    for entry in entries:
        address, _, anchor = entry.find("link", ATOM).get("href").partition("#")
        assert soup_of(file_of(address)).find(id=anchor), f"{anchor} should be an anchor of the page of changes"


def test_every_page_names_the_feed(soup: BeautifulSoup) -> None:
    assert file_of(soup.select_one('link[type="application/atom+xml"]')["href"]) == SITE / "feed.xml"


def test_a_page_can_be_edited_where_its_source_is(page: str, soup: BeautifulSoup) -> None:
    source = next(path for suffix in ("ipynb", "md") if (path := ROOT / f"{page}.{suffix}").exists())
    (edit,) = soup.select("a.btn-source-edit-button")
    assert edit["href"] == f"{REPOSITORY['url']}/edit/{REPOSITORY['branch']}/{source.relative_to(ROOT).as_posix()}"


def test_an_issue_begins_with_the_page_it_is_about(page: str, soup: BeautifulSoup) -> None:
    (button,) = soup.select("a.btn-source-issues-button")
    assert button["href"].startswith(f"{REPOSITORY['url']}/issues/new?")
    fields = parse_qs(urlsplit(button["href"]).query)
    assert graph(soup)["title"] in fields["title"][0] and f"{HOME}{page}.html" in fields["body"][0]


def test_versions_are_those_of_the_build() -> None:
    rows = dict(
        [cell.get_text(strip=True) for cell in row.find_all("td")]
        for row in soup_of(SITE / "book/versions.html").select("article tbody tr")
    )
    for name in ("torch", "numpy", "jupyter-book", "sphinx", "pytest"):
        assert rows[name] == version(name)
    model = (ROOT / "llama3_edu" / "tiny" / "model.safetensors").read_bytes()
    assert hashlib.sha256(model).hexdigest() in rows["tiny/model.safetensors"]
    asked = re.findall(r"^([a-z][\w.-]*)", (ROOT / "requirements.in").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(asked) <= set(rows)


def html_files() -> list[Path]:
    """Every file of the site that a browser may show as a page; templates, which the theme leaves among its files, are none."""
    return sorted(path for path in SITE.rglob("*.html") if "_static" not in path.parts)


def test_no_page_holds_a_script_or_a_handler() -> None:
    assert len(html_files()) > len(PAGES)
    for path in html_files():
        soup = soup_of(path)
        inside = [
            script for script in soup.find_all("script", src=False) if script.get("type") in (None, "module", "text/javascript")
        ]
        assert inside == [], path
        handlers = [f"{tag.name} {name}" for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")]
        assert handlers == [], path


def test_every_page_carries_the_policy_before_anything_it_rules() -> None:
    for path in html_files():
        (policy,) = soup_of(path).select('meta[http-equiv="Content-Security-Policy"]')
        assert policy["content"] == content_policy.policy_of_a_page(), path
        before = [tag.name for tag in policy.find_all_previous(True)]
        assert not {"script", "link", "style"} & set(before), path


def test_the_policy_lets_no_text_become_code() -> None:
    for policy in (content_policy.policy_of_a_page(), content_policy.policy_of_a_server()):
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert set(rules["script-src"].split()) <= {"'self'", "blob:", "file:"}
        assert rules["default-src"] == "'none'"
        assert not [source for rule in rules.values() for source in rule.split() if "*" in source or "//" in source]


@pytest.mark.parametrize("name", ["Caddyfile", "nginx.conf"])
def test_examples_for_servers_send_what_the_site_was_tested_with(name: str) -> None:
    lines = (SITE / "_headers").read_text(encoding="utf-8").splitlines()[1:]
    example = (ROOT / "deploy" / name).read_text(encoding="utf-8")
    for line in lines:
        header, value = line.strip().split(": ", 1)
        assert re.search(rf'\b{header} "{re.escape(value)}"', example), f"{name} should send {line.strip()}"


CHANGES = """\
# Changes

## 0.3.0 - unreleased

### Added

- A thing & another

## [0.2.0] - 2026-03-04

- Less
"""


def test_a_changelog_is_read_release_by_release() -> None:
    coming, last = changelog.releases(CHANGES)
    assert (coming.version, coming.day, last.version, str(last.day)) == ("0.3.0", None, "0.2.0", "2026-03-04")
    assert "<li>A thing &amp; another</li>" in coming.html and "Less" not in coming.html
    assert last.text == "- Less"


@pytest.mark.parametrize("text", ["# Changes\n", "## 0.2.0\n\n- When?\n", "## 0.2.0 - soon\n"])
def test_a_release_without_a_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="2026-01-31"):
        changelog.releases(text)


def test_what_the_changelog_calls_the_newest_is_what_the_package_is() -> None:
    newest = changelog.releases((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[0]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert newest.version == re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1]


HEAD = """<head><meta charset="utf-8" /><script>var a = 1;</script>
<script src="x.js"></script><script>let b = 2;</script><script>var a = 1;</script>
<script>DOCUMENTATION_OPTIONS.pagename = 'book/x';</script></head>"""


def test_scripts_of_a_head_become_one_file_that_stands_where_the_first_stood() -> None:
    page = content_policy.Page(HEAD + "<body></body>", "../_static/")
    ((name, code),) = page.files.items()
    assert code.split("\n") == ["var a = 1;", "let b = 2;", ""]
    assert [script["src"] for script in BeautifulSoup(page.html, "html.parser").find_all("script")] == [
        f"../_static/{name}",
        "x.js",
    ]


def test_scripts_of_a_body_stay_in_their_places() -> None:
    body = (
        "<head></head><body><i></i><script>first()</script><b></b><script>second()</script><script type='x/y'>{}</script></body>"
    )
    page = content_policy.Page(body.replace("'x/y'", '"x/y"'), "")
    tags = BeautifulSoup(page.html, "html.parser").body.find_all(True)
    assert [tag.name for tag in tags] == ["i", "script", "b", "script", "script"]
    assert [page.files[tag["src"]].strip() for tag in tags if tag.get("src")] == ["first()", "second()"]


def test_what_a_script_would_write_is_written() -> None:
    page = content_policy.Page("<head></head><body><script>\n document.write(`<button>Go</button>`);\n</script></body>", "")
    assert BeautifulSoup(page.html, "html.parser").body.button.get_text() == "Go" and page.files == {}
