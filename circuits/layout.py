"""Where things stand on a page, in points: rows of marks, the first at the bottom, and columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .annotations import ems
from .picture import Line, Mark, Picture
from .routing import Box, Point, Row, curve

TEXT, SMALL = 10, 8  # sizes of type
_GAP = 18.0
_SWEEPS = 12


@dataclass(frozen=True)
class Column:
    """A strip of the page for one token, or for several that have no nodes."""

    label: str
    x: float
    width: float


@dataclass(frozen=True)
class Page:
    """A box for each mark, a curve for each line, the middle of each row, and the columns.

    Curves are cubic: a start, then two control points and an end for each segment.
    """

    boxes: tuple[Box, ...]
    curves: tuple[tuple[Point, ...], ...]
    rows: tuple[float, ...]
    columns: tuple[Column, ...]
    left: float
    right: float
    top: float
    margin: float  # room for the names of rows, left of everything


def size(mark: Mark, entering: int = 0) -> tuple[float, float]:
    """Width and height of a mark with its text, and of the output with room for the lines that enter it."""
    if mark.kind == "error":
        return 56.0, 46.0
    widths = [TEXT * ems(line) for line in mark.text] + [SMALL * ems(line) for line in mark.small]
    room = min(240.0, 12.0 * entering) if mark.kind == "output" else 40.0
    return max(room, max(widths) + 14), TEXT * 1.25 * len(mark.text) + SMALL * 1.25 * len(mark.small) + 8


def page(picture: Picture) -> Page:
    """Marks in rows, and where there are positions in columns, with as few bends and crossings as it can."""
    entering = Counter(line.downstream for line in picture.lines)
    sizes = [size(mark, entering[i]) for i, mark in enumerate(picture.marks)]
    rows: list[list[int]] = [[] for _ in picture.rows]
    for i, mark in enumerate(picture.marks):
        rows[mark.row].append(i)
    columns: tuple[Column, ...] = ()
    if picture.columns is None:
        xs = _layered(picture, rows, sizes)
    else:
        xs, columns = _aligned(picture, rows, sizes)
    ys: list[float] = []
    edge, shift = 0.0, min(62.0, 32 + 0.2 * len(picture.lines))
    for row, members in enumerate(rows):
        height = max(sizes[i][1] for i in members)
        gap = 0.0 if not row else shift if picture.rows[row] != picture.rows[row - 1] else shift * 0.6
        ys.append(edge + gap + height / 2)
        edge = ys[-1] + height / 2
    boxes = [
        Box(xs[i], ys[mark.row], *sizes[i], mark.kind == "error") for i, mark in enumerate(picture.marks)
    ]
    between = [Row([boxes[i] for i in members]) for members in rows]
    curves = [
        curve(
            *ends,
            between[picture.marks[line.upstream].row : picture.marks[line.downstream].row + 1],
            line.width,
        )
        for ends, line in zip(_ends(picture.lines, boxes), picture.lines, strict=True)
    ]
    reach = [x for curve in curves for x, _ in curve]
    left = min([box.x - box.width / 2 for box in boxes] + [c.x - c.width / 2 for c in columns] + reach)
    right = max([box.x + box.width / 2 for box in boxes] + [c.x + c.width / 2 for c in columns] + reach)
    margin = 24 + TEXT * 1.1 * max(ems(name) for name in picture.rows)
    return Page(tuple(boxes), tuple(curves), tuple(ys), columns, left, right, edge, margin)


def _layered(
    picture: Picture, rows: Sequence[Sequence[int]], sizes: Sequence[tuple[float, float]]
) -> list[float]:
    """Each mark near the middle of its neighbours, and clear of others in its row."""
    near = _neighbours(picture)
    xs = [0.0] * len(picture.marks)
    for row in rows:
        for i, x in zip(row, _spread([0.0] * len(row), [sizes[i][0] for i in row]), strict=True):
            xs[i] = x
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            wanted = {
                i: sum(xs[j] * w for j, w in near[i]) / sum(w for _, w in near[i]) for i in row if near[i]
            }
            order = sorted(wanted, key=lambda i: (wanted[i], i))
            places = _spread([wanted[i] for i in order], [sizes[i][0] for i in order])
            for i, x in zip(order, places, strict=True):
                xs[i] = x
            edge = max((xs[i] + sizes[i][0] / 2 for i in order), default=None)
            for i in row:
                if not near[i] and edge is not None:  # what has no lines stands beside what has
                    xs[i] = edge + _GAP + sizes[i][0] / 2
                    edge = xs[i] + sizes[i][0] / 2
    middle = sum(xs[i] for i, near_i in enumerate(near) if near_i) / max(1, sum(map(bool, near)))
    for row in rows:
        if not any(near[i] for i in row):
            for i, x in zip(row, _spread([middle] * len(row), [sizes[i][0] for i in row]), strict=True):
                xs[i] = x
    return xs


def _neighbours(picture: Picture) -> list[list[tuple[int, float]]]:
    """The marks that each mark has a line to, with the line's width."""
    near: list[list[tuple[int, float]]] = [[] for _ in picture.marks]
    for line in picture.lines:
        near[line.upstream].append((line.downstream, line.width))
        near[line.downstream].append((line.upstream, line.width))
    return near


def _mean(xs: Sequence[float], near: Sequence[tuple[int, float]]) -> float:
    return sum(xs[j] * width for j, width in near) / sum(width for _, width in near)


def _spread(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Places nearest to those wanted, in least squares, at which things in this order do not overlap."""
    offsets = [0.0]
    for before, after in pairwise(widths):
        offsets.append(offsets[-1] + (before + after) / 2 + _GAP)
    blocks: list[list[float]] = []  # mean, count: pooled until the means increase
    for place, offset in zip(wanted, offsets, strict=False):
        blocks.append([place - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, count = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * count) / (last[1] + count)
            last[1] += count
    flat = [mean for mean, count in blocks for _ in range(int(count))]
    return [place + offset for place, offset in zip(flat, offsets, strict=False)]


def _aligned(
    picture: Picture, rows: Sequence[Sequence[int]], sizes: Sequence[tuple[float, float]]
) -> tuple[list[float], tuple[Column, ...]]:
    """Each mark in the column of its position; long runs of positions without marks become one column."""
    labels = picture.columns or ()
    used = {mark.column for mark in picture.marks}
    needed = [TEXT * 1.1 * ems(label) + 10 for label in labels]
    for row in rows:
        for column in used:
            cell = [sizes[i][0] for i in row if picture.marks[i].column == column]
            if column is not None and cell:
                needed[column] = max(needed[column], sum(cell) + _GAP * (len(cell) - 1) + 16)
    centres: dict[int, float] = {}
    columns: list[Column] = []
    edge, i = 0.0, 0
    while i < len(labels):
        run = i
        while run < len(labels) and run not in used:
            run += 1
        label, width, stop = labels[i], needed[i], i + 1
        if run - i > 3:
            label, stop = f"… {run - i} tokens …", run
            width = TEXT * ems(label)
        centres[i] = edge + width / 2
        columns.append(Column(label, centres[i], width))
        edge, i = edge + width + 4, stop
    near = _neighbours(picture)
    xs = [centres.get(mark.column or 0, 0.0) for mark in picture.marks]
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            for column in used:
                cell = [i for i in row if picture.marks[i].column == column]
                if column is not None and cell:
                    cell.sort(key=lambda i: (_mean(xs, near[i]) if near[i] else math.inf, i))
                    places = _spread([centres[column]] * len(cell), [sizes[i][0] for i in cell])
                    for i, x in zip(cell, places, strict=True):
                        xs[i] = x
    return xs, tuple(columns)


def _ends(lines: Sequence[Line], boxes: Sequence[Box]) -> list[tuple[Point, Point]]:
    """From the top of one box to the bottom of another, side by side where several lines meet."""
    places: dict[tuple[int, int], float] = {}
    for side in (0, 1):
        meeting: dict[int, list[tuple[float, int]]] = {}
        for n, line in enumerate(lines):
            here, there = (line.upstream, line.downstream)[:: 1 - 2 * side]
            box, other = boxes[here], boxes[there]
            meeting.setdefault(here, []).append(((other.x - box.x) / max(1.0, abs(other.y - box.y)), n))
        for here, slopes in meeting.items():
            room = 0.6 * (boxes[here].width if side else boxes[here].roof)
            step = min(10.0 if boxes[here].width > 150 else 8.0, room / max(1, len(slopes) - 1))
            for k, (_, n) in enumerate(sorted(slopes)):
                places[n, side] = boxes[here].x + (k - (len(slopes) - 1) / 2) * step
    found = []
    for n, line in enumerate(lines):
        up, down = boxes[line.upstream], boxes[line.downstream]
        found.append(((places[n, 0], up.top), (places[n, 1], down.bottom)))
    return found
