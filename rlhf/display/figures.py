"""Figures for our pages, as SVG. Text and lines have the page's colours, so they are readable in light, in dark and in print.

Text stays text: it can be searched, and it has the page's font. CSS gives text and grid their colours; only the data has its own.
This module imports matplotlib, so only modules that draw import this one.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = ("#3f87d4", "#e5812e", "#2ba17b", "#a06fd0", "#d94f70", "#8d8f2c", "#17a3b8", "#9a6a4f")
GOOD, BAD, NEUTRAL = "#2ba17b", "#d94f70", "#7d8794"
INK, GRID = "#0a0b0c", "#0a0b0d"  # placeholders: the page's own colours replace them
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Axes, list[Markup]]]:
    """An empty plot. When the block ends, the list holds its SVG."""
    out: list[Markup] = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), out
        out.append(_svg(figure))


def _svg(figure: Figure) -> Markup:
    """An inline SVG element: no XML prologue, no metadata, unique ids, colours of text and grid from the page's CSS."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 role="img"', text, count=1)
    mark = f"f{hashlib.blake2b(text.encode(), digest_size=5).hexdigest()}-"
    text = re.sub(r'\bid="', f'id="{mark}', text)
    text = text.replace("url(#", f"url(#{mark}").replace('xlink:href="#', f'href="#{mark}')
    text = text.replace("'DejaVu Sans'", "var(--font)").replace(INK, "currentColor").replace(GRID, "var(--grid)")
    return Markup(text.strip())
