"""Numbers to explain: each metric gives one per example, read from the logits after the last token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .batch import Batch


@runtime_checkable
class Metric(Protocol):
    """A differentiable function of the logits, larger where the model does what the task asks.

    One that has an attribute `last_only`, and it is True, may be handed the logits after the last token
    alone, `(batch 1 vocab)`.
    """

    def __call__(self, logits: Float[Tensor, "batch pos vocab"], batch: Batch) -> Float[Tensor, " batch"]: ...


@dataclass(frozen=True)
class LogitDifference:
    """The mean logit of the answers minus the mean logit of the foils.

    >>> batch = Batch(torch.tensor([[7]]), None, torch.tensor([[0]]), torch.tensor([[1, 2]]))
    >>> LogitDifference()(torch.tensor([[[5.0, 1.0, 2.0]]]), batch)
    tensor([3.5000])
    """

    last_only: ClassVar[bool] = True

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        last = logits[:, -1]
        return _mean(last, batch.answers, "answer") - _mean(last, batch.foils, "foil")


@dataclass(frozen=True)
class LogProbability:
    """The log of the probability that the next token is one of the answers, in nats."""

    last_only: ClassVar[bool] = True

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        at, given = _at(logits[:, -1].log_softmax(-1), batch.answers)
        return at.masked_fill(~given, -torch.inf).logsumexp(-1)


@dataclass(frozen=True)
class Probability:
    """The probability that the next token is one of the answers."""

    last_only: ClassVar[bool] = True

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        return _total(logits[:, -1].softmax(-1), batch.answers)


@dataclass(frozen=True)
class ProbabilityDifference:
    """The probability of the answers minus that of the foils (Hanna et al. 2023, arXiv:2305.00586).

    >>> batch = Batch(torch.tensor([[7]]), None, torch.tensor([[0]]), torch.tensor([[1, 2]]))
    >>> ProbabilityDifference()(torch.zeros(1, 1, 4), batch)
    tensor([-0.2500])
    """

    last_only: ClassVar[bool] = True

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        probabilities = logits[:, -1].softmax(-1)
        return _total(probabilities, batch.answers) - _total(probabilities, batch.foils)


@dataclass(frozen=True)
class KL:
    """The Kullback-Leibler divergence from the batch's reference to the prediction, in nats.

    The one metric that is smallest, 0, where the model does as the reference does.
    """

    last_only: ClassVar[bool] = True

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        if batch.reference is None:
            raise ValueError("KL needs a reference to compare with: pass `batch.referenced(logits)`.")
        p = batch.reference.exp()
        gap = batch.reference - logits[:, -1].log_softmax(-1)
        return torch.where(p > 0, p * gap, 0).sum(-1)  # what cannot happen adds nothing, not nan


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "logit_difference": LogitDifference(),
        "log_probability": LogProbability(),
        "probability": Probability(),
        "probability_difference": ProbabilityDifference(),
        "kl": KL(),
    }
)
"""The metrics that a task file can name."""


def _at(
    values: Float[Tensor, "batch vocab"], tokens: Int[Tensor, "batch n"]
) -> tuple[Float[Tensor, "batch n"], Bool[Tensor, "batch n"]]:
    """The values at the tokens, and which of the tokens are real ones rather than filling."""
    return values.gather(-1, tokens.clamp(min=0)), tokens >= 0


def _total(values: Tensor, tokens: Tensor) -> Tensor:
    at, given = _at(values, tokens)
    return torch.where(given, at, 0).sum(-1)


def _mean(values: Tensor, tokens: Tensor, kind: str) -> Tensor:
    count = (tokens >= 0).sum(-1)
    if not count.all():
        raise ValueError(f"LogitDifference needs at least one {kind} for each example.")
    return _total(values, tokens) / count
