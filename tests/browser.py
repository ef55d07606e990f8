"""A real browser for tests: find Chromium, open a page with everything but this machine blocked, keep its complaints."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = (
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/snap/bin/chromium",
    "/opt/google/chrome/chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
LOCAL_SCHEMES = {"file", "data", "blob", "about"}
LOCAL_HOSTS = {"127.0.0.1", "localhost"}
WIDGET = ".llama3-edu-widget"


def find_chromium() -> str:
    """Return the path of a Chromium or Chrome: the one `CHROMIUM` names, one on the path, or one where systems keep them.

    Raises:
        FileNotFoundError: there is none; a browser test never passes by not running.
    """
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES), *PLACES]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return candidate
    looked = ", ".join((*NAMES, *PLACES))
    raise FileNotFoundError(f"the browser tests need Chromium; looked for {looked}; CHROMIUM=PATH names another")


def launch(playwright: Playwright) -> Browser:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    return playwright.chromium.launch(executable_path=find_chromium(), args=flags)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one file's tests. Of the session, there would be one for each folder that takes this over, and only one may be open."""
    with sync_playwright() as playwright:
        opened = launch(playwright)
        yield opened
        opened.close()


@contextmanager
def served(handler: Callable[..., SimpleHTTPRequestHandler], folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield the address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=folder)) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class Watch:
    """What a page did that it should not have done."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.requested: list[str] = []

    def attach(self, context: BrowserContext) -> None:
        def decide(route) -> None:
            self.requested.append(route.request.url)
            parts = urlsplit(route.request.url)
            if parts.scheme in LOCAL_SCHEMES or parts.hostname in LOCAL_HOSTS:
                route.continue_()
            else:
                self.foreign.append(route.request.url)
                route.abort()

        context.route("**/*", decide)
        context.on("page", self._listen)

    def _listen(self, page: Page) -> None:
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))

    def assert_quiet(self) -> None:
        assert self.foreign == [], f"the page asked another host for {self.foreign}"
        assert self.complaints == [], f"the page complained: {self.complaints}"


@contextmanager
def quiet_page(browser: Browser, **options) -> Iterator[Page]:
    """Open a page; when the test is through, fail if it asked another host for anything or wrote an error to the console."""
    watch = Watch()
    context = browser.new_context(**options)
    watch.attach(context)
    try:
        yield context.new_page()
        watch.assert_quiet()
    finally:
        print(*watch.requested, sep="\n")  # `pytest -rP` lists them
        context.close()


def step_of(widget: Locator) -> int:
    return int(widget.get_attribute("data-step"))


def press(widget: Locator, action: str) -> None:
    """Click a button of the control bar, at the first or last step too, where it is marked as disabled and does nothing."""
    widget.locator(f'[data-action="{action}"]').click(force=True)


def assert_fits(page: Page) -> None:
    """Fail if the page can be scrolled sideways."""
    wide, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= room, f"the page is {wide} px wide in a window of {room}"


def assert_asks(form: Locator, *, tap: bool = False) -> None:
    """Ask the second question of a form, and then the first: its questions are its steps."""
    for step in (1, 0):
        question = form.locator("[aria-pressed]").nth(step)
        question.tap() if tap else question.click()
        assert step_of(form) == step, "a question should fill the form"


def assert_steps(widget: Locator) -> None:
    """Step a widget by mouse and by keyboard, and fail unless each key and button does what it says."""
    widget.scroll_into_view_if_needed()
    if not widget.locator(".le-controls").count():
        assert_asks(widget)
        return
    press(widget, "reset")
    start = step_of(widget)
    press(widget, "forward")
    second = step_of(widget)
    assert second > start, "the forward button should step forward"
    press(widget, "back")
    assert step_of(widget) == start, "the back button should step back"
    widget.focus()
    for key, expected in (("ArrowRight", second), ("ArrowLeft", start), ("ArrowUp", second), ("Home", start)):
        widget.press(key)
        assert step_of(widget) == expected, f"{key} should lead to step {expected}"
    widget.press("End")
    assert step_of(widget) > start, "End should lead to the last step"
    widget.press("Home")
    slider = widget.locator('input[type="range"]')
    slider.focus()
    slider.press("ArrowRight")
    assert step_of(widget) == second, "the slider should step forward"
    summary = widget.locator('[aria-live="polite"].le-summary')
    assert summary.inner_text().strip(), "the widget should say what it shows"
