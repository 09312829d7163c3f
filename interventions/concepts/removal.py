"""Spurious correlation removal: whether ablating one concept's features frees a probe of another from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import vouched
from ..probing import Logistic, Recipe
from ..steering.columns import aligned
from .pooled import Pooled
from .scores import (
    SIZES,
    Ablation,
    ablated_logits,
    attributions,
    checked,
    fitted,
    interval,
    redrawn,
    right,
    strongest,
)

_FORMAT = "interventions.scr"
_ROOM = 1e-3  # the least distance of a ceiling from its base that can be recovered


@dataclass(frozen=True, eq=False)
class SCR:
    """How much of what a spurious probe lacks is given back when the features of the other label are ablated.

    Both directions: `keep` names the label that the probe should tell after those of the other are gone.
    `base` is the accuracy of the spurious probe on that label, `ceiling` that of the label's own probe.
    `together` are the values of the two labels that the spurious probe tells apart, and `drawn` is the score
    on test texts drawn anew with replacement.
    """

    keep: tuple[str, str]
    together: tuple[tuple[str, str], tuple[str, str]]
    sizes: tuple[int, ...]
    base: Float[Tensor, " direction"]
    ceiling: Float[Tensor, " direction"]
    after: Float[Tensor, "direction size"]
    chosen: Int[Tensor, "direction size"]
    drawn: Float[Tensor, "resample size"]

    @property
    def recovered(self) -> Float[Tensor, "direction size"]:
        """The share of the way from base to ceiling; 0 where there is no way to go."""
        return _recovered(self.base, self.ceiling, self.after)

    @property
    def score(self) -> Float[Tensor, " size"]:
        """That of the direction with the lower base, where there is more to recover; of a tie, the mean."""
        return self.recovered[_lower(self.base)].mean(0)

    @property
    def room(self) -> float:
        """How far the ceiling lies above the base in that direction: what a score of 1 is. Where there
        is next to none, scores are noise."""
        return (self.ceiling - self.base)[_lower(self.base)].mean().item()

    def interval(self, confidence: float = 0.95) -> Float[Tensor, "size bound"]:
        """Between what the score lies on other test texts like these: a percentile bootstrap over them."""
        return interval(self.drawn, confidence)

    def __str__(self) -> str:
        rows = [["features", "SCR", "from", "to", *(f"keeps {name}" for name in self.keep)]]
        columns = (self.score, *self.interval().T, *self.after)
        rows += [
            [str(size), *(f"{column[i]:.3f}" for column in columns)] for i, size in enumerate(self.sizes)
        ]
        ends = (("base", self.base), ("ceiling", self.ceiling))
        rows += [[name, "", "", "", *(f"{x:.3f}" for x in values.tolist())] for name, values in ends]
        return aligned(rows)

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder: JSON and safetensors."""
        tensors = {name: getattr(self, name) for name in ("base", "ceiling", "after", "chosen", "drawn")}
        said = {
            "keep": list(self.keep), "together": list(map(list, self.together)), "sizes": list(self.sizes)
        }  # fmt: skip
        vouched.save(folder, "scr", said, tensors, format=_FORMAT, version=1)

    @classmethod
    def load(cls, folder: str | Path) -> SCR:
        """What `save` wrote; see `vouched.load` for errors."""
        said, tensors = vouched.load(folder, "scr", format=_FORMAT, version=1)
        with vouched.described(folder, "scr"):
            keep, (one, other) = said["keep"], said["together"]
            together = (one[0], one[1]), (other[0], other[1])
            return cls((keep[0], keep[1]), together, tuple(said["sizes"]), **tensors)


def scr(
    train: Pooled,
    train_labels: Sequence[tuple[str, str]],
    test: Pooled,
    test_labels: Sequence[tuple[str, str]],
    *,
    keep: tuple[str, str] = ("label", "spurious"),
    together: Mapping[str, str] | None = None,
    sizes: Sequence[int] = SIZES,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> SCR:
    """Spurious correlation removal (Karvonen et al. 2024, arXiv 2411.18895; SAEBench): one dictionary, texts
    with two labels of two values each, such as (profession, gender).

    A spurious probe is fitted where both labels go `together`: on male professors against female nurses.
    Ablating the features of one label, chosen by attribution to a probe of that label alone, should leave it
    telling the other.

    Against SAEBench: of a tie of the bases the mean counts; the means are over tokens, where padding does not
    enter; nothing is chosen on the test texts; a logit of 0 counts half. Texts are drawn so that every pair
    of labels has as many; the spurious probe is fitted to twice as many of its pairs where there are, which
    is as many as the other probes are.

    Args:
        train, test: what `pooled` gives at one site, for texts to fit and to test on.
        keep: what the two labels are called.
        together: which value of the second label goes with each of the first; by default as it is in more of
            the texts to fit on, and where that is level in alphabetical order.
        recipe: of the probes, by default `Logistic()`; one whose probes are linear.

    Raises:
        ValueError: a label of another number of values than two, a pair of values that no text has, labels of
            another number than texts or that are no pairs; sizes that are no numbers of features.
        TypeError: a recipe whose probes are not linear.
    """
    sizes, pairs = checked(sizes), check_pairs(train_labels, test_labels, keep, together)
    generator, recipe = torch.Generator().manual_seed(seed), recipe or Logistic()
    here, there = (
        _members(pooled, labels, pairs) for pooled, labels in ((train, train_labels), (test, test_labels))
    )
    here, there = _shuffled(here, generator), _shuffled(there, generator)
    seen, unseen = _quadrants(here), _quadrants(there)
    spurious = fitted(recipe, train, *_spurious(here, 2 * seen.shape[-1]))
    own = [fitted(recipe, train, *_balanced(seen, side)) for side in range(2)]
    accuracies, drawn, chosen = [], [], []
    for side in range(2):
        texts, labels = _balanced(unseen, side)
        effects = attributions(train, own[1 - side], *_balanced(seen, 1 - side)).abs()
        features = strongest(effects, max(sizes))
        logits = ablated_logits(test, spurious, texts, Ablation.of(test, features), (0, *sizes))
        outcomes = right(torch.cat([logits, own[side].logits(test.acts[texts])[None]]), labels)
        accuracies.append(outcomes.mean(-1))
        pair = torch.arange(4).repeat_interleave(len(texts) // 4)
        drawn.append(redrawn(outcomes, texts, pair, len(test)))
        chosen.append([min(size, len(features)) for size in sizes])
    base, after, ceiling = _parts(torch.stack(accuracies))
    again = _parts(torch.stack(drawn, 1))
    scores = _recovered(again[0], again[2], again[1])[:, _lower(base)].mean(1)
    return SCR(keep, pairs, sizes, base, ceiling, after, torch.tensor(chosen), scores)


def check_pairs(
    train: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    keep: tuple[str, str],
    together: Mapping[str, str] | None,
) -> tuple[tuple[str, str], tuple[str, str]]:
    """The values of the two labels that go together, alphabetically by the first. See `scr` for errors."""
    for labels in (train, test):
        if odd := [pair for pair in labels if isinstance(pair, str) or len(pair) != 2]:
            raise ValueError(f"Every text has a pair of labels, ({', '.join(keep)}), not {odd[0]!r}.")
    first, second = (sorted({pair[side] for pair in train}) for side in range(2))
    for name, values in zip(keep, (first, second), strict=True):
        if len(values) != 2:
            raise ValueError(f"{name} has the values {', '.join(map(repr, values))}; it takes two.")
    for labels, what in ((train, "to fit"), (test, "to test")):
        if absent := [(a, b) for a in first for b in second if (a, b) not in set(map(tuple, labels))]:
            a, b = absent[0]
            raise ValueError(
                f"No text {what} on has {keep[0]} {a!r} and {keep[1]} {b!r}: there must be some of each pair."
            )
    if together is not None:
        if sorted(together) != first or sorted(together.values()) != second:
            raise ValueError(
                f"together={dict(together)}: give each of {', '.join(first)} its own of {', '.join(second)}."
            )
        return (first[0], together[first[0]]), (first[1], together[first[1]])
    counts = Counter(map(tuple, train))
    straight, crossed = (
        counts[first[0], one] + counts[first[1], other] for one, other in (second, second[::-1])
    )
    one, other = second if straight >= crossed else second[::-1]
    return (first[0], one), (first[1], other)


def _members(
    pooled: Pooled, labels: Sequence[tuple[str, str]], pairs: Sequence[tuple[str, str]]
) -> list[list[Int[Tensor, " n"]]]:
    """The texts by the value of the first label, and of the second."""
    if len(labels) != len(pooled):
        raise ValueError(f"There are {len(pooled)} texts, and {len(labels)} pairs of labels.")
    return [
        [torch.tensor([i for i, pair in enumerate(labels) if tuple(pair) == (a, b)]) for _, b in pairs]
        for a, _ in pairs
    ]


def _shuffled(
    members: Sequence[Sequence[Int[Tensor, " n"]]], generator: torch.Generator
) -> list[list[Int[Tensor, " n"]]]:
    return [[texts[torch.randperm(len(texts), generator=generator)] for texts in row] for row in members]


def _quadrants(members: Sequence[Sequence[Int[Tensor, " n"]]]) -> Int[Tensor, "first second text"]:
    """The first texts of each pair of values, as many of each."""
    size = min(len(texts) for row in members for texts in row)
    return torch.stack([torch.stack([texts[:size] for texts in row]) for row in members])


def _spurious(
    members: Sequence[Sequence[Int[Tensor, " n"]]], most: int
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """At most so many texts of either pair of values that go together; and which are of the first."""
    size = min(most, len(members[0][0]), len(members[1][1]))
    return torch.cat([members[0][0][:size], members[1][1][:size]]), torch.arange(2 * size) < size


def _balanced(
    quadrants: Int[Tensor, "first second text"], side: int
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """The texts of both values of one label, evenly over the other; and which have the first value."""
    one, other = quadrants.transpose(0, side).flatten(1) if side else quadrants.flatten(1)
    return torch.cat([one, other]), torch.arange(2 * len(one)) < len(one)


def _parts(accuracies: Float[Tensor, "*batch direction n"]) -> tuple[Tensor, Tensor, Tensor]:
    """The base, what is after ablations, and the ceiling."""
    return accuracies[..., 0], accuracies[..., 1:-1], accuracies[..., -1]


def _recovered(
    base: Float[Tensor, "*batch direction"],
    ceiling: Float[Tensor, "*batch direction"],
    after: Float[Tensor, "*batch direction size"],
) -> Float[Tensor, "*batch direction size"]:
    room = (ceiling - base)[..., None]
    return ((after - base[..., None]) / room).where(room >= _ROOM, torch.zeros_like(after))


def _lower(base: Float[Tensor, " direction"]) -> Bool[Tensor, " direction"]:
    return (base - base.min()).abs() < 1e-9
