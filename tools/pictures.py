"""Takes the pictures that the README shows, from the built site: the first page, in light and in dark.

    make book && .venv/bin/python tools/pictures.py

The picture is what a reader sees in a window of 1,280 by 800 pixels. It is written small: a page has few colours.
"""

import io
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "_build" / "html" / "book" / "index.html"
FOLDER = ROOT / "docs" / "pictures"
WINDOW = {"width": 1280, "height": 800}

SCHEMES = ("light", "dark")
MOST_BYTES = 150_000


def picture_of(browser: Browser, address: str, scheme: str) -> Image.Image:
    """Open a page in a scheme; return what is seen of it once its widgets are drawn."""
    page = browser.new_page(viewport=WINDOW, color_scheme=scheme, reduced_motion="reduce")
    page.goto(address, wait_until="load")
    page.locator(".llama3-edu-widget").first.wait_for()
    page.evaluate("document.fonts.ready")
    shot = page.screenshot(animations="disabled")
    page.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def written_small(picture: Image.Image) -> bytes:
    """Return the picture as a PNG of at most 256 colours.

    Raises:
        ValueError: that is still too much for a README.
    """
    data = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    if data.tell() > MOST_BYTES:
        raise ValueError(f"a picture may have {MOST_BYTES:,} bytes; this one has {data.tell():,}")
    return data.getvalue()


def main() -> int:
    if not PAGE.exists():
        print(f"{PAGE} is missing: run `make book` first", file=sys.stderr)
        return 1
    chromium = subprocess.run([ROOT / "tools" / "chromium.sh"], check=True, capture_output=True, text=True).stdout.strip()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--hide-scrollbars"])
        for scheme in SCHEMES:
            target = FOLDER / f"first-page-{scheme}.png"
            target.write_bytes(written_small(picture_of(browser, PAGE.as_uri(), scheme)))
            print(f"{target.relative_to(ROOT)}: {target.stat().st_size:,} bytes")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
