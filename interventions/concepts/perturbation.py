"""Targeted probe perturbation: whether ablating a concept's features harms its own probe, and no other."""

from __future__ import annotations

from collections.abc import Sequence
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
    RESAMPLES,
    SIZES,
    Ablation,
    ablated_logits,
    checked,
    differences,
    fitted,
    interval,
    redrawn,
    right,
    strongest,
)

_FORMAT = "interventions.tpp"


@dataclass(frozen=True, eq=False)
class TPP:
    """The accuracy of each class's probe, and after the features of each class are ablated.

    `after[i, a, c]` is that of class c's probe with the first `sizes[i]` features of class a ablated;
    `chosen` has how many of them there were. `drawn` is the score on test texts drawn anew with replacement.
    """

    classes: tuple[str, ...]
    sizes: tuple[int, ...]
    clean: Float[Tensor, " class"]
    after: Float[Tensor, "size ablated class"]
    chosen: Int[Tensor, "size ablated"]
    drawn: Float[Tensor, "resample size"]

    @property
    def intended(self) -> Float[Tensor, " size"]:
        """How much accuracy a class's own probe loses, in the mean over classes."""
        return _intended(self.clean - self.after)

    @property
    def unintended(self) -> Float[Tensor, " size"]:
        """How much the probes of the other classes lose."""
        return _unintended(self.clean - self.after)

    @property
    def score(self) -> Float[Tensor, " size"]:
        """What is lost as intended, less what is lost besides."""
        return self.intended - self.unintended

    def interval(self, confidence: float = 0.95) -> Float[Tensor, "size bound"]:
        """Between what the score lies on other test texts like these: a percentile bootstrap over them."""
        return interval(self.drawn, confidence)

    def __str__(self) -> str:
        columns = (self.score, *self.interval().T, self.intended, self.unintended)
        rows = [["features", "TPP", "from", "to", "intended", "unintended"]]
        rows += [
            [str(size), *(f"{column[i]:.3f}" for column in columns)] for i, size in enumerate(self.sizes)
        ]
        return aligned(rows)

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder: JSON and safetensors."""
        said = {"classes": list(self.classes), "sizes": list(self.sizes)}
        tensors = {name: getattr(self, name) for name in ("clean", "after", "chosen", "drawn")}
        vouched.save(folder, "tpp", said, tensors, format=_FORMAT, version=1)

    @classmethod
    def load(cls, folder: str | Path) -> TPP:
        """What `save` wrote; see `vouched.load` for errors."""
        said, tensors = vouched.load(folder, "tpp", format=_FORMAT, version=1)
        with vouched.described(folder, "tpp"):
            return cls(tuple(said["classes"]), tuple(said["sizes"]), **tensors)


def tpp(
    train: Pooled,
    train_labels: Sequence[str],
    test: Pooled,
    test_labels: Sequence[str],
    *,
    sizes: Sequence[int] = SIZES,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> TPP:
    """Targeted probe perturbation (Karvonen et al. 2024, arXiv 2411.18895; SAEBench): one dictionary, two or
    more classes of texts.

    A probe for each class tells its texts from as many others, drawn evenly from the other classes. A class's
    features are those by which its probe is attributed most: the difference of their means, where it is
    positive, times what they add to the logit. Ablated, they should harm its own probe and leave the others'.

    Against SAEBench: the others that a probe is tested on are drawn once, not anew for every number; the
    means are over tokens, where padding does not enter; nothing is chosen on the test texts; features without
    an effect above zero are not ablated; a logit of 0 counts half.

    Args:
        train, test: what `pooled` gives at one site, for texts to fit and to test on.
        recipe: of the probes, by default `Logistic()`; one whose probes are linear.

    Raises:
        ValueError: fewer than two classes, one that only one of the sets has, labels of another number;
            sizes that are no numbers of features.
        TypeError: a recipe whose probes are not linear.
    """
    sizes, names = checked(sizes), check_classes(train_labels, test_labels)
    recipe, n = recipe or Logistic(), len(names)
    generator = torch.Generator().manual_seed(seed)
    here, there = (
        _members(pooled, labels, names) for pooled, labels in ((train, train_labels), (test, test_labels))
    )
    seen, unseen = ([_against(members, c, generator) for c in range(n)] for members in (here, there))
    probes = [fitted(recipe, train, *texts) for texts in seen]
    chosen = []
    for probe, texts in zip(probes, seen, strict=True):
        higher = differences(train, *texts).clamp(min=0)
        chosen.append(strongest(higher * train.slopes(probe.direction), max(sizes)))
    accuracy = torch.zeros(1 + len(sizes), n, n, dtype=torch.float64)
    drawn = torch.zeros(RESAMPLES, 1 + len(sizes), n, n, dtype=torch.float64)
    for a, ablation in enumerate(Ablation.of(test, features) for features in chosen):
        for c, (probe, (texts, labels)) in enumerate(zip(probes, unseen, strict=True)):
            found = right(ablated_logits(test, probe, texts, ablation, (0, *sizes)), labels)
            accuracy[:, a, c] = found.mean(-1)
            drawn[:, :, a, c] = redrawn(found, texts, labels.long(), len(test))
    counts = torch.tensor([[min(size, len(features)) for features in chosen] for size in sizes])
    lost = drawn[:, :1] - drawn[:, 1:]
    scores = _intended(lost) - _unintended(lost)
    return TPP(names, sizes, accuracy[0, 0], accuracy[1:], counts, scores)


def check_classes(train: Sequence[str], test: Sequence[str]) -> tuple[str, ...]:
    """The classes, in the order in which they appear. Raises ValueError for fewer than two, or for one that
    only one of the sets has."""
    names = tuple(dict.fromkeys(train))
    if len(names) < 2:
        raise ValueError(
            f"All texts are {names[0] if names else 'unlabelled'}: give texts of two classes or more."
        )
    if odd := {*names} ^ {*test}:
        raise ValueError(f"There are texts of {min(odd)!r} to fit or to test on, but not both.")
    return names


def _members(pooled: Pooled, labels: Sequence[str], names: Sequence[str]) -> list[Int[Tensor, " n"]]:
    if len(labels) != len(pooled):
        raise ValueError(f"There are {len(pooled)} texts, and {len(labels)} labels.")
    return [torch.tensor([i for i, label in enumerate(labels) if label == name]) for name in names]


def _against(
    members: Sequence[Int[Tensor, " n"]], c: int, generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """The texts of a class and as many others, evenly from the other classes; and which are which.

    Where the others are fewer, so many of the class are drawn.
    """
    mine, others = members[c], [_drawn(texts, generator) for i, texts in enumerate(members) if i != c]
    share = -(-len(mine) // len(others))
    even = _drawn(torch.cat([texts[:share] for texts in others]), generator)
    rest = _drawn(torch.cat([texts[share:] for texts in others]), generator)
    drawn = torch.cat([even, rest])[: len(mine)]
    mine = mine if len(drawn) == len(mine) else _drawn(mine, generator)[: len(drawn)]
    return torch.cat([mine, drawn]), torch.arange(2 * len(mine)) < len(mine)


def _drawn(texts: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    return texts[torch.randperm(len(texts), generator=generator)]


def _intended(lost: Float[Tensor, "*batch ablated class"]) -> Float[Tensor, "*batch"]:
    return lost.diagonal(dim1=-2, dim2=-1).mean(-1)


def _unintended(lost: Float[Tensor, "*batch ablated class"]) -> Float[Tensor, "*batch"]:
    n = lost.shape[-1]
    whole = lost.sum((-2, -1)) - lost.diagonal(dim1=-2, dim2=-1).sum(-1)
    return whole / (n * (n - 1))
