"""Methods and moments against plain formulas of numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interventions.steering import (
    LDA,
    PCA,
    CentredPCA,
    LinearProbe,
    LogisticProbe,
    MeanDifference,
    Moments,
    PairedPCA,
)
from interventions.steering.methods import PairMoments, shrinkage

MANY, FEW = (60, 7), (6, 20)  # more pairs than axes, and fewer
MOMENT_METHODS = [MeanDifference(), PairedPCA(), CentredPCA(), PCA(), LDA(), LDA(0.2), LinearProbe()]
METHODS = [*MOMENT_METHODS, LogisticProbe()]


def classes(shape: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that differ, with a mean far from zero and unequal variances."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.5, 3, shape[1], dtype=torch.float64)
    common = 4 + torch.randn(shape, generator=g, dtype=torch.float64) * scale
    step = torch.randn(shape[1], generator=g, dtype=torch.float64)
    noise = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return common + step + noise[0], common + 0.7 * noise[1]


def scaled(direction: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """As long as the means lie apart along it, towards the positive ones."""
    unit = direction / np.linalg.norm(direction)
    return unit * (unit @ (positive.mean(0) - negative.mean(0)))


def within(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    about = np.concatenate([p - p.mean(0), q - q.mean(0)])
    return about.T @ about / (len(about) - 2)


def of_lda(p: np.ndarray, q: np.ndarray, share: float) -> np.ndarray:
    covariance = within(p, q)
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / p.shape[1] * np.eye(p.shape[1])
    return np.linalg.solve(shrunk, p.mean(0) - q.mean(0))


def oracle(p: np.ndarray, q: np.ndarray) -> float:
    """Equation 23 of Chen et al. 2010, written out."""
    covariance, n, d = within(p, q), 2 * len(p) - 2, p.shape[1]
    square, trace = np.trace(covariance @ covariance), np.trace(covariance)
    return min(1, ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d)))


def of_least_squares(p: np.ndarray, q: np.ndarray, ridge: float) -> np.ndarray:
    x, y = np.concatenate([p, q]), np.repeat([1.0, -1.0], len(p))
    about = x - x.mean(0)
    penalty = ridge * about.var(0).mean() * len(x)
    rows = np.block(
        [[x, np.ones((len(x), 1))], [penalty**0.5 * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))]]
    )
    return np.linalg.lstsq(rows, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0][:-1]


def top(rows: np.ndarray) -> np.ndarray:
    return np.linalg.svd(rows)[2][0]


FORMULAS = [
    (MeanDifference(), lambda p, q: p.mean(0) - q.mean(0)),
    (PairedPCA(), lambda p, q: top(p - q)),
    (PairedPCA(), lambda p, q: top(np.concatenate([p - (p + q) / 2, q - (p + q) / 2]))),
    (CentredPCA(), lambda p, q: top(p - q - (p - q).mean(0))),
    (PCA(), lambda p, q: top(np.concatenate([p, q]) - np.concatenate([p, q]).mean(0))),
    (LDA(0.2), lambda p, q: of_lda(p, q, 0.2)),
    (LDA(1.0), lambda p, q: p.mean(0) - q.mean(0)),
    (LDA(), lambda p, q: of_lda(p, q, oracle(p, q))),
    (LinearProbe(), lambda p, q: of_least_squares(p, q, 0.01)),
    (LinearProbe(1.0), lambda p, q: of_least_squares(p, q, 1.0)),
]


@pytest.mark.parametrize("shape", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("method, formula", FORMULAS)
def test_each_method_is_its_formula(method, formula, shape):
    positive, negative = classes(shape)
    p, q = positive.numpy(), negative.numpy()
    np.testing.assert_allclose(
        method(positive, negative).numpy(), scaled(formula(p, q), p, q), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("shape", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("method", MOMENT_METHODS, ids=repr)
def test_what_comes_in_parts_gives_what_the_whole_gives(method, shape):
    positive, negative = classes(shape)
    whole = method(positive, negative)
    for cuts in ([1], [2, 3], list(range(1, shape[0]))):
        parts = [
            method.moments(p, q) for p, q in zip(_cut(positive, cuts), _cut(negative, cuts), strict=True)
        ]
        total: PairMoments = parts[0]
        for part in parts[1:]:
            total = total + part
        torch.testing.assert_close(method.of_moments(total), whole, rtol=1e-9, atol=1e-10)


def _cut(rows: torch.Tensor, cuts: list[int]) -> list[torch.Tensor]:
    return list(rows.tensor_split(cuts))


@pytest.mark.parametrize("shape", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize("l2", [0.05, 1.0, 30.0])
def test_the_logistic_probe_is_where_its_loss_is_flat(shape, l2):
    positive, negative = classes(shape)
    found = LogisticProbe(l2)(positive, negative)
    rows = torch.cat([positive, negative])
    x = (rows - rows.mean(0)) / (rows - rows.mean(0)).square().mean().sqrt()
    y = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double()

    weights = torch.zeros(shape[1] + 1, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weights],
        lr=1,
        max_iter=3000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        margin = y * (x @ weights[:-1] + weights[-1])
        value = torch.nn.functional.softplus(-margin).sum() + l2 / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    search.step(loss)  # type: ignore[arg-type]
    expected = scaled(weights[:-1].detach().numpy(), positive.numpy(), negative.numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_one_unit_moves_one_mean_to_the_other_along_the_direction(method):
    positive, negative = classes(MANY)
    found = method(positive, negative)
    unit = found / found.norm()
    apart = positive.mean(0) @ unit - negative.mean(0) @ unit
    assert apart > 0
    torch.testing.assert_close(found.norm(), apart)
    torch.testing.assert_close(method(negative, positive), -found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_order_of_pairs_does_not_matter(method):
    positive, negative = classes(MANY)
    order = torch.randperm(len(positive), generator=torch.Generator().manual_seed(1))
    expected = method(positive, negative)
    torch.testing.assert_close(method(positive[order], negative[order]), expected, rtol=1e-5, atol=1e-6)


def test_discriminant_and_least_squares_agree_without_penalties():
    positive, negative = classes(MANY)
    lda, linear = LDA(0.0)(positive, negative), LinearProbe(0.0)(positive, negative)
    torch.testing.assert_close(lda, linear)


def test_whitening_finds_what_a_loud_nuisance_hides():
    g = torch.Generator().manual_seed(0)
    planted = torch.zeros(16, dtype=torch.float64)
    planted[3] = 1.0
    loud = torch.randn(16, generator=g, dtype=torch.float64)
    loud[3] = 0
    positive, negative = (
        torch.randn(400, 1, generator=g, dtype=torch.float64) * 8 * loud
        + torch.randn(400, 16, generator=g, dtype=torch.float64) * 0.3
        + sign * planted / 2
        for sign in (1, -1)
    )

    def cosine(method) -> float:
        return torch.cosine_similarity(method(positive, negative), planted, dim=0).item()

    assert min(cosine(LDA()), cosine(LinearProbe()), cosine(LogisticProbe())) > 0.95
    assert abs(cosine(MeanDifference())) < 0.9 and abs(cosine(PCA())) < 0.1


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_difference_that_all_pairs_share_is_found_as_it_is(method):
    g = torch.Generator().manual_seed(0)
    planted = torch.randn(12, generator=g, dtype=torch.float64)
    common = torch.randn(300, 12, generator=g, dtype=torch.float64) * (0.01 if isinstance(method, PCA) else 1)
    noise = 1e-3 * torch.randn(300, 12, generator=g, dtype=torch.float64)
    found = method(common + planted + noise, common)
    if isinstance(method, CentredPCA):  # the one that looks away from what is shared
        assert torch.cosine_similarity(found, planted, dim=0).abs() < 0.9
    else:
        assert torch.cosine_similarity(found, planted, dim=0) > 0.97


def test_singular_covariances_have_directions_too():
    positive, negative = classes(MANY)
    flat = torch.ones(7, dtype=torch.float64).diag()
    flat[6, 6] = 0
    for method in (LDA(0.0), LinearProbe(0.0)):
        found = method(positive @ flat, negative @ flat)
        assert found.isfinite().all() and found[6].abs() < 1e-8
        torch.testing.assert_close(found[:6], method(positive[:, :6], negative[:, :6]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("width", [3, 30])
def test_classes_without_a_spread_differ_by_their_means(width):
    positive, negative = torch.ones(5, width), torch.zeros(5, width)
    for method in (LDA(), LDA(0.5), LDA(0.0)):
        torch.testing.assert_close(method(positive, negative), torch.ones(width).double())


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"shrinkage=1\.5"):
        LDA(1.5)
    with pytest.raises(ValueError, match="ridge=-1"):
        LinearProbe(-1)
    with pytest.raises(ValueError, match="l2=0"):
        LogisticProbe(0)
    with pytest.raises(ValueError, match="at least two pairs"):
        LDA()(torch.ones(1, 3), torch.zeros(1, 3))


def test_the_shrinkage_of_a_sphere_is_whole():
    assert shrinkage(squares=5.0, trace=5.0, width=5, n=20) == 1.0


# Moments


@pytest.mark.parametrize("cuts", [[], [1], [0, 3, 3], [5, 9], [1, 2, 3, 4], [12]])
def test_moments_of_any_parts_are_those_of_numpy_on_the_whole(cuts):
    rows = 1e3 + torch.randn(12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    total = Moments.of(rows[:0])
    for part in rows.tensor_split(cuts):
        total = total + Moments.of(part)
    assert total.count == 12
    np.testing.assert_allclose(total.mean.numpy(), rows.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance.numpy(), np.cov(rows.numpy().T), rtol=1e-9)
    np.testing.assert_allclose(total.about_zero.numpy(), rows.numpy().T @ rows.numpy() / 12, rtol=1e-12)


def test_moments_of_float32_are_gathered_in_float64():
    rows = 1e4 + torch.randn(2000, 3, generator=torch.Generator().manual_seed(3))
    total = Moments.of(rows[:1])
    for part in rows[1:].split(7):
        total = total + Moments.of(part)
    np.testing.assert_allclose(
        total.covariance.numpy(), np.cov(rows.numpy().astype(np.float64).T), rtol=1e-9, atol=1e-12
    )


def test_moments_without_products_have_a_mean_alone():
    total = Moments.of(torch.ones(2, 3), products=False) + Moments.of(torch.zeros(2, 3))
    assert total.mean.tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="means only"):
        _ = total.covariance
    with pytest.raises(ValueError, match="at least two rows"):
        _ = Moments.of(torch.ones(1, 3)).covariance
    with pytest.raises(ValueError, match="width 3 and 2"):
        _ = Moments.of(torch.ones(1, 3)) + Moments.of(torch.ones(1, 2))


def test_one_pair_is_refused_by_centred_pca_either_way():
    pair = torch.ones(1, 3), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="at least two pairs"):
        CentredPCA()(*pair)
    with pytest.raises(ValueError, match="at least two pairs"):
        CentredPCA().of_moments(CentredPCA().moments(*pair))


@pytest.mark.parametrize("penalty", [float("nan"), float("inf"), -1.0])
def test_penalties_are_finite(penalty):
    with pytest.raises(ValueError, match="a penalty is finite"):
        LinearProbe(penalty)
    with pytest.raises(ValueError, match="a penalty is finite"):
        LogisticProbe(penalty)
