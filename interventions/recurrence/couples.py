"""Numbers that a state keeps as `part * exp(scale)`, and arithmetic that is exact in them.

RWKV keeps a weighted sum of values and the sum of the weights as (num, den) with the largest exponent so far,
max, taken out of both; xLSTM keeps (c, n) with m. To add such numbers is to bring them to one scale first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Couple:
    """The names of a scale, of what it scales, and of that part of it that is positive in every state."""

    scale: str
    parts: tuple[str, ...]
    positive: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.parts, self.scale)


def rescaled(tensors: Tensors, scales: Tensors, couples: Sequence[Couple]) -> dict[str, Tensor]:
    """The same numbers, written at other scales; these must be no smaller than those at hand."""
    out = dict(tensors)
    for couple in couples:
        if couple.scale in tensors:
            new = scales[couple.scale]
            factor = (tensors[couple.scale] - new).exp()
            for part in couple.parts:
                if part in tensors:
                    out[part] = tensors[part] * _as_wide(factor, tensors[part])
            out[couple.scale] = new.expand(torch.broadcast_shapes(new.shape, factor.shape))
    return out


def common(states: Sequence[Tensors], couples: Sequence[Couple]) -> list[dict[str, Tensor]]:
    """Several states, each couple of them written at the largest of its scales."""
    scales: dict[str, Tensor] = {}
    for couple in couples:
        held = [state[couple.scale] for state in states if couple.scale in state]
        for x in held:
            scales[couple.scale] = torch.maximum(scales[couple.scale], x) if couple.scale in scales else x
    return [rescaled(state, scales, couples) for state in states]


def combined(
    fn: Callable[[Tensor, Tensor], Tensor], one: Tensors, other: Tensors, couples: Sequence[Couple]
) -> dict[str, Tensor]:
    """`fn` of two states, part by part at a common scale; what `other` lacks stays as it is."""
    one, other = common([one, other], couples)
    scales = {couple.scale for couple in couples}
    return {
        name: x if name in scales or name not in other else fn(x, other[name].to(x))
        for name, x in one.items()
    }


def _as_wide(scale: Tensor, part: Tensor) -> Tensor:
    return scale.reshape(*scale.shape, *[1] * (part.ndim - scale.ndim))


_KEPT = 0.1  # of a sum of weights, at the least


def stepped(
    state: Tensors, delta: Tensors, scale: float | Tensor, couples: Sequence[Couple]
) -> tuple[dict[str, Tensor], int]:
    """A state moved by `scale` times a difference, and how many entries were moved less far.

    A sum of weights keeps a tenth of what it was at the least: where less would be left, the entry takes a
    shorter step, the parts that are coupled to it likewise.
    """
    base, by = common([state, delta], couples)
    scales = {couple.scale for couple in couples}
    out, short = dict(base), 0
    steps: dict[str, Tensor] = {}
    for couple in couples:
        if couple.positive is not None and couple.positive in by:
            den, change = base[couple.positive], scale * by[couple.positive].to(base[couple.positive])
            falls = change < -(1 - _KEPT) * den
            step = torch.where(falls, (1 - _KEPT) * den / -torch.where(falls, change, -1), 1.0)
            short += int(falls.sum())
            steps |= dict.fromkeys(couple.parts, step)
    for name, change in by.items():
        if name not in scales:
            change = scale * change.to(base[name])
            out[name] = base[name] + (steps[name] * change if name in steps else change)
    return out, short
