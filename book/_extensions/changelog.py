"""Reads CHANGELOG.md, which is written as keepachangelog.com describes, and lets links lead to a release on the page that shows it."""

import re
from dataclasses import dataclass
from datetime import date

from docutils import nodes
from markdown_it import MarkdownIt
from sphinx.application import Sphinx

PAGE = "book/changes"
UNRELEASED = " - unreleased"

HEADING = re.compile(r"^## \[?(?P<version>[^\]\s]+)\]?(?: - (?P<day>\d{4}-\d{2}-\d{2}))?(?P<rest>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Release:
    """One section of the changelog.

    Args:
        version: as it stands in the heading, `0.1.0` for example
        day: when it came out; None before it does
        text: the section, in Markdown
    """

    version: str
    day: date | None
    text: str

    @property
    def title(self) -> str:
        return self.version if self.day else f"{self.version} (not released yet)"

    @property
    def anchor(self) -> str:
        """Where the release stands on the page of changes; `name_places` puts it there."""
        return f"release-{self.version}"

    @property
    def html(self) -> str:
        return MarkdownIt().render(self.text)


def releases(changelog: str) -> list[Release]:
    """Return every release, newest first as in the file.

    Raises:
        ValueError: a heading names neither a day nor `unreleased`, or there is none at all.
    """
    headings = list(HEADING.finditer(changelog))
    if not headings:
        raise ValueError("the changelog has no release: a section begins with `## 0.1.0 - 2026-01-31` or `## 0.1.0 - unreleased`")
    ends = [heading.start() for heading in headings[1:]] + [len(changelog)]
    return [release(heading, changelog[heading.end() : end].strip()) for heading, end in zip(headings, ends)]


def release(heading: re.Match[str], text: str) -> Release:
    day = heading["day"]
    if not day and heading["rest"] != UNRELEASED:
        raise ValueError(f"{heading[0]!r} should end in a day, ` - 2026-01-31`, or in ` - unreleased`")
    return Release(heading["version"], date.fromisoformat(day) if day else None, text)


def name_places(app: Sphinx, doctree: nodes.document) -> None:
    """Give each release on the page of changes the name that links to it use; docutils' own are about the words of a heading alone."""
    if app.env.docname != PAGE:
        return
    for section in doctree.findall(nodes.section):
        heading = HEADING.match(f"## {section.next_node(nodes.title).astext()}")
        if heading and (heading["day"] or heading["rest"] == UNRELEASED):
            section["ids"].append(Release(heading["version"], None, "").anchor)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", name_places)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
