"""Mean AUROCs over situations and their differences, with intervals over the texts that are tested on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..probing.scores import drawn_aurocs
from ..steering.confidence import Estimate, resampled
from .trials import Trial, Tried

Picked = Sequence[Tried]


def mean_auroc(
    trials: Sequence[Trial], picked: Picked, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The mean over trials of the test AUROC of one method in each, with a percentile bootstrap interval.

    Test texts are drawn with replacement, those that several trials share together; where there are several
    kinds of data, these are drawn too.
    """
    values = [one.test for one in picked]
    return _estimate(trials, values, _drawn(trials, picked, resamples, seed), confidence, seed)


def mean_difference(
    trials: Sequence[Trial],
    picked: Picked,
    others: Picked,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How much higher the mean test AUROC of some methods is than that of others in the same trials, with an
    interval that is paired: both are of the same draws. Exactly 0 where both picked the same everywhere."""
    values = [one.test - other.test for one, other in zip(picked, others, strict=True)]
    apart = _drawn(trials, picked, resamples, seed) - _drawn(trials, others, resamples, seed)
    return _estimate(trials, values, apart, confidence, seed)


def _drawn(
    trials: Sequence[Trial], picked: Picked, resamples: int, seed: int
) -> Float[Tensor, "trial resample"]:
    found = []
    for trial, one in zip(trials, picked, strict=True):
        n = len(trial.labels)
        counts = resampled(n, resamples, seed + zlib.crc32(trial.data.encode()))
        found.append(drawn_aurocs(torch.tensor(one.ranks).double(), trial.positive, counts))
    return torch.stack(found)


def _estimate(
    trials: Sequence[Trial], values: Sequence[float], drawn: Tensor, confidence: float, seed: int
) -> Estimate:
    mean = sum(values) / len(values)
    kinds = sorted({trial.data for trial in trials})
    member = torch.tensor([kinds.index(trial.data) for trial in trials])
    weight = torch.ones_like(drawn)
    if len(kinds) > 1:
        weight = resampled(len(kinds), drawn.shape[1], seed)[:, member].T
    weight = weight.where(drawn.isfinite(), 0.0)
    means = (weight * drawn.nan_to_num()).sum(0) / weight.sum(0)
    means = means[means.isfinite()]
    if not len(means):
        return Estimate(mean, float("nan"), float("nan"), len(values))
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = means.quantile(tail).tolist()
    return Estimate(mean, low, high, len(values))
