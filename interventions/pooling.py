"""One vector for what a site holds along a text: callables from its tensor and which tokens count.

Any function of the two does that gives, for each position, what a classifier reads of the text up to there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Pool = Callable[
    [Float[Tensor, "batch pos width"], Bool[Tensor, "batch pos"]], Float[Tensor, "batch pos width"]
]


def mean(
    x: Float[Tensor, "batch pos width"], counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos width"]:
    """The mean over the tokens that count, up to each position; zero before the first of them.

    >>> x = torch.tensor([[[9.0], [2.0], [4.0], [9.0]]])
    >>> mean(x, torch.tensor([[False, True, True, False]])).flatten()
    tensor([0., 2., 3., 3.])
    """
    total = x.where(counted[..., None], 0).cumsum(1)
    return total / counted.cumsum(1).clamp(min=1)[..., None]


def last(
    x: Float[Tensor, "batch pos width"], counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos width"]:
    """The last token that counts, up to each position; zero before the first of them.

    >>> x = torch.tensor([[[9.0], [2.0], [4.0], [9.0]]])
    >>> last(x, torch.tensor([[False, True, True, False]])).flatten()
    tensor([0., 2., 4., 4.])
    """
    place = torch.arange(x.shape[1], device=x.device).where(counted, -1).cummax(1).values[..., None]
    return x.gather(1, place.clamp(min=0).expand_as(x)).where(place >= 0, 0)
