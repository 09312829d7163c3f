"""Lines that go around boxes. In points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_MARGIN, _CORNER, _STUB = 4.0, 14.0, 2.0


@dataclass(frozen=True)
class Box:
    """Where a mark stands: its centre and its size."""

    x: float
    y: float
    width: float
    height: float
    pointed: bool = False  # a triangle, whose base graphviz sets a quarter above the bottom of its box

    @property
    def top(self) -> float:
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        return self.y - self.height / (4 if self.pointed else 2)

    @property
    def roof(self) -> float:
        """How wide it is at the top."""
        return 0.0 if self.pointed else self.width


class Row:
    """A row of boxes for lines to go through, which remembers where some went."""

    def __init__(self, boxes: Sequence[Box]):
        self.low = min(box.y - box.height / 2 for box in boxes) - _MARGIN
        self.high = max(box.y + box.height / 2 for box in boxes) + _MARGIN
        self.free: list[tuple[float, float]] = []
        self._used: list[tuple[float, float]] = []  # place, width
        edge = -math.inf
        for left, right in sorted((b.x - b.width / 2 - _MARGIN, b.x + b.width / 2 + _MARGIN) for b in boxes):
            if left > edge:
                self.free.append((edge, left))
            edge = max(edge, right)
        self.free.append((edge, math.inf))

    def lets(self, left: float, right: float) -> bool:
        """Whether there is nothing between two places."""
        return any(low <= left and right <= high for low, high in self.free)

    def gap(self, wanted: float, width: float) -> float:
        """A free place near the one wanted, a little beside where other lines went."""
        nearest = min(self.free, key=lambda span: max(span[0] - wanted, wanted - span[1]))
        low, high = nearest
        x = min(max(wanted, low), high)
        lane = x
        while low <= lane <= high and any(abs(lane - at) < (width + w) / 2 + 1.2 for at, w in self._used):
            lane += 1.0 if x == low else -1.0
        lane = lane if low <= lane <= high else x
        self._used.append((lane, width))
        return lane


def curve(start: Point, stop: Point, rows: Sequence[Row], width: float) -> tuple[Point, ...]:
    """A way from a box in the first row to one in the last that leaves and arrives upright."""
    leave, arrive = (start[0], rows[0].high + _STUB), (stop[0], rows[-1].low - _STUB - 1.6 * width)
    return _rounded([start, *_around(leave, arrive, rows[1:-1], width), stop])


def _around(start: Point, stop: Point, rows: Sequence[Row], width: float) -> list[Point]:
    """A way through the rows between, straight where nothing stands in it, else by the nearest gap."""
    for number, row in enumerate(rows):
        enter, leave = (_at(start, stop, y) for y in (row.low, row.high))
        if row.lets(min(enter, leave), max(enter, leave)):
            continue
        x = row.gap((enter + leave) / 2, width)
        below = _around(start, (x, row.low), rows[:number], width)
        return [*below, *_around((x, row.high), stop, rows[number + 1 :], width)]
    return [start, stop]


def _at(start: Point, stop: Point, y: float) -> float:
    return start[0] + (stop[0] - start[0]) * (y - start[1]) / (stop[1] - start[1])


def _rounded(points: Sequence[Point]) -> tuple[Point, ...]:
    """A polyline with round corners, as cubic segments."""
    curve = [points[0]]

    def straight(to: Point) -> None:
        (x, y), (u, v) = curve[-1], to
        curve.extend([(x + (u - x) / 3, y + (v - y) / 3), (x + (u - x) * 2 / 3, y + (v - y) * 2 / 3), to])

    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        enter, leave = _towards(corner, before), _towards(corner, after)
        straight(enter)
        curve.extend([_middle(enter, corner), _middle(leave, corner), leave])
    straight(points[-1])
    return tuple(curve)


def _towards(corner: Point, other: Point) -> Point:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = (dx * dx + dy * dy) ** 0.5 or 1.0
    part = min(_CORNER, length / 2) / length
    return corner[0] + dx * part, corner[1] + dy * part


def _middle(a: Point, b: Point) -> Point:
    return a[0] + (b[0] - a[0]) * 2 / 3, a[1] + (b[1] - a[1]) * 2 / 3
