"""Pictures of circuits, with graphviz."""

from __future__ import annotations

import html
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from interventions.writing import write

from .annotations import Annotations
from .files import writable
from .graph import Circuit
from .layout import SMALL, TEXT, Page, page
from .picture import BAND, FAINT, INK, Mark, Picture, picture

if TYPE_CHECKING:
    import graphviz

_FORMATS = ("svg", "png", "pdf")
_FONT = "Helvetica,Arial,sans-serif"
_ARROW = 6.0


def draw(
    circuit: Circuit,
    path: str | Path,
    *,
    annotations: Annotations = None,
    title: str | None = None,
    most: int = 60,
    most_edges: int = 150,
) -> list[Path]:
    """Draws a circuit, from its inputs at the bottom to the output at the top; gives the files written.

    The suffix of `path` says the format: .svg, .png or .pdf, and .svg without one. Beside the picture stands
    its source for graphviz; with the suffix .dot it comes alone. Colour is the sign and size of an effect:
    blue where going from clean to patch lowers the metric, orange where it raises it. A line's width is the
    size of its weight. Error nodes are triangles. Nodes with positions stand in the columns of their tokens.

    At most `most` nodes and `most_edges` edges are drawn, the largest, and the picture says how many are not.
    `annotations` are texts by node, `{"mlp.3/120": "plural subject"}`, or a file of them (see
    `circuits.annotations.texts`). The `title` is by default the name of the task.

    Without the graphviz program the picture is drawn by matplotlib, with a warning.

    Raises:
        ValueError: a circuit without nodes; another format.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".svg")
    kind = path.suffix[1:].lower()
    if kind not in (*_FORMATS, "dot"):
        raise ValueError(
            f"Cannot draw a {path.suffix} file ({path.name}); .svg, .png, .pdf and .dot will do."
        )
    shown = picture(circuit, given=annotations, title=title, most=most, most_edges=most_edges)
    source = dot(shown)
    writable(path.parent)
    beside = path.with_suffix(".dot")
    write(beside, source.source.encode())
    if kind == "dot":
        return [beside]
    content = _rendered(source, kind)
    if content is None:
        from .plots import plotted

        content = plotted(shown, kind)
    write(path, content)
    return [path, beside]


def _rendered(source: graphviz.Digraph, kind: str) -> bytes | None:
    import graphviz

    try:
        sharp = source.copy()
        if kind == "png":
            sharp.attr(dpi="150")
        return sharp.pipe(format=kind, quiet=True)
    except graphviz.ExecutableNotFound:
        reason = (
            "The program `dot` of graphviz is not installed. To get it: apt install graphviz, or "
            "brew install graphviz, or conda install graphviz."
        )
    except graphviz.CalledProcessError as error:
        reason = f"graphviz failed to write {kind}: {str(error.stderr or error)[:200]}."
    warnings.warn(f"{reason} The picture is drawn by matplotlib instead.", stacklevel=3)
    return None


def dot(shown: Picture) -> graphviz.Digraph:
    """The source of a picture. Everything has its place in it, which `layout=nop2` makes graphviz keep.

    With `dot -Glayout=dot` graphviz finds places of its own, one rank for each row.
    """
    import graphviz

    on = page(shown)
    graph = graphviz.Digraph("circuit")
    graph.attr(bgcolor="white", fontname=_FONT, pad="0.15", layout="nop2", splines="true", rankdir="BT")
    graph.attr(
        "node", fontname=_FONT, fontsize=str(TEXT), penwidth="0.8", color="#555555", margin="0.08,0.05"
    )
    graph.attr("edge", arrowsize="0.6", fontname=_FONT)
    _columns(graph, on)
    for row, (name, y) in enumerate(zip(shown.rows, on.rows, strict=True)):
        rank = graphviz.Digraph(graph_attr={"rank": "same"})
        rank.node(f"row {row}", **_right(name, on.margin - 24), **_place(on.left - on.margin / 2, y))
        for mark, box in zip(shown.marks, on.boxes, strict=True):
            if mark.row == row:
                rank.node(_name(mark), **_style(mark), **_place(box.x, box.y, box.width, box.height))
        graph.subgraph(rank)
    for row, (low, high) in enumerate(pairwise(on.rows)):  # keeps ranks in order where places are left out
        way = ((on.left, low), (on.left, low), (on.left, high), (on.left, high))
        graph.edge(f"row {row}", f"row {row + 1}", style="invis", pos=_spline(way, 0.0))
    for line, curve in zip(shown.lines, on.curves, strict=True):
        ends = _name(shown.marks[line.upstream]), _name(shown.marks[line.downstream])
        style = {"color": line.color, "penwidth": f"{line.width:.2f}", "tooltip": _literal(line.note)}
        graph.edge(*ends, **style, pos=_spline(curve, line.width))
    above = on.top + (78 if on.columns else 50)
    graph.node("header", shape="plaintext", label=_header(shown), **_place((on.left + on.right) / 2, above))
    return graph


def _columns(graph: graphviz.Digraph, on: Page) -> None:
    for n, column in enumerate(on.columns):
        if n % 2 == 0:
            band = {"shape": "box", "style": "filled", "fillcolor": BAND, "color": BAND, "label": ""}
            graph.node(f"band {n}", **band, **_place(column.x, on.top / 2, column.width + 4, on.top + 68))
        for side, y in (("below", -20), ("above", on.top + 20)):
            label = f'<<font point-size="{TEXT + 1}">{_escaped(column.label)}</font>>'
            graph.node(f"token {n} {side}", shape="plaintext", label=label, **_place(column.x, y))


def _spline(curve: tuple[tuple[float, float], ...], width: float) -> str:
    """A curve as graphviz writes it: the tip of the arrow, then all points up to its base."""
    *points, (x, y) = curve
    y -= 1.2 * width  # the tip of a thick arrow reaches further than its line
    rest = " ".join(f"{a:.2f},{b:.2f}" for a, b in [*points, (x, y - _ARROW)])
    return f"e,{x:.2f},{y:.2f} {rest}"


def _place(x: float, y: float, width: float | None = None, height: float | None = None) -> dict[str, str]:
    place = {"pos": f"{x:.2f},{y:.2f}"}
    if width is not None and height is not None:
        place |= {"width": f"{width / 72:.3f}", "height": f"{height / 72:.3f}", "fixedsize": "true"}
    return place


def _style(mark: Mark) -> dict[str, str]:
    shape, style = {
        "feature": ("box", "filled,rounded"),
        "error": ("triangle", "filled"),
        "output": ("box", "filled"),
    }[mark.kind]
    text, small = ("<br/>".join(_escaped(line) for line in lines) for lines in (mark.text, mark.small))
    return {
        "shape": shape, "style": style, "fillcolor": mark.fill, "fontcolor": mark.ink,
        "label": f'<{text}<br/><font point-size="{SMALL}">{small}</font>>', "tooltip": _literal(mark.note),
    }  # fmt: skip


def _right(name: str, width: float) -> dict[str, str]:
    """A name that ends where others end."""
    text = f'<font color="{FAINT}"><b>{_escaped(name)}</b></font>'
    cell = f'<td align="right" width="{width:.0f}">{text}</td>'
    table = f'<table border="0" cellborder="0" cellspacing="0" cellpadding="0"><tr>{cell}</tr></table>'
    return {"shape": "plaintext", "margin": "0", "label": f"<{table}>"}


def _header(shown: Picture) -> str:
    def line(text: str, points: int, color: str) -> str:
        return f'<tr><td><font point-size="{points}" color="{color}">{text}</font></td></tr>' if text else ""

    cells = "".join(f'<td width="16" height="10" bgcolor="{color}"></td>' for _, color in shown.ticks)
    low, high = (_escaped(text) for text in shown.extremes)
    bar = (
        f'<tr><td><table border="0" cellborder="0" cellspacing="0" cellpadding="0"><tr>'
        f'<td><font point-size="9">{low}&nbsp;&nbsp;</font></td>{cells}'
        f'<td><font point-size="9">&nbsp;&nbsp;{high}</font></td></tr></table></td></tr>'
    )
    return (
        '<<table border="0" cellborder="0" cellspacing="0" cellpadding="3">'
        + line(f"<b>{_escaped(shown.title)}</b>" if shown.title else "", 14, INK)
        + line(_escaped(shown.subtitle), 10, FAINT)
        + bar
        + line(_escaped(shown.legend), 9, FAINT)
        + "</table>>"
    )


def _name(mark: Mark) -> str:
    return mark.name.replace("\\", "/").replace(":", ";")  # a colon would name a port


def _escaped(text: str) -> str:
    """Plain text for an HTML-like label, in which graphviz expands what follows a backslash."""
    return html.escape(text).replace("\\", "\\\\")


def _literal(text: str) -> str:
    return "\\n".join(part.replace("\\", "\\\\") for part in text.split("\n"))


__all__ = ["draw"]
