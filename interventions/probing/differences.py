"""Probes of differences within contrast pairs, and random directions beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..steering import controls
from .examples import Labels, classes, contrast_pairs
from .probe import Probe, Recipe


@dataclass(frozen=True)
class OnDifferences:
    """A recipe for single activations fitted to the first side less the second of contrast pairs.

    Every variant counts as an example. `Probe.scores` of pairs rank them; its logits and bias are of
    differences. `OnDifferences(Logistic())`, `OnDifferences(MeanDifference())`.
    """

    recipe: Recipe

    def fit(self, x: Float[Tensor, "example *variant 2 d_model"], labels: Labels) -> Probe:
        """A probe of contrast pairs; labels 1 where the first side is the true one."""
        pairs, found = contrast_pairs(x, labels)
        assert found is not None
        rows = (pairs[:, :, 0] - pairs[:, :, 1]).flatten(0, 1)
        probe = self.recipe.fit(rows, found.repeat_interleave(pairs.shape[1]))
        if not isinstance(probe, Probe):
            raise ValueError(
                f"{self.recipe!r} makes no affine probe: what it says of a difference is not the "
                "difference of what it says of the sides."
            )
        return replace(probe, how={**probe.how, "recipe": repr(self)})


def ranked(x: Float[Tensor, "example *pair d_model"]) -> Float[Tensor, "example d_model"]:
    """What a direction ranks examples by: activations, or of contrast pairs the first side less the second,
    the mean over variants."""
    if x.ndim == 2:
        return x
    found = x[..., 0, :] - x[..., 1, :]
    return found if found.ndim == 2 else found.mean(1)


def random_aurocs(
    x: Float[Tensor, "example *pair d_model"],
    labels: Labels,
    held_out: Float[Tensor, "other *pair d_model"],
    held_out_labels: Labels,
    *,
    n: int = 1000,
    seed: int = 0,
) -> Float[Tensor, " n"]:
    """The held-out AUROC of `n` directions drawn uniformly, each with the sign that is better on `x`.

    What a direction has to be above in order to say more than that the classes lie apart: with few
    dimensions that matter, random ones do well. Half of the AUROCs are above .5 where they do not.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> random_aurocs(x, [0, 0, 1, 1], x, [0, 1, 0, 1], n=3)
    tensor([0.7500, 0.7500, 0.7500], dtype=torch.float64)
    """
    if n < 1:
        raise ValueError(f"n={n}: at least one direction.")
    rows, others = (ranked(each.detach().cpu().double()) for each in (x, held_out))
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"x has width {rows.shape[1]}, and what is held out {others.shape[1]}.")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, n, 200):
        drawn = torch.randn(min(200, n - start), rows.shape[1], generator=generator, dtype=torch.float64)
        seen, unseen = (_aurocs(drawn @ each.T, y) for each, y in ((rows, labels), (others, held_out_labels)))
        found.append(unseen.where(seen >= 0.5, 1 - unseen))
    return torch.cat(found)


def _aurocs(scores: Float[Tensor, "n example"], labels: Labels) -> Float[Tensor, " n"]:
    positive = classes(labels, scores.shape[1]).bool()
    return controls.auroc(scores[:, positive], scores[:, ~positive])
