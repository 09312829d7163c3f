"""What a way of probing offers, so that all are validated and tested alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..probing.scores import auroc
from .examples import Examples
from .folds import Fold

Setting = Mapping[str, Any]
Scores = Float[Tensor, "setting text"]


@runtime_checkable
class Method(Protocol):
    """A way of probing, and the settings that are tried.

    `settings(n)` are those for `n` texts to fit on, in the order in which ties are decided; `scores` fits
    each to the training examples alone and gives the logit, or what stands for it, of other ones: positive
    where it says class 1. `sparse` says whether it reads the dictionary. `told` says in plain JSON what a
    setting came to, such as which features it reads.
    """

    @property
    def name(self) -> str: ...

    @property
    def sparse(self) -> bool: ...

    def settings(self, n: int) -> Sequence[Setting]: ...

    def scores(self, train: Examples, others: Examples, settings: Sequence[Setting]) -> Scores: ...

    def told(self, train: Examples, setting: Setting) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Validated:
    """The setting of the highest AUROC on texts held out of the training texts, the mean over folds; of equal
    ones the first. Without folds, the middle one, and no AUROC."""

    setting: Setting
    auroc: float | None


def validated(method: Method, train: Examples, folds: Sequence[Fold]) -> Validated:
    """The setting that a method is given for some training examples; each fold is fitted anew."""
    settings = method.settings(min((len(fitted) for fitted, _ in folds), default=len(train)))
    if not folds:
        return Validated(settings[len(settings) // 2], None)
    found = torch.zeros(len(settings), dtype=torch.float64)
    for fitted, held in folds:
        others = train.of(held)
        scores = method.scores(train.of(fitted), others, settings)
        found += torch.tensor([auroc(each, others.labels) for each in scores], dtype=torch.float64)
    means = (found / len(folds)).round(decimals=12)  # that equal ones are equal whatever their sums' order
    best = int(means.argmax())
    return Validated(settings[best], means[best].item())


def standardised(train: Examples, others: Examples) -> tuple[Tensor, Tensor]:
    """Activations of mean 0 and variance 1 in the training examples."""
    from ..probing.logistic import spread

    centre, scale = train.acts.mean(0), spread(train.acts)
    return (train.acts - centre) / scale, (others.acts - centre) / scale
