"""Recipes chosen on examples held out, and nothing learned from these before the choice."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from interventions.probing import LDA, Logistic, MeanDifference, OnDifferences, Probe, Recipe
from interventions.probing.selected import PENALTIES, Selected, held_out


def _examples(n: int = 200, seed: int = 0, width: int = 6, noise: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    noisy = x[:, 0] + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    return x, (noisy > 0).long()


@dataclass(frozen=True)
class Fixed:
    """Says what it was told, and notes what it was fitted to."""

    weights: tuple[float, ...]
    bias: float = 0.0
    seen: list = field(default_factory=list, compare=False, repr=False)

    def fit(self, x, labels):
        self.seen.append((x.clone(), torch.as_tensor(labels).clone()))
        return Probe(
            torch.tensor(self.weights, dtype=x.dtype), torch.tensor(self.bias), {"recipe": repr(self)}
        )


def test_the_most_accurate_on_held_out_examples_is_fitted_to_all():
    x, labels = _examples(100, width=2)
    wrong, right = Fixed((-1.0, 0.0)), Fixed((1.0, 0.0))
    probe = Selected([wrong, right]).fit(x, labels)
    assert torch.equal(probe.weights, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert len(wrong.seen) == 1 and len(right.seen) == 2
    (first, _), (whole, _) = right.seen
    assert len(first) == 80 and torch.equal(whole, x)
    assert torch.equal(wrong.seen[0][0], first)
    rows = {tuple(row) for row in x.tolist()} - {tuple(row) for row in first.tolist()}
    assert len(rows) == probe.how["selected"]["held_out"] == 20
    of = probe.how["selected"]["of"]
    assert [one["accuracy"] for one in of] == [0.0, 1.0] and [one["auroc"] for one in of] == [0.0, 1.0]


def test_of_those_as_accurate_the_one_that_ranks_best_is_taken_and_of_these_the_first():
    x, labels = _examples(100, width=2)
    says_one, ranks, again = (
        Fixed((0.0, 0.0), 1.0), Fixed((1e-9, 0.0), 1.0), Fixed((2e-9, 0.0), 1.0)
    )  # fmt: skip
    probe = Selected([says_one, ranks, again]).fit(x, labels)
    accuracies = {one["accuracy"] for one in probe.how["selected"]["of"]}
    assert len(accuracies) == 1 and len(ranks.seen) == 2 and len(says_one.seen) == len(again.seen) == 1


def test_it_is_what_the_chosen_recipe_gives_alone():
    x, labels = _examples(noise=0.5)
    selected = Selected()
    probe = selected.fit(x, labels)
    name = probe.how["recipe"]
    chosen = next(one for one in selected.recipes if repr(one) == name)
    assert torch.equal(probe.weights, chosen.fit(x, labels).weights)
    assert len(selected.recipes) == len(PENALTIES) and isinstance(selected, Recipe)


def test_several_classes_and_contrast_pairs_do_as_well():
    x, _ = _examples(150, width=3)
    classes = x.argmax(1)
    probe = Selected([Logistic(l2=1e6), Logistic(l2=0.1)]).fit(x, classes)
    assert probe.n_classes == 3 and probe.how["recipe"].startswith("Logistic(l2=0.1")
    pairs = torch.stack([x, -x], 1)
    found = Selected([OnDifferences(MeanDifference()), OnDifferences(LDA())]).fit(pairs, x[:, 0] > 0)
    assert found.n_classes == 2


def test_the_same_examples_are_held_out_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2)
    rest = held_out(labels, 0.2, 0)
    assert [int(rest[labels == k].sum()) for k in range(3)] == [10, 2, 1]
    assert torch.equal(rest, held_out(labels, 0.2, 0)) and not torch.equal(rest, held_out(labels, 0.2, 1))


def test_what_cannot_be_chosen_from_is_refused():
    x, labels = _examples(20)
    with pytest.raises(ValueError, match="There are no recipes"):
        Selected([])
    with pytest.raises(TypeError, match="A recipe has a method fit"):
        Selected([Logistic])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="share=1"):
        Selected(share=1.0)
    with pytest.raises(ValueError, match="one example of class 1"):
        Selected().fit(x, [0] * 19 + [1])
    with pytest.raises(ValueError, match="All 20 labels are 0"):
        Selected().fit(x, labels * 0)
