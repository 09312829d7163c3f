"""What every probe says of activations, whatever it computes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .examples import Labels, whole

Logits = Float[Tensor, "*batch"] | Float[Tensor, "*batch class"]


class Classifying(ABC):
    """A function from activations to how strongly they speak for each class.

    Four methods have the names and the meaning that scikit-learn gives them, for tools that ask for those.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Of the activations that it reads."""

    @property
    @abstractmethod
    def n_classes(self) -> int: ...

    @abstractmethod
    def logits(self, x: Float[Tensor, "*batch d_model"]) -> Logits:
        """The log odds of class 1, or of more than two classes a logit for each."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that it has learned, by name."""

    def probabilities(self, x: Float[Tensor, "*batch d_model"]) -> Logits:
        """The probability of class 1, or of more than two classes that of each."""
        logits = self.logits(x)
        return logits.sigmoid() if logits.ndim < x.ndim else logits.softmax(-1)

    def scores(self, x: Float[Tensor, "example *pair d_model"]) -> Float[Tensor, "example *class"]:
        """What ranks examples. Of (example d_model), the logits; of contrast pairs, by how much the first
        side's logit is above the second's, the mean over variants."""
        if x.ndim == 2:
            return self.logits(x)
        sides = self._of_pairs(x, self.logits(x))
        above = sides[..., 0] - sides[..., 1]
        return above if above.ndim == 1 else above.mean(1)

    def credences(self, x: Float[Tensor, "example *pair d_model"]) -> Float[Tensor, "example *class"]:
        """How probable the probe finds label 1. Of (example d_model), the probabilities; of contrast pairs,
        the mean of that of the first side, and of the second one's being false (Burns et al. 2022)."""
        if x.ndim == 2:
            return self.probabilities(x)
        sides = self._of_pairs(x, self.probabilities(x))
        found = (sides[..., 0] + 1 - sides[..., 1]) / 2
        return found if found.ndim == 1 else found.mean(1)

    def decision_function(self, x: Any) -> Float[Tensor, "example *class"]:
        """The logits, of a tensor or an array."""
        return self.logits(torch.as_tensor(x))

    def predict_proba(self, x: Any) -> Float[Tensor, "example class"]:
        """The probability of every class, of two of them as well."""
        found = self.probabilities(x := torch.as_tensor(x))
        return torch.stack([1 - found, found], dim=-1) if found.ndim < x.ndim else found

    def predict(self, x: Any) -> Int[Tensor, " example"]:
        """The most probable class; class 0 where two are level."""
        found = self.logits(x := torch.as_tensor(x))
        return (found > 0).long() if found.ndim < x.ndim else found.argmax(-1)

    def score(self, x: Any, labels: Labels) -> float:
        """The share of examples whose predicted class is theirs."""
        found = self.predict(x).cpu()
        return (found == whole(labels, len(found))).double().mean().item()

    def _reads(self, x: Tensor) -> None:
        if x.shape[-1] != self.width:
            raise ValueError(f"x has width {x.shape[-1]}, but the probe reads width {self.width}.")

    def _of_pairs(self, x: Tensor, sides: Tensor) -> Tensor:
        if x.ndim not in (3, 4) or x.shape[-2] != 2:
            raise ValueError(
                "Examples are (example d_model), or pairs (example 2 d_model) or (example variant 2 d_model),"
                f" not {tuple(x.shape)}."
            )
        if sides.ndim == x.ndim:
            raise ValueError("Contrast pairs are true or false; this probe has a logit for each class.")
        return sides
