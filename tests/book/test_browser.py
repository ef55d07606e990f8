"""The built site in a real browser, from a server and from the disk: its widgets are alive, no page asks another host or is
heavy, and axe finds nothing serious on any."""

import gzip
import os
import re
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from importlib import resources
from pathlib import Path

import nbformat
import pytest
from book_pages import listed_pages
from browser import WIDGET, assert_asks, assert_fits, assert_steps, quiet_page, served
from playwright.sync_api import Browser, Page, Response, expect

from llama3_edu import widgets

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("LLAMA3_EDU_SITE", ROOT / "_build" / "html")).resolve()

AT_LEAST = {
    "book/00_llama3_decoder": "decoder-shapes",
    "book/01_naive_generation": "recompute-triangle",
    "book/02_what_can_be_kept": "causal-mask",
    "book/03_build_the_cache": "cache-growth",
    "book/04_masks_and_chunks": "causal-mask",
    "book/05_bug_hunt": "bug-hunt",
    "book/06_gqa": "head-groups",
}
"""What these chapters must show, whatever else they come to show."""

MOST_BYTES = 1_300_000
"""What a page and all that it loads may weigh, gzipped as a host would send it."""

MOST_BYTES_OF_OURS = 200_000
"""What the page itself, with its widgets' code and data, and this book's own scripts and styles may weigh of that."""

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def code_of(page: str) -> str:
    """All code that a page runs, be its source a notebook or Markdown."""
    notebook, text = ROOT / f"{page}.ipynb", ROOT / f"{page}.md"
    if notebook.exists():
        cells = nbformat.read(notebook, as_version=4).cells
        return "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return "\n".join(
        re.findall(
            r"^```\{code-cell\}.*?$(.*?)^```",
            text.read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
    )


def expected_widgets(page: str) -> list[str]:
    """The widgets whose construction a page's code ends a cell or a line with, in order."""
    return [getattr(widgets, name).name for name in re.findall(r"\bwidgets\.([A-Z]\w+)\(", code_of(page))]


def headers_of_the_site() -> dict[str, str]:
    """What a host should send with every page: the site has it in the form in which some hosts read it."""
    lines = (SITE / "_headers").read_text(encoding="utf-8").splitlines()[1:]
    return dict(line.strip().split(": ", 1) for line in lines)


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves the site with its own headers: everything below is tested under its Content-Security-Policy."""

    def end_headers(self) -> None:
        for name, value in headers_of_the_site().items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served(QuietHandler, SITE) as address:
        yield address


@pytest.fixture(params=listed_pages())
def page(request: pytest.FixtureRequest) -> str:
    """Every page the table of contents lists, once its file is known to be there."""
    assert (SITE / f"{request.param}.html").exists(), f"{SITE / request.param}.html is missing: run `make book` first"
    return request.param


@pytest.fixture(params=["http", "file"])
def address(request: pytest.FixtureRequest, page: str, server: str) -> str:
    return f"{server}/{page}.html" if request.param == "http" else (SITE / f"{page}.html").as_uri()


@pytest.mark.parametrize(("page", "name"), AT_LEAST.items(), ids=AT_LEAST)
def test_each_chapter_has_its_widget(page: str, name: str):
    assert name in expected_widgets(page)


def test_every_widget_is_drawn_and_steps(address: str, page: str, browser: Browser):
    with quiet_page(browser) as opened:
        opened.goto(address, wait_until="load")
        found = opened.locator(WIDGET)
        expect(found).to_have_count(len(expected_widgets(page)))
        assert found.evaluate_all("nodes => nodes.map(node => node.dataset.widget)") == expected_widgets(page)
        for widget in found.all():
            assert_steps(widget)
        expect(opened.locator(".llama3-edu-words")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_without_scrolling_sideways(page: str, server: str, scheme: str, browser: Browser):
    phone = {
        "viewport": {"width": 360, "height": 740},
        "has_touch": True,
        "is_mobile": True,
    }
    with quiet_page(browser, color_scheme=scheme, **phone) as opened:
        opened.goto(f"{server}/{page}.html", wait_until="load")
        found = opened.locator(WIDGET)
        expect(found).to_have_count(len(expected_widgets(page)))
        assert_fits(opened)
        for widget in found.all():
            assert widget.get_attribute("data-scheme") == scheme, "a widget follows the page"
            if not widget.locator(".le-controls").count():
                assert_asks(widget, tap=True)
                continue
            widget.locator('[data-action="reset"]').tap(force=True)
            widget.locator('[data-action="forward"]').tap()
            expect(widget).not_to_have_attribute("data-step", "0")


def test_without_scripts_every_widget_is_there_in_words(page: str, server: str, browser: Browser):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(f"{server}/{page}.html")
    words = opened.locator(".llama3-edu-words")
    expect(words).to_have_count(len(expected_widgets(page)))
    for place in words.all():
        assert place.is_visible() and len(place.inner_text()) > 40
    context.close()


def bytes_by_address(opened: Page, address: str) -> dict[str, int]:
    """Open a page; return everything it loaded, with its size gzipped."""
    responses: list[Response] = []
    opened.on("response", lambda response: responses.append(response))
    opened.goto(address, wait_until="networkidle")
    return {response.url: len(gzip.compress(response.body())) for response in responses if response.url.startswith("http")}


def test_a_page_is_light(page: str, server: str, browser: Browser):
    own_files = (
        f"{page}.html",
        "custom.css",
        "print.css",
        "widget-host.css",
        "widget-host.js",
        "site.js",
        "logo.svg",
        "favicon.svg",
    )
    with quiet_page(browser) as opened:
        sizes = bytes_by_address(opened, f"{server}/{page}.html")
    ours = {address: size for address, size in sizes.items() if address.partition("?")[0].endswith(own_files)}
    assert len(ours) >= 4, "the page, its style sheets and the host script should be among what was loaded"
    print(f"{page}: {sum(sizes.values()):,} B, of which {sum(ours.values()):,} B ours")  # `pytest -rP` shows it
    assert sum(sizes.values()) <= MOST_BYTES, sizes
    assert sum(ours.values()) <= MOST_BYTES_OF_OURS, ours


def grave_violations(opened: Page) -> list[str]:
    """What axe finds on a page that is serious or critical, with the elements it is about."""
    opened.evaluate(AXE)
    found = opened.evaluate("axe.run(document, { preload: false, resultTypes: ['violations'] })")
    assert found["passes"], "axe should have checked something"
    return [
        f"{violation['impact']}: {violation['help']}: {[node['html'][:200] for node in violation['nodes']]}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious(page: str, server: str, scheme: str, browser: Browser):
    with quiet_page(browser, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as opened:
        opened.goto(f"{server}/{page}.html", wait_until="load")
        expect(opened.locator(WIDGET)).to_have_count(len(expected_widgets(page)))
        assert grave_violations(opened) == []


def test_axe_would_find_something_serious(browser: Browser):
    with quiet_page(browser) as opened:
        opened.set_content('<html lang="en"><title>A page</title><main><p style="color: #999">Pale</p><input></main>')
        assert len(grave_violations(opened)) == 2
