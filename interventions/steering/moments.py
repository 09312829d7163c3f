"""Means and covariances of rows that come in parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """How many rows there were, their mean, and the sum of their products about it, in float64.

    `a + b` are the moments of the rows of both (Chan, Golub and LeVeque 1979), as exact as if all rows were
    held. `scatter` is None where only means were asked for.

    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    >>> whole = Moments.of(rows[:1]) + Moments.of(rows[1:])
    >>> whole.count, whole.mean
    (3, tensor([3., 3.], dtype=torch.float64))
    >>> bool((whole.covariance - rows.T.cov()).abs().max() < 1e-6)
    True
    """

    count: int
    mean: Float[Tensor, " d_model"]
    scatter: Float[Tensor, "d_model d_model"] | None = None

    @classmethod
    def of(cls, rows: Float[Tensor, "row d_model"], *, products: bool = True) -> Moments:
        """Those of some rows; without `products`, only their number and mean."""
        rows = rows.detach().cpu().double()
        mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[-1])
        about = rows - mean
        return cls(len(rows), mean, about.T @ about if products else None)

    def __add__(self, other: Moments) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"Rows of width {len(self.mean)} and {len(other.mean)} have no common mean.")
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        if self.scatter is None or other.scatter is None:
            return Moments(count, mean)
        between = torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float[Tensor, "d_model d_model"]:
        """Divided by the number of rows less one. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"A covariance takes at least two rows, not {self.count}.")
        return self.products / (self.count - 1)

    @property
    def about_zero(self) -> Float[Tensor, "d_model d_model"]:
        """The mean of the products of the rows as they are, about zero."""
        return self.products / max(1, self.count) + torch.outer(self.mean, self.mean)

    @property
    def products(self) -> Float[Tensor, "d_model d_model"]:
        if self.scatter is None:
            raise ValueError("These moments are means only.")
        return self.scatter
