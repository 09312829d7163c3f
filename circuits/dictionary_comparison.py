"""Which features dictionaries share, as the command line gives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from interventions.acts import Dictionary
from interventions.dictionaries import SparseCoder
from interventions.dictionaries.cross_layer import CrossLayer

from .annotations import visible
from .dictionary_commands import listed
from .feature_table import columns
from .files import writable
from .question import Say, loaded_dictionaries
from .record import write_json


def compare(
    sources: Sequence[str],
    *,
    sites: Sequence[str] | None,
    threshold: float,
    out: str | None,
    picture: str | None,
    say: Say,
) -> None:
    """Says which share of their features dictionaries have in common, two by two."""
    from interventions.dictionaries.measures import overlap

    if len(sources) < 2:
        raise ValueError("Give two sets of dictionaries, or more.")
    sets = [loaded_dictionaries(source, None, sites=sites) for source in sources]
    common = [site for site in sets[0] if all(site in other for other in sets[1:])]
    if not common:
        raise ValueError(f"They have no site in common: {'; '.join(listed(known) for known in sets)}.")
    pairs = list(combinations(range(len(sets)), 2))
    found, overlaps = [], {}
    for site in common:
        for left, right in pairs:
            one, other = (_own(sets[side][site]) for side in (left, right))
            if not isinstance(one, SparseCoder) or not isinstance(other, SparseCoder):
                raise ValueError(
                    f"At {site} there is a {type(one).__name__}; only a SparseCoder is compared."
                )
            both = overlap(one, other, threshold=threshold)
            names = [visible(Path(sources[side]).name) for side in (left, right)]
            overlaps[site if len(sets) == 2 else f"{site}, {' ~ '.join(names)}"] = both
            found.append({"site": site, "left": left, "right": right, **_shares(both)})
    say("\n".join(_compared(sources, found)))
    if out is not None:
        target = writable(Path(out).parent) / Path(out).name
        record = {"dictionaries": list(sources), "threshold": threshold, "pairs": found}
        write_json(target, record)
        say(f"\nWritten to {target}.")
    if picture is not None:
        from .geometry_plots import plot_overlap

        say(f"Written to {plot_overlap(overlaps, picture)}.")


def _own(dictionary: Dictionary) -> Dictionary:
    """Of a layer of a cross-layer transcoder, what it reads and writes at its own site."""
    return dictionary.own if isinstance(dictionary, CrossLayer) else dictionary


def _shares(both: Any) -> dict[str, Any]:
    found = {
        "features": [both.n_left, both.n_right],
        "shared": both.shared,
        "same_partner": both.agreement,
        "mean_max_cosine": both.mean_max,
        "matched_cosine": both.decoder.mean,
        "chance": both.chance,
    }
    if both.n_left != both.n_right:  # of the larger: new, or known to the smaller (Leask et al. 2025)
        larger = both.nearest_right if both.n_right > both.n_left else both.nearest_left
        found["novel"] = (larger < both.threshold).float().mean().item()
    return found


def _compared(sources: Sequence[str], found: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [visible(Path(source).name) for source in sources]
    several = len(sources) > 2
    differ = any("novel" in row for row in found)
    head = ["site", *(["pair"] if several else []), "features", "shared", "same partner"]
    head += ["largest cosine", "matched", "by chance", *(["new in the larger"] if differ else [])]
    table = [head]
    for row in found:
        pair = [f"{names[row['left']]} ~ {names[row['right']]}"] if several else []
        widths = dict.fromkeys(f"{n:,}" for n in row["features"])
        new = [f"{row['novel']:.1%}" if "novel" in row else ""] if differ else []
        table.append([
            row["site"], *pair, " ~ ".join(widths), f"{row['shared']:.1%}", f"{row['same_partner']:.1%}",
            f"{row['mean_max_cosine']:.3f}", f"{row['matched_cosine']:.3f}", f"{row['chance']:.3f}", *new,
        ])  # fmt: skip
    lines = list(columns(table, left=2 if several else 1))
    if several:
        lines += ["", "shared, mean over sites", *_matrix(names, found)]
    return lines


def _matrix(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    shared: dict[tuple[int, int], list[float]] = {}
    for row in found:
        shared.setdefault((row["left"], row["right"]), []).append(row["shared"])
    mean = {pair: sum(values) / len(values) for pair, values in shared.items()}
    table = [["", *names]]
    for left, name in enumerate(names):
        cells = (mean.get((min(left, right), max(left, right))) for right in range(len(names)))
        table.append([name, *("" if cell is None else f"{cell:.1%}" for cell in cells)])
    return columns(table)
