"""How features are kept sparse while a dictionary is trained, and which activation it has afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import activations
from .activations import Activation


class Recipe(ABC):
    """One way to train a sparse dictionary. `progress` goes from 0 to 1 over the steps of a run."""

    unit_decoder = True  # whether decoder rows are held at unit norm

    @abstractmethod
    def kept(
        self, z: Float[Tensor, "token feature"], progress: float
    ) -> Bool[Tensor, "token feature"] | None:
        """Which features keep their pre-activation; None for all that are positive."""

    def penalty(
        self, features: Float[Tensor, "token feature"], norms: Float[Tensor, " feature"], progress: float
    ) -> Tensor | float:
        """What is added to the fraction of variance unexplained to make the loss; asked where `kept` is None.

        `norms` are those of what one unit of each feature writes; the site's root mean square norm is 1.
        """
        return 0.0

    @abstractmethod
    def activation(self, batches: Iterable[Float[Tensor, "token feature"]]) -> Activation:
        """The activation at inference, given pre-activations of the finished dictionary."""


def largest(z: Float[Tensor, "row n"], k: int) -> Float[Tensor, "row 1"]:
    """The k-th largest entry of every row."""
    if z.device.type == "cpu":  # numpy's selection is 3 to 15 times faster than torch's
        return torch.from_numpy(np.partition(z.detach().numpy(), z.shape[-1] - k, axis=-1)[:, -k, None])
    return z.detach().topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


def _positive(cutoff: Tensor) -> Tensor:
    return cutoff.clamp(min=torch.finfo(cutoff.dtype).tiny)


@dataclass(frozen=True)
class TopK(Recipe):
    """The `k` largest pre-activations of each token (Gao et al. 2024, arXiv 2406.04093).

    If `start` is given, k falls from there to its value over the first `anneal` of the run.
    """

    k: int
    start: int | None = None
    anneal: float = 0.2

    def __post_init__(self) -> None:
        activations.TopK(self.k)
        if self.start is not None and self.start < self.k:
            raise ValueError(f"k falls from start={self.start} to k={self.k}: start must not be smaller.")

    def k_at(self, progress: float) -> float:
        """How many features a token keeps at this point of the run."""
        if self.start is None or progress >= self.anneal:
            return self.k
        return self.start + (self.k - self.start) * progress / self.anneal

    def kept(self, z: Tensor, progress: float) -> Tensor:
        return z >= _positive(largest(z, round(min(self.k_at(progress), z.shape[-1]))))

    def activation(self, batches: Iterable[Tensor]) -> Activation:
        return activations.TopK(self.k)


@dataclass(frozen=True)
class BatchTopK(TopK):
    """The largest pre-activations of a batch, `k` per token on average.

    Bussmann et al. 2024, arXiv 2412.06410. The threshold used at inference is the one that leaves k features
    per token active on average, measured on the finished dictionary. The paper averages the least active
    value of each batch during training; a running average of it lags behind the weights.
    """

    def kept(self, z: Tensor, progress: float) -> Tensor:
        n = round(min(self.k_at(progress), z.shape[-1]) * len(z))
        return z >= _positive(largest(z.reshape(1, -1), n))

    def activation(self, batches: Iterable[Tensor]) -> Activation:
        thresholds = [largest(z.reshape(1, -1), self.k * len(z)).clamp(min=0) for z in batches]
        return activations.BatchTopK(self.k, torch.stack(thresholds).mean())


@dataclass(frozen=True)
class L1(Recipe):
    """A penalty `weight` on the sum of features, each weighted by the norm of its decoder row.

    Decoder rows are free while training (small features with large rows gain nothing; Anthropic's update of
    April 2024), and are normalised at the end. The penalty grows from 0 over the first `warmup` of the run.
    It measures features by the norm of what they write, the site's root mean square norm being 1, so that
    useful weights are much the same everywhere: 0.03 to 0.3.
    """

    weight: float
    warmup: float = 0.1

    unit_decoder = False

    def kept(self, z: Tensor, progress: float) -> None:
        return None

    def penalty(self, features: Tensor, norms: Tensor, progress: float) -> Tensor:
        grown = min(1.0, progress / self.warmup) if self.warmup else 1.0
        return self.weight * grown * (features @ norms).mean()

    def activation(self, batches: Iterable[Tensor]) -> Activation:
        return activations.ReLU()
