"""Which pages the book has: those its table of contents lists, in reading order."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def listed_pages() -> list[str]:
    """Every page that _toc.yml lists, without its suffix: the first page, the chapters, and what stands under a chapter."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    below = [[chapter["file"], *(section["file"] for section in chapter.get("sections", ()))] for chapter in chapters]
    return [toc["root"], *(page for pages in below for page in pages)]
