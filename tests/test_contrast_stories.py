"""She and he in a small model of stories, as docs/directions.md has it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from interventions import Add, Model, applied
from interventions.steering import Direction, contrast, lda, pair_activations, promoted, separations

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    module = import_module("directions")
    if not (Path(module.WEIGHTS) / "stories260K").exists():
        pytest.skip("the weights of the example are not here")
    return module


@pytest.fixture
def model(example):
    return Model.load(Path(example.WEIGHTS) / "stories260K")


def test_who_is_meant_is_known_after_the_last_block_and_said(example, model):
    known, new = slice(0, -example.HELD_OUT), slice(-example.HELD_OUT, None)
    train = example.pairs(example.GIRLS[known], example.BOYS[known])
    held = example.pairs(example.GIRLS[new], example.BOYS[new])
    names = [girl for girl in example.GIRLS[known] for _ in example.ENDS]
    acts = pair_activations(model, train, ["resid.0", "resid.2", "resid.4"])
    options = {"folds": 7, "groups": names}

    direction = contrast(model, acts, ["resid.0", "resid.4"], bootstrap=100, **options)
    assert direction.how["separation"]["resid.4"]["auroc"] > 0.95
    assert direction.how["bootstrap"]["resid.4"]["low"] > 0.7 > direction.how["bootstrap"]["resid.0"]["low"]
    unseen = separations(model, held, direction)
    assert unseen["resid.4"].auroc > 0.95 and unseen["resid.4"].ordered == 1
    assert unseen["resid.0"].auroc < 0.6

    whole, single = (
        contrast(model, acts, ["resid.2"], method=lda, folds=7, groups=groups).how["separation"]["resid.2"]
        for groups in (names, None)
    )
    assert single["auroc"] > 0.8 > 0.7 > whole["auroc"]  # names that are known again pass for a contrast

    tokens = promoted(model, direction, k=6)["resid.4"]
    assert {" She", " she", " her"} <= {token for token, _ in tokens.raised}
    assert {" his", " He", " he"} <= {token for token, _ in tokens.lowered}


def test_the_direction_turns_the_pronoun_and_a_random_one_does_not(example, model):
    known, new = slice(0, -example.HELD_OUT), slice(-example.HELD_OUT, None)
    direction = contrast(model, example.pairs(example.GIRLS[known], example.BOYS[known]), ["resid.4"])
    held = example.pairs(example.GIRLS[new], example.BOYS[new])
    girls, boys = ([pair[side] for pair in held] for side in range(2))
    scales = (-2, 0, 2)
    low, before, high = example.moved(model, direction, boys, scales)
    assert low < before - 3 and before < 0 and high > 3
    low, before, high = example.moved(model, direction, girls, scales)
    assert low < -3 < 0 < before and high > before + 3
    random = torch.tensor(
        [example.moved(model, Direction.random(direction, seed), boys[:5], (2,))[0] for seed in range(8)]
    )
    assert random.mean() < 0
    with applied(model, Add(direction, scale=2)):
        assert "she" in model.complete("Tom was happy because", max_new_tokens=6)
    assert "she" not in model.complete("Tom was happy because", max_new_tokens=6)
