"""Pictures of SCR and TPP, drawn by matplotlib: by features ablated, and by what a dictionary costs.

Every function writes one file, whose suffix says the format (.svg, .png or .pdf, and .svg without one), and
gives its path. `width` is in inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from interventions.concepts import Scored, Sweep

from .annotations import visible
from .figures import figure, target
from .lens_curves import finished
from .picture import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COLUMN = 3.4  # inches, a column of a paper with two
_SAID = {"tpp": "TPP", "scr": "SCR"}
_PANELS = 3  # numbers of features shown by L0


def plot_scores(sweep: Sweep, path: str | Path, *, title: str = "", width: float = _COLUMN) -> Path:
    """The score of each dictionary by the number of features ablated, with bootstrap intervals.

    Raises:
        ValueError: no dictionaries, or another format.
    """
    path, kind = target(path)
    _some(sweep)
    with figure(width, 0.5 + 0.65 * width + 0.12 * len(sweep), "constrained") as sheet:
        axes = sheet.subplots()
        places = range(len(sweep.sizes))  # numbers of features are apart by factors
        step = min(0.1, 0.5 / len(sweep))
        for i, (name, one) in enumerate(sweep.items()):
            at = [place + step * (i - (len(sweep) - 1) / 2) for place in places]
            low, high = one.interval().T.tolist()
            color = _COLORS[i % len(_COLORS)]
            axes.vlines(at, low, high, color=color, lw=1.0, alpha=0.5)
            axes.plot(
                at, one.score.tolist(), color=color, marker=_MARKERS[i % len(_MARKERS)], ms=3, lw=1.2,
                label=visible(name),
            )  # fmt: skip
        axes.set_xticks(list(places), list(map(str, sweep.sizes)))
        axes.set_xlabel("features ablated")
        _levels(axes, sweep)
        return finished(sheet, [axes], path, kind, title)


def plot_costs(
    sweep: Sweep,
    path: str | Path,
    *,
    sizes: Sequence[int] | None = None,
    title: str = "",
    width: float = 2 * _COLUMN,
) -> Path:
    """The score of each dictionary by its L0, a panel for each of some numbers of features ablated; a line
    joins those of one site with as many features.

    Raises:
        ValueError: no dictionaries, or another format.
        LookupError: a number of features that was not asked for.
    """
    path, kind = target(path)
    _some(sweep)
    shown = list(sizes or _spread(sweep.sizes))
    groups = _groups(sweep)
    with figure(width, 0.75 + width / max(2, len(shown)), "constrained") as sheet:
        panels = sheet.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, size in zip(panels, shown, strict=True):
            scores = sweep.at(size)
            for i, (label, names) in enumerate(groups.items()):
                x = [sweep[name].l0 for name in names]
                y, low, high = zip(*(scores[name] for name in names), strict=True)
                color = _COLORS[i % len(_COLORS)]
                axes.vlines(x, low, high, color=color, lw=1.0, alpha=0.5)
                axes.plot(x, y, color=color, marker=_MARKERS[i % len(_MARKERS)], ms=3.5, lw=1.2, label=label)
            axes.set_xscale("log")
            _plain_numbers(axes, [one.l0 for one in sweep.values()])
            axes.set_xlabel("active features (L0)")
            axes.set_title(f"{size} features ablated", fontsize=8)
            _levels(axes, sweep)
            axes.label_outer()
        return finished(sheet, list(panels), path, kind, title)


def _groups(sweep: Sweep) -> dict[str, list[str]]:
    """The dictionaries of one site and one width, by L0."""
    several = len({one.site for one in sweep.values()}) > 1
    found: dict[str, list[str]] = {}
    for name, one in sorted(sweep.items(), key=lambda item: item[1].l0):
        place = f"{visible(one.site)}, " if several else ""
        found.setdefault(f"{place}{one.n_features:,} features", []).append(name)
    return dict(sorted(found.items(), key=lambda item: _first(sweep, item[1])))


def _first(sweep: Mapping[str, Scored], names: Sequence[str]) -> tuple[str, int]:
    return sweep[names[0]].site, sweep[names[0]].n_features


def _spread(sizes: Sequence[int]) -> list[int]:
    """A few of several numbers, from early to late."""
    n = min(_PANELS, len(sizes))
    return list(dict.fromkeys(sizes[round((i + 0.5) * len(sizes) / n - 0.5)] for i in range(n)))


def _levels(axes: Axes, sweep: Sweep) -> None:
    axes.axhline(0, color=FAINT, lw=0.7, ls=(0, (3, 2)), zorder=0)
    axes.set_ylabel(_SAID[sweep.kind])
    if sweep.kind == "scr":
        low = min(one.interval().min().item() for one in sweep.values())
        axes.axhline(1, color=FAINT, lw=0.7, ls=(0, (3, 2)), zorder=0)
        axes.set_ylim(bottom=max(-1.05, min(low - 0.05, -0.05)))


def _plain_numbers(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = min(values) / 1.3, max(values) * 1.3
    axes.set_xlim(low, high)
    ticks = [n * 10.0**e for e in range(-2, 6) for n in (1, 2, 5) if low <= n * 10.0**e <= high]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _some(sweep: Sweep) -> None:
    if not sweep:
        raise ValueError("There is nothing to plot.")
