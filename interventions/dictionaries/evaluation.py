"""How good dictionaries are: what they reconstruct, and what the model makes of the reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ..acts import Dictionary
from ..model import Model
from ..sites import Site
from .coders import SparseCoder


@dataclass(frozen=True)
class Quality:
    """How well one dictionary does on some text.

    `fvu` is the fraction of variance unexplained: the squared error over the squared deviation from the mean,
    both summed over all positions and coordinates. `dead` is the share of features that were never active on
    this text, so it falls with the text's length. Losses are mean cross-entropies of the next token, in nats.
    """

    site: str
    fvu: float
    l0: float  # active features per position
    dead: float
    loss: float  # of the model as it is
    spliced: float  # with the site's tensor replaced by the reconstruction
    zeroed: float  # with the site's tensor replaced by zero
    averaged: float  # with the site's tensor replaced by its mean

    @property
    def recovered(self) -> float:
        """Share of the loss lost by zeroing the site that the reconstruction recovers: 1 is perfect."""
        return _share(self.zeroed, self.spliced, self.loss)

    @property
    def recovered_from_mean(self) -> float:
        """The same for replacing the site by its mean, which is the stricter measure."""
        return _share(self.averaged, self.spliced, self.loss)


def _share(ablated: float, spliced: float, clean: float) -> float:
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")


@torch.no_grad()
def quality(
    model: Model,
    dictionaries: SparseCoder | Mapping[str, Dictionary],
    tokens: Int[Tensor, "row pos"],
    *,
    mask: Int[Tensor, "row pos"] | None = None,
    batch_size: int = 16,
) -> dict[str, Quality]:
    """The quality of each dictionary by itself, keyed by site.

    Runs `1 + 3 * len(dictionaries)` passes over the text, `batch_size` rows at a time. Where `mask` is 0
    (padding on the right), positions count neither for the reconstruction nor for the loss.
    """
    if isinstance(dictionaries, SparseCoder):
        if dictionaries.site is None:
            raise ValueError("This dictionary does not say its site: pass {site: dictionary}.")
        dictionaries = {dictionaries.site: dictionaries}
    counted = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    batches = list(zip(tokens.split(batch_size), counted.split(batch_size), strict=True))
    tallies = {model.site(name): _Tally(model, name, d) for name, d in dictionaries.items()}

    clean = 0.0
    visited = sorted({site for tally in tallies.values() for site in (tally.reads, tally.writes)})
    for rows, keep in batches:
        seen: dict[Site, Tensor] = {}

        def see(site: Site, x: Tensor, seen: dict[Site, Tensor] = seen) -> Tensor:
            seen[site] = x
            return x

        with model.visiting(visited, see):
            clean += _loss(model, rows, keep)
        for tally in tallies.values():
            at = keep.to(seen[tally.reads].device)
            tally.add(seen[tally.reads][at], seen[tally.writes][at])

    n = int(counted[:, 1:].sum())
    results = {}
    for site, tally in tallies.items():
        losses = [sum(_loss_with(model, tally, way, *batch) for batch in batches) / n for way in range(3)]
        results[site.name] = Quality(site.name, *tally.result(), clean / n, *losses)
    return results


def table(qualities: Mapping[str, Quality]) -> str:
    """The qualities of several dictionaries, one line each.

    >>> print(table({"mlp.0": Quality("mlp.0", 0.1, 16.0, 0.02, 3.0, 3.1, 5.0, 4.0)}))
    site     FVU     L0   dead    loss  spliced  zeroed  averaged  recovered  from mean
    mlp.0  0.100   16.0   2.0%   3.000    3.100   5.000     4.000      95.0%      90.0%
    """
    width = max([4, *(len(name) for name in qualities)])
    lines = [
        f"{'site':<{width}}     FVU     L0   dead    loss  spliced  zeroed  averaged  recovered  from mean"
    ]
    for name, q in qualities.items():
        lines.append(
            f"{name:<{width}}  {q.fvu:6.3f}  {q.l0:5.1f}  {q.dead:5.1%}  {q.loss:6.3f}   {q.spliced:6.3f}  "
            f"{q.zeroed:6.3f}    {q.averaged:6.3f}    {q.recovered:7.1%}    {q.recovered_from_mean:7.1%}"
        )
    return "\n".join(lines)


class _Tally:
    """Sums over the positions of a text, for one dictionary."""

    def __init__(self, model: Model, name: str, dictionary: Dictionary):
        self.dictionary = dictionary
        self.writes = model.site(name)
        self.reads = model.site(getattr(dictionary, "reads", None) or name)
        self.n = 0
        self.error = self.square = self.active = 0.0
        self.total: Tensor | float = 0.0
        self.ever: Tensor | None = None

    def predicted(self, x: Tensor, features: Tensor) -> Tensor:
        skip = getattr(self.dictionary, "skip", lambda _: None)(x)
        decoded = self.dictionary.decode(features)
        return decoded if skip is None else decoded + skip

    def add(self, x: Tensor, y: Tensor) -> None:
        features = self.dictionary.encode(x)
        active = features != 0
        self.error += (y - self.predicted(x, features)).double().square().sum().item()
        self.square += y.double().square().sum().item()
        self.total = self.total + y.double().sum(0)
        self.active += active.sum().item()
        self.ever = active.any(0) if self.ever is None else self.ever | active.any(0)
        self.n += len(y)

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.total) / self.n

    def result(self) -> tuple[float, float, float]:
        assert self.ever is not None
        variance = self.square - self.n * self.mean.square().sum().item()
        return self.error / variance, self.active / self.n, 1 - self.ever.double().mean().item()


def _loss(model: Model, rows: Tensor, keep: Tensor) -> float:
    """Summed cross-entropy of the tokens after the first that are to be counted."""
    mask = None if keep.all() else keep
    logits = model.logits(rows, mask)[:, :-1].float()
    keep = keep[:, 1:].to(logits.device)
    targets = rows[:, 1:].to(logits.device)
    return torch.nn.functional.cross_entropy(logits[keep], targets[keep], reduction="sum").item()


def _loss_with(model: Model, tally: _Tally, way: int, rows: Tensor, keep: Tensor) -> float:
    """The loss with a site replaced: by the reconstruction, by zero, by its mean."""
    entered: list[Tensor] = []

    def replace(site: Site, x: Tensor) -> Tensor:
        if site == tally.reads:
            entered[:] = [x]
        if site != tally.writes:
            return x
        if way == 1:
            return torch.zeros_like(x)
        if way == 2:
            return tally.mean.to(x).expand_as(x)
        return tally.predicted(entered[0], tally.dictionary.encode(entered[0])).to(x)

    with model.visiting([tally.reads, tally.writes], replace):
        return _loss(model, rows, keep)
