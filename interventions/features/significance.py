"""Tests of significance on means and variances, and their correction for there being many."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def welch(
    mean: Float[Tensor, "*test"],
    variance: Float[Tensor, "*test"],
    count: int,
    other_mean: Float[Tensor, "*test"],
    other_variance: Float[Tensor, "*test"],
    other_count: int,
) -> tuple[Float[Tensor, "*test"], Float[Tensor, "*test"]]:
    """Welch's t, and the probability of one at least as large where the first mean is not the larger one.

    Variances are divided by the count less one. Where neither sample varies, t is 0 for equal means and
    infinite for others; of a single observation nothing is known, and p is 1.

    >>> ones = torch.ones(1, dtype=torch.float64)
    >>> t, p = welch(2 * ones, ones, 10, ones, ones, 10)
    >>> round(t.item(), 3), round(p.item(), 4)
    (2.236, 0.0191)
    """
    from scipy.stats import t as student

    if min(count, other_count) < 2:
        return torch.zeros_like(mean), torch.ones_like(mean)
    parts = variance / count, other_variance / other_count
    spread = parts[0] + parts[1]
    gap = mean - other_mean
    constant = spread == 0
    t = torch.where(constant, torch.where(gap == 0, gap, gap.sign() * torch.inf), gap / spread.sqrt())
    freedom = spread**2 / (parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (other_count - 1))
    freedom = torch.where(constant, torch.ones_like(freedom), freedom)
    p = torch.as_tensor(student.sf(t.numpy(), freedom.numpy()), dtype=mean.dtype)
    return t, torch.where(constant & (gap == 0), torch.ones_like(p), p)


def adjusted(p: Float[Tensor, "*test"]) -> Float[Tensor, "*test"]:
    """For every p the smallest false discovery rate at which its test is among the discoveries.

    Benjamini and Hochberg (1995), over all tests given; those that are nan are left out and stay so.

    >>> adjusted(torch.tensor([0.01, 0.04, 0.03, 0.5]))
    tensor([0.0400, 0.0533, 0.0533, 0.5000])
    """
    flat = p.flatten()
    held = (~flat.isnan()).nonzero()[:, 0]
    order = held[flat[held].argsort()]
    rank = torch.arange(1, len(order) + 1, dtype=p.dtype)
    scaled = flat[order] * len(order) / rank
    q = flat.clone()
    q[order] = scaled.flip(0).cummin(0).values.flip(0).clamp(max=1) if len(order) else scaled
    return q.reshape(p.shape)
