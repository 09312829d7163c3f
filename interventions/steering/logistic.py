"""The direction of a logistic regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .methods import Rows, Vector, along


@dataclass(frozen=True)
class LogisticProbe:
    """The weights of a logistic regression with an intercept and a penalty on their squares.

    `l2` is 1/C of scikit-learn, for activations divided by one number, the root of the mean variance of a
    coordinate. Needs all activations of the chosen tokens at once.
    """

    l2: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.l2 < float("inf"):
            raise ValueError(
                f"l2={self.l2}: a penalty is finite and above 0, or separable classes have no solution."
            )

    def __call__(self, positive: Rows, negative: Rows) -> Vector:
        positive, negative = positive.double(), negative.double()
        rows = torch.cat([positive, negative])
        rows = rows - rows.mean(0)
        size = rows.square().mean().sqrt()
        between = positive.mean(0) - negative.mean(0)
        if size == 0:
            return between
        # The solution lies in the span of the rows, which has fewer axes than d_model where pairs are few.
        left, singular, right = torch.linalg.svd(rows / size, full_matrices=False)
        labels = torch.ones(len(rows), dtype=rows.dtype)
        labels[len(positive) :] = -1
        return along(_logistic(left * singular, labels, self.l2) @ right, between)


logistic_probe = LogisticProbe()


def _logistic(rows: Float[Tensor, "row axis"], labels: Float[Tensor, " row"], l2: float) -> Vector:
    """Weights of least mean logistic loss and penalty."""
    import numpy as np
    from scipy.optimize import minimize

    x, y = rows.numpy(), labels.numpy()
    n = len(y)

    def loss(parameters: Any) -> tuple[float, Any]:
        weights, intercept = parameters[:-1], parameters[-1]
        margin = y * (x @ weights + intercept)
        slope = -y * np.exp(-np.logaddexp(0, margin)) / n
        gradient = np.append(x.T @ slope + l2 / n * weights, slope.sum())
        return np.logaddexp(0, -margin).mean() + l2 / (2 * n) * weights @ weights, gradient

    start = np.zeros(x.shape[1] + 1)
    options = {"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x[:-1])
