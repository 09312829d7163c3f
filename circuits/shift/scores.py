"""How often a classifier says what it should, and how often what it should not use, group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.steering.confidence import Estimate
from tasks import LabelledSet

Group = tuple[str, str]
_Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class Row:
    """What a table says of one method: shares of texts, each with an interval."""

    method: str
    needs: str
    intended: Estimate
    spurious: Estimate
    worst: Estimate
    groups: Mapping[Group, Estimate]
    ablated: float


@dataclass(frozen=True)
class Scores:
    """What one method says of the texts of each group, (label, spurious label).

    `said` counts them: for each draw, group and class. A method without chance has one draw. `pairs` is the
    spurious label that went with each class in training: saying a class is taken as saying that too.
    `needs` says what the method has to know besides labelled texts in which the two go together.

    >>> groups = (("nurse", "male"), ("nurse", "female"))
    >>> said = (((8, 2), (0, 10)),)
    >>> scores = Scores("biased", "", ("professor", "nurse"), ("male", "female"), groups, said)
    >>> print(scores.intended), print(scores.spurious)
    0.6 [0.3866, 0.7812]
    0.9 [0.699, 0.9721]
    (None, None)
    >>> scores.worst_group
    ('nurse', 'male')
    """

    method: str
    needs: str
    classes: tuple[str, ...]
    pairs: tuple[str, ...]
    groups: tuple[Group, ...]
    said: tuple[tuple[tuple[int, ...], ...], ...]
    ablated: Mapping[str, int] = field(default_factory=dict)  # features or neurons, by site

    @property
    def n(self) -> int:
        """How many texts there are."""
        return sum(map(sum, self.said[0]))

    @property
    def draws(self) -> int:
        return len(self.said)

    @property
    def intended(self) -> Estimate:
        """The share of texts whose label is said, with Wilson's 95 % interval."""
        return self._share(lambda group, k: self.classes[k] == group[0], self.groups)

    @property
    def spurious(self) -> Estimate:
        """The share of which the class is said that goes with their spurious label; chance is best."""
        return self._share(lambda group, k: self.pairs[k] == group[1], self.groups)

    @property
    def by_group(self) -> dict[Group, Estimate]:
        """The share of the texts of each group whose label is said."""
        return {one: self._share(lambda group, k: self.classes[k] == group[0], (one,)) for one in self.groups}

    @property
    def worst_group(self) -> Group:
        """The group of which fewest are right."""
        found = self.by_group
        return min(found, key=lambda group: found[group].mean)

    @property
    def worst(self) -> Estimate:
        """The share of right ones in the worst group, with the interval that it has as a group."""
        return self.by_group[self.worst_group]

    @property
    def row(self) -> Row:
        return Row(
            self.method, self.needs, self.intended, self.spurious, self.worst, self.by_group,
            sum(self.ablated.values()),
        )  # fmt: skip

    def _share(self, right: Any, groups: Sequence[Group]) -> Estimate:
        rows = [self.groups.index(group) for group in groups]
        n = sum(sum(self.said[0][i]) for i in rows)
        counts = [
            sum(x for i in rows for k, x in enumerate(draw[i]) if right(self.groups[i], k))
            for draw in self.said
        ]
        return share(counts, n)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, the shares too, for those who read the file."""
        row = self.row
        shares = {
            "intended": interval(row.intended), "spurious": interval(row.spurious),
            "worst": interval(row.worst),
            "groups": {"/".join(group): interval(found) for group, found in row.groups.items()},
        }  # fmt: skip
        return {
            "method": self.method, "needs": self.needs, "classes": list(self.classes),
            "pairs": list(self.pairs), "groups": [list(group) for group in self.groups],
            "said": [[list(group) for group in draw] for draw in self.said], "ablated": dict(self.ablated),
            "shares": shares,
        }  # fmt: skip

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Scores:
        """What `to_json` gave; the shares are worked out again."""
        return cls(
            str(said["method"]), str(said["needs"]), tuple(said["classes"]), tuple(said["pairs"]),
            tuple((label, spurious) for label, spurious in said["groups"]),
            tuple(tuple(tuple(map(int, group)) for group in draw) for draw in said["said"]),
            {str(site): int(n) for site, n in said["ablated"].items()},
        )  # fmt: skip


def scored(
    method: str,
    needs: str,
    test: LabelledSet,
    logits: Float[Tensor, "text *class"] | Sequence[Float[Tensor, "text *class"]],
    *,
    classes: Sequence[str],
    pairs: Mapping[str, str],
    ablated: Mapping[str, int] | None = None,
) -> Scores:
    """What a classifier says of texts, from its logits: of two classes that of the second alone will do, and
    0 speaks for the first. Several are draws of one method.

    Raises:
        ValueError: logits of another number of texts.
    """
    draws = [logits] if isinstance(logits, Tensor) else list(logits)
    groups = tuple(sorted(test.groups))
    where = torch.tensor([groups.index(text.group) for text in test])
    said = []
    for draw in draws:
        if len(draw) != len(test):
            raise ValueError(f"There are logits of {len(draw)} texts, and {len(test)} texts.")
        chosen = (draw > 0).long() if draw.ndim == 1 else draw.argmax(-1)
        counts = torch.zeros(len(groups), len(classes), dtype=torch.long)
        counts.index_put_((where, chosen.cpu()), torch.ones(len(test), dtype=torch.long), accumulate=True)
        said.append(tuple(map(tuple, counts.tolist())))
    by_class = tuple(pairs[label] for label in classes)
    return Scores(method, needs, tuple(classes), by_class, groups, tuple(said), dict(ablated or {}))


def share(right: Sequence[int], n: int) -> Estimate:
    """A share of `n` texts with Wilson's 95 % interval (1927), which also holds for none or all.

    `right` has a count for each draw of a random method on the same texts. Their mean varies by the texts and
    by the draws: the interval is that of as many fewer texts as give the sum of both variances.

    >>> print(share([19], 20))
    0.95 [0.7639, 0.9911]
    >>> share([10, 10], 20) == share([10], 20), share([5, 15], 20).low < share([10], 20).low
    (True, True)

    Raises:
        ValueError: no texts or no draws.
    """
    if n < 1 or not right:
        raise ValueError("A share is of at least one text, and one draw.")
    shares = [count / n for count in right]
    mean, size = sum(shares) / len(shares), float(n)
    if len(shares) > 1 and 0 < mean < 1:
        between = sum((x - mean) ** 2 for x in shares) / (len(shares) - 1) / len(shares)
        size = mean * (1 - mean) / (mean * (1 - mean) / n + between)
    middle, room = mean + _Z**2 / (2 * size), 1 + _Z**2 / size
    wide = _Z * math.sqrt(mean * (1 - mean) / size + (_Z / (2 * size)) ** 2)
    low, high = (middle - wide) / room, (middle + wide) / room
    return Estimate(mean, 0.0 if mean == 0 else low, 1.0 if mean == 1 else high, n)


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of shares from several seeds with Student's 95 % interval, cut to 0 and 1; of one, no bounds.

    >>> print(over_seeds([0.5, 0.6, 0.7]))
    0.6 [0.3516, 0.8484]
    """
    from scipy.stats import t as student

    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    wide = float(student.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return Estimate(mean, max(0.0, mean - wide), min(1.0, mean + wide), n)


def renamed(scores: Scores, method: str) -> Scores:
    """The same under another name."""
    return replace(scores, method=method)


def interval(found: Estimate) -> list[float | None]:
    """Mean, low and high as JSON has them."""
    return [None if math.isnan(x) else round(x, 6) for x in (found.mean, found.low, found.high)]
