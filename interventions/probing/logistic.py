"""Logistic probes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..steering.regression import logistic_regression
from .class_weights import ClassWeights, example_weights, settled
from .examples import Labels, statements
from .probe import Probe


@dataclass(frozen=True)
class Logistic:
    """Logistic regression, of two classes or more, with a penalty on the squares of the weights.

    `l2` is 1/C of scikit-learn. Where `standardise` is set, it is the weights of coordinates of variance 1
    that are penalised; the probe is of raw activations all the same. The intercept is free. It is solved
    until the gradient is zero to rounding, in float64. `class_weights`, "balanced" or a number for each
    class, say how often an example of a class counts.

    >>> x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> probe = Logistic().fit(x, [0, 0, 1, 1])
    >>> probe.probabilities(x).round(decimals=2)
    tensor([0.2200, 0.4000, 0.6000, 0.7800], dtype=torch.float64)

    Raises:
        ValueError: a penalty that is not above 0, without which separable classes have no solution; weights
            that are not above 0.
    """

    l2: float = 1.0
    standardise: bool = True
    class_weights: ClassWeights | None = None

    def __post_init__(self) -> None:
        if not 0 < self.l2 < float("inf"):
            raise ValueError(
                f"l2={self.l2}: a penalty is finite and above 0, or separable classes have no solution."
            )
        object.__setattr__(self, "class_weights", settled(self.class_weights))

    def __repr__(self) -> str:
        weights = "" if self.class_weights is None else f", class_weights={self.class_weights!r}"
        return f"Logistic(l2={self.l2}, standardise={self.standardise}{weights})"

    def fit(self, x: Float[Tensor, "example d_model"], labels: Labels) -> Probe:
        """A probe of activations and their classes, which are counted from 0 on."""
        x, found = statements(x, labels)
        scale = spread(x) if self.standardise else torch.ones(x.shape[1], dtype=x.dtype)
        known = settled(self.class_weights)
        each = None if known is None else example_weights(found, known)
        weights, bias = logistic_regression(x / scale, found, self.l2, each)
        weights = weights / scale
        how = {"recipe": repr(self), "examples": len(x)}
        return Probe(weights[0], bias[0], how) if len(weights) == 1 else Probe(weights, bias, how)


def spread(x: Float[Tensor, "example d_model"]) -> Float[Tensor, " d_model"]:
    """The standard deviation of each coordinate; 1 where it does not vary beyond rounding."""
    found = x.std(0, correction=0)
    return found.where(found > 1e-12 * x.abs().amax(0), 1.0)
