"""Cosines between many rows and many others, a part of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 2**25  # cosines held at a time


def unit(rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """The rows at norm 1; a row of zeros stays one, and its cosine with anything is 0."""
    rows = rows.detach()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / norms.where(norms > 0, 1.0)


def nearest(
    rows: Float[Tensor, "row width"], others: Float[Tensor, "other width"] | None = None, *, k: int = 1
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The `k` largest cosines of each row with `others`, and whose they are; largest first.

    Without `others`, those with the other rows of the same matrix. Never holds all cosines at once.

    Raises:
        ValueError: fewer than k others.

    >>> nearest(torch.eye(2), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))[1][:, 0]
    tensor([1, 0])
    """
    available = len(rows) - 1 if others is None else len(others)
    if not 1 <= k <= available:
        raise ValueError(f"Each row has {available} others to be compared with: k cannot be {k}.")
    found = [part.topk(k, dim=-1) for part in cosines(rows, others)]
    return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])


def cosines(
    rows: Float[Tensor, "row width"], others: Float[Tensor, "other width"] | None = None
) -> Iterator[Float[Tensor, "part other"]]:
    """The cosines of some rows at a time with all others; without `others`, that of a row with itself is
    minus infinity."""
    left = unit(rows)
    right = left if others is None else unit(others).to(left)
    first = 0
    for part in left.split(max(1, _CHUNK // max(1, len(right)))):
        found = part @ right.T
        if others is None:
            at = torch.arange(len(part), device=found.device)
            found[at, first + at] = -torch.inf
        first += len(part)
        yield found
