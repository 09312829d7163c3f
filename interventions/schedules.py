"""How much of a change generated tokens get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Schedule: TypeAlias = Callable[[Int[Tensor, "row pos"]], Float[Tensor, "row pos"]]


@dataclass(frozen=True)
class Linear:
    """A schedule that goes from one factor to another over so many generated tokens, and stays there.

    >>> import torch
    >>> Linear(1.0, 0.0, tokens=4)(torch.tensor([0, 2, 4, 9]))
    tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """

    start: float
    stop: float
    tokens: int

    def __post_init__(self) -> None:
        if not self.tokens > 0:
            raise ValueError(f"A schedule goes over at least one token, not {self.tokens}.")

    def __call__(self, number: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        part = (number.float() / self.tokens).clamp(0, 1)
        return self.start + part * (self.stop - self.start)


@dataclass(frozen=True)
class Decay:
    """A schedule that halves every `half_life` generated tokens.

    >>> import torch
    >>> Decay(2.0)(torch.tensor([0, 2, 4]))
    tensor([1.0000, 0.5000, 0.2500])
    """

    half_life: float

    def __post_init__(self) -> None:
        if not self.half_life > 0:
            raise ValueError(f"A half-life is above 0, not {self.half_life}.")

    def __call__(self, number: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        return 0.5 ** (number.float() / self.half_life)
