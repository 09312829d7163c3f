"""Which scores to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Keep = Callable[[Float[Tensor, " n"]], Bool[Tensor, " n"]]  # scores -> which to keep


@dataclass(frozen=True)
class above:
    """Keeps scores whose size is above a threshold, in units of the metric.

    >>> above(0.2)(torch.tensor([0.1, -0.3]))
    tensor([False,  True])
    """

    threshold: float

    def __call__(self, scores: Tensor) -> Tensor:
        return scores.abs() > self.threshold


@dataclass(frozen=True)
class top:
    """Keeps the largest scores by size, zeros never.

    >>> top(1)(torch.tensor([0.1, -0.3]))
    tensor([False,  True])
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"One keeps 0 or more of the scores, not {self.count}.")

    def __call__(self, scores: Tensor) -> Tensor:
        return _first(scores.abs(), min(self.count, len(scores)))


@dataclass(frozen=True)
class share:
    """Keeps the fewest scores whose sizes add up to a share of the total.

    >>> share(0.7)(torch.tensor([0.1, -0.3]))
    tensor([False,  True])
    """

    of_total: float

    def __post_init__(self) -> None:
        if not 0 < self.of_total <= 1:
            raise ValueError(f"A share lies above 0 and up to 1; {self.of_total} does not.")

    def __call__(self, scores: Tensor) -> Tensor:
        sizes = scores.abs().double()
        reached = sizes.sort(descending=True, stable=True).values.cumsum(0)
        if not len(reached):
            return torch.zeros_like(scores, dtype=torch.bool)
        # A share of 1 must not depend on how a sum was rounded.
        enough = reached[-1] * self.of_total * (1 - 1e-12)
        return _first(scores.abs(), int((reached < enough).sum()) + 1)


def _first(sizes: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(sizes, dtype=torch.bool)
    mask[sizes.sort(descending=True, stable=True).indices[:count]] = True
    return mask & (sizes > 0)


def keep(rule: Keep | float | int) -> Keep:
    """A rule as given, `top` of a whole number, `above` another.

    >>> keep(100), keep(0.1)
    (top(count=100), above(threshold=0.1))
    """
    if isinstance(rule, bool):
        raise TypeError("Pass a number, or a rule such as top(100), above(0.1) or share(0.9).")
    if isinstance(rule, Integral):
        return top(int(rule))
    if isinstance(rule, Real):
        return above(float(rule))
    if not callable(rule):
        raise TypeError(f"{rule!r} is no rule. Pass a number, or a rule such as top(100) or share(0.9).")
    return rule
