"""How good the scores of a probe are: ranks, accuracy, calibration."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..steering import controls
from ..steering.confidence import Estimate, resampled
from ..steering.pair_activations import grouped
from .examples import Labels, classes

_CHUNK = 2**22  # weights held at a time


def auroc(scores: Float[Tensor, " example"], labels: Labels) -> float:
    """How often an example of class 1 scores above one of class 0, half a time where they are level; exact.

    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.8]), [0, 0, 1, 1])
    0.875
    """
    scores, positive = _scored(scores, labels)
    return controls.auroc(scores[positive], scores[~positive]).item()


def auroc_interval(
    scores: Float[Tensor, " example"],
    labels: Labels,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    """The AUROC with a percentile bootstrap interval (Efron 1979): examples are drawn with replacement, or
    where `groups` has a label for each, whole groups of them. Draws of a single class are left out.

    >>> print(auroc_interval(torch.tensor([0.1, 0.4, 0.4, 0.8, 0.2, 0.9]), [0, 0, 1, 1, 0, 1]))
    0.9444 [0.7, 1]

    Raises:
        ValueError: a confidence that is not between 0 and 1, or no resamples.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence={confidence}, resamples={resamples}: the one lies between 0 and 1, such as 0.95, "
            "the other is at least 1."
        )
    found = auroc(scores, labels)
    scores, positive = _scored(scores, labels)
    together = grouped(len(scores), groups)
    member = torch.empty(len(scores), dtype=torch.long)
    for i, group in enumerate(together):
        member[group] = i
    drawn: list[Tensor] = []
    size = max(1, _CHUNK // len(scores))
    for start in range(0, resamples, size):
        counts = resampled(len(together), min(size, resamples - start), seed + start)[:, member]
        drawn.append(drawn_aurocs(scores, positive, counts))
    every = torch.cat(drawn)
    every = every[every.isfinite()]
    if not len(every):
        return Estimate(found, float("nan"), float("nan"), len(scores))
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = every.quantile(tail).tolist()
    return Estimate(found, low, high, len(scores))


def drawn_aurocs(
    scores: Float[Tensor, " example"],
    positive: Bool[Tensor, " example"],
    counts: Float[Tensor, "draw example"],
) -> Float[Tensor, " draw"]:
    """The AUROC of each draw of examples, by how often each is drawn; NaN for draws of a single class.

    >>> drawn_aurocs(torch.tensor([0.0, 1.0]), torch.tensor([False, True]), torch.tensor([[1.0, 1], [2, 0]]))
    tensor([1., nan])
    """
    levels, level = scores.unique(return_inverse=True)
    sides = [
        counts.new_zeros(len(counts), len(levels)).index_add_(1, level[side], counts[:, side])
        for side in (positive, ~positive)
    ]
    above = (sides[0] * (sides[1].cumsum(1) - sides[1] / 2)).sum(1)
    return above / (sides[0].sum(1) * sides[1].sum(1))


def accuracy(logits: Float[Tensor, "example *class"], labels: Labels) -> float:
    """The share of examples whose class is the most probable one; a logit of 0 counts half.

    >>> accuracy(torch.tensor([-1.0, 2.0, 3.0, 0.0]), [0, 0, 1, 1])
    0.625
    """
    found = classes(labels, len(logits))
    if logits.ndim == 1:
        sign = logits.detach().cpu().double().sign()
        return ((1 + sign * (2 * found - 1)) / 2).mean().item()
    return (logits.detach().cpu().argmax(-1) == found).double().mean().item()


def calibration_error(probabilities: Float[Tensor, " example"], labels: Labels, *, bins: int = 10) -> float:
    """The expected calibration error: how far the mean probability of class 1 is from the share of class 1.

    In `bins` parts of the examples in order of probability, with as many in each, and averaged over these
    (Nguyen and O'Connor 2015). Parts of equal width have few examples where a probe is sure of most.

    >>> calibration_error(torch.tensor([0.0, 0.0, 1.0, 1.0]), [0, 0, 1, 1], bins=2)
    0.0
    """
    scores, positive = _scored(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins={bins}: at least one.")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("Probabilities lie from 0 to 1; these do not. See `Probe.probabilities`.")
    level, counts = scores.unique(return_inverse=True, return_counts=True)[1:]
    shares = torch.zeros(len(counts), dtype=scores.dtype).index_add_(0, level, positive.double()) / counts
    order = scores.argsort()  # of those that are level no order is better than another: each has their share
    parts = zip(scores[order].tensor_split(bins), shares[level[order]].tensor_split(bins), strict=True)
    return sum((p.sum() - y.sum()).abs().item() for p, y in parts) / len(scores)


def _scored(scores: Any, labels: Labels) -> tuple[Float[Tensor, " example"], Int[Tensor, " example"]]:
    scores = torch.as_tensor(scores).detach().cpu().double()
    if scores.ndim != 1:
        raise ValueError(f"One score to an example, not {tuple(scores.shape)}; of several classes take one.")
    if scores.isnan().any():
        raise ValueError(f"The score of example {int(scores.isnan().nonzero()[0])} is NaN.")
    found = classes(labels, len(scores))
    if int(found.max()) > 1:
        raise ValueError("Scores rank two classes, 0 and 1; give `labels == k` for one of several.")
    return scores, found.bool()
