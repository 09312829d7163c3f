"""Pictures of dictionaries, drawn by matplotlib: how dense features are, how they lie, how good the whole is.

Every function writes one file, whose suffix says the format (.svg, .png or .pdf, and .svg without one), and
gives its path. `width` is in inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.dictionaries import Quality
from interventions.dictionaries.measures import Geometry, Overlap, Principal, Stitching
from interventions.writing import write

from .annotations import visible
from .figures import content, figure, target
from .picture import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_COLUMN = 3.4  # inches, a column of a paper with two


def plot_densities(
    qualities: Mapping[str, Quality], path: str | Path, *, title: str = "", width: float = _COLUMN
) -> Path:
    """How many features are active at which share of positions, one line to a dictionary; the dead are named
    in the key, having no place on the logarithmic axis."""
    path, kind = target(path)
    _some(qualities)
    least = min((q.density[q.density > 0].min().item() for q in qualities.values() if q.dead < 1), default=1)
    low = min(-1, int(torch.tensor(least).log10().floor()))
    edges = torch.logspace(low, 0, 1 - 6 * low, dtype=torch.float64)
    with figure(width, 0.4 + 0.6 * width, "constrained") as sheet:
        axes = sheet.subplots()
        for (name, q), color in _colored(qualities):
            share = q.histogram(edges).double() / max(1, len(q.density))
            axes.stairs(
                share.tolist(), edges.tolist(), color=color, lw=1.3, label=f"{name}, {q.dead:.1%} dead"
            )
        axes.set_xscale("log")
        axes.set_xlabel("share of positions at which a feature is active")
        axes.set_ylabel("share of features")
        return _finished(sheet, [axes], path, kind, title)


def plot_cosines(
    geometries: Mapping[str, Geometry], path: str | Path, *, title: str = "", width: float = 5.5
) -> Path:
    """Each feature's largest cosine with another one, of decoder and encoder rows, and between the two."""
    path, kind = target(path)
    _some(geometries)
    panels = {
        "decoder rows, nearest": {name: g.decoder for name, g in geometries.items()},
        "encoder rows, nearest": {name: g.encoder for name, g in geometries.items()},
        "own encoder, decoder": {name: g.aligned for name, g in geometries.items() if g.aligned is not None},
    }
    shown = {name: values for name, values in panels.items() if values}
    with figure(width, 0.7 + 0.85 * width / len(shown), "constrained") as sheet:
        columns = sheet.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, (label, values) in zip(columns, shown.items(), strict=True):
            low = min(-0.02, *(v.min().item() for v in values.values()))
            edges = torch.linspace(low, 1.0001, 41)
            for name, color in _colors(geometries).items():
                if name in values:
                    counts = torch.histogram(values[name].float().cpu().clamp(max=1), edges).hist
                    share = (counts / len(values[name])).tolist()
                    axes.stairs(share, edges.tolist(), color=color, lw=1.3, label=name)
            axes.set_xlabel(f"cosine:\n{label}")
            axes.set_xlim(low, 1)
        columns[0].set_ylabel("share of features")
        return _finished(sheet, columns, path, kind, title)


def plot_principal(
    found: Principal,
    path: str | Path,
    *,
    color: Float[Tensor, " row"] | None = None,
    label: str = "",
    title: str = "",
    width: float = _COLUMN,
) -> Path:
    """Decoder rows along their first two principal directions, coloured by a number for each, such as the
    logarithm of the density; a number that is not finite (a dead feature) leaves a point grey."""
    path, kind = target(path)
    points = found.points.float().cpu()
    with figure(width, 0.9 * width, "constrained") as sheet:
        axes = sheet.subplots()
        style: dict[str, Any] = {"s": 5, "lw": 0, "alpha": 0.8}
        live = torch.ones(len(points), dtype=torch.bool) if color is None else color.isfinite().cpu()
        axes.scatter(*points[~live].T.tolist(), color="#cccccc", **style)
        if color is None:
            axes.scatter(*points.T.tolist(), color=_COLORS[0], **style)
        else:
            shown = axes.scatter(
                *points[live].T.tolist(), c=color.cpu()[live].tolist(), cmap="viridis", **style
            )
            bar = sheet.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
            bar.set_label(visible(label))
            bar.outline.set_visible(False)  # type: ignore[operator]
        axes.set_xlabel(f"first component, {found.share[0].item():.1%} of variance")
        axes.set_ylabel(f"second, {found.share[1].item():.1%}")
        return _finished(sheet, [axes], path, kind, title)


def plot_density_cosine(
    quality: Quality, geometry: Geometry, path: str | Path, *, title: str = "", width: float = 5.5
) -> Path:
    """Each live feature by how dense it is and how near its nearest other one, by decoder and encoder."""
    path, kind = target(path)
    live = quality.density > 0
    with figure(width, 0.4 + 0.48 * width, "constrained") as sheet:
        columns = sheet.subplots(1, 2, sharey=True)
        for axes, name, values in zip(
            columns, ("decoder", "encoder"), (geometry.decoder, geometry.encoder), strict=True
        ):
            x, y = quality.density[live].tolist(), values.cpu()[live.cpu()].tolist()
            axes.scatter(x, y, s=5, lw=0, alpha=0.6, color=_COLORS[0])
            axes.set_xscale("log")
            axes.set_xlabel("share of positions active")
            axes.set_ylabel(f"largest cosine of the {name} row")
            axes.tick_params(labelleft=True)
        return _finished(sheet, columns, path, kind, title)


def plot_frontier(
    families: Mapping[str, Sequence[Quality]], path: str | Path, *, title: str = "", width: float = _COLUMN
) -> Path:
    """Variance unexplained by active features per position: a line for each family, a point for each of its
    dictionaries. Further down and to the left is better."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    path, kind = target(path)
    _some(families)
    with figure(width, 0.4 + 0.7 * width, "constrained") as sheet:
        axes = sheet.subplots()
        for i, ((name, found), color) in enumerate(_colored(families)):
            points = sorted((q.l0, q.fvu) for q in found)
            style: dict[str, Any] = {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 3.5, "lw": 1.2}
            axes.plot([x for x, _ in points], [y for _, y in points], color=color, label=name, **style)
        axes.set_xscale("log")
        l0 = [q.l0 for found in families.values() for q in found]
        low, high = max(min(l0), 1e-3) / 1.25, max(l0) * 1.25
        axes.set_xlim(low, high)
        steps = (1, 2, 5) if high < 200 * low else (1,)
        ticks = [n * 10**e for e in range(-3, 7) for n in steps if low <= n * 10**e <= high]
        axes.set_xticks(ticks if len(ticks) > 1 else sorted({min(l0), max(l0)}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.3g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("active features per position (L0)")
        axes.set_ylabel("fraction of variance unexplained")
        return _finished(sheet, [axes], path, kind, title)


def plot_overlap(
    overlaps: Mapping[str, Overlap], path: str | Path, *, title: str = "", width: float = _COLUMN
) -> Path:
    """Cosines of matched decoder rows, a line for each pair of dictionaries; dashed, the threshold."""
    path, kind = target(path)
    _some(overlaps)
    edges = torch.linspace(-0.02, 1.0001, 41)
    with figure(width, 0.4 + 0.6 * width, "constrained") as sheet:
        axes = sheet.subplots()
        for (name, found), color in _colored(overlaps):
            counts = torch.histogram(found.decoder.cosine.float().clamp(0, 1), edges).hist
            share = (counts / max(1, len(found.decoder.cosine))).tolist()
            axes.stairs(
                share, edges.tolist(), color=color, lw=1.3, label=f"{name}, {found.shared:.0%} shared"
            )
            axes.axvline(found.threshold, color=FAINT, lw=0.7, ls=(0, (3, 2)))
        axes.set_xlim(-0.02, 1)
        axes.set_xlabel("cosine of matched decoder rows")
        axes.set_ylabel("share of pairs")
        return _finished(sheet, [axes], path, kind, title)


def plot_stitching(found: Stitching, path: str | Path, *, title: str = "", width: float = 5.5) -> Path:
    """Left, what inserting each live feature changes, by its cosine; right, the way from the smaller
    dictionary to the larger one, by how many features of the larger are in."""
    path, kind = target(path)
    live = found.density > 0
    with figure(width, 0.5 + 0.46 * width, "constrained") as sheet:
        left, right = sheet.subplots(1, 2)
        for name, which, color in (("novel", found.novel, _COLORS[2]), ("others", ~found.novel, _COLORS[1])):
            x, y = found.cosine[which & live].tolist(), found.change[which & live].tolist()
            left.scatter(x, y, s=5, lw=0, alpha=0.6, color=color, label=f"{name}, {len(x):,} active")
        linear = found.change[live].abs().quantile(0.25).item() if live.any() else 0.0
        left.set_yscale("symlog", linthresh=max(linear, 1e-12))
        left.axhline(0, color="#bbbbbb", lw=0.7, zorder=0)
        left.axvline(found.threshold, color=FAINT, lw=0.7, ls=(0, (3, 2)))
        left.set_xlabel("largest decoder cosine\nwith a feature of the smaller one")
        left.set_ylabel("change of FVU when inserted")
        right.plot(found.inserted, found.fvu, marker="o", ms=2.8, lw=1.3, color=_COLORS[0])
        swapped = next((i for i, n in enumerate(found.removed) if n), len(found.removed))
        if 0 < swapped < len(found.inserted):
            right.axvline(found.inserted[swapped - 1], color=FAINT, lw=0.7, ls=(0, (3, 2)))
        right.set_ylim(bottom=0)
        right.set_xlabel("features of the larger one, inserted,\nfrom the dashed line on swapped in")
        right.set_ylabel("fraction of variance unexplained")
        return _finished(sheet, [left, right], path, kind, title)


def _some(named: Mapping[str, Any]) -> None:
    if not named or any(isinstance(value, Sequence) and not value for value in named.values()):
        raise ValueError("There is nothing to plot.")


def _colors(named: Mapping[str, Any]) -> dict[str, str]:
    return {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(named)}


def _colored(named: Mapping[str, Any]) -> list[tuple[tuple[str, Any], str]]:
    return list(zip(named.items(), _colors(named).values(), strict=True))


def _finished(sheet: Figure, axes: Sequence[Axes], path: Path, kind: str, title: str) -> Path:
    """The key below, without twins; the file written."""
    keys: dict[str, Any] = {}
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            keys.setdefault(label, handle)
    if keys:
        longest = max(len(label) for label in keys)
        columns = max(1, min(len(keys), int(19 * sheet.get_figwidth() / (longest + 5))))
        legend = sheet.legend(
            list(keys.values()), [visible(label) for label in keys], loc="outside lower center",
            ncols=columns, frameon=False, fontsize=7, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
    if title:
        sheet.suptitle(visible(title), fontsize=9, parse_math=False)
    write(path, content(sheet, kind))
    return path
