"""Logistic regressions, solved to the last digit."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEPS, _INNER = 100, 250
_FLAT = 1e-11  # the gradient of the mean loss at which the search ends


def logistic_regression(
    rows: Float[Tensor, "row d_model"],
    labels: Int[Tensor, " row"],
    l2: float,
    each: Float[Tensor, " row"] | None = None,
) -> tuple[Float[Tensor, "class d_model"], Float[Tensor, " class"]]:
    """Weights and intercepts of least loss, in float64: one row of them for two classes, else one for each.

    The loss is the cross-entropy summed over rows, each as often as `each` says, by default once, and
    `l2 / 2` times the sum of the squared weights; intercepts are not penalised. `l2` is 1/C of scikit-learn.
    Classes are counted from 0 on. Newton's method, its steps solved by conjugate gradients along the
    principal axes of the rows, where the Hessian is nearly diagonal (Nocedal and Wright 2006, algorithm 7.1).

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> weights, bias = logistic_regression(x, torch.tensor([0, 0, 1, 1]), 1.0)
    >>> (weights @ torch.tensor([[1.5]], dtype=torch.float64) + bias).abs().item() < 1e-9
    True
    """
    x = rows.detach().cpu().double()
    centre = x.mean(0)
    x = x - centre
    axes = _axes(x)
    x = torch.cat([x @ axes.T, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    n_classes = int(labels.max()) + 1
    targets = torch.nn.functional.one_hot(labels.cpu().long(), max(2, n_classes)).double()
    found = least(x, targets[:, 1:] if n_classes <= 2 else targets, l2, each)
    weights = found[:, :-1] @ axes
    return weights, found[:, -1] - weights @ centre


def _axes(x: Float[Tensor, "row d_model"]) -> Float[Tensor, "axis d_model"]:
    """The principal axes of centred rows; the weights have no part outside of the span of these."""
    if len(x) <= x.shape[1]:
        return torch.linalg.svd(x, full_matrices=False).Vh
    return torch.linalg.eigh(x.T @ x).eigenvectors.T


def least(
    x: Float[Tensor, "row axis"],
    targets: Float[Tensor, "row class"],
    l2: float,
    each: Float[Tensor, " row"] | None = None,
) -> Float[Tensor, "class axis"]:
    """The weights of least loss for targets that are probabilities, of class 1 alone where there are two.

    A row counts as often as `each` says. The last axis of `x`, of ones, is that of the intercept.
    """
    penalty = torch.full((x.shape[1],), l2, dtype=x.dtype)
    penalty[-1] = 0  # the intercept
    theta = x.new_zeros(targets.shape[1], x.shape[1])
    often = torch.ones(len(x), 1, dtype=x.dtype) if each is None else each.detach().cpu().to(x.dtype)[:, None]
    total = often.sum().item()
    value, p = _loss(x, targets, often, penalty, theta)
    for _ in range(_STEPS):
        gradient = (often * (p - targets)).T @ x + penalty * theta
        size = gradient.norm().item()
        if size <= _FLAT * total:
            break
        step = _newton_step(x, p, often, penalty, gradient, min(0.1, (size / total) ** 0.5) * size)
        slope, length = (gradient * step).sum().item(), 1.0
        while length > 1e-10:
            new, chances = _loss(x, targets, often, penalty, theta + length * step)
            if new <= value + 1e-4 * length * slope + 1e-14 * abs(value):
                break
            length /= 2
        else:  # as low as numbers of this precision go
            break
        theta, value, p = theta + length * step, new, chances
    return theta


def _loss(x: Tensor, targets: Tensor, often: Tensor, penalty: Tensor, theta: Tensor) -> tuple[float, Tensor]:
    """The loss, and the probability of each class for each row; a single class is told from nothing."""
    logits = x @ theta.T
    whole = logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1)
    logs = whole.log_softmax(1)[:, -logits.shape[1] :]
    loss = (often * (whole.logsumexp(1, keepdim=True) - (logits * targets).sum(1, keepdim=True))).sum()
    return (loss + (penalty * theta * theta).sum() / 2).item(), logs.exp()


def _newton_step(
    x: Tensor, p: Tensor, often: Tensor, penalty: Tensor, gradient: Tensor, tolerance: float
) -> Tensor:
    """Minus the inverse Hessian times the gradient, by conjugate gradients."""
    curvature = (often * p * (1 - p)).T @ x.square() + penalty
    scale = 1 / curvature.clamp_min(1e-12 * curvature.max())
    single = p.shape[1] == 1

    def hessian(v: Tensor) -> Tensor:
        moved = p * (x @ v.T)
        moved = moved * (1 - p) if single else moved - p * moved.sum(1, keepdim=True)
        return (often * moved).T @ x + penalty * v

    step, left = torch.zeros_like(gradient), -gradient
    towards = scale * left
    along = (left * towards).sum()
    for _ in range(_INNER):
        bent = hessian(towards)
        length = (towards * bent).sum()
        if length <= 0:
            break
        step = step + along / length * towards
        left = left - along / length * bent
        if left.norm().item() <= tolerance:
            break
        again = (left * scale * left).sum()
        towards, along = scale * left + again / along * towards, again
    return step if step.any() else -scale * gradient
