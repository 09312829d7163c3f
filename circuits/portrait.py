"""What there is to see of one feature: where it is active, what it writes, and which features are like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.dictionaries import SparseCoder
from interventions.dictionaries.cross_layer import CrossLayer
from interventions.dictionaries.measures.angles import neighbours
from interventions.dictionaries.measures.profiles import Context
from interventions.dictionaries.measures.text import pieces
from interventions.dictionaries.measures.unembedding import effects
from interventions.model import Model

from .text import special

Coder = SparseCoder | CrossLayer

_BINS = 24
_STATES = 8  # places at which the effect on the logits is measured


@dataclass(frozen=True)
class Neighbour:
    """Another feature of the dictionary, and the cosines between decoder rows and between encoder rows."""

    feature: int
    decoder: float
    encoder: float


@dataclass(frozen=True)
class Portrait:
    """What a feature does on some text.

    `strongest` are the contexts with the highest activations, at most one from each row of text, `drawn` are
    chosen at random among all places where the feature is active. `raised` and `lowered` are tokens with the
    change of their logits; None where the site does not write to the residual stream.
    """

    site: str
    feature: int
    n_features: int
    positions: int  # of text, special tokens left out
    density: float  # share of the positions at which it is active
    mean: float  # where it is active
    largest: float
    histogram: tuple[int, ...]  # of its values where it is active, in equal steps up to the largest
    strongest: tuple[Context, ...]
    drawn: tuple[Context, ...]
    raised: tuple[tuple[str, float], ...] | None
    lowered: tuple[tuple[str, float], ...] | None
    nearest: tuple[Neighbour, ...]
    norm: float  # of its decoder row

    @property
    def name(self) -> str:
        return f"{self.site}/{self.feature}"


@dataclass(frozen=True)
class Activity:
    """How active features are on some text (row pos); values are 0 at special tokens."""

    tokens: Int[Tensor, "row pos"]
    features: tuple[int, ...]
    values: Float[Tensor, "row pos feature"]
    positions: int


@torch.no_grad()
def densities(
    model: Model,
    coder: Coder,
    tokens: Int[Tensor, "row pos"],
    *,
    site: str,
    batch_size: int = 16,
) -> Float[Tensor, " feature"]:
    """The share of positions at which each feature is active, special tokens left out."""
    count, positions = torch.zeros(coder.n_features), 0
    for rows in tokens.split(batch_size):
        counted = _counted(model, rows)
        acts = coder.encode(_read(model, coder, site, rows)[counted])
        count += (acts != 0).sum(0).cpu()
        positions += len(acts)
    return count / max(1, positions)


@torch.no_grad()
def activity(
    model: Model,
    coder: Coder,
    features: Sequence[int],
    tokens: Int[Tensor, "row pos"],
    *,
    site: str,
    batch_size: int = 16,
) -> Activity:
    """The activations of some features on text.

    Raises:
        LookupError: a feature that the dictionary does not have.
    """
    for feature in features:
        if not 0 <= feature < coder.n_features:
            raise LookupError(
                f"No feature {feature} at {site}: there are {coder.n_features}, 0 to {coder.n_features - 1}."
            )
    values, positions, index = [], 0, torch.as_tensor(features)
    for rows in tokens.split(batch_size):
        counted = _counted(model, rows)
        acts = coder.encode(_read(model, coder, site, rows))[..., index].float().cpu()
        values.append(acts.where(counted[..., None].cpu(), 0.0))
        positions += int(counted.sum())
    return Activity(tokens.cpu(), tuple(features), torch.cat(values), positions)


def portraits(
    model: Model,
    coder: Coder,
    found: Activity,
    *,
    site: str,
    most: int = 12,
    drawn: int = 6,
    logits: int = 10,
    nearest: int = 8,
) -> list[Portrait]:
    """The portraits of the features in `found`."""
    return [
        _portrait(model, coder, found, column, site, most, drawn, logits, nearest)
        for column in range(len(found.features))
    ]


def _portrait(
    model: Model, coder: Coder, found: Activity, column: int,
    site: str, most: int, drawn: int, logits: int, nearest: int,
) -> Portrait:  # fmt: skip
    feature, values = found.features[column], found.values[..., column]
    active = values[values != 0]
    largest = active.abs().max().item() if len(active) else 0.0
    peaks, at = values.abs().max(1)
    best = [row for row in peaks.argsort(descending=True, stable=True).tolist() if peaks[row] > 0]
    strongest = _different(found.tokens, [(row, int(at[row])) for row in best], most)
    places = [tuple(place) for place in values.nonzero().tolist()]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(feature)).tolist()
    sample = sorted((places[i] for i in order[:drawn]), key=lambda place: -abs(values[place].item()))
    raised, lowered = _effects(model, coder, found, column, site, logits)
    histogram = torch.histc(active.abs(), _BINS, 0, largest) if len(active) else torch.zeros(_BINS)
    return Portrait(
        site=site,
        feature=feature,
        n_features=coder.n_features,
        positions=found.positions,
        density=len(active) / max(1, found.positions),
        mean=active.mean().item() if len(active) else 0.0,
        largest=largest,
        histogram=tuple(int(n) for n in histogram.tolist()),
        strongest=tuple(_context(model, found.tokens[row], values[row], row, at) for row, at in strongest),
        drawn=tuple(_context(model, found.tokens[row], values[row], row, at) for row, at in sample),
        raised=raised,
        lowered=lowered,
        nearest=_nearest(coder.own if isinstance(coder, CrossLayer) else coder, feature, nearest),
        norm=coder.decoder_rows(torch.tensor([feature])).float().norm().item(),
    )


def _different(tokens: Tensor, places: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """The first places before which different text stands; a model that reads on cannot tell others apart."""
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for row, at in places:
        if len(found) == most:
            break
        found.setdefault(tuple(tokens[row, : at + 1].tolist()), (row, at))
    return list(found.values())


def _effects(
    model: Model, coder: Coder, found: Activity, column: int, site: str, most: int
) -> tuple[Any, Any]:
    """The tokens whose logits rise and fall most with what the feature writes where it is active, on average.

    By the direct path, to first order about what the last block wrote where it is most active.
    """
    values = found.values[..., column]
    active = values[values != 0]
    if not len(active) or not writes_to_stream(model, site) or coder.d_out != model.width:
        return None, None
    rows = values.abs().amax(1).argsort(descending=True, stable=True)[:_STATES]
    at = values[rows].abs().argmax(1)
    last = model.site([name for name in model.sites if name.startswith("resid.")][-1])
    states = model.read(found.tokens[rows], [last])[last]
    states = states[torch.arange(len(rows), device=states.device), at.to(states.device)]
    write = _written(coder, found.features[column]) * active.mean().item()
    try:
        change = effects(model, write.to(states), at=states)[0].float().cpu()
    except ValueError:  # a model without an unembedding of its own
        return None, None
    most = min(most, len(change))
    return _named(model, *change.topk(most)), _named(model, *change.topk(most, largest=False))


def writes_to_stream(model: Model, site: str) -> bool:
    """Whether what leaves the site is a part of the residual stream."""
    place = model.sites.get(site)
    return place is not None and place.side == "out" and place.width == model.width


def _named(model: Model, values: Tensor, index: Tensor) -> tuple[tuple[str, float], ...]:
    pairs = zip(index.tolist(), values.tolist(), strict=True)
    return tuple((pieces(model.tokenizer, [token])[0], value) for token, value in pairs)


def _written(coder: Coder, feature: int) -> Float[Tensor, "1 d_out"]:
    """What one unit of a feature adds to the stream, at its own site and at all later ones."""
    here = torch.tensor([feature])
    later = coder.later.values() if isinstance(coder, CrossLayer) else ()
    return sum((outlet.decoder_rows(here) for outlet in later), start=coder.decoder_rows(here))


def _nearest(coder: SparseCoder, feature: int, most: int) -> tuple[Neighbour, ...]:
    found = neighbours(coder, torch.tensor([feature]), k=min(most, coder.n_features - 1))
    encoder = torch.nn.functional.normalize(coder.W_enc.T.float(), dim=-1)
    alike = encoder[found.index[0]] @ encoder[feature]
    rows = zip(found.index[0].tolist(), found.cosine[0].tolist(), alike.tolist(), strict=True)
    return tuple(Neighbour(*row) for row in rows)


def _read(model: Model, coder: Coder, site: str, rows: Tensor) -> Tensor:
    reads = model.site(coder.reads or site)
    return model.read(rows, [reads])[reads]


def _counted(model: Model, rows: Tensor) -> Tensor:
    """Which positions are not special tokens."""
    return torch.isin(rows.cpu(), torch.tensor(special(model), dtype=torch.long), invert=True)


def _context(
    model: Model, tokens: Tensor, values: Tensor, row: int, at: int, *, before: int = 28, after: int = 10
) -> Context:
    first = max(0, at - before)
    shown = slice(first, at + after + 1)
    texts = pieces(model.tokenizer, tokens[shown].tolist())
    return Context(
        row=row,
        pos=at,
        at=at - first,
        tokens=(texts[0].lstrip(" "), *texts[1:]),
        values=tuple(values[shown].tolist()),
    )
