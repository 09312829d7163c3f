"""How much of a known truth a dictionary found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .matching import assignment


class Learnt(Protocol):
    """What `recovery` asks of a dictionary."""

    def encode(self, x: Tensor, /) -> Tensor: ...

    def decoder_rows(self, index: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Recovery:
    """How much of the truth a dictionary found."""

    cosine: float  # of each true feature with the decoder row nearest to it, mean
    matched: float  # the same where no two true features share a row, at the best such matching
    found: float  # share of true features with a cosine above 0.9
    f1: float  # of firing, of the true features with those matched to them, mean
    cosines: Float[Tensor, " feature"] = field(repr=False)  # of each true feature, largest
    partner: Int[Tensor, " feature"] = field(repr=False)  # the row matched to each true feature, -1 for none


@torch.no_grad()
def recovery(
    dictionary: Learnt,
    directions: Float[Tensor, "feature d_out"],
    x: Float[Tensor, "sample d_in"],
    strengths: Float[Tensor, "sample feature"],
) -> Recovery:
    """How well a dictionary found the features that write `directions`, and when they fire.

    `strengths` are those of the true features in the samples `x`, which the dictionary reads; features
    that never fire there do not count for `f1`.

    >>> from interventions.dictionaries import SparseCoder
    >>> from tasks import Superposition
    >>> world = Superposition(16, 32)
    >>> chance = recovery(SparseCoder.random(16, 32), world.features,
    ...                   *world.sample(1000, torch.Generator().manual_seed(0)))
    >>> chance.cosine, chance.found
    (0.5, 0.0)
    """
    features = dictionary.encode(x)
    rows = normalize(dictionary.decoder_rows(torch.arange(features.shape[-1])), dim=-1)
    cosines = normalize(directions, dim=-1) @ rows.T
    best = cosines.max(-1).values
    partner = assignment(cosines)
    paired = partner >= 0
    true, learnt = strengths[:, paired] > 0, features[:, partner[paired]] > 0
    both = (true & learnt).sum(0)
    occurs = true.any(0)
    f1 = 2 * both / (true.sum(0) + learnt.sum(0)).clamp(min=1)
    return Recovery(
        cosine=best.mean().item(),
        matched=torch.where(paired, cosines.gather(-1, partner.clamp(min=0)[:, None])[:, 0], 0).mean().item(),
        found=(best > 0.9).float().mean().item(),
        f1=f1[occurs].mean().item(),
        cosines=best,
        partner=partner,
    )
