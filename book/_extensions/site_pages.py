"""What the pages of the site need beyond what the theme gives them, and what they are better off without."""

import re
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONGEST_DESCRIPTION = 200
"""Characters; search engines cut off what is longer."""

AFTER_THE_THEME = 900
"""Sphinx calls handlers in rising order; the theme's own stay below this."""


def describe(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Give a page its first paragraph as description, for search engines and link previews, unless it brings its own."""
    if doctree is None or 'name="description"' in context.get("metatags", ""):
        return
    texts = (" ".join(paragraph.astext().split()) for paragraph in doctree.findall(nodes.paragraph))
    text = shorten(next(filter(None, texts), ""))
    context["metatags"] = context.get("metatags", "") + f'\n<meta name="description" content="{escape(text)}" />'


def shorten(text: str) -> str:
    """Cut a text at a word, so that it is no longer than a description may be."""
    if len(text) <= LONGEST_DESCRIPTION:
        return text
    return text[: LONGEST_DESCRIPTION - 1].rsplit(" ", 1)[0] + "…"


def offer_colab_for_notebooks_alone(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Take the launch buttons off pages that are executed but are no .ipynb: Colab could not open them."""
    if doctree is None or app.env.doc2path(pagename).endswith(".ipynb"):
        return
    buttons = context.get("header_buttons", [])
    context["header_buttons"] = [button for button in buttons if button.get("label") != "launch-buttons"]


def leave_out_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Drop the scripts of Thebe: no page starts a kernel, and loaded twice they end in an error."""
    context["script_files"] = [script for script in context["script_files"] if "thebe" not in f"{script.filename}{script.attributes}"]


def mend_pages(app: Sphinx, error: Exception | None) -> None:
    """Put right what the theme and docutils write into every page.

    A list of references calls itself a list but its items no list items, which confuses screen readers. Browsers refuse a preloaded
    font to a page that was opened as a file; style sheets load the fonts in any case. And they hold the icons: the script that
    draws the same icons once more is by far the heaviest file of a page.
    """
    if error is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            text = re.sub(r'\s*<link rel="preload"[^>]*(?:as="font"|fontawesome)[^>]*>', "", text)
            text = text.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
            page.write_text(re.sub(r'\s*<script[^>]*fontawesome[^>]*></script>', "", text), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", describe)
    app.connect("html-page-context", offer_colab_for_notebooks_alone, priority=AFTER_THE_THEME)
    app.connect("html-page-context", leave_out_thebe, priority=AFTER_THE_THEME)
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
