"""Gives every page of the site a description for search engines and link previews: its own first paragraph."""

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONGEST = 200
"""Characters; search engines cut off what is longer."""


def describe(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Add `<meta name="description">` to a page's head, unless the page brings its own."""
    if doctree is None or 'name="description"' in context.get("metatags", ""):
        return
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if text:
            context["metatags"] = context.get("metatags", "") + f'\n<meta name="description" content="{escape(shorten(text))}" />'
            return


def shorten(text: str) -> str:
    """Cut a text at a word, so that it has at most `LONGEST` characters."""
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST - 1].rsplit(" ", 1)[0] + "…"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
