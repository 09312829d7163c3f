"""Products with single rows of a matrix, where most features are not active.

Weights may lie on another device than what they are multiplied with: the result is where the latter is.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from .pairs import picked, starts

_CHUNK = 2**25  # numbers held at a time


def readout(
    covector: Float[Tensor, "token slot width"],
    weight: Float[Tensor, "feature width"],
    index: Int[Tensor, "token n"],
) -> Float[Tensor, "token slot n"]:
    """Each covector times the rows of the features `index` of its token."""
    tokens = max(1, _CHUNK // max(1, index.shape[-1] * weight.shape[-1]))
    parts = zip(covector.to(weight).split(tokens), index.to(weight.device).split(tokens), strict=True)
    return torch.cat([c @ weight[i].mT for c, i in parts]).to(covector.device)


def projected(
    covector: Float[Tensor, "token width"],
    weight: Float[Tensor, "feature width"],
    token: Int[Tensor, " n"],
    index: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """The covector of `token[i]` times the row of feature `index[i]`; tokens ascend."""
    at = weight.device
    return picked(covector.to(weight), weight, token.to(at), index.to(at)).to(covector.device)


def combined(
    weight: Float[Tensor, "feature width"],
    token: Int[Tensor, " n"],
    index: Int[Tensor, " n"],
    amount: Float[Tensor, " n"],
    n_tokens: int,
) -> Float[Tensor, "token width"]:
    """For each token, the rows of its features, each times its amount, summed; tokens ascend."""
    at = weight.device
    bags = starts(token.to(at), n_tokens)
    rows = embedding_bag(index.to(at), weight, bags, mode="sum", per_sample_weights=amount.to(weight))
    return rows.to(amount.device)
