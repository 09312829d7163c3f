"""Where features are most active in texts of any length, and their means over each text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interventions.binding import Splice
from interventions.dictionaries.measures import Context
from interventions.dictionaries.measures.prediction import encoded
from interventions.dictionaries.measures.text import pieces
from interventions.features.passes import Reading

_WORDS = 3  # tokens up to a peak by which contexts are told apart


@dataclass(frozen=True)
class _Peak:
    value: float
    row: int
    pos: int
    values: tuple[float, ...]  # from `first` on
    first: int

    @property
    def rank(self) -> tuple[float, int]:
        return abs(self.value), -self.row


class Peaks:
    """Of some features of one site: means over texts, how often they are active, and their highest peaks."""

    def __init__(self, splice: Splice, features: Sequence[int], texts: int, n: int, before: int, after: int):
        self.splice, self.features = splice, torch.tensor(features)
        self.n, self.before, self.after = n, before, after
        self.means = torch.zeros(texts, len(features), dtype=torch.float64)
        self.count = torch.zeros(len(features), dtype=torch.long)
        self.sum = torch.zeros(len(features), dtype=torch.float64)
        self.positions = 0
        self._best: list[dict[tuple[int, ...], _Peak]] = [{} for _ in features]

    def add(self, batch: Sequence[Reading], x: Float[Tensor, "text pos d_in"]) -> None:
        """Texts whose labels are their numbers."""
        flat, at = x.flatten(0, 1), self.features.to(x.device)
        parts = [part[:, at].cpu().double() for _, part in encoded(self.splice.dictionary, flat)]
        values = torch.cat(parts).unflatten(0, x.shape[:2])
        if not values.isfinite().all():
            raise ValueError(f"Features at {self.splice.site} are not finite: the model's numbers overflow.")
        for text, rows in zip(batch, values, strict=True):
            there = rows[list(text.at)]
            self.means[text.label] = there.mean(0)
            self.count += (there != 0).sum(0)
            self.sum += there.sum(0)
            self.positions += len(there)
            largest, place = there.abs().max(0)
            for i in (largest > 0).nonzero()[:, 0].tolist():
                self._keep(i, text, text.at[int(place[i])], rows[:, i])

    def _keep(self, i: int, text: Reading, pos: int, values: Float[Tensor, " pos"]) -> None:
        best, key = self._best[i], text.ids[max(0, pos - _WORDS + 1) : pos + 1]
        value = values[pos].item()
        if key in best and best[key].rank >= (abs(value), -text.label):
            return
        first, end = max(0, pos - self.before), min(len(text.ids), pos + self.after + 1)
        best[key] = _Peak(value, text.label, pos, tuple(values[first:end].tolist()), first)
        if len(best) > 4 * self.n:  # what is not among the first now will be only by a higher peak
            self._best[i] = dict(self._first(i))

    def _first(self, i: int) -> list[tuple[tuple[int, ...], _Peak]]:
        return sorted(self._best[i].items(), key=lambda item: item[1].rank, reverse=True)[: self.n]

    def contexts(self, i: int, tokenizer: Any, ids: Sequence[Sequence[int]]) -> tuple[Context, ...]:
        """The highest peaks of a feature, of those after the same words the highest."""
        found = []
        for _, peak in self._first(i):
            shown = pieces(tokenizer, ids[peak.row])[peak.first : peak.first + len(peak.values)]
            found.append(Context(peak.row, peak.pos, peak.pos - peak.first, shown, peak.values))
        return tuple(found)


def correlations(
    x: Float[Tensor, "text feature"], labels: Sequence[str], other: Sequence[str]
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Of each feature, the correlations with every label, and those within each value of another label, which
    are empty where nothing of the labels is left there."""
    names = tuple(dict.fromkeys(labels))
    largest = x.abs().amax(0)
    x = x / largest.where(largest > 0, 1.0)  # so that rounding is of the same size in all of them
    y = torch.tensor([[label == name for name in names] for label in labels], dtype=torch.float64)
    whole = _pearson(x - x.mean(0), y - y.mean(0))
    groups = _numbers(other)
    left = _within(y, groups)
    given = [dict(zip(names, row, strict=True)) for row in whole.tolist()]
    if left.abs().max() < 1e-9:
        return given, [{} for _ in given]
    apart = _pearson(_within(x, groups), left)
    return given, [dict(zip(names, row, strict=True)) for row in apart.tolist()]


def _numbers(labels: Sequence[str]) -> Int[Tensor, " text"]:
    names = list(dict.fromkeys(labels))
    return torch.tensor([names.index(label) for label in labels])


def _within(x: Float[Tensor, "text n"], groups: Int[Tensor, " text"]) -> Float[Tensor, "text n"]:
    """What is left when the mean of each group is taken off."""
    found = x.clone()
    for group in groups.unique():
        found[groups == group] -= x[groups == group].mean(0)
    return found


def _pearson(x: Float[Tensor, "text n"], y: Float[Tensor, "text label"]) -> Float[Tensor, "n label"]:
    """Of what is centred already; 0 for what does not vary."""
    sizes = x.norm(dim=0)[:, None] * y.norm(dim=0)
    return (x.T @ y / sizes).where(sizes > 1e-12, 0.0)
