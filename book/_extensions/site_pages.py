"""What the pages of the site need beyond what the theme gives them, and what they are better off without."""

import re
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from docutils import nodes
from site_address import repository_address, site_address
from sphinx.application import Sphinx
from sphinx.config import Config

LONGEST_DESCRIPTION = 200
"""Characters; search engines cut off what is longer."""

AFTER_THE_THEME = 900
"""Sphinx calls handlers in rising order; the theme's own stay below this."""


CARD = "_static/social-card.png"
"""The picture of link previews, 1,200 by 630 pixels; `site_files` draws it."""


def describe(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Tell search engines and link previews what a page is: its title and, unless it brings its own, its first paragraph."""
    if doctree is None:
        return
    tags = context.get("metatags", "")
    if own := re.search(r'<meta[^>]*\bname="description"[^>]*>', tags):
        description = unescape(re.search(r'content="([^"]*)"', own[0])[1])
        tags = tags.replace(own[0], "")
    else:
        texts = (" ".join(paragraph.astext().split()) for paragraph in doctree.findall(nodes.paragraph))
        description = shorten(next(filter(None, texts), ""))
    title = unescape(re.sub(r"<[^>]*>", "", context["title"]))
    address = f"{site_address(app.config)}{pagename}.html"
    context["metatags"] = f"{tags}\n{meta_tags(app.config, title=title, description=description, address=address)}"


def meta_tags(config: Config, *, title: str, description: str, address: str) -> str:
    """Return the tags by which others show a link to a page, and the one by which feed readers find the changes."""
    home = site_address(config)
    graph = {
        "title": title, "description": description, "type": "article", "url": address, "site_name": config.html_title,
        "image": home + CARD, "image:width": "1200", "image:height": "630",
        "image:alt": f"{config.html_title}: keys and values of earlier tokens, kept in blocks",
    }  # fmt: skip
    tags = [f'<meta name="description" content="{escape(description)}" />']
    tags += [f'<meta property="og:{name}" content="{escape(value)}" />' for name, value in graph.items()]
    tags += ['<meta name="twitter:card" content="summary_large_image" />']
    tags += [f'<link rel="alternate" type="application/atom+xml" title="Changes" href="{home}feed.xml" />']
    return "\n".join(tags)


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


ISSUE = """\
Page: {address}

What is wrong, or hard to follow:


What you expected instead:

"""


def ask_what_is_wrong(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Let the button for issues begin one that names the page by its title and its address."""
    title = unescape(re.sub(r"<[^>]*>", "", context.get("title", "")))
    fields = {"title": f"On the page “{title}”: ", "body": ISSUE.format(address=f"{site_address(app.config)}{pagename}.html")}
    for button in (inner for group in context.get("header_buttons", []) for inner in group.get("buttons", [])):
        if button.get("label") == "source-issues-button":
            button["url"] = f"{repository_address(app.config)}/issues/new?{urlencode(fields)}"


def leave_out_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Drop what belongs to Thebe: no page starts a kernel, and its scripts, loaded twice, end in an error."""
    context["script_files"] = [script for script in context["script_files"] if "thebe" not in f"{script.filename}{script.attributes}"]


def mend_pages(app: Sphinx, error: Exception | None) -> None:
    """Put right what the theme and docutils write into every page.

    A list of references calls itself a list but its items no list items, and what unfolds a chapter in the contents has no name: both
    leave screen readers at a loss. Browsers refuse a preloaded font to a page that was opened as a file; style sheets load the fonts
    in any case. And they hold the icons: the script that draws the same icons once more is by far the heaviest file of a page.
    Settings of Thebe, which the site has not, go.
    """
    if error is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            text = re.sub(r'\s*<link rel="preload"[^>]*(?:as="font"|fontawesome)[^>]*>', "", text)
            text = text.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
            text = text.replace('<summary><span class="toctree-toggle"', '<summary aria-label="What stands below this"><span class="toctree-toggle"')
            text = re.sub(r'<script type="text/x-thebe-config">.*?</script>', "", text, flags=re.DOTALL)
            text = re.sub(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", signature_lines, text, flags=re.DOTALL)
            page.write_text(re.sub(r'\s*<script[^>]*fontawesome[^>]*></script>', "", text), encoding="utf-8")


def signature_lines(found: re.Match[str]) -> str:
    """Return a signature's parameters, a line each; Sphinx writes them as a list of definitions in which nothing is defined."""
    lines = found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines.strip()}</span>'


_COLON = "\ue000"
"""Stands in for a colon that napoleon would take for the end of a type."""


def hide_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep sentences with a colon whole: napoleon reads `words: more words` as a type and what it means.

    It does so in the first line of an attribute's text and under Returns; this package has its types in annotations.
    """
    after = [0] if what in ("attribute", "data", "property") else []
    after += [index + 1 for index, line in enumerate(lines[:-1]) if line.strip() in ("Returns:", "Yields:")]
    for start in after:
        for index in range(start, len(lines)):
            if not lines[index].strip():
                break
            lines[index] = lines[index].replace(": ", f"{_COLON} ")


def show_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Undo `hide_colons` once napoleon has been over the text."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def name_defaults(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Write defaults so that Sphinx can read them: `greedy` for `<function greedy>`, `...` for what is made anew each time."""
    return signature and re.sub(r"<function (\w+)>", r"\1", signature.replace("<factory>", "...")), returns


def know_the_address(app: Sphinx, config: Config) -> None:
    """Let Sphinx name each page's full address in it, too."""
    config.html_baseurl = site_address(config)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", know_the_address, priority=AFTER_THE_THEME)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", offer_colab_for_notebooks_alone, priority=AFTER_THE_THEME)
    app.connect("html-page-context", ask_what_is_wrong, priority=AFTER_THE_THEME)
    app.connect("html-page-context", leave_out_thebe, priority=AFTER_THE_THEME)
    app.connect("autodoc-process-signature", name_defaults)
    app.connect("autodoc-process-docstring", hide_colons, priority=100)
    app.connect("autodoc-process-docstring", show_colons, priority=AFTER_THE_THEME)
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
