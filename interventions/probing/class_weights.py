"""How much the examples of each class count when a probe is fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

ClassWeights = Literal["balanced"] | Sequence[float] | Mapping[int, float]


def settled(given: ClassWeights | None) -> Literal["balanced"] | tuple[float, ...] | None:
    """Class weights in a form that can be compared and printed.

    >>> settled({1: 3, 0: 1.0})
    (1.0, 3.0)

    Raises:
        ValueError: classes that are skipped, or numbers that are not finite and above 0.
        TypeError: what is neither "balanced" nor numbers.
    """
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    what = f'class_weights={given!r}: "balanced", or a number above 0 for each class, as in (1.0, 3.0)'
    if isinstance(given, str):
        raise ValueError(f"{what}.")
    try:
        if isinstance(given, Mapping):
            if sorted(given) != list(range(len(given))):
                raise ValueError(f"{what}; classes are counted from 0 on, and none is skipped.")
            given = [given[i] for i in range(len(given))]
        found = tuple(float(weight) for weight in given)
    except TypeError:
        raise TypeError(f"{what}.") from None
    if len(found) < 2 or not all(isfinite(weight) and weight > 0 for weight in found):
        raise ValueError(f"{what}.")
    return found


def example_weights(
    labels: Int[Tensor, " example"], weights: Literal["balanced"] | tuple[float, ...]
) -> Float[Tensor, " example"]:
    """The weight of each example. Balanced, the classes weigh the same, and the mean weight is 1.

    >>> example_weights(torch.tensor([0, 0, 0, 1]), "balanced")
    tensor([0.6667, 0.6667, 0.6667, 2.0000], dtype=torch.float64)

    Raises ValueError where there are other classes than weights.
    """
    counts = labels.bincount()
    if weights == "balanced":
        return (len(labels) / (len(counts) * counts.double()))[labels]
    if len(weights) != len(counts):
        raise ValueError(f"There are {len(weights)} class weights, and {len(counts)} classes.")
    return torch.tensor(weights, dtype=torch.float64)[labels]
