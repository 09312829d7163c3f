"""Pictures of SHIFT: how often each method says the intended label, and how often the spurious one.

Every function writes one file, whose suffix says the format (.svg, .png or .pdf, and .svg without one), and
gives its path. `width` is in inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interventions.steering.confidence import Estimate
from interventions.writing import write

from .annotations import visible
from .figures import content, figure, target
from .picture import BAND, FAINT
from .shift.report import Across, Report
from .shift.scores import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INTENDED = {"color": "#0072b2", "marker": "o", "label": "intended label"}
_SPURIOUS = {"color": "#d55e00", "marker": "s", "label": "spurious label"}
_WORST = {"color": "#009e73", "marker": "D", "label": "worst group, intended label"}
_APART = 0.17  # of two points of a method, in rows


def plot_shift(
    found: Report | Across,
    path: str | Path,
    *,
    methods: Sequence[str] | None = None,
    title: str = "",
    width: float = 6.5,
) -> Path:
    """Each method on a line, with 95 % intervals: the accuracy on the intended and on the spurious label, and
    beside it that of the worst group. The broken line is chance for the spurious label, where it should be.

    `methods` are those to draw, in this order; by default all.

    Raises:
        ValueError: nothing to draw; another format.
        KeyError: a method that there is not.
    """
    path, kind = target(path)
    rows = _chosen(found.rows, methods)
    chance = 1 / len({spurious for _, spurious in rows[0].groups})
    with figure(width, 0.85 + 0.24 * len(rows), "constrained") as sheet:
        left, right = sheet.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for y, row in enumerate(rows):
            _point(left, row.intended, y - _APART, _INTENDED)
            _point(left, row.spurious, y + _APART, _SPURIOUS)
            _point(right, row.worst, y, _WORST)
        left.axvline(chance, color=FAINT, lw=0.8, ls=(0, (3, 2)), zorder=1)
        left.set_yticks(range(len(rows)), [visible(row.method) for row in rows], parse_math=False)
        left.set_ylim(len(rows) - 0.5, -0.5)
        left.set_xlabel("accuracy")
        right.set_xlabel("accuracy in the worst group")
        for axes in (left, right):
            _ruled(axes, len(rows))
        keys = [_key(style) for style in (_INTENDED, _SPURIOUS)]
        sheet.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
        if title:
            sheet.suptitle(visible(title), fontsize=9, parse_math=False)
        write(path, content(sheet, kind))
    return path


def plot_groups(
    found: Report | Across,
    path: str | Path,
    *,
    methods: Sequence[str] | None = None,
    title: str = "",
    width: float = 6.5,
) -> Path:
    """The accuracy of each method on the intended label, a panel for each group of texts.

    Raises:
        ValueError: nothing to draw; another format.
        KeyError: a method that there is not.
    """
    path, kind = target(path)
    rows = _chosen(found.rows, methods)
    groups = list(rows[0].groups)
    with figure(width, 0.75 + 0.2 * len(rows), "constrained") as sheet:
        panels = sheet.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, group in zip(panels, groups, strict=True):
            for y, row in enumerate(rows):
                _point(axes, row.groups[group], y, {**_INTENDED, "label": ""})
            axes.set_title(visible("/".join(group)), fontsize=8, parse_math=False)
            _ruled(axes, len(rows))
        panels[0].set_yticks(range(len(rows)), [visible(row.method) for row in rows], parse_math=False)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        sheet.supxlabel("accuracy on the intended label", fontsize=8)
        if title:
            sheet.suptitle(visible(title), fontsize=9, parse_math=False)
        write(path, content(sheet, kind))
    return path


def _chosen(rows: Sequence[Row], methods: Sequence[str] | None) -> list[Row]:
    by_name = {row.method: row for row in rows}
    if missing := [name for name in methods or () if name not in by_name]:
        raise KeyError(f"No method {missing[0]!r}; there are {', '.join(by_name)}.")
    if methods is not None and not methods:
        raise ValueError("There is nothing to plot: no method is asked for.")
    return list(rows) if methods is None else [by_name[name] for name in methods]


def _point(axes: Axes, found: Estimate, y: float, style: dict[str, Any]) -> None:
    if found.low == found.low:
        axes.plot([found.low, found.high], [y, y], color=style["color"], lw=1.1, alpha=0.55, zorder=2)
    axes.plot(
        [found.mean], [y], color=style["color"], marker=style["marker"], ms=4, lw=0, zorder=3, clip_on=False
    )


def _ruled(axes: Axes, n: int) -> None:
    """Bands behind every other method, and the scale from 0 to 1."""
    for y in range(0, n, 2):
        axes.axhspan(y - 0.5, y + 0.5, color=BAND, lw=0, zorder=0)
    axes.set_xlim(-0.04, 1.04)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xticks([0.25, 0.75], minor=True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _key(style: dict[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style["color"], marker=style["marker"], ms=4, lw=1.1, label=style["label"])
