"""The gallery shows every widget there is, and says where it is used."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from llama3_edu import widgets

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "book" / "gallery.md").read_text(encoding="utf-8")
SECTIONS = TEXT.split("\n## ")[1:]
CLASSES = [name for name in widgets.__all__ if name != "FrameWidget"]


def shown_in(code: str) -> list[str]:
    return re.findall(r"\bwidgets\.([A-Z]\w+)\(", code)


def chapters() -> dict[str, list[str]]:
    """The widgets each listed notebook shows, by its file's name."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [ROOT / f"{chapter['file']}.ipynb" for part in toc["parts"] for chapter in part["chapters"]]
    notebooks = {path.name: nbformat.read(path, as_version=4) for path in files if path.exists()}
    return {
        name: [widget for cell in notebook.cells if cell.cell_type == "code" for widget in shown_in(cell.source)]
        for name, notebook in notebooks.items()
    }


def section_of(name: str) -> str:
    (section,) = [section for section in SECTIONS if name in shown_in(section)]
    return section


def test_every_widget_is_in_the_gallery_once():
    assert sorted(shown_in(TEXT)) == sorted(CLASSES), "a new widget is a class, a file, a line in the gallery"
    assert len(SECTIONS) == len(CLASSES), "each in a section of its own"


@pytest.mark.parametrize("name", CLASSES)
def test_a_few_sentences_say_what_a_widget_shows(name: str):
    words = re.sub(r"\(.*?\)|```.*", "", section_of(name).partition("\n")[2].strip().split("\n\n")[0])
    assert len(re.findall(r"[.?](?:\s|$)", words)) in (2, 3), words


@pytest.mark.parametrize("name", CLASSES)
def test_a_widget_that_a_chapter_shows_links_to_it(name: str):
    where = {chapter for chapter, shown in chapters().items() if name in shown}
    linked = set(re.findall(r"\]\((\w+\.ipynb)\)", section_of(name)))
    assert linked <= where, "a chapter that is linked shows the widget"
    assert linked or not where, f"{name} is shown in {', '.join(sorted(where))}: link to one of them"


def test_the_gallery_is_listed():
    assert "book/gallery" in (ROOT / "_toc.yml").read_text(encoding="utf-8")
