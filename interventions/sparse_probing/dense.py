"""Strong probes of the activations themselves, without a dictionary."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..probing import MeanDifference, Recipe
from ..probing.trained import Trained
from .examples import Examples
from .method import Method, Scores, Setting, standardised
from .penalised import PENALTIES, l2_logistic

_TRIED = 10  # numbers of components or of neighbours
MISSING_TREES = 'Left out: gradient-boosted trees, which take `pip install "breadboard-circuits[trees]"`.'


@dataclass(frozen=True)
class DenseLogistic:
    """Logistic regression on standardised activations, the penalty on squares chosen by validation."""

    penalties: Sequence[float] = PENALTIES
    name: str = "logistic"
    sparse: bool = field(default=False, init=False)

    def settings(self, n: int) -> Sequence[Setting]:
        return [{"penalty": penalty} for penalty in self.penalties]

    def scores(self, train: Examples, others: Examples, settings: Sequence[Setting]) -> Scores:
        x, y = standardised(train, others)
        weights, bias = l2_logistic(x, train.positive, [each["penalty"] for each in settings])
        return weights @ y.T + bias[:, None]

    def told(self, train: Examples, setting: Setting) -> Setting:
        return setting


@dataclass(frozen=True)
class PrincipalLogistic:
    """Logistic regression of penalty 1 on the first principal components of standardised activations, how
    many of at most `most` chosen by validation."""

    most: int = 100
    name: str = "PCA"
    sparse: bool = field(default=False, init=False)

    def settings(self, n: int) -> Sequence[Setting]:
        return [{"components": each} for each in log_spaced(1, max(1, min(self.most, n - 1)), _TRIED)]

    def scores(self, train: Examples, others: Examples, settings: Sequence[Setting]) -> Scores:
        x, y = standardised(train, others)
        axes = torch.linalg.svd(x, full_matrices=False).Vh
        found = []
        for setting in settings:
            some = axes[: setting["components"]]
            weights, bias = l2_logistic(x @ some.T, train.positive, [1.0])
            found.append(y @ some.T @ weights[0] + bias[0])
        return torch.stack(found)

    def told(self, train: Examples, setting: Setting) -> Setting:
        return setting


@dataclass(frozen=True)
class Neighbours:
    """The share of positives among the nearest training texts, less a half; standardised activations, how
    many of at most `most` chosen by validation."""

    most: int = 100
    name: str = "neighbours"
    sparse: bool = field(default=False, init=False)

    def settings(self, n: int) -> Sequence[Setting]:
        return [{"neighbours": each} for each in reversed(log_spaced(1, min(self.most, n), _TRIED))]

    def scores(self, train: Examples, others: Examples, settings: Sequence[Setting]) -> Scores:
        x, y = standardised(train, others)
        most = max(setting["neighbours"] for setting in settings)
        away = torch.cdist(y, x, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = away.sort(dim=1, stable=True).indices[:, :most]
        among = train.labels.double()[nearest].cumsum(1)
        return torch.stack([among[:, s["neighbours"] - 1] / s["neighbours"] - 0.5 for s in settings])

    def told(self, train: Examples, setting: Setting) -> Setting:
        return setting


@dataclass(frozen=True)
class Trees:
    """Gradient-boosted trees of scikit-learn (extra `trees`), the best by validation of `draws` settings
    drawn at random; each split sees the square root of the coordinates.

    Raises ImportError without scikit-learn, when it is to fit.
    """

    draws: int = 4
    seed: int = 0
    name: str = "trees"
    sparse: bool = field(default=False, init=False)

    def settings(self, n: int) -> Sequence[Setting]:
        rng = random.Random(self.seed)
        return [
            {
                "n_estimators": rng.choice([50, 100, 150]),
                "max_depth": rng.choice([2, 3, 4]),
                "learning_rate": round(10 ** rng.uniform(-1.5, -0.5), 4),
                "subsample": round(rng.uniform(0.7, 1.0), 3),
            }
            for _ in range(self.draws)
        ]

    def scores(self, train: Examples, others: Examples, settings: Sequence[Setting]) -> Scores:
        try:
            from sklearn.ensemble import GradientBoostingClassifier
        except ImportError:
            raise ImportError(MISSING_TREES) from None
        found = []
        for setting in settings:
            kept: Any = dict(setting)
            trees = GradientBoostingClassifier(max_features="sqrt", random_state=self.seed, **kept)
            trees.fit(train.acts.numpy(), train.labels.numpy())
            found.append(torch.from_numpy(trees.decision_function(others.acts.numpy())))
        return torch.stack(found)

    def told(self, train: Examples, setting: Setting) -> Setting:
        return setting


@dataclass(frozen=True)
class OfRecipes:
    """Probes by recipes of `interventions.probing`, such as `Trained(hidden=(32,))`: the best of them."""

    name: str
    recipes: Sequence[Recipe]
    sparse: bool = field(default=False, init=False)

    def settings(self, n: int) -> Sequence[Setting]:
        return [{"recipe": i} for i in range(len(self.recipes))]

    def scores(self, train: Examples, others: Examples, settings: Sequence[Setting]) -> Scores:
        probes = [self.recipes[each["recipe"]].fit(train.acts, train.labels) for each in settings]
        found = [_logits(probe.logits(others.acts)) for probe in probes]
        return torch.stack(found)

    def told(self, train: Examples, setting: Setting) -> Setting:
        return {"recipe": repr(self.recipes[setting["recipe"]])}


def baselines(*, seed: int = 0, trees: int = 4, epochs: int = 30) -> list[Method]:
    """Logistic regression, PCA with logistic regression, nearest neighbours, difference of means, a
    perceptron of 32 hidden units, and where scikit-learn is there, boosted trees of `trees` settings.

    >>> [method.name for method in baselines()]
    ['logistic', 'PCA', 'neighbours', 'mean difference', 'MLP', 'trees']
    """
    perceptron = Trained(hidden=(32,), lr=3e-3, epochs=epochs, seed=seed)
    found: list[Method] = [
        DenseLogistic(),
        PrincipalLogistic(),
        Neighbours(),
        OfRecipes("mean difference", (MeanDifference(),)),
        OfRecipes("MLP", (perceptron,)),
    ]
    return [*found, Trees(trees, seed)] if trees and has_trees() else found


def has_trees() -> bool:
    """Whether scikit-learn is installed."""
    from importlib.util import find_spec

    return find_spec("sklearn") is not None


def log_spaced(low: int, high: int, n: int) -> list[int]:
    """At most `n` different whole numbers from `low` to `high`, evenly apart in their logarithms.

    >>> log_spaced(1, 100, 5)
    [1, 3, 10, 31, 100]
    """
    if high <= low or n < 2:
        return [high]
    steps = [low * (high / low) ** (i / (n - 1)) for i in range(n)]
    return sorted({min(high, int(step + 1e-9)) for step in steps})


def _logits(found: Tensor) -> Tensor:
    """Of class 1 over class 0, also where there is a logit for each."""
    return found if found.ndim == 1 else found[:, 1] - found[:, 0]
