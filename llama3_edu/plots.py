"""One look for every figure of the book: vector, readable in light and dark, in grey, and by a screen reader.

Figures become inline SVG. Text, axes and grid take the page's own colours, so the same figure serves both themes; the
colours of data are CSS variables with a fallback for pages that do not define them.
"""

import hashlib
import html
import io
import re
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLORS", "Picture", "figure", "show", "use_style"]

COLORS = {"q": "#d55e00", "k": "#0072b2", "v": "#009e73", "accent": "#cc79a7", "muted": "#767676"}
"""Colours of data, safe for colour-blind readers: queries, keys, values, what stands out, what steps back.

Source: the palette of Okabe and Ito, 2008.
"""

# Stand-ins that matplotlib can draw and that become the page's own colours in the SVG.
_TEXT, _GRID = "#010203", "#040506"

_SVG_STYLE = "width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llama3_edu",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.prop_cycle": matplotlib.cycler(color=[COLORS[name] for name in ("q", "k", "v", "accent", "muted")]),
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _TEXT,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
}


def use_style() -> None:
    """Draw every figure of this process with the book's settings from now on."""
    matplotlib.rcParams.update(_STYLE)


def figure(columns: int = 1, *, width: float = 5.8, height: float = 3.2, **options: object) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, side by side in one row.

    Args:
        columns: number of axes.
        width: of the whole figure, in inches.
        height: likewise.
        options: go to matplotlib's `Figure.subplots`, `sharey=True` for example.
    """
    fig = Figure(figsize=(width, height))
    return fig, list(fig.subplots(1, columns, squeeze=False, **options)[0])


@dataclass(frozen=True)
class Picture:
    """A finished figure. A notebook shows it as SVG; where there is none, its text alternative stands in."""

    svg: str
    alt: str

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        label = html.escape(self.alt, quote=True)
        frame = f'<figure class="llama3-edu-figure" role="img" aria-label="{label}" style="margin:1em 0;max-width:40rem">'
        return {"text/html": f"{frame}{self.svg}</figure>", "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"


def show(fig: Figure, *, alt: str) -> Picture:
    """Return a figure ready to be shown as a notebook cell's last expression.

    Args:
        fig: what `figure` made, drawn upon.
        alt: what the figure shows, in one or two sentences, for readers who do not see it.

    Raises:
        ValueError: the text alternative is empty.
    """
    if not alt.strip():
        raise ValueError("every figure needs a text alternative that says what it shows; it was given an empty one")
    drawn = io.StringIO()
    fig.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(svg=_for_the_page(drawn.getvalue(), alt), alt=alt)


def _for_the_page(svg: str, alt: str) -> str:
    """Turn matplotlib's file into SVG that lives inside a page: its size, fonts and colours, and no id used twice."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # it would style the page
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 aria-hidden="true" style="{_SVG_STYLE}"', svg, count=1)
    svg = re.sub(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1sans-serif", svg)
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--le-grid, #8c8c8c)")
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--le-{name}, {color})")
    prefix = hashlib.sha256((alt + svg).encode()).hexdigest()[:6]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg).strip()
