"""JumpReLU: thresholds that are trained, by gradients that see across the jump."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import activations
from ..activations import Activation
from ..coders import SparseCoder
from ..units import Units
from .recipe import Recipe, Step, positive
from .topk import largest


class Sparsity(ABC):
    """The price of L0, the number of active features per token."""

    weight: float

    @abstractmethod
    def __call__(self, l0: Float[Tensor, ""]) -> Float[Tensor, ""]: ...

    @property
    @abstractmethod
    def first(self) -> float | None:
        """The L0 that thresholds are set for at first; None for a quarter of the features."""


@dataclass(frozen=True)
class L0(Sparsity):
    """`weight * L0` (Rajamanoharan et al. 2024, arXiv 2407.14435): the price of a feature is the same
    always."""

    weight: float

    def __call__(self, l0: Tensor) -> Tensor:
        return self.weight * l0

    @property
    def first(self) -> None:
        return None


@dataclass(frozen=True)
class TargetL0(Sparsity):
    """`weight * (L0 / l0 - 1) ** 2`: aims at so many active features."""

    l0: float
    weight: float = 3.0

    def __call__(self, l0: Tensor) -> Tensor:
        return self.weight * (l0 / self.l0 - 1).square()

    @property
    def first(self) -> float:
        return 4 * self.l0


@dataclass(frozen=True)
class QuadraticL0(TargetL0):
    """`weight * 2 / l0 * (L0 - l0) ** 2`, as Gemma Scope 2 was trained."""

    weight: float = 0.1

    def __call__(self, l0: Tensor) -> Tensor:
        return self.weight * 2 / self.l0 * (l0 - self.l0).square()


@dataclass(frozen=True)
class JumpReLU(Recipe):
    """Features above trained thresholds (Rajamanoharan et al. 2024, arXiv 2407.14435).

    `l0` is how many are to be active per token, or a price of one's own (`L0`, `TargetL0`, `QuadraticL0`).
    The price grows to its full size over the first `warmup` of the run. Neither the price nor the jump has a
    gradient with respect to the threshold; what stands for it is that of the expected loss, estimated from
    the pre-activations within a window about the threshold, `bandwidth` times as wide as the threshold is
    large. Thresholds are trained by their logarithms. At first they are set so that four times `l0` are
    active.
    """

    l0: float | Sparsity
    bandwidth: float = 0.5
    warmup: float = 0.1

    def __post_init__(self) -> None:
        positive(self.sparsity.weight, "The weight of a penalty")
        positive(self.bandwidth, "A bandwidth")
        if isinstance(self.sparsity, TargetL0):
            positive(self.sparsity.l0, "l0")

    @property
    def sparsity(self) -> Sparsity:
        """The price of L0."""
        return self.l0 if isinstance(self.l0, Sparsity) else TargetL0(self.l0)

    def weights(self, z: Tensor) -> dict[str, Tensor]:
        n_features = z.shape[-1]
        at_first = min(self.sparsity.first or n_features / 4, n_features / 4)
        cutoff = largest(z.reshape(1, -1), max(1, round(at_first * len(z)))).clamp(min=1e-3).item()
        return {"log_threshold": torch.full_like(z[0], cutoff).log()}

    def kept(self, z: Tensor, progress: float) -> None:
        return None

    def features(self, step: Step) -> tuple[Tensor, Tensor]:
        features, l0 = jump(step.z, step.weights["log_threshold"], self.bandwidth)
        grown = min(1.0, step.progress / self.warmup) if self.warmup else 1.0
        return features, grown * self.sparsity(l0)

    def scaled(self, weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return {"log_threshold": weights["log_threshold"] + torch.tensor(factor).log().item()}

    def activation(self, batches: Iterable[Tensor], weights: Mapping[str, Tensor]) -> Activation:
        return activations.JumpReLU(weights["log_threshold"].exp())

    def coder(self, dictionary: Mapping[str, Any], *rest: Any) -> SparseCoder:
        return super().coder({**dictionary, "units": Units(threshold="stored")}, *rest)


def jump(
    z: Float[Tensor, "token feature"], log_threshold: Float[Tensor, " feature"], bandwidth: float
) -> tuple[Float[Tensor, "token feature"], Float[Tensor, ""]]:
    """Features above their thresholds, and L0, with gradients to the logarithms of the thresholds.

    With t the threshold, b the bandwidth, and K = 1 within t (1 - b/2) .. t (1 + b/2) and 0 outside: features
    have the derivative -K t / b, L0 has -K / b for each token, both by log t. L0 has none by z.
    """
    return _Jump.apply(z, log_threshold, bandwidth)  # type: ignore[return-value]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, log_threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        threshold = log_threshold.exp()
        active = z > threshold
        near = (z - threshold).abs() < threshold * (bandwidth / 2)
        ctx.save_for_backward(active, near, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(active, z, 0.0), active.sum().to(z.dtype) / len(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        active, near, threshold = ctx.saved_tensors
        by_features, by_l0 = grads
        slope = (by_features * near).sum(0) * threshold + near.sum(0) * (by_l0 / len(near))
        return by_features * active, -slope / ctx.bandwidth, None
