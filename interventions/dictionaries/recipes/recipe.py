"""What a recipe is asked in each step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import Activation, ReLU
from ..coders import SparseCoder


@dataclass(frozen=True)
class Step:
    """One batch on its way through a dictionary in training, in the units of the pool.

    The site's root mean square norm is the root of its width, and decoder rows of norm 1 write in its units.
    """

    z: Float[Tensor, "token feature"]  # pre-activations
    bias: Float[Tensor, " feature"]  # the encoder's, which they contain
    norms: Float[Tensor, " feature"]  # of decoder rows, over the root of the width
    unexplained: Callable[[Tensor], Tensor]  # FVU of other features (token feature), the decoder held fixed
    weights: Mapping[str, Tensor]  # what the recipe trains beside the dictionary
    memory: dict[str, Tensor]  # what it remembers from step to step
    progress: float  # 0 to 1 over the run


class Recipe(ABC):
    """One way to train a sparse dictionary; a value, without state of its own.

    Where `kept` gives a mask, few features are active, and steps work on those alone; the rest of the
    interface is for recipes that are dense while they are trained.
    """

    unit_decoder = True  # whether decoder rows are held at unit norm

    def weights(self, z: Float[Tensor, "token feature"]) -> dict[str, Tensor]:
        """What is trained beside the dictionary, given pre-activations of the untrained one."""
        return {}

    def memory(self) -> dict[str, Tensor]:
        """What is remembered from step to step, at the beginning."""
        return {}

    @abstractmethod
    def kept(
        self, z: Float[Tensor, "token feature"], progress: float
    ) -> Bool[Tensor, "token feature"] | None:
        """Which features keep their pre-activation; None where `features` says."""

    def prefixes(self, n_features: int) -> tuple[int, ...]:
        """The numbers of first features whose reconstructions make the loss, ascending."""
        return (n_features,)

    def features(self, step: Step) -> tuple[Float[Tensor, "token feature"], Tensor | float]:
        """Features, and what is added to the fraction of variance unexplained to make the loss."""
        return step.z.relu(), 0.0

    @abstractmethod
    def activation(
        self, batches: Iterable[Float[Tensor, "token feature"]], weights: Mapping[str, Tensor]
    ) -> Activation:
        """The activation at inference, given pre-activations of the finished dictionary."""

    def scaled(self, weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Its weights where features are `factor` times as large."""
        return dict(weights)

    def coder(
        self,
        dictionary: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        batches: Callable[[SparseCoder], Iterable[Float[Tensor, "token feature"]]],
    ) -> SparseCoder:
        """The finished dictionary from its parts; `batches` gives pre-activations of a dictionary."""
        plain = SparseCoder(**dictionary, activation=ReLU())
        return SparseCoder(**dictionary, activation=self.activation(batches(plain), weights))


def positive(weight: float, what: str) -> None:
    """Raises ValueError for a setting that is no positive number."""
    if not 0 < weight < float("inf"):
        raise ValueError(f"{what} must be a positive number, not {weight!r}.")
