"""How far apart the two classes lie in each feature, by which a few are chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .examples import Examples

Ranking = Callable[[Examples], Float[Tensor, " feature"]]


def mean_differences(examples: Examples) -> Float[Tensor, " feature"]:
    """The size of the difference of each feature's means over the classes, as in SAEBench (Karvonen et al.
    2025, arXiv 2503.09532).

    >>> mean_differences(Examples("x", torch.zeros(2, 1), torch.tensor([[1.0, 2.0], [4.0, 2.0]]), [0, 1]))
    tensor([3., 0.], dtype=torch.float64)
    """
    means = [_mean(examples, side) for side in (examples.positive, ~examples.positive)]
    return (means[0] - means[1]).abs()


def scaled_mean_differences(examples: Examples) -> Float[Tensor, " feature"]:
    """The same in units of each feature's mean where it is active, as in SAE-Probes (Kantamneni et al. 2025,
    arXiv 2502.16681); 0 for those that are active nowhere.

    >>> few = Examples("x", torch.zeros(2, 1), torch.tensor([[0.0, 2.0], [4.0, 6.0]]), [0, 1])
    >>> scaled_mean_differences(few)
    tensor([1., 1.], dtype=torch.float64)
    """
    size = abs(examples.features).sum(axis=0).A1 / examples.features.getnnz(axis=0).clip(min=1)
    scale = torch.from_numpy(size)
    return mean_differences(examples) / scale.where(scale > 0, 1.0)


def strongest(values: Float[Tensor, " feature"], k: int) -> Tensor:
    """The `k` of largest value, largest first, and none whose value is zero; of equal ones the first."""
    order = values.argsort(descending=True, stable=True)[:k]
    return order[values[order] > 0]


def _mean(examples: Examples, texts: Tensor) -> Float[Tensor, " feature"]:
    weight = (texts.double() / texts.sum()).numpy()
    return torch.from_numpy(examples.features.T @ weight)
