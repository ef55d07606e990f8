"""What a page may load and run, said in a Content-Security-Policy; and pages put into a form that keeps to it.

No script stands in a page: what Sphinx and the theme write there goes to files, and buttons that the theme writes with
JavaScript are written as HTML. So the policy needs neither 'unsafe-inline' for scripts nor a list of hashes, and it is the
same for every page, which is what a server's configuration needs.
"""

import hashlib
import os
import re
from html import escape
from pathlib import Path

from sphinx.application import Sphinx

POLICY = {
    "default-src": "'none'",
    # Widgets are imported from Blobs, which the host script makes of texts that stand in the page.
    "script-src": "'self' blob:",
    # Figures, formulas and widgets set colours and sizes in attributes.
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    # What search shows of a page it reads from that page.
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
}
"""What pages need, and nothing else."""

HEADERS_ALONE = {"frame-ancestors": "'none'"}
"""What browsers heed in a header, but not in a page."""

INLINE = re.compile(r"[ \t]*<script(?P<attributes>(?![^>]*\bsrc=)[^>]*)>(?P<code>.*?)</script>\n?", re.DOTALL)
WRITTEN = re.compile(r"\s*document\.write\(`(?P<html>.*?)`\);?\s*", re.DOTALL)
OF_ONE_PAGE = re.compile(r"\s*(DOCUMENTATION_OPTIONS\.pagename|kernelName) = '[^']*';?\s*")
"""What a page says of itself to a switch between versions and to Thebe; the site has neither."""

MARK = "\ue001"
"""Stands where a script was, until the file is known that it goes to."""

PRESSED = {"window.print()": "print", "toggleFullScreen()": "full-screen"}
"""What buttons of the theme do, and what `site.js` knows it by."""


def policy_of_a_page() -> str:
    """Return the policy as pages carry it. Opened as files they come from `file:`, which not every browser counts as 'self'."""
    return "; ".join(f"{name} {value}" for name, value in POLICY.items()).replace("'self'", "'self' file:")


def policy_of_a_server() -> str:
    """Return the policy as a server sends it."""
    return "; ".join(f"{name} {value}" for name, value in {**POLICY, **HEADERS_ALONE}.items())


def is_run(attributes: str) -> bool:
    """Whether a browser runs a script with these attributes; others hold data."""
    kind = re.search(r'\btype="([^"]*)"', attributes)
    return kind is None or kind[1] in ("module", "text/javascript")


class Page:
    """A page on its way to keeping to the policy: scripts leave it, one file for all that stand in its head."""

    def __init__(self, html: str, to_static: str) -> None:
        self.files: dict[str, str] = {}
        self._to_static = to_static
        head, end, body = html.partition("</head>")
        self.html = self._without_inline(head, together=True) + end + self._without_inline(body, together=False)

    def _without_inline(self, html: str, *, together: bool) -> str:
        codes: list[str] = []

        def leave(found: re.Match[str]) -> str:
            code = found["code"].strip()
            if not is_run(found["attributes"]):
                return found[0]
            if written := WRITTEN.fullmatch(code):
                return written["html"]
            if OF_ONE_PAGE.fullmatch(code) or (together and code in codes):
                return ""
            codes.append(code)
            return MARK if not together or len(codes) == 1 else ""

        html = INLINE.sub(leave, html)
        for code in ["\n".join(codes)] if together and codes else codes:
            html = html.replace(MARK, self._file_of(code), 1)
        return html

    def _file_of(self, code: str) -> str:
        name = f"from-pages-{hashlib.sha256(code.encode()).hexdigest()[:8]}.js"
        self.files[name] = code + "\n"
        return f'<script src="{self._to_static}{name}"></script>\n'


def press_without_inline(html: str) -> str:
    """Give buttons a name for what they do in place of a script."""
    for code, action in PRESSED.items():
        html = html.replace(f'onclick="{code}"', f'data-press="{action}"')
    return html


def with_policy(html: str) -> str:
    """Put the policy where it holds for all that follows: right behind the character set."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{escape(policy_of_a_page(), quote=False)}" />'
    return re.sub(r'(<meta charset="utf-8"\s*/?>)', rf"\1\n    {meta}", html, count=1)


def keep_to_policy(app: Sphinx, error: Exception | None) -> None:
    """Rewrite every page of the site, and write the files its scripts go to."""
    if error is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    for path in folder.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        if "</head>" not in html or 'http-equiv="Content-Security-Policy"' in html:  # a template; a page of an earlier build
            continue
        page = Page(press_without_inline(html), os.path.relpath(folder / "_static", path.parent).replace(os.sep, "/") + "/")
        path.write_text(with_policy(page.html), encoding="utf-8")
        for name, code in page.files.items():
            (folder / "_static" / name).write_text(code, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    # Last of all that happens to pages.
    app.connect("build-finished", keep_to_policy, priority=950)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
