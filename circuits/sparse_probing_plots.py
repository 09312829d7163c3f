"""Pictures of probes of few features beside the best dense baseline, drawn by matplotlib.

Every function writes one file, whose suffix says the format (.svg, .png or .pdf, and .svg without one), and
gives its path. `width` is in inches. Bands and bars are 95 % intervals over test texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interventions.sparse_probing import Quiver
from interventions.steering import Estimate

from .figures import figure, target
from .geometry_plots import _finished
from .picture import FAINT

_COLUMN = 3.4  # inches, a column of a paper with two
_DENSE, _BOTH, _ALONE = "#0072b2", "#d55e00", "#009e73"
_AXES: Mapping[str, str] = {
    "scarcity": "texts to train on",
    "imbalance": "share of positives in training",
    "noise": "share of wrong labels in training",
}


def plot_sizes(found: Quiver, path: str | Path, *, title: str = "", width: float = _COLUMN) -> Path:
    """The mean test AUROC of the probes of k features, by k, beside the best dense baseline by validation.

    Raises:
        ValueError: no probes of k features; another format.
    """
    path, kind = target(path)
    means = found.methods()
    sizes = {int(name[2:]): mean for name, (_, mean) in means.items() if re.fullmatch(r"k=\d+", name)}
    if not sizes:
        raise ValueError("There are no probes of k features to draw.")
    k = sorted(sizes)
    dense = found.comparison().dense
    with figure(width, 0.5 + 0.6 * width, "constrained") as sheet:
        axes = sheet.subplots()
        edges = [min(k) / 1.3, max(k) * 1.3]
        axes.fill_between(edges, [dense.low] * 2, [dense.high] * 2, color=_DENSE, alpha=0.12, lw=0)
        axes.plot(edges, [dense.mean] * 2, color=_DENSE, lw=1.2, ls=(0, (5, 2)), label="best dense baseline")
        _curve(axes, k, [sizes[one] for one in k], _ALONE, "o", "k features of the dictionary")
        axes.set_xscale("log", base=2)
        axes.set_xlim(*edges)
        axes.set_xticks(k, [f"{one:g}" for one in k])
        axes.minorticks_off()
        axes.set_xlabel("features that the probe reads")
        _chance(axes, [dense, *sizes.values()])
        return _finished(sheet, [axes], path, kind, title)


def plot_regime(found: Quiver, path: str | Path, *, title: str = "", width: float = _COLUMN) -> Path:
    """The mean test AUROC by what a regime varies: of the best dense baseline, of the best with the
    dictionary, and of the best probe of the dictionary alone, each chosen by validation.

    Raises:
        ValueError: several regimes, or one that varies nothing; another format.
    """
    path, kind = target(path)
    curve = found.curve()
    (regime,) = found.regimes
    x, all_points = list(curve), list(curve.values())
    with figure(width, 0.5 + 0.6 * width, "constrained") as sheet:
        axes = sheet.subplots()
        _curve(axes, x, [one.alone for one in all_points], _ALONE, "^", "dictionary alone")
        dense, both = [one.dense for one in all_points], [one.both for one in all_points]
        # where the dictionary is never picked both curves are one, and the wider one shows on either side
        _curve(axes, x, dense, _DENSE, "s", "best dense baseline", ms=6.0, lw=3.6, alpha=0.55)
        _curve(axes, x, both, _BOTH, "o", "best with the dictionary")
        if regime == "scarcity":
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [f"{one:g}" for one in x])
            axes.minorticks_off()
        axes.set_xlabel(_AXES.get(regime, regime))
        _chance(axes, [point for one in all_points for point in (one.dense, one.both, one.alone)])
        return _finished(sheet, [axes], path, kind, title)


def _curve(
    axes: Any,
    x: Sequence[float],
    points: Sequence[Estimate],
    color: str,
    marker: str,
    label: str,
    **style: float,
) -> None:
    axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=color, alpha=0.13, lw=0)
    drawn: dict[str, Any] = {"marker": marker, "ms": 3.2, "lw": 1.3, **style}
    axes.plot(x, [p.mean for p in points], color=color, label=label, **drawn)


def _chance(axes: Any, points: Sequence[Estimate]) -> None:
    low = min(min(p.low, p.mean) if p.low == p.low else p.mean for p in points)
    if low < 0.65:
        axes.axhline(0.5, color=FAINT, lw=0.7, ls=(0, (3, 2)))
    axes.set_ylim(top=1.0 + 0.03 * (1.0 - min(low, 0.97)))
    axes.set_ylabel("test AUROC")
