"""Which texts a probe is fitted to, and which it is validated on."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

Fold = tuple[Int[Tensor, " fitted"], Int[Tensor, " validated"]]
_MOST, _MANY = 6, 128


def folds(labels: Int[Tensor, " text"], *, seed: int = 0) -> list[Fold]:
    """Splits of training texts, the same for every method: to fit on, and to validate on.

    From 128 texts on there is one split, with a fifth of each class held out, 100 texts at most. Of fewer,
    there are six with each text held out once, or as many as the rarer class has texts, so that both classes
    are on either side; classes are spread evenly. Where a class has a single text there is none, and nothing
    to validate with. SAE-Probes (Kantamneni et al. 2025, arXiv 2502.16681) splits alike, but leaves out pairs
    of texts up to 12 of them, and from 128 on holds out what happens to come last.

    >>> [(fitted.tolist(), held.tolist()) for fitted, held in folds(torch.tensor([0, 1, 0, 1]))]
    [([1, 2], [0, 3]), ([0, 3], [1, 2])]
    """
    generator = torch.Generator().manual_seed(seed)
    sides = [(labels == side).nonzero()[:, 0] for side in (0, 1)]
    sides = [side[torch.randperm(len(side), generator=generator)] for side in sides]
    rarer = min(len(side) for side in sides)
    if rarer < 2:
        return []
    place = torch.empty(len(labels), dtype=torch.long)  # which fold holds a text out
    if len(labels) >= _MANY:
        share, n = min(0.2, 100 / len(labels)), 1
        for side in sides:
            held = min(max(1, round(share * len(side))), len(side) - 1)
            place[side] = (torch.arange(len(side)) >= held).long()
    else:
        n, before = min(_MOST, rarer), 0
        for side in sides:
            place[side] = (torch.arange(len(side)) + before) % n
            before += len(side)
    return [((place != i).nonzero()[:, 0], (place == i).nonzero()[:, 0]) for i in range(n)]
