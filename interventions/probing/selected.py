"""The best of several recipes, chosen on examples that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .examples import Labels, classes
from .logistic import Logistic
from .probe import Probe, Recipe
from .scores import accuracy, auroc

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Selected:
    """Fits each of several recipes to a part of the examples, takes the one that does best on the rest, and
    fits it to all.

    The best has the highest accuracy, of several the highest AUROC, of several still the first. Of every
    class about a `share` of the examples is held out, the same ones for all recipes. With groups of examples
    that belong together, hold them out yourself, by `Activations.split`. `how` of the probe says what was
    chosen, and how each did.

    By default five penalties of `Logistic` are tried.

    >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    >>> probe = Selected([Logistic(l2=1.0), Logistic(l2=1e4)]).fit(x, x[:, 0] > 0)
    >>> probe.how["recipe"]
    'Logistic(l2=1.0, standardise=True)'

    Raises:
        ValueError: no recipes, or a share that is not between 0 and 1.
        TypeError: one that has no `fit`.
    """

    recipes: Sequence[Recipe] = tuple(Logistic(l2=l2) for l2 in PENALTIES)
    share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipes", tuple(self.recipes))
        if not self.recipes:
            raise ValueError("There are no recipes to choose from.")
        if odd := [one for one in self.recipes if isinstance(one, type) or not isinstance(one, Recipe)]:
            raise TypeError(f"A recipe has a method fit(x, labels), as Logistic() has; {odd[0]!r} does not.")
        if not 0 < self.share < 1:
            raise ValueError(f"share={self.share}: what is held out lies between 0 and 1.")

    def fit(self, x: Float[Tensor, "example *pair d_model"], labels: Labels) -> Probe:
        """The probe of the best recipe, of all examples.

        Raises:
            ValueError: a class with a single example, of which none is left to choose by; and what the
                recipes refuse.
        """
        found = classes(labels, len(x))
        rest = held_out(found, self.share, self.seed)
        tried = [self._tried(recipe, x, found, rest) for recipe in self.recipes]
        best = max(range(len(tried)), key=lambda i: tried[i])
        probe = self.recipes[best].fit(x, labels)
        scores = [
            {"recipe": repr(recipe), "accuracy": right, "auroc": ranked}
            for recipe, (right, ranked) in zip(self.recipes, tried, strict=True)
        ]
        return replace(probe, how={**probe.how, "selected": {"held_out": int(rest.sum()), "of": scores}})

    def _tried(
        self, recipe: Recipe, x: Tensor, labels: Int[Tensor, " example"], rest: Bool[Tensor, " example"]
    ) -> tuple[float, float]:
        """The accuracy and the AUROC on what is held out."""
        scores, expected = recipe.fit(x[~rest], labels[~rest]).scores(x[rest]), labels[rest]
        if scores.ndim == 1:
            return accuracy(scores, expected), auroc(scores, expected)
        each = [auroc(scores[:, k], expected == k) for k in range(scores.shape[1])]
        return accuracy(scores, expected), sum(each) / len(each)


def held_out(labels: Int[Tensor, " example"], share: float, seed: int) -> Bool[Tensor, " example"]:
    """About a share of the examples of every class, at least one and never all.

    >>> held_out(torch.tensor([0, 0, 0, 0, 1, 1]), 0.25, seed=0).sum()
    tensor(2)

    Raises ValueError for a class with a single example.
    """
    generator, found = torch.Generator().manual_seed(seed), torch.zeros(len(labels), dtype=torch.bool)
    for k in labels.unique().tolist():
        members = (labels == k).nonzero()[:, 0]
        if len(members) < 2:
            raise ValueError(f"There is one example of class {k}: none of it is left to choose a recipe by.")
        size = min(max(1, round(share * len(members))), len(members) - 1)
        found[members[torch.randperm(len(members), generator=generator)[:size]]] = True
    return found
