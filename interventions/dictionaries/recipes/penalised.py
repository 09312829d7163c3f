"""Recipes in which every active feature has its price: ReLU with L1, p-annealing, gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import Activation, ReLU
from ..coders import SparseCoder
from .recipe import Recipe, Step, positive


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

    def __post_init__(self) -> None:
        positive(self.weight, "The weight of a penalty")

    def grown(self, progress: float) -> float:
        """The weight at this point of the run."""
        return self.weight * (min(1.0, progress / self.warmup) if self.warmup else 1.0)

    def kept(self, z: Tensor, progress: float) -> None:
        return None

    def features(self, step: Step) -> tuple[Tensor, Tensor]:
        features = step.z.relu()
        return features, self.grown(step.progress) * (features @ step.norms).mean()

    def activation(self, batches: Iterable[Tensor], weights: Mapping[str, Tensor]) -> Activation:
        return ReLU()


@dataclass(frozen=True)
class PAnneal(L1):
    """L1 that turns into an Lp penalty, p falling from 1 to `p` (Karvonen et al. 2024, arXiv 2408.00113,
    4.1).

    From `start` of the run on, p falls in `updates` steps. At each, the weight is scaled so that the penalty
    of the batch at hand stays what it was. The penalty is the sum of features to the power of p (Lp^p): its
    p-th root, as in the published code, is not defined at p = 0.
    """

    p: float = 0.2
    start: float = 0.3
    updates: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p <= 1:
            raise ValueError(f"p falls to a number above 0 and at most 1, not {self.p!r}.")
        if not 0 <= self.start < 1 or self.updates < 1:
            raise ValueError(
                f"p falls from a share of the run on in one step or more, not from start={self.start} in "
                f"{self.updates}."
            )

    def memory(self) -> dict[str, Tensor]:
        return {"p": torch.ones(()), "scale": torch.ones(())}

    def p_at(self, progress: float) -> float:
        """The power at this point of the run."""
        passed = max(0.0, (progress - self.start) / (1 - self.start))
        return 1 - (1 - self.p) * min(self.updates, int(passed * (self.updates + 1))) / self.updates

    def features(self, step: Step) -> tuple[Tensor, Tensor]:
        features = step.z.relu()
        sizes, memory = features * step.norms, step.memory
        p = self.p_at(step.progress)
        if p < memory["p"].item() - 1e-6:
            with torch.no_grad():
                before, after = _power(sizes, memory["p"].item()), _power(sizes, p)
                memory["scale"] = memory["scale"] * before / after.clamp(min=1e-12)
                memory["p"] = torch.full_like(memory["p"], p)
        return features, self.grown(step.progress) * memory["scale"] * _power(sizes, p)


def _power(sizes: Float[Tensor, "token feature"], p: float) -> Tensor:
    """Mean over tokens of the sum of `sizes ** p`, with a slope that stays finite at 0."""
    if p == 1:
        return sizes.sum(-1).mean()
    least = 1e-3
    return ((sizes + least).pow(p) - least**p).sum(-1).mean()


@dataclass(frozen=True)
class Gated(L1):
    """Gates that say whether a feature is active, and magnitudes that say how much.

    Rajamanoharan et al. 2024, arXiv 2404.16014. The penalty is on the gates alone, and magnitudes are free of
    it; gates learn by a second reconstruction from them, through a decoder that it does not train. The
    finished dictionary is the JumpReLU dictionary that computes the same (`SparseCoder.gated`).
    Two reconstructions stand against one penalty, so that useful weights are larger than for L1: 0.2 to 1.
    """

    # Were rows free, they would shrink under the penalty and magnitudes make up for it: it would do nothing.
    unit_decoder = True

    def weights(self, z: Tensor) -> dict[str, Tensor]:
        return {"r_mag": torch.zeros_like(z[0]), "b_mag": torch.zeros_like(z[0])}

    def features(self, step: Step) -> tuple[Tensor, Tensor]:
        gates = step.z.relu()
        magnitudes = (step.z - step.bias) * step.weights["r_mag"].exp() + step.weights["b_mag"]
        features = (step.z > 0) * magnitudes.relu()
        penalty = self.grown(step.progress) * (gates @ step.norms).mean()
        return features, penalty + step.unexplained(gates)

    def scaled(self, weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return {"r_mag": weights["r_mag"], "b_mag": weights["b_mag"] * factor}

    def coder(
        self,
        dictionary: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        batches: Callable[[SparseCoder], Iterable[Tensor]],
    ) -> SparseCoder:
        rest = dict(dictionary)
        return SparseCoder.gated(
            W_enc=rest.pop("W_enc"), b_gate=rest.pop("b_enc"), r_mag=weights["r_mag"], b_mag=weights["b_mag"],
            **rest,
        )  # fmt: skip
