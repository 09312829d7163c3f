"""What probes are put to: all texts, few, one class rare, wrong labels, texts of another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from .dense import log_spaced
from .examples import Examples

RATIOS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_MOST = 1024


@dataclass(frozen=True, eq=False)
class Situation:
    """Texts to train on and to test on, as a regime leaves them.

    `value` is what the regime varies: how many texts, the share of positives, the share of wrong labels.
    `data` says which texts are tested on: those of the same name and number are drawn together in intervals.
    Methods, whatever they are, get the same texts.
    """

    regime: str
    value: float | None
    train: Examples
    test: Examples
    site: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        one, other = self.train, self.test
        if one.n_features != other.n_features or one.acts.shape[1] != other.acts.shape[1]:
            raise ValueError(
                f"{self.train.name}: the texts to train on have {one.acts.shape[1]} coordinates and "
                f"{one.n_features} features, those to test on {other.acts.shape[1]} and {other.n_features}."
            )
        object.__setattr__(self, "data", self.data or other.name)

    def __repr__(self) -> str:
        value = "" if self.value is None else f" {self.value:g}"
        site = f" at {self.site}" if self.site else ""
        return f"Situation({self.data!r}{site}, {self.regime}{value}: {len(self.train)} texts to train on)"


def normal(train: Examples, test: Examples, *, site: str = "") -> list[Situation]:
    """All the texts there are."""
    return [Situation("normal", None, train, test, site)]


def scarcity(
    train: Examples, test: Examples, *, sizes: Sequence[int] | None = None, seed: int = 0, site: str = ""
) -> list[Situation]:
    """Fewer texts to train on, by default in 10 steps from 2 to 1024 or all: half of either class as far as
    both go, and the texts of fewer among those of more.

    Raises:
        ValueError: a size below 2, or above the number of texts.
    """
    order = _in_turn(train, seed)
    sizes = log_spaced(2, min(_MOST, len(train)), 10) if sizes is None else sizes
    if bad := [size for size in sizes if not 2 <= size <= len(train)]:
        raise ValueError(
            f"sizes: {bad[0]} texts cannot be taken; {train.name} has {len(train)}, 2 are the least."
        )
    return [Situation("scarcity", size, train.of(order[:size]), test, site) for size in sizes]


def imbalance(
    train: Examples,
    test: Examples,
    *,
    ratios: Sequence[float] = RATIOS,
    most: int = _MOST,
    seed: int = 0,
    site: str = "",
) -> list[Situation]:
    """Shares of positives among as many texts to train on, the most that all ratios can have; the texts to
    test on stay as they are.

    Raises:
        ValueError: a ratio that is not between 0 and 1, or too few texts for one of each class.
    """
    if bad := [ratio for ratio in ratios if not 0 < ratio < 1]:
        raise ValueError(f"ratios: {bad[0]:g} is no share of positives between 0 and 1.")
    sides = _shuffled(train, seed)
    n = min(
        most,
        *(int(len(sides[1]) / ratio) for ratio in ratios),
        *(int(len(sides[0]) / (1 - r)) for r in ratios),
    )
    if n < 2:
        raise ValueError(f"{train.name} has {len(train)} texts, too few for these ratios.")
    found = []
    for ratio in ratios:
        positive = min(max(1, round(ratio * n)), n - 1, len(sides[1]))
        index = torch.cat([sides[1][:positive], sides[0][: n - positive]]).sort().values
        found.append(Situation("imbalance", ratio, train.of(index), test, site))
    return found


def noise(
    train: Examples, test: Examples, *, shares: Sequence[float] = SHARES, seed: int = 0, site: str = ""
) -> list[Situation]:
    """Shares of wrong labels among the texts to train on, those held out for validation included; what is
    wrong at one share is wrong at every higher one. The labels of the texts to test on stay right.

    Raises:
        ValueError: a share outside of 0 to 1, or one that leaves a single class.
    """
    if bad := [share for share in shares if not 0 <= share <= 1]:
        raise ValueError(f"shares: {bad[0]:g} is no share of wrong labels from 0 to 1.")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    found = []
    for share in shares:
        labels = train.labels.clone()
        wrong = order[: round(share * len(train))]
        labels[wrong] = 1 - labels[wrong]
        found.append(Situation("noise", share, train.relabelled(labels), test, site))
    return found


def shift(train: Examples, tests: Mapping[str, Examples], *, site: str = "") -> list[Situation]:
    """Texts of other kinds to test on, by name, where validation is on texts of the kind that is known."""
    return [
        Situation("shift", None, train, test, site, f"{test.name}, {kind}") for kind, test in tests.items()
    ]


def _shuffled(train: Examples, seed: int) -> tuple[Int[Tensor, " negative"], Int[Tensor, " positive"]]:
    generator = torch.Generator().manual_seed(seed)
    sides = [(train.labels == side).nonzero()[:, 0] for side in (0, 1)]
    negative, positive = (side[torch.randperm(len(side), generator=generator)] for side in sides)
    return negative, positive


def _in_turn(train: Examples, seed: int) -> Int[Tensor, " text"]:
    """One text of each class in turn, then what is left of the more frequent one."""
    negative, positive = _shuffled(train, seed)
    both = min(len(negative), len(positive))
    turns = torch.stack([positive[:both], negative[:both]], dim=1).flatten()
    return torch.cat([turns, positive[both:], negative[both:]])
