import re
import xml.etree.ElementTree as ET

import pytest

from llama3_edu import plots


def drawn(alt: str) -> plots.Picture:
    plots.use_style()
    fig, (left, right) = plots.figure(2)
    left.plot([1, 2, 3], [1, 4, 9], marker="o", label="naive")
    left.legend()
    right.bar(["a", "b"], [3, 4], hatch="//", color=plots.COLORS["k"])
    return plots.show(fig, alt=alt)


def test_drawing_twice_gives_the_same_bytes():
    assert drawn("Two panels.").svg == drawn("Two panels.").svg


def test_svg_is_well_formed_and_takes_the_colours_of_the_page():
    svg = drawn("Two panels.").svg
    ET.fromstring(svg)
    assert "currentColor" in svg and "var(--le-k, #0072b2)" in svg
    assert "#010203" not in svg and "#040506" not in svg and "DejaVu" not in svg and "<style" not in svg


def test_two_figures_share_no_id():
    first, second = (set(re.findall(r'\bid="([^"]+)"', drawn(alt).svg)) for alt in ("One.", "Another."))
    assert first and second and not first & second


def test_every_reference_has_its_target():
    svg = drawn("Two panels.").svg
    targets = set(re.findall(r'\bid="([^"]+)"', svg))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= targets


def test_the_text_alternative_is_said_aloud_and_escaped():
    bundle = drawn('Less than 1 is "<1".')._repr_mimebundle_()
    assert 'aria-label="Less than 1 is &quot;&lt;1&quot;."' in bundle["text/html"]
    assert bundle["text/plain"] == 'Figure: Less than 1 is "<1".'


def test_a_figure_without_a_text_alternative_is_refused():
    fig, _ = plots.figure()
    with pytest.raises(ValueError, match="text alternative"):
        plots.show(fig, alt=" ")
