"""Directions from the features of dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..binding import Dictionaries, Splice, splices
from ..model import Model
from ..sites import Site
from .direction import Direction
from .methods import MomentMethod, PairMoments, Rows, Vector


@dataclass(frozen=True)
class FeatureDifference:
    """The difference of the mean feature activations of a dictionary, decoded: what the features that differ
    write. Its norm is its own.

    With `k`, only of the features whose differences write most, by the norm of what they write. Needs
    `dictionaries`; a transcoder is read where it reads, and the direction is for where it writes.
    """

    k: int | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ValueError(f"k={self.k}: at least one feature.")

    def bound(self, splice: Splice) -> BoundFeatureDifference:
        """The method at a site with its dictionary."""
        return BoundFeatureDifference(splice, self.k)


@dataclass(frozen=True, eq=False)
class BoundFeatureDifference(MomentMethod):
    """`FeatureDifference` with the dictionary of one site: from what that reads to what it writes."""

    splice: Splice
    k: int | None = None

    @torch.no_grad()
    def moments(self, positive: Rows, negative: Rows) -> PairMoments:
        of = self.splice
        rows = torch.cat([positive, negative]).to(device=of.device, dtype=of.dtype)
        features = of.dictionary.encode(rows)
        return PairMoments.of(
            features[: len(positive)], features[len(positive) :], classes=False, differences=False
        )

    @torch.no_grad()
    def of_moments(self, moments: PairMoments) -> Vector:
        difference = moments.between
        if self.k is not None:
            kept = self.features(moments)
            difference = torch.zeros_like(difference).index_copy(0, kept, difference[kept])
        features = torch.stack([difference, torch.zeros_like(difference)])
        written = self.splice.decoded(features.to(device=self.splice.device, dtype=self.splice.dtype))
        return (written[0] - written[1]).double().cpu()

    def features(self, moments: PairMoments) -> Tensor:
        """The features whose differences write most, the first ones most; at most `k`."""
        difference = moments.between
        active = difference.nonzero()[:, 0]
        norms = torch.cat(
            [
                self.splice.decoder_rows(part.to(self.splice.device)).double().norm(dim=-1).cpu()
                for part in active.split(256)
            ]
            or [torch.zeros(0, dtype=torch.float64)]
        )
        order = (norms * difference[active].abs()).argsort(descending=True, stable=True)
        return active[order[: self.k]]


feature_difference = FeatureDifference()


@torch.no_grad()
def feature_direction(
    model: Model, dictionaries: Dictionaries, site: str | Site, feature: int | Mapping[int, float]
) -> Direction:
    """What one unit of a feature writes at the site of its dictionary: its decoder row, unscaled.

    Of several features, `{feature: amount}`, the sum of their rows, each times its amount.

    >>> from interventions.dictionaries import SparseCoder
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)))
    >>> feature_direction(model, {"resid.0": SparseCoder.random(32, 64)}, "resid.0", 7)
    Direction(resid.0; norm 1; feature)

    Raises:
        LookupError: no such site, no dictionary there, or no such feature.
    """
    found = splice_at(splices(model, dictionaries), model.site(site))
    amounts = {feature: 1.0} if isinstance(feature, int) else dict(feature)
    if outside := [i for i in amounts if not 0 <= i < found.n_features]:
        raise LookupError(
            f"No feature {outside[0]} at {site}: the dictionary has features 0 to {found.n_features - 1}."
        )
    if not amounts:
        raise ValueError("There is no feature to make a direction of.")
    rows = found.decoder_rows(torch.tensor(list(amounts), device=model.device)).double().cpu()
    vector = torch.tensor(list(amounts.values()), dtype=rows.dtype) @ rows
    how: dict[str, Any] = {"method": "feature", "features": [list(item) for item in amounts.items()]}
    return Direction({found.site.name: vector.float()}, model.fingerprint, how)


def splice_at(bound: Mapping[Site, Splice], site: Site) -> Splice:
    """The dictionary of a site; LookupError where it has none."""
    if site not in bound:
        have = ", ".join(map(str, bound)) or "none"
        raise LookupError(f"There is no dictionary at {site}; there are dictionaries at: {have}.")
    return bound[site]
