"""Curves of how good circuits are, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interventions.writing import write

from .annotations import visible
from .evaluation import Curve, Score
from .figures import content, figure, target
from .picture import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_RANDOM = "#999999"
_COLUMN = 3.4  # inches, a column of a paper with two


def plot_curve(
    curves: Curve | Mapping[str, Curve],
    path: str | Path,
    *,
    title: str | None = None,
    width: float = _COLUMN,
) -> Path:
    """Draws faithfulness and completeness by the number of nodes, one curve or several by name.

    Bands are confidence intervals. The dotted line is the mean faithfulness of random circuits, its band the
    range over draws; of several curves, each has its own in its colour. `width` is in inches. The suffix of
    `path` says the format: .svg, .png or .pdf, and .svg without one. Gives the file written.

    Raises:
        ValueError: no curve; another format.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    path, kind = target(path)
    named = {"circuit": curves} if isinstance(curves, Curve) else dict(curves)
    if not named or any(not curve.sizes for curve in named.values()):
        raise ValueError("There is no curve to plot, or one of them has no points.")
    if title is None:
        tasks = {curve.task for curve in named.values()}
        title = tasks.pop() if len(tasks) == 1 else ""
    with figure(width, 0.6 + 0.95 * min(width, 5.0), "constrained") as sheet:
        upper, lower = sheet.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.5, 1]})
        for (name, curve), color in zip(named.items(), _cycled(_COLORS), strict=False):
            if any(curve.random):
                _random(upper, curve, _RANDOM if len(named) == 1 else color)
            label = (
                name if len({c.active for c in named.values()}) == 1 else f"{name} ({curve.active:,} active)"
            )
            _scores(upper, curve.sizes, curve.faithfulness, color, visible(label))
            _scores(lower, curve.sizes, curve.completeness, color, "")
        shown = list(named.values())
        _frame(
            upper,
            "faithfulness",
            [s for c in shown for s in c.faithfulness],
            [r for c in shown for r in c.random],
        )
        _frame(lower, "completeness", [s for c in shown for s in c.completeness], [])
        lower.set_xlabel("number of nodes")
        sizes = [size for curve in shown for size in curve.sizes]
        upper.set_xscale("log")
        lower.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
        lower.xaxis.set_minor_formatter(NullFormatter())
        upper.set_xlim(min(sizes) / 1.15, max(sizes) * 1.15)
        if len({curve.active for curve in shown}) == 1:
            _shares(upper, shown[0].active)
        _key(sheet, upper, shown)
        if title:
            sheet.suptitle(visible(title), fontsize=9, parse_math=False)
        sheet.align_ylabels()
        written = content(sheet, kind)
    write(path, written)
    return path


def _scores(axes: Axes, sizes: tuple[int, ...], scores: tuple[Score, ...], color: str, label: str) -> None:
    axes.fill_between(sizes, [s.low for s in scores], [s.high for s in scores], color=color, alpha=0.18, lw=0)
    style = {"marker": "o", "markersize": 2.8, "linewidth": 1.3}
    axes.plot(sizes, [s.value for s in scores], color=color, gid=label, **style)


def _random(axes: Axes, curve: Curve, color: str) -> None:
    points = [(size, draws) for size, draws in zip(curve.sizes, curve.random, strict=True) if draws]
    sizes = [size for size, _ in points]
    low, high = [min(draws) for _, draws in points], [max(draws) for _, draws in points]
    axes.fill_between(sizes, low, high, color=color, alpha=0.15, lw=0)
    axes.plot(
        sizes,
        [sum(draws) / len(draws) for _, draws in points],
        color=color,
        lw=1.0,
        ls=(0, (1, 1.2)),
        marker=".",
        ms=2,
    )


def _frame(axes: Axes, label: str, scores: list[Score], draws: list[tuple[float, ...]]) -> None:
    """Limits that show every value, and of bands what is near."""
    for level in (0, 1):
        axes.axhline(level, color="#bbbbbb", lw=0.7, zorder=0)
    values = [s.value for s in scores] + [sum(d) / len(d) for d in draws if d]
    finite = [v for v in [0.0, 1.0, *values] if isfinite(v)]
    spread = max(finite) - min(finite)
    bounds = [b for s in scores for b in (s.low, s.high)] + [v for d in draws for v in d]
    near = [b for b in bounds if min(finite) - spread / 2 <= b <= max(finite) + spread / 2]
    low, high = min(finite + near), max(finite + near)
    axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _shares(axes: Axes, active: int) -> None:
    """The share of the active nodes, along the top."""
    if active < 1:
        return
    from matplotlib.ticker import FuncFormatter, NullFormatter

    top = axes.secondary_xaxis("top", functions=(partial(_times, 1 / active), partial(_times, active)))
    top.set_xlabel(f"share of the {active:,} active nodes", fontsize=7, color=FAINT)
    top.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share * 100:g}%"))
    top.xaxis.set_minor_formatter(NullFormatter())
    top.tick_params(labelsize=6.5, colors=FAINT, which="both")


def _key(sheet: Figure, axes: Axes, curves: list[Curve]) -> None:
    from matplotlib.lines import Line2D

    lines = [line for line in axes.get_lines() if line.get_gid()]
    labels = [str(line.get_gid()) for line in lines]
    if any(any(curve.random) for curve in curves):
        color = _RANDOM if len(curves) == 1 else FAINT
        lines.append(Line2D([], [], color=color, lw=1.0, ls=(0, (1, 1.2))))
        labels.append("random nodes")
    if lines:
        columns = _columns([len(label) for label in labels], room=19 * sheet.get_figwidth())
        style = {"frameon": False, "fontsize": 7, "handlelength": 1.6, "columnspacing": 1.2}
        legend = sheet.legend(lines, labels, loc="outside lower center", ncols=columns, **style)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _columns(lengths: list[int], *, room: float) -> int:
    """How many columns of labels, filled from the left, fit into so many characters; each needs a handle."""
    for columns in (3, 2):
        rows = -(-len(lengths) // columns)
        widest = [max(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]
        if sum(widest) + 5 * len(widest) <= room:
            return columns
    return 1


def _cycled(colors: tuple[str, ...]) -> Iterator[str]:
    while True:
        yield from colors


def _times(factor: float, values: Any) -> Any:
    return values * factor
