"""Activation functions of sparse dictionaries, as they act at inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Activation(nn.Module):
    """From pre-activations to features. An active feature keeps its pre-activation, others are 0.

    So the gradient is 1 where a feature is active and 0 elsewhere. Thresholds are buffers that keep their
    dtype whatever the dictionary is cast to: a rounded threshold changes which features are active.
    """

    settings: ClassVar[tuple[str, ...]] = ()  # the constructor's numbers; its tensors are buffers

    @abstractmethod
    def forward(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]: ...

    @abstractmethod
    def cutoff(self, index: Int[Tensor, " n"]) -> Tensor | float | None:
        """What the pre-activations of these features must exceed; None where it depends on other features."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Activation:
        own = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in own.items():
            self.register_buffer(name, buffer.to(device=getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.settings)


class ReLU(Activation):
    """Every positive pre-activation.

    >>> ReLU()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def forward(self, z: Tensor) -> Tensor:
        return z.relu()

    def cutoff(self, index: Tensor) -> float:
        return 0.0


class JumpReLU(Activation):
    """Pre-activations above a threshold of their own (Rajamanoharan et al. 2024, arXiv 2407.14435).

    >>> JumpReLU(torch.tensor([1.0, 3.0]))(torch.tensor([2.0, 2.0]))
    tensor([2., 0.])
    """

    threshold: Tensor

    def __init__(self, threshold: Float[Tensor, " feature"]):
        super().__init__()
        if threshold.ndim != 1:
            raise ValueError(
                f"JumpReLU takes one threshold per feature, not a tensor {tuple(threshold.shape)}."
            )
        self.register_buffer("threshold", _thresholds(threshold))

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(z > self.threshold, z, 0.0)

    def cutoff(self, index: Tensor) -> Tensor:
        return self.threshold[index]


class TopK(Activation):
    """The k largest pre-activations of each token, if positive (Gao et al. 2024, arXiv 2406.04093).

    >>> TopK(1)(torch.tensor([[1.0, 3.0, 2.0], [-1.0, -2.0, -3.0]]))
    tensor([[0., 3., 0.],
            [0., 0., 0.]])
    """

    settings = ("k",)

    def __init__(self, k: int):
        super().__init__()
        self.k = _positive(k)

    def forward(self, z: Tensor) -> Tensor:
        if self.k >= z.shape[-1]:
            raise ValueError(f"TopK(k={self.k}) does not fit {z.shape[-1]} features: k must be smaller.")
        values, index = z.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(z).scatter(-1, index, values.relu())

    def cutoff(self, index: Tensor) -> None:
        return None


class BatchTopK(Activation):
    """Pre-activations above one threshold, which leaves k of them per token on average (Bussmann et al. 2024,
    arXiv 2412.06410).

    The choice over a batch, which made a token's features depend on the tokens beside it, belongs to training
    (`recipes.BatchTopK`).

    >>> BatchTopK(1, 1.5)(torch.tensor([1.0, 3.0, 2.0]))
    tensor([0., 3., 2.])
    """

    settings = ("k",)
    threshold: Tensor

    def __init__(self, k: int, threshold: Float[Tensor, ""] | float):
        super().__init__()
        self.k = _positive(k)
        threshold = torch.as_tensor(threshold, dtype=None if isinstance(threshold, Tensor) else torch.float32)
        if threshold.numel() != 1:
            raise ValueError(f"BatchTopK takes one threshold, not a tensor {tuple(threshold.shape)}.")
        # one axis, not none: a tensor without axes would be rounded to the dtype of what it is compared with
        self.register_buffer("threshold", _thresholds(threshold.reshape(1)))
        self._value = self.threshold.item()

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.threshold(z, self._value, 0.0)

    def cutoff(self, index: Tensor) -> Tensor:
        return self.threshold

    def extra_repr(self) -> str:
        return f"k={self.k}, threshold={self.threshold.item():.4g}"


KINDS: dict[str, type[Activation]] = {kind.__name__: kind for kind in (ReLU, JumpReLU, TopK, BatchTopK)}


def _positive(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of features, at least 1, not {k!r}.")
    return k


def _thresholds(threshold: Tensor) -> Tensor:
    threshold = threshold.detach()
    if not threshold.is_floating_point() or threshold.dtype.itemsize < 4:
        threshold = threshold.float()
    if not threshold.isfinite().all() or (threshold < 0).any():
        raise ValueError(
            f"Thresholds are finite and at least 0, not from {threshold.min():g} to {threshold.max():g}. "
            "Where negative ones were used after a ReLU, 0 means the same."
        )
    return threshold.clone()
