"""The commands that look at dictionaries, as the command line gives them; the work is the library's."""

from __future__ import annotations

import math
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.acts import Dictionary
from interventions.dictionaries import SparseCoder, export_saelens, export_sparsify, quality, save
from interventions.dictionaries.cross_layer import CrossLayer
from interventions.dictionaries.formats import FORMATS, Source
from interventions.dictionaries.texts import row_length
from interventions.model import Model

from .annotations import visible
from .feature_page import save_page
from .feature_table import columns, feature_table
from .files import read_json, writable
from .portrait import Coder, Portrait, activity, densities, portraits
from .question import Say, described, loaded_dictionaries, loaded_model
from .text import rows, special

_TESTED = 16  # rows of text on which it is seen whether dictionaries fit a model
_MOST = 400  # features on one page


@dataclass(frozen=True)
class Inspection:
    """What is to be seen of dictionaries, and on which text."""

    source: str
    site: Sequence[str] | None = None
    place: str | None = None
    features: Sequence[str] | None = None
    top: int | None = None
    random: int | None = None
    model: str | None = None
    text: str | None = None
    tokens: int = 65_536
    context: int | None = None
    contexts: int = 12
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None


# --- inspect ------------------------------------------------------------------------------------------------


def inspect(asked: Inspection, *, out: str | None, progress: bool | None, say: Say) -> None:
    """Lists dictionaries or, where features are asked for, shows these on the terminal or on a page."""
    single = bool(asked.features or asked.top or asked.random)
    if out and not single:
        raise ValueError("--out is for a page of features: say which, by --feature, --top or --random.")
    if out and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out writes a page, such as page.html, not {out!r}.")
    before = _trained(asked.source)
    name = asked.model or (
        before.get("model", "embedded" if asked.source == "embedded" else None) if single else None
    )
    if single and name is None:
        raise ValueError("Features are seen on a model's activations: give --model.")
    model = loaded_model(name, device=asked.device, dtype=asked.dtype) if name else None
    known = loaded_dictionaries(
        asked.source, model, sites=asked.site, place=asked.place, device=asked.device, dtype=None
    )
    if not single:
        return _list(asked, known, model, name, progress, say)
    assert model is not None and name is not None
    wanted = _wanted(asked, known)
    text = _text(asked, before, model, progress)
    found: list[Portrait] = []
    for site, features in wanted.items():
        coder = _cast(known[site], model)
        if not isinstance(coder, Coder):
            raise ValueError(f"At {site} there is a {type(coder).__name__}, which has no features to show.")
        features = [*features, *_drawn(asked, model, coder, text, site, features)]
        found += portraits(
            model, coder, activity(model, coder, features, text, site=site), site=site, most=asked.contexts,
            drawn=asked.contexts // 2,
        )  # fmt: skip
    if not found:
        raise ValueError("None of the features is active anywhere in this text.")
    if out is None:
        return _show(found, say)
    target = writable(Path(out).parent) / Path(out).name
    source = asked.text or before.get("text") or "own"
    text_name = "its own" if source == "own" else Path(source).name
    about = f"{described(model, name)}. Text: {text_name}, {text.numel():,} tokens."
    save_page(target, found, title=f"Features of {visible(Path(asked.source).name)}", about=about)
    say(f"Written to {target}: {len(found)} feature{'s' if len(found) > 1 else ''}.")


def _list(
    asked: Inspection, known: Mapping[str, Dictionary], model: Model | None, name: str | None,
    progress: bool | None, say: Say,
) -> None:  # fmt: skip
    head = ["site", "reads", "kind", "width", "features", "activation", "units", "stored as"]
    say(f"{visible(asked.source)}: {_format(asked.source)}")
    table = [[site, *_described(site, dictionary)] for site, dictionary in known.items()]
    if model is not None:
        text = _text(asked, {}, model, progress, n=_TESTED)
        cast = {site: _cast(known[site], model) for site in known}
        tested = quality(model, cast, text, ignore=special(model))
        head += ["FVU", "L0"]
        for row, site in zip(table, known, strict=True):
            row += [f"{tested[site].fvu:.3f}", f"{tested[site].l0:.1f}"]
        say(f"{described(model, name or '')}; FVU and L0 on {text.numel():,} tokens")
    say("")
    if not any(row[1] for row in table):  # nothing but autoencoders
        head, table = [head[0], *head[2:]], [[row[0], *row[2:]] for row in table]
    for line in columns([head, *table], left=3):
        say(line)
    count = sum(getattr(dictionary, "n_features", 0) for dictionary in known.values())
    say(f"\n{_counted(known)}, {count:,} features")
    if model is not None and any(tested[site].fvu > 1 for site in known):
        bad = ", ".join(site for site in known if tested[site].fvu > 1)
        say(f"An FVU above 1 is worse than the mean: are {bad} of this model, and at these sites?")


def _described(site: str, dictionary: Dictionary) -> list[str]:
    """What a table says of a dictionary."""
    later = 0
    if isinstance(dictionary, CrossLayer):
        dictionary, later = dictionary.own, len(dictionary.later)
    if not isinstance(dictionary, SparseCoder):
        return ["", type(dictionary).__name__, "", str(getattr(dictionary, "n_features", "")), "", "", ""]
    reads = dictionary.reads if dictionary.reads != site else None
    kind = "SAE" if reads is None else "transcoder"
    kind = f"skip {kind}" if dictionary.W_skip is not None else kind
    kind += f", writes {later} later" if later else ""
    width = str(dictionary.d_in)
    width += f" → {dictionary.d_out}" if dictionary.d_out != dictionary.d_in else ""
    units = dictionary.units.latents
    if dictionary.normalise is not None:
        units += f", {type(dictionary.normalise).__name__}"
    stored = str(dictionary.W_enc.dtype).removeprefix("torch.")
    return [reads or "", kind, width, f"{dictionary.n_features:,}", str(dictionary.activation), units, stored]


def _cast(dictionary: Dictionary, model: Model) -> Dictionary:
    """In the precision of the model, and at least in single."""
    dtype = model.dtype if model.dtype.itemsize >= 4 else torch.float32
    return dictionary.to(dtype) if isinstance(dictionary, torch.nn.Module) else dictionary


def _format(source: str) -> str:
    """The layout of some files, by the name that docs/dictionaries.md has for it."""
    if source == "embedded":
        return "shipped"
    where = Source.at(source)
    found = next((find for find in FORMATS if find(where)), None)
    return "another layout" if found is None else f"layout {found.__module__.rpartition('.')[2]}"


def _show(found: Sequence[Portrait], say: Say) -> None:
    width = max(60, min(140, shutil.get_terminal_size().columns - 1))
    for at, portrait in enumerate(found):
        if at:
            say("")
        for line in feature_table(portrait, width=width, colour=sys.stdout.isatty()):
            say(line)


def _wanted(asked: Inspection, known: Mapping[str, Dictionary]) -> dict[str, list[int]]:
    """The features asked for by number, by site."""
    wanted: dict[str, list[int]] = {}
    for given in asked.features or ():
        for name in filter(None, given.split(",")):
            site, _, number = name.rpartition("/")
            if not number.isdigit():
                raise ValueError(f"{name!r} is no feature: 131 is one, and so is resid.1/131.")
            if site and site not in known:
                raise LookupError(f"No dictionary at {site!r}; there are {listed(known)}.")
            if not site and len(known) > 1:
                raise ValueError(
                    f"Feature {number} of which site? Give --site, or {next(iter(known))}/{number}."
                )
            wanted.setdefault(site or next(iter(known)), []).append(int(number))
    if asked.top or asked.random:
        wanted = {site: wanted.get(site, []) for site in known}
    wanted = {site: list(dict.fromkeys(features)) for site, features in wanted.items()}
    count = sum(map(len, wanted.values())) + len(known) * ((asked.top or 0) + (asked.random or 0))
    if count > _MOST:
        raise ValueError(f"{count} features are too many to look at: at most {_MOST}, or give --site.")
    return wanted


def _drawn(
    asked: Inspection, model: Model, coder: Coder, text: Tensor, site: str, taken: Sequence[int]
) -> list[int]:
    """The features that are most often active, and some at random of those that are."""
    if not (asked.top or asked.random):
        return []
    density = densities(model, coder, text, site=site)
    density[list(taken)] = 0
    by_density = density.argsort(descending=True, stable=True)
    alive = by_density[: int((density > 0).sum())]
    top = alive[: asked.top or 0]
    others = alive[len(top) :]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(asked.seed))
    return [*top.tolist(), *others[order][: asked.random or 0].tolist()]


def _text(
    asked: Inspection, before: Mapping[str, Any], model: Model, progress: bool | None, n: int | None = None
) -> Tensor:
    source = asked.text or before.get("text") or "own"
    context = row_length(model, asked.context, 128)
    n = n or math.ceil(asked.tokens / context)
    return rows(model, source, context=context, n=n, seed=asked.seed + 1, progress=progress)


def _trained(source: str) -> dict[str, Any]:
    """The options with which `circuits dictionaries train` made these, if it did."""
    for path in (Path(source) / "settings.json", Path(source).parent / "settings.json"):
        if path.is_file():
            found = read_json(path).get("train", {}).get("options")
            return found if isinstance(found, dict) else {}
    return {}


def _counted(known: Mapping[str, Dictionary]) -> str:
    return f"{len(known)} dictionar{'ies' if len(known) != 1 else 'y'}"


def listed(names: Iterable[str]) -> str:
    """Names of sites, those of all layers as one."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+$", ".*", visible(name)) for name in names))


# --- convert ------------------------------------------------------------------------------------------------


def convert(
    source: str,
    target: str,
    *,
    layout: str,
    dtype: str | None,
    sites: Sequence[str] | None,
    place: str | None,
    model: str | None,
    say: Say,
) -> None:
    """Writes dictionaries into a new folder, in our own layout or in another library's."""
    folder = Path(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already, and not empty: give another name.")
    kind = None if dtype is None else getattr(torch, dtype)
    known: dict[str, Any] = loaded_dictionaries(source, None, sites=sites, place=place, dtype=kind)
    writable(folder.parent)
    # a layout that cannot hold what it is given should leave nothing behind
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "made"
        name = model or _trained(source).get("model") or "unknown"
        if layout == "own":
            save(known, made)
        elif layout == "saelens":
            export_saelens(known, made, model_name=str(name))
        else:
            export_sparsify(known, made)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"Written to {folder}: {_counted(known)} ({listed(known)}), {size / 1e6:.1f} MB.")
