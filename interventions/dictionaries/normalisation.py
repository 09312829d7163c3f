"""How a dictionary brings its input to one scale, token by token.

A scalar that is the same for all tokens needs no class: it is folded into the weights (`scale_input`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class Normalise(ABC):
    """`(x - mean(x)) / divisor(x)` is what the encoder sees; `scale(x)` turns its features to units of x."""

    @abstractmethod
    def mean(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"] | None:
        """What is subtracted from each token, and put back in the end; None for nothing."""

    @abstractmethod
    def divisor(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]: ...

    @abstractmethod
    def scale(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]: ...

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        mean = self.mean(x)
        return (x if mean is None else x - mean) / self.divisor(x)


@dataclass(frozen=True)
class RescaleNorm(Normalise):
    """Every token is brought to the norm `sqrt(d_in)`; one of zeros stays as it is.

    >>> RescaleNorm()(torch.tensor([3.0, 4.0]))
    tensor([0.8485, 1.1314])
    """

    def mean(self, x: Tensor) -> None:
        return None

    def divisor(self, x: Tensor) -> Tensor:
        return (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5).clamp(min=torch.finfo(x.dtype).tiny)

    scale = divisor


@dataclass(frozen=True)
class LayerNorm(Normalise):
    """Every token has its mean subtracted and is divided by its unbiased standard deviation plus `eps`.

    Gao et al. 2024, arXiv 2406.04093, and their code. The output is multiplied by the deviation alone.

    >>> LayerNorm()(torch.tensor([1.0, 2.0, 3.0]))
    tensor([-1.0000,  0.0000,  1.0000])
    """

    eps: float = 1e-5

    def mean(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True)

    def divisor(self, x: Tensor) -> Tensor:
        return self.scale(x) + self.eps

    def scale(self, x: Tensor) -> Tensor:
        return x.std(-1, keepdim=True)


KINDS: dict[str, type[Normalise]] = {kind.__name__: kind for kind in (RescaleNorm, LayerNorm)}
