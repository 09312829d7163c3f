"""Probes: affine functions of activations, and what makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .classifying import Classifying, Logits
from .examples import Labels, plain
from .files import load, save


@runtime_checkable
class Recipe(Protocol):
    """What makes a probe of activations and labels: `Logistic()`, `CCS()`, or anything with such a `fit`.

    Activations are (example d_model), or of contrast pairs, a statement and its negation each:
    (example 2 d_model), or (example variant 2 d_model) where each is put in several ways. The label of a
    pair says whether its first side is the true one.
    """

    def fit(self, x: Float[Tensor, "example *pair d_model"], labels: Labels) -> Probe: ...


@dataclass(frozen=True, eq=False)
class Probe(Classifying):
    """An affine function of an activation: how strongly it speaks for each class.

    Of two classes there is one vector of weights and one bias, and the logit is that of class 1; of more,
    one for each class. Whatever a recipe does to activations before (centring, standardising, erasing) is
    part of these weights, so that a probe reads raw activations. `how` says in plain JSON how it was made.

    >>> probe = Probe(torch.tensor([1.0, -1.0]), torch.tensor(0.5))
    >>> probe.logits(torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    tensor([ 1.5000, -0.5000])

    Raises:
        ValueError: weights that are neither (d_model) nor (class d_model), a bias that does not fit them, or
            numbers that are not finite.
    """

    weights: Float[Tensor, " d_model"] | Float[Tensor, "class d_model"]
    bias: Float[Tensor, ""] | Float[Tensor, " class"]
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights, bias = self.weights.detach().clone(), torch.as_tensor(self.bias, dtype=self.weights.dtype)
        shape = tuple(weights.shape)
        if len(shape) not in (1, 2) or not weights.numel() or (len(shape) == 2 and shape[0] < 2):
            raise ValueError(
                f"Weights are (d_model), or (class d_model) of two classes or more, not {shape}."
            )
        if bias.shape != weights.shape[:-1]:
            raise ValueError(f"A bias of shape {tuple(bias.shape)} does not fit weights {shape}.")
        if not (weights.isfinite().all() and bias.isfinite().all()):
            raise ValueError("The weights or the bias of the probe are not finite.")
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bias", bias.detach().to(weights.device).clone())
        object.__setattr__(self, "how", plain(self.how))

    @classmethod
    def of(cls, estimator: Any) -> Probe:
        """The probe that a fitted linear classifier of scikit-learn is, its classes counted from 0 on.

        Raises:
            TypeError: what has no `coef_`, `intercept_` and `classes_`: it is not fitted, or not linear.
            ValueError: other classes, or coefficients that are not of one class each, as those of an SVC.
        """
        try:
            classes = estimator.classes_.tolist()
            coef = torch.atleast_2d(torch.tensor(estimator.coef_))
            intercept = torch.tensor(estimator.intercept_)
        except (AttributeError, TypeError):
            raise TypeError(f"{estimator!r:.80} is no fitted linear classifier of scikit-learn.") from None
        n = len(classes)
        if classes != list(range(n)) or len(coef) != (1 if n == 2 else n):
            raise ValueError(
                f"{estimator!r:.80} tells {classes} apart by coefficients {tuple(coef.shape)}; a "
                "probe has classes counted from 0 on, and a row for each, or one of two."
            )
        how, intercept = {"recipe": repr(estimator)}, intercept.expand(len(coef))
        probe = cls(coef[0], intercept[0], how) if n == 2 else cls(coef, intercept, how)
        rows = torch.linspace(-1, 1, 4 * probe.width, dtype=coef.dtype).view(4, -1)
        said = torch.as_tensor(estimator.decision_function(rows.numpy()))
        if said.shape != (logits := probe.logits(rows)).shape or not torch.allclose(said, logits):
            raise ValueError(f"{estimator!r:.80} says something else than its coefficients do.")
        return probe

    def __repr__(self) -> str:
        classes = "" if self.n_classes == 2 else f", {self.n_classes} classes"
        return f"Probe({self.how.get('recipe', 'of weights given')}, width {self.width}{classes})"

    @property
    def width(self) -> int:
        return self.weights.shape[-1]

    @property
    def n_classes(self) -> int:
        return 2 if self.weights.ndim == 1 else len(self.weights)

    @property
    def direction(self) -> Float[Tensor, " d_model"]:
        """The weights of a probe of two classes. Raises ValueError for one of more, which has several."""
        if self.weights.ndim != 1:
            raise ValueError(f"A probe of {self.n_classes} classes has no single direction; see its weights.")
        return self.weights

    def logits(self, x: Float[Tensor, "*batch d_model"]) -> Logits:
        """The log odds of class 1 for activations (*batch d_model), or of more classes a logit for each.

        Worked out in the precision of the probe, float64 as fitted, on the device of `x`; gradients flow.
        """
        self._reads(x)
        weights = self.weights.to(x.device)
        return x.to(weights.dtype) @ (weights if weights.ndim == 1 else weights.T) + self.bias.to(x.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "bias": self.bias}

    def to(self, *args: Any) -> Probe:
        """On another device, or of another dtype."""
        return replace(self, weights=self.weights.to(*args), bias=self.bias.to(*args))

    def save(self, folder: str | Path) -> None:
        """Writes `probe.json` and a safetensors file beside it, which `load` reads back exactly."""
        save(folder, "probe", self.tensors(), {"how": dict(self.how)})

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """What `save` wrote.

        Raises:
            FileNotFoundError: no probe there.
            ValueError: files that are incomplete, changed since, or of another version.
        """
        tensors, about = load(folder, "probe")
        return cls(tensors["weights"], tensors["bias"], about["how"])
