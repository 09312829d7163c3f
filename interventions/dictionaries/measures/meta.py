"""Dictionaries of dictionaries: decoder rows as sums of few directions (Bussmann et al. 2024; Leask et al.
2025, arXiv 2502.04878)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...sites import Site
from .. import recipes
from ..coders import SparseCoder
from ..training import train
from .cosines import unit

_SITE = Site(0, "decoder", "decoder")


@dataclass(frozen=True)
class MetaDictionary:
    """A dictionary of decoder rows at unit norm.

    `explained_variance` is of the rows about their mean, `l0` the mean number of meta-features to a row.
    `features` are the rows in the basis of meta-features.
    """

    coder: SparseCoder
    explained_variance: float
    l0: float
    features: Float[Tensor, "feature meta"] = field(repr=False, compare=False)

    def parts(self, feature: int) -> list[tuple[int, float]]:
        """The meta-features that a feature is made of, and how much of each; largest first."""
        row = self.features[feature]
        index = row.nonzero()[:, 0]
        order = row[index].argsort(descending=True)
        return list(zip(index[order].tolist(), row[index[order]].tolist(), strict=True))

    def members(self, meta: int, *, most: int = 10) -> list[tuple[int, float]]:
        """The features that have most of a meta-feature in them, and how much."""
        column = self.features[:, meta]
        index = column.argsort(descending=True)[:most]
        index = index[column[index] > 0]
        return list(zip(index.tolist(), column[index].tolist(), strict=True))


def meta_dictionary(
    dictionary: SparseCoder | Float[Tensor, "row width"],
    *,
    n_features: int | None = None,
    k: int = 4,
    steps: int = 1500,
    batch_size: int = 1024,
    lr: float | None = None,
    seed: int = 0,
) -> MetaDictionary:
    """A BatchTopK dictionary of a dictionary's decoder rows, by default a quarter as wide.

    How much of the rows it explains says how far they are sums of few parts; rows drawn at random, which may
    be passed in the dictionary's place, are what to compare that with. Settings are SAEBench's, but for `lr`,
    which is that of `train` unless given, and for batches, which are no larger than the dictionary.

    >>> meta = meta_dictionary(SparseCoder.random(8, 64), steps=20)
    >>> meta.coder
    SparseCoder(SAE 8 -> 16 features, BatchTopK(k=4, ...), at decoder)
    """
    rows = unit(dictionary.W_dec if isinstance(dictionary, SparseCoder) else dictionary)
    width = max(k + 1, len(rows) // 4) if n_features is None else n_features
    coder = train(
        cast(Any, _Rows(rows)),
        torch.arange(len(rows))[None],
        [_SITE],
        n_features=width,
        recipe=recipes.BatchTopK(k),
        steps=steps,
        batch_size=min(batch_size, len(rows)),
        lr=lr,
        seed=seed,
    )[_SITE.name]
    with torch.no_grad():
        features = coder.encode(rows)
        error = (rows - coder.decode(features)).double().square().sum()
        variance = (rows - rows.mean(0)).double().square().sum()
        l0 = (features != 0).sum().item() / len(rows)
        return MetaDictionary(coder, 1 - (error / variance).item(), l0, features)


class _Rows:
    """Stands in for a model, with rows for activations and their numbers for tokens."""

    def __init__(self, rows: Float[Tensor, "row width"]):
        self._rows = rows
        self._site = Site(0, _SITE.name, _SITE.path, width=rows.shape[-1])

    def site(self, name: str | Site) -> Site:
        return self._site

    def read(
        self, tokens: Int[Tensor, "batch pos"], sites: Iterable[Site], mask: Tensor | None = None
    ) -> dict[Site, Float[Tensor, "batch pos width"]]:
        return {site: self._rows[tokens.to(self._rows.device)] for site in sites}
