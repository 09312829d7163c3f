"""Probes of pooled activations, and what ablating features does to their answers, without decoding again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..probing import Probe, Recipe
from ..steering.confidence import resampled
from .pooled import Pooled

SIZES = (2, 5, 10, 20, 50, 100, 500)
RESAMPLES = 1000


def checked(sizes: Sequence[int]) -> tuple[int, ...]:
    """Numbers of features to ablate. Raises ValueError where there are none, or for what is no number."""
    if not sizes or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise ValueError(f"sizes: one or several numbers of features, from 0 on, not {sizes!r}.")
    return tuple(sizes)


def fitted(recipe: Recipe, pooled: Pooled, texts: Int[Tensor, " n"], labels: Bool[Tensor, " n"]) -> Probe:
    """A probe of what the site holds, pooled over the tokens of some texts.

    Raises TypeError for one that is not linear: of it, what features add cannot be taken off.
    """
    probe = recipe.fit(pooled.acts[texts], labels)
    if not isinstance(probe, Probe) or probe.weights.ndim != 1:
        raise TypeError(f"The probes are linear ones of two classes; {recipe!r} gave {probe!r}.")
    return probe.to(torch.float64)


def differences(
    pooled: Pooled, texts: Int[Tensor, " n"], labels: Bool[Tensor, " n"]
) -> Float[Tensor, " feature"]:
    """How much higher the mean of each feature is where the label is 1."""
    return pooled.means(texts[labels]) - pooled.means(texts[~labels])


def attributions(
    pooled: Pooled, probe: Probe, texts: Int[Tensor, " n"], labels: Bool[Tensor, " n"]
) -> Float[Tensor, " feature"]:
    """What each feature does for a probe: how much higher its mean is where the label is 1, times what it
    adds to the logit."""
    return differences(pooled, texts, labels) * pooled.slopes(probe.direction)


def strongest(effects: Float[Tensor, " feature"], n: int) -> Int[Tensor, " chosen"]:
    """The features of the `n` largest effects, largest first, and none whose effect is not above zero; of
    those that are level, the lower number first."""
    order = effects.argsort(descending=True, stable=True)[:n]
    return order[effects[order] > 0]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Some features, the most wanted first, and what is gone of each text's mean when they are zero."""

    values: Float[Tensor, "text chosen"]
    rows: Float[Tensor, "chosen d_model"]

    @classmethod
    def of(cls, pooled: Pooled, features: Int[Tensor, " chosen"]) -> Ablation:
        return cls(pooled.some(features), pooled.rows(features))


def ablated_logits(
    pooled: Pooled,
    probe: Probe,
    texts: Int[Tensor, " n"],
    ablation: Ablation,
    sizes: Sequence[int],
) -> Float[Tensor, "size n"]:
    """What a probe says of texts when the first so many of some features are zero at every token.

    Exact: of the logit is taken what the features add to it, in means over tokens.
    """
    added = ablation.values[texts] * (ablation.rows @ probe.direction.double().cpu())
    gone = torch.cat([torch.zeros(len(texts), 1, dtype=added.dtype), added.cumsum(1)], dim=1)
    logits = probe.logits(pooled.acts[texts])
    return torch.stack([logits - gone[:, min(size, added.shape[1])] for size in sizes])


def right(logits: Float[Tensor, "*size n"], labels: Bool[Tensor, " n"]) -> Float[Tensor, "*size n"]:
    """1 where the sign of a logit says the label, 0 where not; a logit of 0 counts half.

    >>> right(torch.tensor([-1.0, 2.0, 0.0]), torch.tensor([False, False, True]))
    tensor([1.0000, 0.0000, 0.5000], dtype=torch.float64)
    """
    return (1 + logits.double().sign() * (2 * labels.double() - 1)) / 2


def redrawn(
    outcomes: Float[Tensor, "*size n"],
    texts: Int[Tensor, " n"],
    groups: Int[Tensor, " n"],
    n_texts: int,
) -> Float[Tensor, "resample ..."]:
    """Means of outcomes over texts that are drawn anew with replacement (Efron 1979), the same ones for all
    sets of texts of as many; every group has the same weight however often it is drawn, as it has among
    `outcomes`."""
    counts = resampled(n_texts, RESAMPLES, 0)[:, texts]
    flat, means = outcomes.reshape(-1, outcomes.shape[-1]), []
    for group in groups.unique():
        some = counts[:, groups == group]
        means.append(some @ flat[:, groups == group].T / some.sum(1, keepdim=True))
    return torch.stack(means).nanmean(0).reshape(-1, *outcomes.shape[:-1])


def interval(drawn: Float[Tensor, "resample size"], confidence: float) -> Float[Tensor, "size bound"]:
    """The percentile bootstrap interval. Raises ValueError for a confidence that is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: it lies between 0 and 1, such as 0.95.")
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    return drawn.nanquantile(tail, dim=0).T
