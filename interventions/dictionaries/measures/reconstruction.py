"""How near a reconstruction comes to what it reconstructs."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..coders import SparseFeatures


class Reconstruction:
    """Sums over the positions of a text, in float64, for one dictionary.

    `mean` is that of the tensor to be reconstructed; with it, variances are sums of squared deviations and no
    differences of large numbers.
    """

    def __init__(self, mean: Float[Tensor, " d_out"]):
        self.mean = mean.double()
        self.n = 0
        self.counts: Tensor | None = None  # at how many positions each feature was active
        self._sums: Tensor | None = None

    def add(
        self,
        y: Float[Tensor, "token d_out"],
        predicted: Float[Tensor, "token d_out"],
        features: SparseFeatures,
    ) -> None:
        """Counts some more positions."""
        y, predicted = y.double(), predicted.to(y.device).double()
        error, square, made = (x.square().sum(-1) for x in (y - predicted, y, predicted))
        deviation = (y - self.mean).square().sum(-1)
        product = (y * predicted).sum(-1)
        sums = [
            error.sum(),
            deviation.sum(),
            _ratio(error, deviation).sum(),
            square.sum(),
            y.square().mean(-1).sum(),
            made.sum(),
            product.sum(),
            _ratio(product, (square * made).sqrt()).sum(),
            _ratio(made.sqrt(), square.sqrt()).sum(),
            features.value.double().abs().sum(),
        ]
        now = torch.stack([x.to(y.device) for x in sums])
        self._sums = now if self._sums is None else self._sums + now
        counts = torch.bincount(features.feature, minlength=features.shape[-1])
        self.counts = counts if self.counts is None else self.counts + counts
        self.n += len(y)

    def results(self) -> dict[str, Any]:
        """The measures, by their names in `Quality`."""
        assert self._sums is not None and self.counts is not None
        sums: list[float] = self._sums.tolist()
        error, deviation, legacy, square, per_dimension, made, product, cosine, ratio, l1 = sums
        n = self.n
        return {
            "fvu": _over(error, deviation),
            "l0": self.counts.sum().item() / n,
            "dead": (self.counts == 0).double().mean().item(),
            "l1": l1 / n,
            "cosine": cosine / n,
            "norm_ratio": ratio / n,
            "bias": _over(made, product),
            "explained_variance_legacy": 1 - legacy / n,
            "explained_variance_saebench": 1 - _over(error / n, square / n - (per_dimension / n) ** 2),
            "density": self.counts.double() / n,
            "positions": n,
        }


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b; where b is 0, so is a in all that is divided here, and the ratio is 0."""
    return a / b.where(b > 0, 1.0)


def _over(a: float, b: float) -> float:
    return a / b if b else float("nan")
