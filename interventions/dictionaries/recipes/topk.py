"""Recipes in which features compete for a number of places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .. import activations
from ..activations import Activation
from ..coders import SparseCoder
from ..units import Units
from .recipe import Recipe


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

    def activation(self, batches: Iterable[Tensor], weights: Mapping[str, Tensor]) -> Activation:
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

    def activation(self, batches: Iterable[Tensor], weights: Mapping[str, Tensor]) -> Activation:
        thresholds = [largest(z.reshape(1, -1), self.k * len(z)).clamp(min=0) for z in batches]
        return activations.BatchTopK(self.k, torch.stack(thresholds).mean())

    def coder(self, dictionary: Mapping[str, Any], *rest: Any) -> SparseCoder:
        return super().coder({**dictionary, "units": Units(threshold="estimated")}, *rest)


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """BatchTopK whose first features must reconstruct by themselves, at several widths.

    Bussmann et al. 2025, arXiv 2503.17547. `widths` are shares of the features, or numbers of them; the loss
    is the mean over the reconstructions from the first so many features. The dictionary can be cut at each
    (`SparseCoder.prefix`).
    """

    widths: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)

    def prefixes(self, n_features: int) -> tuple[int, ...]:
        widths = {round(w * n_features) if isinstance(w, float) else w for w in self.widths}
        if min(widths, default=1) < 1 or max(widths, default=1) > n_features:
            raise ValueError(f"{self} asks for prefixes of {sorted(widths)} of {n_features} features.")
        return tuple(sorted(widths | {n_features}))

    def coder(self, dictionary: Mapping[str, Any], *rest: Any) -> SparseCoder:
        prefixes = self.prefixes(len(dictionary["b_enc"]))
        return super().coder({**dictionary, "prefixes": prefixes}, *rest)


@dataclass(frozen=True)
class AbsTopK(TopK):
    """The `k` pre-activations of each token that are largest in magnitude, with their signs (arXiv
    2510.00404)."""

    def kept(self, z: Tensor, progress: float) -> Tensor:
        return super().kept(z.abs(), progress)

    def activation(self, batches: Iterable[Tensor], weights: Mapping[str, Tensor]) -> Activation:
        return activations.AbsTopK(self.k)


@dataclass(frozen=True)
class GroupMax(TopK):
    """The largest pre-activation of each of `k` groups of neighbouring features: a cheaper TopK."""

    def kept(self, z: Tensor, progress: float) -> Tensor:
        values, index = activations.GroupMax(self.k).winners(z)
        kept = torch.zeros_like(z, dtype=torch.bool)
        return kept.scatter_(-1, index, values > 0)

    def activation(self, batches: Iterable[Tensor], weights: Mapping[str, Tensor]) -> Activation:
        return activations.GroupMax(self.k)
