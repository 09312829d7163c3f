"""Circuits drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interventions.writing import write

from .annotations import Annotations
from .figures import content, figure, target
from .graph import Circuit
from .layout import SMALL, TEXT, page
from .picture import BAND, FAINT, INK, Mark, Picture, picture
from .routing import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(
    circuit: Circuit,
    path: str | Path,
    *,
    annotations: Annotations = None,
    title: str | None = None,
    most: int = 60,
    most_edges: int = 150,
) -> Path:
    """Draws a circuit as `draw` does, with matplotlib alone; gives the file written."""
    path, kind = target(path)
    shown = picture(circuit, given=annotations, title=title, most=most, most_edges=most_edges)
    write(path, plotted(shown, kind))
    return path


def plotted(shown: Picture, kind: str) -> bytes:
    """A picture drawn by matplotlib, as the content of a file."""
    from matplotlib.patches import PathPatch, Polygon, Rectangle
    from matplotlib.path import Path as Way

    on = page(shown)
    aligned = bool(on.columns)
    left, right = on.left - on.margin, on.right + 12
    width = max(right - left, 430.0)
    left -= (width - (right - left)) / 2
    low, high = (-44, on.top + 44) if aligned else (-12, on.top + 12)
    with figure(width / 72, (high - low + 72) / 72) as sheet:
        axes = sheet.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(left, left + width)
        axes.set_ylim(low, high + 72)
        for n, column in enumerate(on.columns):
            corner = column.x - column.width / 2 - 2, low
            if n % 2 == 0:
                axes.add_patch(Rectangle(corner, column.width + 4, high - low, color=BAND, lw=0, zorder=0))
            for y in (-20, on.top + 20):
                _write(axes, column.x, y, column.label, TEXT + 1)
        for name, y in zip(shown.rows, on.rows, strict=True):
            _write(axes, on.left - 12, y, name, TEXT, FAINT, weight="bold", ha="right")
        for line, curve in zip(shown.lines, on.curves, strict=True):
            x, tip = curve[-1]
            base, half = tip - 5 - 1.6 * line.width, 1.6 + 0.9 * line.width
            way = Way([*curve[:-1], (x, base)], [Way.MOVETO] + [Way.CURVE4] * (len(curve) - 1))
            stroke = {"edgecolor": line.color, "linewidth": line.width, "capstyle": "butt", "zorder": 1}
            axes.add_patch(PathPatch(way, facecolor="none", **stroke))
            head = [(x - half, base), (x + half, base), (x, tip)]
            axes.add_patch(Polygon(head, closed=True, color=line.color, lw=0, zorder=1))
        for mark, box in zip(shown.marks, on.boxes, strict=True):
            _mark(axes, mark, box)
        _header(axes, shown, left + width / 2, high)
        return content(sheet, kind)


def _mark(axes: Axes, mark: Mark, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch, Polygon

    style: dict[str, Any] = {"facecolor": mark.fill, "edgecolor": "#555555", "linewidth": 0.8, "zorder": 2}
    if mark.kind == "error":
        corners = [(box.x - box.width / 2, box.bottom), (box.x + box.width / 2, box.bottom), (box.x, box.top)]
        axes.add_patch(Polygon(corners, closed=True, **style))
        middle = box.bottom + 0.36 * (box.top - box.bottom)
    else:
        shape = "round,pad=0,rounding_size=8" if mark.kind == "feature" else "square,pad=0"
        corner = box.x - box.width / 2, box.y - box.height / 2
        axes.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle=shape, **style))
        middle = box.y
    size = SMALL if mark.kind == "error" else TEXT
    lines = [(text, size) for text in mark.text] + [(text, SMALL - 0.5) for text in mark.small]
    y = middle + sum(size for _, size in lines) * 1.2 / 2
    for text, size in lines:
        _write(axes, box.x, y - size * 0.6, text, size * 0.95, mark.ink)
        y -= size * 1.2


def _header(axes: Axes, shown: Picture, x: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    _write(axes, x, y + 58, shown.title, 13, INK, weight="bold")
    _write(axes, x, y + 41, shown.subtitle, 9, FAINT)
    cell, (low, high) = 14, shown.extremes
    start = x - cell * len(shown.ticks) / 2
    for n, (_, color) in enumerate(shown.ticks):
        axes.add_patch(Rectangle((start + n * cell, y + 20), cell, 9, color=color, lw=0))
    _write(axes, start - 6, y + 24.5, low, 8, ha="right")
    _write(axes, start + cell * len(shown.ticks) + 6, y + 24.5, high, 8, ha="left")
    _write(axes, x, y + 9, shown.legend, 8, FAINT)


def _write(axes: Axes, x: float, y: float, text: str, size: float, color: str = INK, **style: Any) -> None:
    style = {"ha": "center", "va": "center_baseline", **style}
    axes.text(x, y, text, fontsize=size, color=color, parse_math=False, zorder=3, **style)
