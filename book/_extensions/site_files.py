"""Files of the site that are no pages of the book: what search engines, feed readers, link previews and servers ask for."""

import os
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape as escape_xml

import matplotlib
import resvg_py
from changelog import Release, releases
from content_policy import policy_of_a_server, with_policy
from site_address import path_of_site, repository_address, site_address
from site_pages import CARD, meta_tags
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

NOT_FOUND = """\
<section>
<h1>This page is not here</h1>
<p>It may have moved, or the address has a slip of the pen in it. The <a href="book/index.html">first page</a> lists all chapters,
and the <a href="search.html">search</a> finds words on every page.</p>
<p>If a link of this book led you here, please <a href="{issues}">say so</a>.</p>
</section>
"""

HEADERS = {
    "Content-Security-Policy": policy_of_a_server(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""What a server should send with every page. The files under `deploy/` repeat it for servers of your own."""


def pages_of(app: Sphinx) -> list[str]:
    """Every page of the book, without its suffix, the first one first."""
    first = app.config.root_doc
    return [first, *sorted(app.env.found_docs - {first})]


def sitemap(app: Sphinx) -> str:
    """Every page by its full address."""
    places = "".join(
        f"  <url><loc>{escape_xml(site_address(app.config) + quote(page))}.html</loc></url>\n" for page in pages_of(app)
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
    return f"{head}{places}</urlset>\n"


def robots(app: Sphinx) -> str:
    """Whoever wants may read everything but the sources of pages, which are there as pages already."""
    path = path_of_site(app.config)
    return f"User-agent: *\nDisallow: {path}_sources/\n\nSitemap: {site_address(app.config)}sitemap.xml\n"


def headers(app: Sphinx) -> str:
    """What Netlify and its like send with every file, in the form in which they read it."""
    return "/*\n" + "".join(f"  {name}: {value}\n" for name, value in HEADERS.items())


def now() -> datetime:
    """The time of the build; `SOURCE_DATE_EPOCH` sets it, so that a build can be repeated byte for byte."""
    return datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), tz=timezone.utc)


def feed(app: Sphinx) -> str:
    """What changed from release to release, as an Atom feed."""
    found = releases((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    home = site_address(app.config)
    updated = max((moment(release) for release in found), default=now())
    entries = "".join(entry(release, home) for release in found)
    return f"""\
<?xml version="1.0" encoding="utf-8"?>
<feed xmlns="http://www.w3.org/2005/Atom">
  <title>{escape_xml(app.config.html_title)}: changes</title>
  <id>{home}</id>
  <link href="{home}feed.xml" rel="self" />
  <link href="{home}book/changes.html" />
  <author><name>{escape_xml(app.config.author)}</name></author>
  <updated>{updated.isoformat(timespec="seconds")}</updated>
{entries}</feed>
"""


def moment(release: Release) -> datetime:
    """When a release came out; what has not come out yet changes until now."""
    return datetime.combine(release.day, datetime.min.time(), timezone.utc) if release.day else now()


def entry(release: Release, home: str) -> str:
    return f"""\
  <entry>
    <title>{escape_xml(release.title)}</title>
    <id>{home}book/changes.html#{release.anchor}</id>
    <link href="{home}book/changes.html#{release.anchor}" />
    <updated>{moment(release).isoformat(timespec="seconds")}</updated>
    <content type="html">{escape_xml(release.html)}</content>
  </entry>
"""


def first_address(app: Sphinx) -> str:
    """The page at the site's bare address: it leads on to the first page, and tells link previews what is there."""
    first = f"{app.config.root_doc}.html"
    address = site_address(app.config) + first
    description = "The KV cache of Llama 3, explained by building it: chapters you can run, pictures that move, exercises that check themselves."
    return with_policy(f"""\
<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <title>{escape(app.config.html_title)}</title>
    <meta http-equiv="refresh" content="0; url={first}" />
    <link rel="canonical" href="{address}" />
    {meta_tags(app.config, title=app.config.html_title, description=description, address=address)}
  </head>
  <body><p><a href="{first}">{escape(app.config.html_title)}</a></p></body>
</html>
""")


def draw_card(target: Path) -> None:
    """Draw the picture of link previews from its SVG, with fonts that come with matplotlib: the same on every machine."""
    fonts = sorted(map(str, Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf")))
    source = Path(__file__).parents[1] / "_static" / "social-card.svg"
    target.write_bytes(resvg_py.svg_to_bytes(svg_path=str(source), font_files=fonts, skip_system_fonts=True))


def not_found(app: Sphinx) -> Iterator[tuple[str, dict[str, object], str]]:
    """The page for addresses that lead nowhere, in the frame of the others."""
    body = NOT_FOUND.format(issues=f"{repository_address(app.config)}/issues/new")
    yield (
        "404",
        {"title": "This page is not here", "body": body, "pageurl": None, "metatags": '<meta name="robots" content="noindex" />'},
        "page.html",
    )


def from_anywhere(html: str, path: str) -> str:
    """Make a page's relative addresses absolute: a server shows this page at any depth."""
    return re.sub(r'\b(href|src|action|data-content_root)="(?![a-z]+:|[#/])(?:\./)?', rf'\1="{path}', html)


def write_files(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    makers = {"sitemap.xml": sitemap, "robots.txt": robots, "_headers": headers, "feed.xml": feed, "index.html": first_address}
    for name, make in makers.items():
        (folder / name).write_text(make(app), encoding="utf-8")
    draw_card(folder / CARD)
    # A build that made no pages anew left this one as it was.
    lost = folder / "404.html"
    lost.write_text(from_anywhere(lost.read_text(encoding="utf-8"), path_of_site(app.config)), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-collect-pages", not_found)
    app.connect("build-finished", write_files, priority=960)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
