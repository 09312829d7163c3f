"""From a path or a repository to dictionaries at a model's sites."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...acts import Dictionary
from ...model import Model
from ..coders import SparseCoder
from ..cross_layer import CrossLayer
from .check import SAMPLE, fvu
from .found import Found
from .gains import folded, gain
from .names import Named, named
from .source import Source


def load(
    where: str | Path | Source,
    model: Model | None = None,
    *,
    site: str | None = None,
    reads: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = torch.float32,
    lazy: bool = False,
    check: bool = True,
) -> Mapping[str, Any]:
    """The dictionaries at a path or in a repository of the Hugging Face hub, by the site that they write.

    The format is told by the files: our own, and those listed in docs/dictionaries.md. A repository is
    `owner/repo`, `owner/repo@revision` or `owner/repo/sub/folder`; only the files that are needed are
    downloaded. With a `model`, places get the names of its sites, widths are compared, what reads a norm's
    output before its gain is made to read it after, and, where it has a tokenizer, a dictionary that leaves
    more of a short text unexplained than its mean would is warned of (`check`). Without one, what is not
    named as in most models keeps its own name.

    `site` and `reads` are for a dictionary whose files do not say where it belongs, or say it wrongly.
    Weights are cast to `dtype`; None leaves them as stored. Thresholds are never rounded. `lazy` gives a
    mapping that reads each dictionary when it is asked for, and keeps none.

    Raises:
        FileNotFoundError: nothing is there.
        LookupError: the model has no such site.
        ValueError: no format is known that has these files; a file is damaged or says what is not understood;
            several dictionaries belong to one site; widths differ.
    """
    if not isinstance(model, Model | None):
        raise TypeError(f"Dictionaries are fitted to a Model, as Model.load gives it, not to {model!r}.")
    site, reads = (None if name is None else str(name) for name in (site, reads))
    source = where if isinstance(where, Source) else Source.at(where)
    places = _placed(source, _found(source), model, site, reads)
    told = {place.found.writes: place.name for place in places if place.found.writes}
    names = told | {named(hook).site: name for hook, name in told.items()}
    fitted = partial(_fitted, model=model, device=device, dtype=dtype, source=source, names=names)
    shelf = Shelf({place.name: partial(fitted, place) for place in places})
    if lazy:
        return shelf
    dictionaries = dict(shelf)
    if check and model is not None and model.tokenizer is not None:
        _warn(fvu(model, dictionaries, SAMPLE))
    return dictionaries


@dataclass(frozen=True)
class Place:
    """Where a dictionary that was found belongs: the sites that it writes and reads, under our names."""

    found: Found
    name: str
    writes: Named | None
    reads: Named | None


@dataclass(frozen=True, repr=False)
class Shelf(Mapping[str, Any]):
    """Dictionaries by site, each read when it is asked for."""

    readers: Mapping[str, Callable[[], Any]]

    def __getitem__(self, site: str) -> Any:
        return self.readers[str(site)]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)

    def __repr__(self) -> str:
        return f"Shelf({', '.join(self.readers)})"


def _found(source: Source) -> list[Found]:
    from . import FORMATS

    with _naming(source.name, source):
        for find in FORMATS:
            if found := find(source):
                return found
    shown = ", ".join(source.files[:12]) + (", ..." if len(source.files) > 12 else "")
    raise ValueError(
        f"{source.name} cannot be read: no known format of dictionaries has these files: {shown or 'none'}."
    )


def _placed(
    source: Source, found: Sequence[Found], model: Model | None, site: str | None, reads: str | None
) -> list[Place]:
    if (site is not None or reads is not None) and len(found) > 1:
        raise ValueError(
            f"site= and reads= are for one dictionary, and {source.name} holds {len(found)}. "
            f"{_paths(source, found)}"
        )
    places: dict[str, list[Place]] = defaultdict(list)
    for one in found:
        writes, read = site or one.writes or None, reads or one.reads or None
        if writes is None and model is not None:
            raise ValueError(
                f"The files of {_path(source, one)} do not say where it belongs: pass site=, the site that "
                "it writes, and reads= if it reads another."
            )
        there = None if writes is None else named(writes, model)
        label = one.label.rpartition("/")[2] or source.name.rpartition("/")[2]
        name = label if there is None else there.site
        places[name].append(Place(one, name, there, None if read is None else named(read, model)))
    for name, several in places.items():
        if len(several) > 1:
            raise ValueError(
                f"{source.name} holds {len(several)} dictionaries for {name}. "
                f"{_paths(source, [place.found for place in several])}"
            )
    return [place for several in places.values() for place in several]


def _path(source: Source, found: Found) -> str:
    return f"{source.name}/{found.label}" if found.label else source.name


def _paths(source: Source, found: Sequence[Found]) -> str:
    paths = [_path(source, one) for one in found]
    return f"Pass one of {', '.join(paths[:20])}{', ...' if len(paths) > 20 else ''}."


@contextmanager
def _naming(path: str, source: Source) -> Iterator[None]:
    """Whatever is wrong with files is a ValueError that names them."""
    try:
        yield
    except ValueError as error:
        if path in str(error) or any(file in str(error) for file in source.files):
            raise
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be read: its settings or tensors are not what the format has "
            f"({type(error).__name__}: {error})."
        ) from error


def _fitted(
    place: Place,
    *,
    model: Model | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    source: Source,
    names: Mapping[str, str],
) -> Dictionary:
    """Reads a dictionary and puts it at its place. Raises ValueError where it does not fit."""
    with _naming(_path(source, place.found), source):
        coder = place.found.read()
    if isinstance(coder, nn.Module):
        bad = [name for name, weight in coder.state_dict().items() if not weight.isfinite().all()]
        if bad:
            raise ValueError(f"{_path(source, place.found)} cannot be read: {', '.join(bad)} is not finite.")
    if isinstance(coder, CrossLayer):
        later = {names.get(site, site): outlet.W_dec for site, outlet in coder.later.items()}
        coder = CrossLayer(_bound(coder.own, place, model, source), later)
    elif isinstance(coder, SparseCoder):
        coder = _bound(coder, place, model, source)
    return coder.to(device=device, dtype=dtype) if isinstance(coder, nn.Module) else coder


def _bound(coder: SparseCoder, place: Place, model: Model | None, source: Source) -> SparseCoder:
    """The same, told its place, and reading behind a gain what it was trained to read before it."""
    writes, reads = place.writes, place.reads
    if "format" in coder.meta:  # not our own, whose meta is the user's
        coder.meta = {"source": _path(source, place.found), "dtype": _dtype(coder), **coder.meta}
    coder.site = None if writes is None else writes.site
    coder.reads = None if reads is None or reads == writes else reads.site
    if writes is None:
        return coder
    read = reads or writes
    if reads is None and coder.d_in != coder.d_out and "format" in coder.meta:
        raise ValueError(
            f"{_path(source, place.found)} reads width {coder.d_in} and writes width {coder.d_out}, so it "
            f"does not do both at {writes.site}: pass reads=, the site that it reads."
        )
    if model is not None:
        _check_width(model, coder.d_in, read.site, "reads", source, place)
        _check_width(model, coder.d_out, writes.site, "writes", source, place)
        return folded(coder, gain(model, model.site(read.site))) if read.before_gain else coder
    if read.before_gain:
        coder.meta["before_gain"] = True
    return coder


def _check_width(model: Model, width: int, site: str, verb: str, source: Source, place: Place) -> None:
    if width != model.site(site).width:
        raise ValueError(
            f"{_path(source, place.found)} {verb} width {width}, but {site} has width "
            f"{model.site(site).width}: it is of another model or of another site."
        )


def _dtype(coder: SparseCoder) -> str:
    return str(coder.W_enc.dtype).removeprefix("torch.")


def _warn(measured: Mapping[str, float]) -> None:
    for site, value in measured.items():
        if not value <= 1:
            warnings.warn(
                f"The dictionary at {site} leaves {value:.2f} of the variance of a short English text "
                "unexplained, more than the text's mean would. It may be of another site or model, or read a "
                "tensor that is scaled or normalised otherwise; or the text is not of the model's kind: "
                "`fvu` measures it on text of your own.",
                stacklevel=3,
            )
