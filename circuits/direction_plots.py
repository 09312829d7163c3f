"""Pictures of directions, drawn by matplotlib: how they lie to each other, and at which site they separate.

Every function writes one file, whose suffix says the format (.svg, .png or .pdf, and .svg without one), and
gives its path. `width` is in inches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interventions.steering.direction import Direction
from interventions.steering.reading import Similarity, similarity

from .annotations import visible
from .figures import figure, target
from .geometry_plots import _MARKERS, _colored, _finished, _some
from .picture import FAINT

_COLUMN = 3.4  # inches, a column of a paper with two
_WRITTEN = 12  # as many cosines to a side are written out


def plot_similarity(
    vectors: Similarity | Mapping[str, Tensor],
    path: str | Path,
    *,
    title: str = "",
    width: float = _COLUMN,
) -> Path:
    """The cosine of each vector with each: of a direction, between its sites; of several directions at one
    site, `{name: direction[site], ...}`."""
    path, kind = target(path)
    found = vectors if isinstance(vectors, Similarity) else similarity(vectors)
    n, names = len(found.names), [visible(name) for name in found.names]
    with figure(width, (0.92 if title else 0.85) * width, "constrained") as sheet:
        axes = sheet.subplots()
        values = found.cosine.tolist()
        shown = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        at = _every(n, 0.65 * width)
        axes.set_xticks(at, [names[i] for i in at], rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(at, [names[i] for i in at], fontsize=6, parse_math=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if n <= _WRITTEN:
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    color = "white" if abs(value) > 0.6 else "black"
                    text = f"{value:.2f}".replace("-0.00", "0.00")
                    axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color=color)
        bar = sheet.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
        bar.set_label("cosine")
        bar.outline.set_visible(False)  # type: ignore[operator]
        if title:
            sheet.suptitle(visible(title), fontsize=9, parse_math=False)
        return _finished(sheet, [], path, kind, "")


def plot_separation(
    directions: Direction | Mapping[str, Direction],
    path: str | Path,
    *,
    title: str = "",
    width: float = _COLUMN,
) -> Path:
    """How well each site separates pairs that were held out, and where pairs were drawn anew, the cosine
    with what is found then (the mean, and the middle 95 %).

    A line for each direction; of `contrast(..., folds=5)`, and `bootstrap=200` for the lower panel.

    Raises:
        ValueError: a direction without separations.
    """
    path, kind = target(path)
    named = {"": directions} if isinstance(directions, Direction) else dict(directions)
    _some(named)
    for name, direction in named.items():
        if "separation" not in direction.how:
            which = f"The direction {name!r}" if name else "This direction"
            raise ValueError(f"{which} was found without folds; contrast(..., folds=5) holds pairs out.")
    sites = list(dict.fromkeys(site for direction in named.values() for site in direction))
    stable = any("bootstrap" in direction.how for direction in named.values())
    with figure(width, (0.4 + 0.55 * width) * (1.6 if stable else 1), "constrained") as sheet:
        panels = sheet.subplots(2 if stable else 1, 1, sharex=True, squeeze=False)[:, 0]
        for i, ((name, direction), color) in enumerate(_colored(named)):
            style: dict[str, Any] = {
                "color": color,
                "marker": _MARKERS[i % len(_MARKERS)],
                "ms": 3.2,
                "lw": 1.2,
            }
            x = [sites.index(site) for site in direction]
            found = [direction.how["separation"][site]["auroc"] for site in direction]
            panels[0].plot(x, found, label=name or None, **style)
            if "bootstrap" in direction.how:
                drawn = [direction.how["bootstrap"][site] for site in direction]
                beside = [place + 0.5 * ((i + 0.5) / len(named) - 0.5) for place in x]
                panels[1].vlines(
                    beside,
                    [each["low"] for each in drawn],
                    [each["high"] for each in drawn],
                    color=color,
                    lw=0.9,
                )
                panels[1].plot(beside, [each["cosine"] for each in drawn], **{**style, "lw": 0})
        panels[0].axhline(0.5, color=FAINT, lw=0.7, ls=(0, (3, 2)))
        panels[0].set_ylabel("AUROC, held out")
        if stable:
            panels[1].axhline(0, color=FAINT, lw=0.7, ls=(0, (3, 2)))
            panels[1].set_ylabel("cosine, redrawn")
            panels[1].set_ylim(top=1.02)
        at = _every(len(sites), width - 0.5)
        panels[-1].set_xticks(at, [visible(sites[i]) for i in at], rotation=90, fontsize=6, parse_math=False)
        return _finished(sheet, list(panels), path, kind, title)


def _every(n: int, room: float) -> range:
    """Which of `n` have their name written along so many inches."""
    return range(0, n, -(-n // max(1, int(11 * room))))
