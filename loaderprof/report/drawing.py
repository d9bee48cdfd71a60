"""The craft of the still pictures: figures and axes in one style, and SVG with the page's colours."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, SOFT, LINE, PAPER = "#4b5158", "#80868f", "#c9cdd2", "#fefefc"
"""Middle greys that show on white and on black; in the page they become the theme's own colours."""

WORK, VERIFIED = "#5f7b99", "#3a8f5c"
"""Colours that no stage has: a worker at work, whatever it does, and a gain that was measured."""

WIDE, NARROW = 9.6, 4.4
"""Widths in inches: a page on a desk, and a page on a telephone."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loaderprof",
    "font.size": 10.0,
    "hatch.linewidth": 1.2,
    "axes.linewidth": 0.8,
}


def saved(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of a kind: svg, png or pdf. The same figure gives the same bytes."""
    when = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    target = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(target, format=kind, transparent=True, dpi=160, metadata=when)
    return target.getvalue()


def for_page(svg: str, name: str) -> str:
    """Return an SVG that may stand within HTML: no prologue, ids of its own, the theme's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"""'[\w ,'-]*DejaVu Sans[^;"]*""", "inherit", svg)
    for grey, token in ((INK, "ink"), (SOFT, "soft"), (LINE, "line"), (PAPER, "paper")):
        svg = svg.replace(grey, f"var(--{token})")
    return re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', svg, count=1)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; sizes in inches."""
    with mpl.rc_context(_STYLE):
        return Figure(figsize=(width, height))


def new_axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Return axes with margins in inches, without a frame."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    axes = figure.add_axes(box)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, colors=SOFT, labelsize=9)
    axes.patch.set_alpha(0)
    return axes


def say(axes: Axes, x: float, y: float, text: str, **more: Any) -> None:
    """Put text on axes as it is: names are no mathematics, and the font has no letters but Latin ones."""
    latin = text.encode("latin-1", "replace").decode("latin-1")
    how: dict[str, Any] = {"color": INK, "va": "center", "parse_math": False} | more
    axes.text(x, y, latin, **how)
