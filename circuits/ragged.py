"""Lists of different lengths, one for each token, in rectangles."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_BUDGET = 2**24  # elements of one temporary


def padded(
    token: Int[Tensor, " n"], n_tokens: int, width: int
) -> Iterator[tuple[Int[Tensor, " t"], Int[Tensor, "t m"], Bool[Tensor, "t m"]]]:
    """Groups of tokens that have similar numbers of entries, `token` being the sorted owners of the entries.

    Yields tokens, the entries of each (padded with 0), and where they are not padding. Tokens without entries
    are left out; `t * m * width` stays within a fixed budget.

    >>> [(some.tolist(), entry.tolist()) for some, entry, _ in padded(torch.tensor([0, 0, 2]), 3, 1)]
    [([0, 2], [[0, 1], [2, 0]])]
    """
    count = torch.bincount(token, minlength=n_tokens)
    start = count.cumsum(0) - count
    order = count.argsort(descending=True, stable=True)
    order = order[: int((count > 0).sum())]
    while len(order):
        most = int(count[order[0]])
        take = max(1, _BUDGET // (most * width))
        some, order = order[:take], order[take:]
        slot = torch.arange(most, device=token.device)
        inside = slot < count[some, None]
        yield some, torch.where(inside, start[some, None] + slot, 0), inside
