"""The site's own ways in a browser: search, dark and light, paper, the page for lost addresses, and the policy that holds."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import WIDGET, quiet_page, served
from playwright.sync_api import Browser, Page, expect
from test_browser import SITE, QuietHandler, expected_widgets, grave_violations
from test_site_files import HOME

CHAPTER = "book/03_build_the_cache"
EXERCISES = "book/exercises/03_build_the_cache"
PREFIX = urlsplit(HOME).path


class LikeAHost(QuietHandler):
    """Serves the site below the path it has at its host, and its page for lost addresses for whatever is not there."""

    def translate_path(self, path: str) -> str:
        below = urlsplit(path).path.removeprefix(PREFIX)
        found = Path(super().translate_path(f"/{below}"))
        inside = urlsplit(path).path.startswith(PREFIX)
        return str(found if inside and found.is_file() else SITE / "404.html")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served(LikeAHost, SITE) as address:
        yield address + PREFIX


@pytest.fixture(params=["http", "file"])
def home(request: pytest.FixtureRequest, server: str) -> str:
    return server if request.param == "http" else SITE.as_uri() + "/"


def test_search_finds_pages_and_leads_to_them(home: str, browser: Browser):
    with quiet_page(browser) as opened:
        opened.goto(f"{home}{CHAPTER}.html")
        opened.locator(".search-button__button").first.click()
        field = opened.locator('.search-button__wrapper input[type="search"]')
        field.fill("copy-on-write")
        field.press("Enter")
        results = opened.locator("#search-results li a")
        expect(results.first).to_be_visible(timeout=20_000)
        opened.wait_for_load_state("networkidle")
        addresses = results.evaluate_all("links => links.map(link => link.href)")
        assert any("13_beams_copy_on_write.html" in address for address in addresses)
        results.first.click()
        expect(opened.locator("article h1")).to_be_visible()


def test_the_theme_that_was_chosen_stays(home: str, browser: Browser):
    with quiet_page(browser, color_scheme="light") as opened:
        opened.goto(f"{home}{CHAPTER}.html")
        switch = opened.locator(".theme-switch-button").first
        for _ in range(3):
            if opened.evaluate("document.documentElement.dataset.mode") != "dark":
                switch.click()
        expect(opened.locator("html")).to_have_attribute("data-theme", "dark")
        expect(opened.locator(WIDGET).first).to_have_attribute("data-scheme", "dark")
        opened.goto(f"{home}book/glossary.html")
        expect(opened.locator("html")).to_have_attribute("data-theme", "dark")


def go_on_paper(opened: Page) -> None:
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.emulate_media(media="print")


def test_a_chapter_on_paper_is_text_and_pictures_alone(home: str, browser: Browser):
    with quiet_page(browser, color_scheme="dark") as opened:
        opened.goto(f"{home}{CHAPTER}.html")
        expect(opened.locator(WIDGET)).to_have_count(len(expected_widgets(CHAPTER)))
        go_on_paper(opened)
        for away in (
            ".bd-sidebar-primary",
            ".bd-header-article",
            ".prev-next-footer",
            ".bd-footer-content",
            "#jb-print-toc",
            ".copybtn",
        ):
            assert not [place for place in opened.locator(away).all() if place.is_visible()], f"{away} has no place on paper"
        widget = opened.locator(WIDGET).first
        assert widget.get_attribute("data-scheme") == "light", "paper is light"
        assert widget.locator("svg").first.is_visible() and not widget.locator(".le-controls").is_visible()
        assert widget.locator(".le-summary").is_visible(), "a widget's picture comes with its words"
        assert opened.locator(".llama3-edu-figure svg").first.is_visible()
        opened.evaluate("dispatchEvent(new Event('afterprint'))")
        expect(opened.locator("html")).to_have_attribute("data-theme", "dark")


def test_what_is_folded_stays_folded_on_paper_and_what_is_open_open(server: str, browser: Browser):
    with quiet_page(browser) as opened:
        opened.goto(f"{server}{EXERCISES}.html")
        folded = opened.locator("article details")
        assert folded.count() >= 4, "hints and solutions are folded"
        folded.nth(1).locator("summary").click()
        before = [place.get_attribute("open") is not None for place in folded.all()]
        assert before == [index == 1 for index in range(folded.count())]
        go_on_paper(opened)
        heights = [place.bounding_box()["height"] - place.locator("summary").bounding_box()["height"] for place in folded.all()]
        assert [height > 20 for height in heights] == before


def test_a_chapter_becomes_a_pdf_of_pages_to_read(server: str, browser: Browser):
    with quiet_page(browser) as opened:
        opened.goto(f"{server}{CHAPTER}.html", wait_until="load")
        pdf = opened.pdf(format="A4", print_background=False)
    assert pdf.startswith(b"%PDF") and 4 <= pdf.count(b"/Type /Page\n") <= 20


@pytest.mark.parametrize("address", ["lost", "book/lost.html", "a/b/c/lost"])
def test_a_lost_address_leads_to_a_page_that_helps(address: str, server: str, browser: Browser):
    with quiet_page(browser) as opened:
        opened.goto(f"{server}{address}", wait_until="networkidle")
        expect(opened.locator("article h1")).to_contain_text("not here")
        assert opened.locator("img.logo__image:visible").evaluate("image => image.naturalWidth") > 0
        opened.locator("article a").first.click()
        expect(opened).to_have_url(f"{server}book/index.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["lost", "search.html?q=block"])
def test_axe_finds_nothing_serious_on_pages_beside_the_book(address: str, scheme: str, server: str, browser: Browser):
    with quiet_page(browser, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as opened:
        opened.goto(f"{server}{address}", wait_until="networkidle")
        assert grave_violations(opened) == []


def test_the_bare_address_leads_on(home: str, browser: Browser):
    with quiet_page(browser) as opened:
        opened.goto(f"{home}index.html")
        opened.wait_for_url(f"{home}book/index.html")


def test_buttons_of_the_theme_do_what_they_did(server: str, browser: Browser):
    with quiet_page(browser, viewport={"width": 1280, "height": 900}) as opened:
        opened.goto(f"{server}{CHAPTER}.html")
        opened.evaluate("window.print = () => { document.title = 'printed'; }")
        opened.locator('[data-press="print"]').first.evaluate("button => button.click()")
        assert opened.title() == "printed"


def refused_by(opened: Page, code: str) -> list[str]:
    """What the policy refuses when a page does this."""
    opened.evaluate(
        "window.refused = []; document.addEventListener('securitypolicyviolation', (e) => refused.push(e.effectiveDirective))"
    )
    opened.evaluate(code)
    opened.wait_for_timeout(200)
    return opened.evaluate("refused")


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("document.body.append(Object.assign(document.createElement('script'), {textContent: '1'}))", "script-src-elem"),
        ("document.body.insertAdjacentHTML('beforeend', '<p onclick=\"1\">')", "script-src-attr"),
        ("document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}))", "img-src"),
        ("fetch('https://example.org/').catch(() => 0)", "connect-src"),
        ("document.body.append(Object.assign(document.createElement('iframe'), {src: 'https://example.org/'}))", "frame-src"),
    ],
)
def test_the_policy_refuses_what_no_page_needs(code: str, rule: str, home: str, browser: Browser):
    context = browser.new_context()
    opened = context.new_page()
    opened.goto(f"{home}{CHAPTER}.html")
    assert rule in refused_by(opened, code)
    context.close()
