"""Each metric against the plain formula, example by example."""

from __future__ import annotations

import math

import pytest
import torch

from tasks import (
    KL,
    METRICS,
    Batch,
    LogitDifference,
    LogProbability,
    Probability,
    ProbabilityDifference,
)

ANSWERS = [[1, 2, 3], [4], [0, 5]]
FOILS = [[6], [7, 8], [9, 10, 11, 12]]


def filled(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.zeros(3, 4, dtype=torch.long), None, filled(ANSWERS), filled(FOILS))


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(
        3, 4, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()


def naive(name: str, row: list[float], answers: list[int], foils: list[int]) -> float:
    total = sum(math.exp(x) for x in row)
    p = [math.exp(x) / total for x in row]
    match name:
        case "logit_difference":
            return sum(row[a] for a in answers) / len(answers) - sum(row[f] for f in foils) / len(foils)
        case "log_probability":
            return math.log(sum(p[a] for a in answers))
        case "probability":
            return sum(p[a] for a in answers)
        case "probability_difference":
            return sum(p[a] for a in answers) - sum(p[f] for f in foils)
        case "kl":  # to the uniform prediction
            return sum(math.log(1 / len(p) / q) for q in p) / len(p)
    raise AssertionError(f"No plain formula for {name}.")


@pytest.mark.parametrize("name", METRICS)
def test_metrics_equal_their_plain_formulas(name, batch, logits):
    value = METRICS[name](logits, batch.referenced(torch.zeros_like(logits)))
    rows = logits[:, -1].tolist()
    expected = [naive(name, *example) for example in zip(rows, ANSWERS, FOILS, strict=True)]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", METRICS)
def test_metrics_have_the_gradients_of_finite_differences(name, batch, logits):
    batch = batch.referenced(torch.zeros_like(logits))
    assert torch.autograd.gradcheck(lambda x: METRICS[name](x, batch), logits)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_keep_the_dtype_of_the_logits(name, dtype, batch, logits):
    logits = logits.to(dtype)
    assert METRICS[name](logits, batch.referenced(logits)).dtype == dtype


@pytest.mark.parametrize("name", METRICS)
def test_metrics_read_the_last_position_only(name, batch, logits):
    value = METRICS[name](logits, batch.referenced(torch.zeros_like(logits)))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient[:, -1].ne(0).any()
    assert gradient[:, :-1].eq(0).all()


def test_kl_is_zero_at_the_reference_and_positive_elsewhere(batch, logits):
    assert KL()(logits, batch.referenced(logits)).detach().numpy() == pytest.approx(0, abs=1e-12)
    assert (KL()(logits, batch.referenced(logits.flip(0) + torch.arange(13))) > 0).all()


def test_kl_counts_tokens_that_neither_side_allows_as_nothing(batch, logits):
    barred = logits.masked_fill(torch.arange(13) == 12, -torch.inf)
    value = KL()(barred, batch.referenced(torch.zeros_like(logits) + barred.detach() * 0.5))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all() and gradient.isfinite().all()


def test_kl_without_a_reference_says_what_to_do(batch, logits):
    with pytest.raises(ValueError, match=r"pass `batch.referenced\(logits\)`"):
        KL()(logits, batch)


def test_logit_difference_without_foils_is_refused(logits):
    batch = Batch(torch.zeros(3, 4, dtype=torch.long), None, filled(ANSWERS), filled([[1], [], [2]]))
    with pytest.raises(ValueError, match="at least one foil"):
        LogitDifference()(logits, batch)
    assert LogProbability()(logits, batch).isfinite().all()
    assert ProbabilityDifference()(logits, batch)[1] == Probability()(logits, batch)[1]


def test_metrics_are_values():
    assert LogitDifference() == LogitDifference() != LogProbability()
    assert repr(METRICS["kl"]) == "KL()"
