"""What each page of the site weighs, and how soon its first widget answers: in a fresh browser window, from this machine.

Build the book first. python -m benchmarks.pages [--repeats 5]
"""

import argparse
import gzip
import statistics
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, sync_playwright

from benchmarks.report import Report

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"
OURS = ("custom.css", "widget-host.css", "widget-host.js", "logo.svg", "favicon.svg")

sys.path.insert(0, str(ROOT / "tests"))
from browser import WIDGET, launch  # noqa: E402

STEP_ONCE = f"""() => new Promise(done => {{
    const tryIt = () => {{
        const widget = document.querySelector({WIDGET!r});
        const button = widget?.querySelector('[data-action="forward"]');
        if (!button) return requestAnimationFrame(tryIt);
        const before = widget.dataset.step;
        (button.getAttribute("aria-disabled") ? widget.querySelector('[data-action="back"]') : button).click();
        if (widget.dataset.step === before) return requestAnimationFrame(tryIt);
        requestAnimationFrame(() => done(performance.now()));
    }};
    tryIt();
}})"""
"""Resolves, in milliseconds since the page was asked for, when a press of a button has changed what the first widget shows."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()
    report = Report(
        name="pages",
        title="What a page weighs, and how soon its first widget answers",
        notes=[
            "Bytes: everything the page loads, each file gzipped as a host would send it. Ours: the page with the widgets' code and data, "
            "and this book's own styles and scripts.",
            f"Answer: from asking for the page until a press of a button has changed the picture; median of {given.repeats} fresh windows "
            "(slowest).",
            "Pages whose first widget is a form without steps, or that have none, are weighed alone.",
        ],
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE)) as server, sync_playwright() as playwright:
        Thread(target=server.serve_forever, daemon=True).start()
        browser = launch(playwright)
        for path in sorted((SITE / "book").rglob("*.html")):
            name = path.relative_to(SITE).as_posix()
            report.add(page=name, **measured(browser, f"http://127.0.0.1:{server.server_port}/{name}", given.repeats))
        browser.close()
        server.shutdown()
    report.finish()


def measured(browser: Browser, address: str, repeats: int) -> dict[str, object]:
    sizes = weigh(browser, address)
    ours = sum(size for url, size in sizes.items() if url == address or url.partition("?")[0].endswith(OURS))
    row: dict[str, object] = {
        "all_kB": round(sum(sizes.values()) / 1e3),
        "ours_kB": round(ours / 1e3),
        "widgets": widgets_on(browser, address),
    }
    times = [time for time in (first_answer(browser, address) for _ in range(repeats)) if time is not None]
    return {**row, "answers_after_ms": f"{statistics.median(times):.0f} ({max(times):.0f})" if times else "–"}


def weigh(browser: Browser, address: str) -> dict[str, int]:
    """Open a page; return everything it loaded, with its size gzipped."""
    context = browser.new_context()
    page, responses = context.new_page(), []
    page.on("response", lambda response: responses.append(response))
    page.goto(address, wait_until="networkidle")
    sizes = {response.url: len(gzip.compress(response.body())) for response in responses if response.url.startswith("http")}
    context.close()
    return sizes


def widgets_on(browser: Browser, address: str) -> int:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    count = page.locator(".llama3-edu-words").count()
    context.close()
    return count


def first_answer(browser: Browser, address: str) -> float | None:
    """Open a page in a fresh window and step its first widget; return the milliseconds that took, None if there is none to step."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address, wait_until="commit")
    page.wait_for_load_state("domcontentloaded")
    time = None
    if page.locator(f"{WIDGET}, .llama3-edu-words").count():
        first = page.locator(WIDGET).first
        first.wait_for()
        time = page.evaluate(STEP_ONCE) if first.locator("[data-action='forward']").count() else None
    context.close()
    return time


if __name__ == "__main__":
    main()
