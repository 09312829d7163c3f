"""What a picture of a circuit shows, before anything says where on the page it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, isfinite
from typing import Literal

from .annotations import Annotations, said_of, texts, token, visible, wrapped
from .graph import ERROR, OUTPUT, Circuit, Node

NEGATIVE, POSITIVE = "#0072b2", "#d55e00"  # Okabe and Ito: told apart by all kinds of colour vision
INK, FAINT, BAND = "#222222", "#666666", "#f4f4f2"
MINUS = "\N{MINUS SIGN}"
_PER_ROW = 12


@dataclass(frozen=True)
class Mark:
    """One node as drawn."""

    name: str
    kind: Literal["feature", "error", "output"]
    text: tuple[str, ...]  # lines
    small: tuple[str, ...]  # lines below
    note: str  # everything that is known, for those who point at it
    fill: str
    ink: str
    row: int
    column: int | None = None


@dataclass(frozen=True)
class Line:
    """One edge as drawn, between marks."""

    upstream: int
    downstream: int
    color: str
    width: float  # in points
    note: str


@dataclass(frozen=True)
class Picture:
    """Marks in rows, from the input to the output, and the lines between them, faint ones first.

    A row holds nodes of one site; a site with many nodes has several rows.
    """

    title: str
    subtitle: str
    marks: tuple[Mark, ...]
    lines: tuple[Line, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...] | None
    scale: float  # the largest effect
    heaviest: float  # the largest weight

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Effects, with their colours, for a legend."""
        return [(k / 4 * self.scale, shade(k / 4)) for k in range(-4, 5)]

    @property
    def extremes(self) -> tuple[str, str]:
        """What is said at both ends of the colours."""
        largest = number(self.scale, sign=False)
        return f"patching lowers the metric  {MINUS}{largest}", f"+{largest}  raises it"

    @property
    def legend(self) -> str:
        """What is said beside the colours."""
        parts = ["rounded: feature", "triangle: error"] if any(m.kind == "error" for m in self.marks) else []
        if self.lines:
            parts.append(f"line width: weight, up to {number(self.heaviest, sign=False)}")
        return "   ·   ".join(parts)


def picture(
    circuit: Circuit, *, given: Annotations, title: str | None, most: int, most_edges: int
) -> Picture:
    """The largest nodes and edges of a circuit as marks and lines."""
    if not len(circuit):
        raise ValueError("This circuit has no nodes to draw. Keep more of them, with a lower threshold.")
    if most < 1 or most_edges < 0:
        raise ValueError(f"Cannot draw at most {most} nodes and {most_edges} edges.")
    known = texts(given)
    small = circuit if len(circuit) <= most else circuit.top(nodes=most)
    small = small if small.edges.shape[1] <= most_edges else small.top(edges=most_edges)
    scale = float(small.effect[:-1].abs().max()) or 1.0
    heaviest = float(small.weight.abs().max()) if small.edges.shape[1] else 0.0
    rows, row_of = _rows(small)
    marks = []
    for node, effect, error in zip(
        small.nodes, small.effect.tolist(), small.effect_error.tolist(), strict=True
    ):
        column = None
        if circuit.positions is not None:
            column = len(circuit.positions) - 1 if node.position is None else node.position
        if node.site == OUTPUT:
            marks.append(_output(circuit, node, effect, row_of[node], column))
        else:
            marks.append(_mark(node, effect, error, scale, said_of(known, node), row_of[node], column))
    lines = [
        Line(up, down, *_stroke(weight / (heaviest or 1.0)), _edge_note(small, up, down, weight, error))
        for (up, down), weight, error in sorted(
            zip(small.edges.T.tolist(), small.weight.tolist(), small.weight_error.tolist(), strict=True),
            key=lambda edge: abs(edge[1]),
        )
    ]
    if title is None:
        title = str(circuit.about.get("task", {}).get("name", ""))
    return Picture(
        title=visible(title),
        subtitle=_subtitle(circuit, small),
        marks=tuple(marks),
        lines=tuple(lines),
        rows=tuple(visible(row) for row in rows),
        columns=None if circuit.positions is None else tuple(token(text) for text in circuit.positions),
        scale=scale,
        heaviest=heaviest,
    )


def number(value: float, digits: int = 2, *, sign: bool = True) -> str:
    """So many digits, more only before the point, and a real minus.

    >>> number(-0.1234), number(2), number(123.45), number(0.5, 3, sign=False)
    ('−0.12', '+2.0', '+123', '0.500')
    """
    plus = "+" if sign else ""
    text = f"{value:{plus}.0f}" if 10**digits <= abs(value) < 1e5 else f"{value:{plus}#.{digits}g}"
    return text.removesuffix(".").replace("-", MINUS)


def shade(share: float) -> str:
    """The fill of a node with this share, -1 to 1, of the largest effect; small ones still show."""
    return _mixed(NEGATIVE if share < 0 else POSITIVE, min(1.0, abs(share)) ** 0.7)


def _stroke(share: float) -> tuple[str, float]:
    return _mixed(NEGATIVE if share < 0 else POSITIVE, 0.3 + 0.7 * abs(share) ** 0.7), 0.5 + 3.5 * abs(share)


def _mixed(color: str, amount: float) -> str:
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (part - 255) * amount):02x}" for part in parts)


def _ink(fill: str) -> str:
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def _mark(
    node: Node, effect: float, error: float, scale: float, said: str, row: int, column: int | None
) -> Mark:
    fill = shade(effect / scale)
    label = visible(str(node._replace(position=None)))
    value = number(effect)
    if node.feature == ERROR:
        text, small = ("ε",), (value,)
    elif said:
        text, small = tuple(wrapped(said)), (label, value)
    else:
        text, small = (label,), (value,)
    spread = f" ± {number(error, sign=False)}" if isfinite(error) else ""
    note = f"{visible(str(node))}\neffect {value}{spread}" + (f"\n{visible(said)}" if said else "")
    kind = "error" if node.feature == ERROR else "feature"
    return Mark(str(node), kind, text, small, note, fill, _ink(fill), row, column)


def _output(circuit: Circuit, node: Node, effect: float, row: int, column: int | None) -> Mark:
    metric = circuit.about.get("metric", {})
    name = str(circuit.about.get("task", {}).get("metric", "")).removesuffix("()")
    change = number(effect)
    if isinstance(metric, dict) and "clean" in metric:
        change = " → ".join(number(metric[end], 3) for end in ("clean", "patch") if end in metric)
    text = tuple(wrapped(name, 26, 2)) or (OUTPUT,)
    return Mark(str(node), "output", text, (change,), f"output\n{change}", "#eeeeee", INK, row, column)


def _edge_note(circuit: Circuit, up: int, down: int, weight: float, error: float) -> str:
    spread = f" ± {number(error, sign=False)}" if isfinite(error) else ""
    ends = " → ".join(visible(str(circuit.nodes[end])) for end in (up, down))
    return f"{ends}\nweight {number(weight)}{spread}"


def _rows(circuit: Circuit) -> tuple[list[str], dict[Node, int]]:
    """The site of each row, and the row of each node."""
    order = {site: i for i, site in enumerate(circuit.features)}
    nodes = sorted(circuit.nodes[:-1], key=lambda node: order.get(node.site, len(order)))
    per_cell = _per_cell(nodes)
    rows: list[str] = []
    row_of: dict[Node, int] = {}
    for site, group in groupby(nodes, key=lambda node: node.site):
        members = list(group)
        parts = _cells(members, per_cell) if circuit.positions is not None else _chunks(members, _PER_ROW)
        for part in parts:
            row_of.update(dict.fromkeys(part, len(rows)))
            rows.append(site)
    row_of[circuit.nodes[-1]] = len(rows)
    return [*rows, OUTPUT], row_of


def _chunks(members: Sequence[Node], most: int) -> list[Sequence[Node]]:
    size = ceil(len(members) / ceil(len(members) / most))
    return [members[i : i + size] for i in range(0, len(members), size)]


def _cells(members: Sequence[Node], most: int) -> list[list[Node]]:
    """Rows with at most so many nodes at each position, and about as many in one as in the next."""
    rows: list[list[Node]] = []
    for position in dict.fromkeys(node.position for node in members):
        for level, part in enumerate(_chunks([node for node in members if node.position == position], most)):
            rows += [[]] * (level == len(rows))
            rows[level] = [*rows[level], *part]
    return rows


def _per_cell(nodes: Sequence[Node]) -> int:
    """How many nodes side by side at one position make a page neither too wide nor too tall."""
    cells = Counter((node.position, node.site) for node in nodes)
    widest: dict[int | None, int] = {}
    tallest: dict[str, int] = {}
    for (position, site), count in cells.items():
        widest[position] = max(count, widest.get(position, 0))
        tallest[site] = max(count, tallest.get(site, 0))

    def longer_side(most: int) -> float:
        width = sum(min(count, most) for count in widest.values())
        return max(width, sum(ceil(count / most) for count in tallest.values()))

    return min(range(2, _PER_ROW + 1), key=longer_side)


def _subtitle(circuit: Circuit, drawn: Circuit) -> str:
    parts, left = [], []
    for what, some, of in (
        ("node", len(drawn), len(circuit)),
        ("edge", drawn.edges.shape[1], circuit.edges.shape[1]),
    ):
        parts += [f"{some:,} of {of:,} {what}s" if some < of else f"{of:,} {what}{'s' * (of != 1)}"] * bool(
            of
        )
        left += [f"{of - some:,} {what}{'s' * (of - some != 1)}"] * (some < of)
    return " and ".join(parts) + (f", the largest ({' and '.join(left)} left out)" if left else "")
