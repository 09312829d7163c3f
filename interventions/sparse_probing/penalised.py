"""Logistic regressions of two classes for several penalties at once: on squares of weights, or on sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PENALTIES = tuple(10.0 ** (5 - 10 * i / 9) for i in range(10))  # 1/C of SAE-Probes, the strongest first
_STEPS, _FLAT = 50, 1e-8  # at most; the gradient of the mean loss at which the search ends
_FEW, _FASTER, _GAP = 10, 20.0, 1e-3  # steps before a barrier is followed; its own; penalties at its end

Rows = Float[Tensor, "text d_model"]
Fit = tuple[Float[Tensor, "penalty d_model"], Float[Tensor, " penalty"]]
Solver = Callable[[Rows, Bool[Tensor, " text"], Sequence[float]], Fit]


def l2_logistic(x: Rows, positive: Bool[Tensor, " text"], penalties: Sequence[float]) -> Fit:
    """Weights and intercept of least loss for each penalty: cross-entropy summed over texts, and the penalty
    times half the squares of the weights. A penalty is 1/C of scikit-learn; the intercept is free.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> l2_logistic(x, torch.tensor([False, False, True, True]), [1.0, 0.1])[0].shape
    torch.Size([2, 1])
    """
    centre = x.double().mean(0)
    rows = x.double() - centre
    axes = torch.linalg.svd(rows, full_matrices=False).Vh if len(rows) <= rows.shape[1] else None
    rows = rows if axes is None else rows @ axes.T  # weights have no part outside of the span of the texts
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    theta = torch.stack(_path(rows, positive, penalties, _least_squared))
    weights = theta[:, :-1] if axes is None else theta[:, :-1] @ axes
    return weights, theta[:, -1] - weights @ centre


def l1_logistic(x: Rows, positive: Bool[Tensor, " text"], penalties: Sequence[float]) -> Fit:
    """Weights and intercept of least loss for each penalty: cross-entropy summed over texts, and the penalty
    times the sizes of the weights, so that many are zero. A penalty is 1/C; the intercept is free.

    Newton's method within the orthant that each step starts in (Andrew and Gao 2007), each penalty started
    from the solution for the next stronger one; where a few steps do not do, as with weak penalties, first a
    barrier is followed (Koh, Kim and Boyd 2007).

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    >>> l1_logistic(x, torch.tensor([False, False, True, True]), [0.5])[0]
    tensor([[1.7419, 0.0000]], dtype=torch.float64)
    """
    centre = x.double().mean(0)
    rows = torch.cat([x.double() - centre, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    theta = torch.stack(_path(rows, positive, penalties, _least_sized))
    weights = theta[:, :-1]
    return weights, theta[:, -1] - weights @ centre


def _path(rows: Tensor, positive: Tensor, penalties: Sequence[float], solve: Callable[..., Tensor]) -> list:
    """The solution for each penalty, each started from that for the next stronger one."""
    theta = torch.zeros(rows.shape[1], dtype=rows.dtype)
    found: dict[float, Tensor] = {}
    for penalty in sorted(set(penalties), reverse=True):
        each = torch.full_like(theta, penalty)
        each[-1] = 0  # the intercept
        theta = found[penalty] = solve(rows, positive.double(), each, theta)
    return [found[penalty] for penalty in penalties]


def _least_squared(rows: Tensor, targets: Tensor, squares: Tensor, theta: Tensor) -> Tensor:
    """Newton's method with ever smaller steps where the whole one does not lower the loss."""

    def loss(theta: Tensor) -> float:
        return (_entropy(rows, targets, theta) + (squares * theta.square()).sum() / 2).item()

    value = loss(theta)
    for _ in range(_STEPS):
        p = (rows @ theta).sigmoid()
        slope = rows.T @ (p - targets) + squares * theta
        if slope.norm() <= _FLAT * len(rows):
            break
        step = _newton(rows, p, slope, squares)
        length, gain = 1.0, 1e-4 * (slope @ step).item()
        while (lower := loss(theta + length * step)) > value + length * gain and length > 1e-12:
            length /= 2
        if lower >= value:  # as low as numbers of this precision go
            break
        theta, value = theta + length * step, lower
    return theta


def _least_sized(rows: Tensor, targets: Tensor, sizes: Tensor, theta: Tensor) -> Tensor:
    theta, done = _in_orthants(rows, targets, sizes, theta, _FEW)
    if done:
        return theta
    inside = _inside(rows, targets, sizes)
    slope = rows.T @ ((rows @ inside).sigmoid() - targets)
    near = inside.where((slope.abs() > 0.999 * sizes) | (sizes == 0), torch.zeros_like(inside))
    return _in_orthants(rows, targets, sizes, near, _STEPS)[0]


def _in_orthants(
    rows: Tensor, targets: Tensor, sizes: Tensor, theta: Tensor, steps: int
) -> tuple[Tensor, bool]:
    """Newton steps that leave the signs of the weights as they are, and whether they came to an end."""
    value = _loss(rows, targets, sizes, theta)
    for _ in range(steps):
        p = (rows @ theta).sigmoid()
        slope = _slope(rows.T @ (p - targets), sizes, theta)
        if slope.norm() <= _FLAT * len(rows):
            return theta, True
        orthant = theta.sign().where(theta != 0, -slope.sign())
        for step in (_newton(rows, p, slope, torch.zeros_like(slope)), -slope):
            aligned = step.where((theta != 0) | (step * orthant > 0) | (sizes == 0), torch.zeros_like(step))
            new, lower = _along(rows, targets, sizes, theta, aligned, orthant, slope, value)
            if lower < value:
                break
        else:  # as low as numbers of this precision go
            return theta, True
        theta, value = new, lower
    return theta, False


def _inside(rows: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
    """The least loss but for a gap, by Newton's method on weights and their bounds, which a barrier keeps
    apart. Bounds are eliminated from each step."""
    theta, bound = torch.zeros_like(sizes), torch.ones_like(sizes)
    bounded, penalty = sizes > 0, sizes.max().item()
    weight = 1 / penalty

    def loss(theta: Tensor, bound: Tensor) -> float:
        if (bound <= theta.abs())[bounded].any():
            return float("inf")
        smooth = _entropy(rows, targets, theta) + (sizes * bound).sum()
        return (weight * smooth - (bound.square() - theta.square())[bounded].log().sum()).item()

    while True:
        for _ in range(_STEPS):
            p = (rows @ theta).sigmoid()
            apart = (bound.square() - theta.square()).where(bounded, 1.0)
            down = weight * (rows.T @ (p - targets)) + (2 * theta / apart).where(bounded, 0.0)
            out = (weight * penalty - 2 * bound / apart).where(bounded, 0.0)
            own = (2 * (bound.square() + theta.square()) / apart.square()).where(bounded, 1.0)
            cross = (-4 * bound * theta / apart.square()).where(bounded, 0.0)
            bent = weight * (rows.T @ (rows * (p * (1 - p))[:, None]))
            left = 2 / (bound.square() + theta.square())  # of own - cross^2 / own, without cancellation
            bent.diagonal().add_(left.where(bounded, 1e-12 * weight))
            right = cross / own * out - down
            step = torch.cholesky_solve(right[:, None], torch.linalg.cholesky_ex(bent).L)[:, 0]
            wider = -(out + cross * step) / own
            gain = -(down @ step + out @ wider).item()
            if not gain > 1e-6:
                break
            length, value = 1.0, loss(theta, bound)
            while length > 1e-10 and not (
                loss(theta + length * step, bound + length * wider) <= value - 0.01 * length * gain
            ):
                length /= 2
            if length <= 1e-10:
                break
            theta, bound = theta + length * step, bound + length * wider
        if 2 * bounded.sum().item() / weight <= _GAP * penalty:
            return theta
        weight *= _FASTER


def _along(
    rows: Tensor, targets: Tensor, sizes: Tensor, theta: Tensor, step: Tensor, orthant: Tensor,
    slope: Tensor, value: float,
) -> tuple[Tensor, float]:  # fmt: skip
    """The first of ever smaller steps that lowers the loss by its slope's measure; weights that would change
    their sign stop at zero."""
    length = 1.0
    while length > 1e-12:
        new = theta + length * step
        new = new.where((new * orthant >= 0) | (sizes == 0), torch.zeros_like(new))
        found = _loss(rows, targets, sizes, new)
        if found <= value + 1e-4 * (slope * (new - theta)).sum().item():
            return new, found
        length /= 2
    return theta, value


def _newton(rows: Tensor, p: Tensor, slope: Tensor, squares: Tensor) -> Tensor:
    """The step among what is free to move: what has a slope."""
    free = slope != 0
    part = rows if free.all() else rows[:, free]
    bent = part.T @ (part * (p * (1 - p))[:, None])
    bent.diagonal().add_(squares[free])
    bent.diagonal().add_(1e-9 * bent.diagonal().max().clamp_min(1e-10))
    step = torch.zeros_like(slope)
    step[free] = -torch.cholesky_solve(slope[free][:, None], torch.linalg.cholesky_ex(bent).L)[:, 0]
    return step.nan_to_num(0.0, 0.0, 0.0)


def _slope(gradient: Tensor, sizes: Tensor, theta: Tensor) -> Tensor:
    """The steepest of the one-sided slopes, zero where staying at zero is best."""
    at_zero = gradient.sign() * (gradient.abs() - sizes).clamp_min(0)
    return (gradient + sizes * theta.sign()).where(theta != 0, at_zero)


def _loss(rows: Tensor, targets: Tensor, sizes: Tensor, theta: Tensor) -> float:
    return (_entropy(rows, targets, theta) + (sizes * theta.abs()).sum()).item()


def _entropy(rows: Tensor, targets: Tensor, theta: Tensor) -> Tensor:
    logits = rows @ theta
    return torch.nn.functional.softplus(logits).sum() - logits @ targets
