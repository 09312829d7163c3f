"""Pictures of steering: the effect by its dose beside what else it does, and by the site.

Every function writes one file, whose suffix says the format (.svg, .png or .pdf, and .svg without one), and
gives its path. `width` is in inches. Bands are 95 % intervals of the change against the unsteered model on
the same items, so that they leave out how much items differ from each other.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interventions.steering.confidence import Estimate
from interventions.steering.dose_response import PROMPTED, RANDOM, STEERED, DoseResponse
from interventions.steering.sweep import LayerSweep
from interventions.writing import write

from .annotations import visible
from .figures import content, figure, target
from .picture import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY, _LINE = "#999999", {"markersize": 3.0, "linewidth": 1.3}
_COLUMN = 3.4  # inches, a column of a paper with two


def plot_dose_response(
    found: DoseResponse | Mapping[str, DoseResponse],
    path: str | Path,
    *,
    measures: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    title: str = "",
    width: float = _COLUMN,
) -> Path:
    """Each measure by the multiplier, one panel above the other, the first one the tallest.

    Of one dose response all arms are drawn: steered, random directions in grey, other controls, and as a
    horizontal line what prompting does. Of several, by name, the steered arm of each in its colour and the
    mean of its random directions, dotted, in the same. The thin line is the unsteered model. `measures` are
    those to draw, by default all of the first; `labels` says how their axes are named.

    Raises:
        ValueError: nothing to draw; another format.
        LookupError: a measure that was not taken.
    """
    path, kind = target(path)
    several = dict(found) if isinstance(found, Mapping) else {STEERED: found}
    if not several:
        raise ValueError("There is nothing to plot.")
    shown = list(measures or next(iter(several.values())).measures)
    lines = _lines(several)
    heights = [1.45] + [1.0] * (len(shown) - 1)
    with figure(width, 0.75 + 0.36 * min(width, 5.0) * sum(heights), "constrained") as sheet:
        panels = sheet.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, measure in zip(panels, shown, strict=True):
            for which, arm, style in lines:
                one = several[which]
                base = one.estimate(measure).mean
                if arm == PROMPTED:
                    _level(axes, base, one.effect(measure, 0, arm), style)
                else:
                    points = [one.effect(measure, m, arm) for m in one.multipliers]
                    _band(axes, one.multipliers, points, style, base)
            for one in several.values():
                axes.axhline(one.estimate(measure).mean, color="#bbbbbb", lw=0.7, zorder=0)
            axes.axvline(0, color="#dddddd", lw=0.7, zorder=0)
        for axes, measure, height in zip(panels, shown, heights, strict=True):
            label = (labels or {}).get(measure, measure)
            axes.set_ylabel(_wrapped(label, 0.36 * min(width, 5.0) * height), parse_math=False)
        panels[-1].set_xlabel("multiplier")
        sheet.align_ylabels()
        return _finished(sheet, list(panels), path, kind, title)


def plot_layer_sweep(
    found: LayerSweep,
    path: str | Path,
    *,
    measure: str | None = None,
    multipliers: Sequence[float] | None = None,
    label: str = "",
    title: str = "",
    width: float = _COLUMN,
) -> Path:
    """The change of a measure, by default the first, over sites, one line for each multiplier.

    Random directions are drawn in grey, those of all multipliers alike.

    Raises:
        ValueError: nothing to draw; another format.
        LookupError: a measure or a multiplier that was not taken.
    """
    path, kind = target(path)
    measure = measure or found.measures[0]
    shown = [m for m in (multipliers or found.multipliers) if m]
    if not shown:
        raise ValueError("There is nothing to plot.")
    places = range(len(found.sites))
    with figure(width, 0.6 + 0.66 * min(width, 5.0), "constrained") as sheet:
        axes = sheet.subplots()
        axes.axhline(0, color="#bbbbbb", lw=0.7, zorder=0)
        if found.random:
            for m in shown:
                points = [found.effect(measure, site, m, random=True) for site in found.sites]
                _band(
                    axes, places, points, {"color": _GREY, "lw": 0.9, "ls": (0, (1, 1.2)), "label": "random"}
                )
        for m, (color, marker) in zip(shown, _signed(shown), strict=True):
            points = [found.effect(measure, site, m) for site in found.sites]
            _band(axes, places, points, {"color": color, "marker": marker, "label": _sign(m), **_LINE})
        _sites(axes, found.sites)
        axes.set_ylabel(_wrapped(label or f"change of {measure}", 0.66 * min(width, 5.0)), parse_math=False)
        return _finished(sheet, [axes], path, kind, title)


def plot_layer_map(
    found: LayerSweep,
    path: str | Path,
    *,
    measure: str | None = None,
    label: str = "",
    title: str = "",
    width: float = _COLUMN,
) -> Path:
    """The change of a measure, by default the first, at every site and multiplier, as a map of colours.

    A dot marks what is clear: its interval leaves out zero, and that of random directions there, where some
    were run.

    Raises:
        ValueError: another format.
        LookupError: a measure that was not taken.
    """
    path, kind = target(path)
    measure = measure or found.measures[0]
    shown = [m for m in found.multipliers if m]
    grid = found.grid(measure)[:, [found.multipliers.index(m) for m in shown]]
    finite = grid[grid.isfinite()].abs()
    most = finite.max().item() if finite.numel() and finite.max() > 0 else 1.0
    height = 0.19 * len(shown) + 0.12 * width
    with figure(width, 0.8 + height, "constrained") as sheet:
        axes = sheet.subplots()
        image = axes.imshow(
            grid.T.tolist(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", origin="lower"
        )
        for i, site in enumerate(found.sites):
            for j, m in enumerate(shown):
                if _clear(found, measure, site, m):
                    dark = grid[i, j].abs() > 0.6 * most
                    axes.plot(i, j, marker=".", ms=2.5, color="white" if dark else "black", lw=0)
        _sites(axes, found.sites)
        axes.set_xlim(-0.5, len(found.sites) - 0.5)
        axes.set_yticks(range(len(shown)), [_sign(m) for m in shown])
        axes.set_ylabel("multiplier")
        axes.tick_params(length=2)
        bar = sheet.colorbar(image, ax=axes, pad=0.02)
        bar.set_label(_wrapped(label or f"change of {measure}", height), parse_math=False)
        bar.outline.set_visible(False)  # type: ignore[operator]
        return _finished(sheet, [], path, kind, title)


def _lines(several: Mapping[str, DoseResponse]) -> list[tuple[str, str, dict[str, Any]]]:
    """What is drawn: of which dose response, which arm, and how; the last is drawn on top."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    if len(several) == 1:
        ((name, one),) = several.items()
        styles = iter(zip(_COLORS[1:] * 9, _MARKERS[1:] * 9, strict=False))
        for arm in one.arms:
            if arm == STEERED:
                style = {"color": _COLORS[0], "marker": _MARKERS[0], "zorder": 4, "label": name, **_LINE}
            elif arm == RANDOM:
                n = f"{one.random} random direction{'s' if one.random > 1 else ''}"
                style = {"color": _GREY, "lw": 1.0, "ls": (0, (1, 1.2)), "label": n}
            elif arm == PROMPTED:
                style = {"color": "#000000", "lw": 1.0, "ls": (0, (4, 2)), "label": arm}
            else:
                color, marker = next(styles)
                style = {"color": color, "marker": marker, "label": arm, **_LINE, "linewidth": 1.0}
            found.append((name, arm, style))
        return found
    for i, (name, one) in enumerate(several.items()):
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        found.append((name, STEERED, {"color": color, "marker": marker, "label": name, "zorder": 4, **_LINE}))
        if RANDOM in one.arms:
            found.append((name, RANDOM, {"color": color, "lw": 0.9, "ls": (0, (1, 1.2)), "bare": True}))
    return found


def _band(
    axes: Axes, x: Sequence[float], points: Sequence[Estimate], style: dict[str, Any], base: float = 0.0
) -> None:
    low = [base + (e.low if e.low == e.low else e.mean) for e in points]
    high = [base + (e.high if e.high == e.high else e.mean) for e in points]
    if not style.get("bare"):
        axes.fill_between(list(x), low, high, color=style["color"], alpha=0.18, lw=0, zorder=1)
    line = {key: value for key, value in style.items() if key != "bare"}
    (drawn,) = axes.plot(list(x), [base + e.mean for e in points], **line)
    drawn.bare = style.get("bare", False)  # type: ignore[attr-defined]


def _level(axes: Axes, base: float, change: Estimate, style: dict[str, Any]) -> None:
    if change.low == change.low:
        low, high = base + change.low, base + change.high
        axes.axhspan(low, high, color=style["color"], alpha=0.08, lw=0, zorder=0)
    axes.axhline(base + change.mean, **style)


def _sign(multiplier: float) -> str:
    return f"{multiplier:+g}".replace("-", "\u2212")


def _wrapped(label: str, inches: float) -> str:
    """A label that fits along an axis of that length, over several lines if need be."""
    most = max(10, int(13 * inches))
    whole = [textwrap.wrap(line, most, break_on_hyphens=False) for line in label.split("\n")]
    lines = [piece for pieces in whole for piece in pieces]
    return "\n".join(visible(line) for line in lines)


def _signed(multipliers: Sequence[float]) -> list[tuple[str, str]]:
    """A colour and a marker for each multiplier: blues below zero, reds above, darker further out."""
    blues, reds = ("#08519c", "#3182bd", "#6baed6", "#9ecae1"), ("#a50f15", "#de2d26", "#fb6a4a", "#fc9272")
    below = sorted(m for m in multipliers if m < 0)
    above = sorted((m for m in multipliers if m > 0), reverse=True)
    found = {}
    for ranked, colors in ((below, blues), (above, reds)):
        for i, m in enumerate(ranked):
            found[m] = (colors[min(i, len(colors) - 1)], _MARKERS[i % len(_MARKERS)])
    return [found[m] for m in multipliers]


def _sites(axes: Axes, sites: Sequence[str]) -> None:
    """Names of sites along the bottom: of one kind by their numbers, the kind being the label."""
    kinds = {site.rpartition(".")[0] for site in sites}
    kind = kinds.pop() if len(kinds) == 1 else ""
    names = [site.removeprefix(f"{kind}.") if kind else site for site in sites]
    longest = max(map(len, names))
    most = max(2, int(axes.get_figure(root=True).get_figwidth() / (0.09 * longest + 0.06)))  # type: ignore[union-attr]
    if kind or longest <= 2:
        step = -(-len(names) // most)
        ticks = list(range(0, len(names), step))
        axes.set_xticks(ticks, [visible(names[i]) for i in ticks])
        axes.set_xlabel(f"{kind}, by layer" if kind else "site")
    else:
        axes.set_xticks(
            range(len(names)), [visible(name) for name in names], rotation=90 if len(names) > 6 else 30
        )
        axes.set_xlabel("site")


def _clear(found: LayerSweep, measure: str, site: str, m: float) -> bool:
    one = found.effect(measure, site, m)
    if not found.random or not one.clear:
        return one.clear
    other = found.effect(measure, site, m, random=True)
    return not (other.low == other.low and one.low <= other.high and other.low <= one.high)


def _columns(lengths: Sequence[int], *, room: float) -> int:
    """How many columns of labels, filled from the left, fit into so many characters; each needs a handle."""
    for columns in range(len(lengths), 1, -1):
        rows = -(-len(lengths) // columns)
        widest = [max(lengths[i : i + rows]) for i in range(0, len(lengths), rows)]
        if sum(widest) + 5 * len(widest) <= room:
            return columns
    return 1


def _finished(sheet: Figure, axes: Sequence[Axes], path: Path, kind: str, title: str) -> Path:
    """The key below, without twins; the file written."""
    from matplotlib.lines import Line2D

    keys: dict[str, Any] = {}
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            keys.setdefault(label, handle)
        if any(getattr(line, "bare", False) for line in one.get_lines()):
            keys.setdefault("random directions", Line2D([], [], color=FAINT, lw=0.9, ls=(0, (1, 1.2))))
    if len(keys) > 1:
        columns = _columns([len(label) for label in keys], room=16 * sheet.get_figwidth())
        legend = sheet.legend(
            list(keys.values()), [visible(label) for label in keys], loc="outside lower center",
            ncols=columns, frameon=False, fontsize=7, handlelength=1.8, columnspacing=1.2,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    if title:
        sheet.suptitle(visible(title), fontsize=9, parse_math=False)
    write(path, content(sheet, kind))
    return path
