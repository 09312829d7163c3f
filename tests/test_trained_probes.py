"""Probes trained by steps, probes with hidden layers, and how much each class counts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import SVC, LinearSVC
from torch import nn

from interventions.probing import (
    Activations,
    Logistic,
    MLPProbe,
    OnDifferences,
    Probe,
    SiteProbes,
    Trained,
    probe_sites,
)
from interventions.probing.class_weights import example_weights


def blobs(n=120, classes=2, width=6, seed=0, apart=1.5):
    """Activations far from zero, in classes that lie apart, and their labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    means = apart * torch.randn(classes, width, generator=g, dtype=torch.float64)
    return 5 + means[labels] + torch.randn(n, width, generator=g, dtype=torch.float64), labels


def rings(n=200, seed=0):
    """What no affine probe tells apart: points near the middle, and points around them."""
    g = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(n, generator=g)
    labels = torch.arange(n) % 2
    size = 1 + 3 * labels + 0.3 * torch.randn(n, generator=g)
    return torch.stack([size * angle.cos(), size * angle.sin()], dim=1) + 7, labels


# Training


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("hidden", [(), (5,), (7, 4)])
def test_training_is_that_of_torch_step_by_step(classes, hidden):
    x, y = blobs(50, classes)
    how = Trained(hidden, epochs=3, batch_size=16, standardise=False, class_weights=range(1, classes + 1))
    probe = how.fit(x, y)
    generator = torch.Generator().manual_seed(0)
    sizes = [6, *hidden, 1 if classes == 2 else classes]
    layers = []
    for wide, narrow in pairwise(sizes):
        layer = nn.Linear(wide, narrow).double()
        for parameter in (layer.weight, layer.bias):
            drawn = 2 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 1
            parameter.data.copy_(drawn / wide**0.5)
        layers += [layer, nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    often = torch.arange(1, classes + 1).double()
    for _ in range(3):
        for some in torch.randperm(50, generator=generator).split(16):
            logits = net(x[some])
            if classes == 2:
                each = often[y[some]]
                rows = nn.functional.binary_cross_entropy_with_logits(
                    logits[:, 0], y[some].double(), reduction="none"
                )
                loss = (each * rows).sum() / each.sum()
            else:
                loss = nn.functional.cross_entropy(logits, y[some], weight=often)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    expected = net(x).detach()
    torch.testing.assert_close(probe.logits(x), expected[:, 0] if classes == 2 else expected)


def test_training_for_long_comes_to_the_least_loss():
    x, y = blobs(apart=0.4)
    trained = Trained(epochs=400, batch_size=120, weight_decay=0.0).fit(x, y)
    torch.testing.assert_close(trained.logits(x), Logistic(1e-9).fit(x, y).logits(x), rtol=0.02, atol=0.02)


def test_a_hidden_layer_tells_apart_what_an_affine_probe_does_not():
    x, y = rings()
    assert Trained(epochs=100).fit(x, y).score(x, y) < 0.7
    assert Trained(hidden=(16,), epochs=100).fit(x, y).score(x, y) > 0.97


def test_the_weights_kept_are_those_of_the_best_epoch():
    x, y = blobs(60, width=40, apart=0.03)
    how = Trained(hidden=(32,), epochs=30, validation=0.3)
    probe = how.fit(x, y)
    losses = probe.how["validation"]["losses"]
    best = losses.index(min(losses)) + 1
    assert best < len(losses) == probe.how["epochs"] == 30
    short = Trained(hidden=(32,), epochs=best, validation=0.3).fit(x, y)
    assert short.how["validation"]["losses"] == losses[:best]
    assert torch.equal(short.logits(x), probe.logits(x))


def test_training_ends_when_patience_does():
    x, y = blobs(60, width=40, apart=0.03)
    losses = Trained(hidden=(32,), epochs=30, validation=0.3).fit(x, y).how["validation"]["losses"]
    stopped = (
        Trained(hidden=(32,), epochs=30, validation=0.3, patience=3).fit(x, y).how["validation"]["losses"]
    )
    assert len(stopped) < 30 and stopped == losses[: len(stopped)]
    assert len(stopped) == stopped.index(min(stopped)) + 1 + 3


def test_of_every_class_the_same_share_is_held_out():
    x, y = blobs(90, 3)
    probe = Trained(validation=0.2).fit(x, y)
    assert probe.how["validation"]["examples"] == 18
    with pytest.raises(ValueError, match=r"would have no example of class 0"):
        Trained(validation=0.5).fit(x[:3], y[:3])


@pytest.mark.parametrize("standardise", [True, False])
def test_nothing_is_learned_from_what_is_held_out(standardise):
    x, y = blobs(90, 3)
    how = Trained(validation=0.2, standardise=standardise)
    held = Activations({"": torch.arange(90)[:, None]}, y).split(0.2, seed=0)[0][""][:, 0]
    other = x.clone()
    other[held] = 100 * x[held] + 5
    torch.testing.assert_close(how.fit(x, y).weights, how.fit(other, y).weights, rtol=0, atol=0)


def test_standardised_training_makes_a_probe_of_raw_activations():
    x, y = blobs()
    size = torch.tensor([1e-3, 1, 1, 1e3, 1, 1], dtype=torch.float64)
    for hidden in ((), (4,)):
        plain, scaled = (Trained(hidden, epochs=5).fit(rows, y) for rows in (x, x * size + 100))
        torch.testing.assert_close(plain.logits(x), scaled.logits(x * size + 100))


def test_a_seed_says_which_training_it_is():
    x, y = blobs()
    one, same, other = (Trained(seed=seed).fit(x, y) for seed in (3, 3, 4))
    assert torch.equal(one.weights, same.weights) and not torch.equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"hidden": (0,)}, r"hidden=\(0,\)"), ({"epochs": 0}, "at least 1"), ({"batch_size": 0}, "at least 1"),
     ({"lr": 0.0}, "lr=0.0 is above 0"), ({"weight_decay": -1.0}, "weight_decay=-1.0"),
     ({"validation": 1.0}, "validation=1.0"), ({"patience": 2}, "patience=2 needs examples held out"),
     ({"patience": 0, "validation": 0.1}, "patience=0")],
)  # fmt: skip
def test_numbers_that_make_no_training_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Trained(**options)


def test_training_that_diverges_is_an_error():
    x, y = blobs()
    with pytest.raises(ValueError, match="Training diverged with lr=1e"):
        Trained(hidden=(8, 8), lr=1e150, epochs=3).fit(x, y)


# Class weights


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("given", ["balanced", "numbers"])
def test_a_weighted_logistic_probe_is_that_of_scikit_learn(classes, given):
    x, y = blobs(90, classes, apart=0.5)
    keep = (y == 0) | (torch.arange(90) // classes % 4 == 0)
    x, y = x[keep], y[keep]
    ours = given if given == "balanced" else {i: 0.5 + i for i in range(classes)}
    probe = Logistic(0.5, standardise=False, class_weights=ours).fit(x, y)
    theirs = LogisticRegression(C=2.0, class_weight=ours, tol=1e-10, max_iter=2000).fit(x.numpy(), y.numpy())
    expected = torch.from_numpy(theirs.predict_proba(x.numpy()))
    torch.testing.assert_close(probe.predict_proba(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", [Logistic(0.3, class_weights=(1, 3)), Logistic(class_weights="balanced")])
def test_the_weighted_gradient_is_zero(recipe):
    x, y = blobs(70, apart=0.3)
    x, y = x[: 35 + 9], torch.cat([torch.zeros(35), torch.ones(9)]).long()
    each = example_weights(y, recipe.class_weights)
    probe = recipe.fit(x, y)
    excess = each * (probe.probabilities(x) - y)
    scale = x.std(0, correction=0)
    gradient = (x / scale).T @ excess + recipe.l2 * probe.direction * scale
    assert gradient.abs().max() < 1e-8 * len(x) and excess.sum().abs() < 1e-9 * len(x)


def test_whole_weights_are_copies_of_examples():
    x, y = blobs(40, apart=0.3)
    weighted = Logistic(standardise=False, class_weights=(1, 3)).fit(x, y)
    copies = torch.cat([torch.arange(40), *[y.nonzero()[:, 0]] * 2])
    torch.testing.assert_close(
        weighted.logits(x), Logistic(standardise=False).fit(x[copies], y[copies]).logits(x)
    )


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [("even", ValueError, '"balanced", or a number above 0'), ((1.0, 0.0), ValueError, "above 0"),
     ((1.0, float("nan")), ValueError, "above 0"), ((1.0,), ValueError, "for each class"),
     ({0: 1.0, 2: 1.0}, ValueError, "none is skipped"), (3, TypeError, "balanced"),
     ((1.0, "much"), ValueError, "much")],
)  # fmt: skip
@pytest.mark.parametrize("recipe", [Logistic, Trained])
def test_odd_class_weights_are_refused(recipe, given, error, said):
    with pytest.raises(error, match=said):
        recipe(class_weights=given)


def test_class_weights_fit_the_classes():
    x, y = blobs(30, 3)
    for recipe in (Logistic(class_weights=(1, 2)), Trained(class_weights=(1, 2))):
        with pytest.raises(ValueError, match="There are 2 class weights, and 3 classes"):
            recipe.fit(x, y)


# Probes


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_probe_with_hidden_layers_comes_back_from_disk(tmp_path, classes, dtype):
    x, y = blobs(40, classes)
    probe = Trained(hidden=(3, 2)).fit(x, y).to(dtype)
    probe.save(tmp_path)
    again = MLPProbe.load(tmp_path)
    assert repr(again) == repr(probe) and again.n_classes == classes and again.width == 6
    assert torch.equal(again.logits(x), probe.logits(x)) and again.how == probe.how
    with pytest.raises(FileNotFoundError, match=r"There is no probe.json"):
        Probe.load(tmp_path)


def test_gradients_flow_through_a_probe_with_hidden_layers():
    x, y = blobs(40)
    probe = Trained(hidden=(8,)).fit(x, y)
    assert torch.autograd.gradcheck(probe.logits, x[:3].clone().requires_grad_())


@pytest.mark.parametrize(
    ("shapes", "said"),
    [([(1, 4)], "at least two layers"), ([(3, 4), (1, 2)], "do not fit one another"),
     ([(3, 4), (3,)], "do not fit one another")],
)  # fmt: skip
def test_layers_that_make_no_probe_are_refused(shapes, said):
    weights = [torch.zeros(shape) for shape in shapes]
    with pytest.raises(ValueError, match=said):
        MLPProbe(weights, [torch.zeros(len(x)) for x in weights])
    with pytest.raises(ValueError, match="not finite"):
        MLPProbe([torch.full((2, 2), torch.nan), torch.zeros(1, 2)], [torch.zeros(2), torch.zeros(1)])


def test_probes_at_sites_may_have_hidden_layers(tmp_path):
    x, y = rings()
    acts = Activations({"resid.0": x, "resid.1": x + 1}, y)
    found = probe_sites(*acts.split(0.5), recipe=Trained(hidden=(16,), epochs=60), progress=False)
    assert found.auroc["resid.1"].mean > 0.95
    found.save(tmp_path)
    again = SiteProbes.load(tmp_path)
    assert torch.equal(again.scores(acts), found.scores(acts)) and str(again) == str(found)


def test_differences_are_for_affine_probes():
    x, y = blobs(40)
    pairs = torch.stack([x, -x], dim=1)
    assert OnDifferences(Trained()).fit(pairs, y).width == 6
    with pytest.raises(ValueError, match="makes no affine probe"):
        OnDifferences(Trained(hidden=(4,))).fit(pairs, y)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [LogisticRegression, RidgeClassifier, LinearSVC])
def test_a_linear_classifier_of_scikit_learn_is_a_probe(classes, kind):
    x, y = blobs(60, classes, apart=0.5)
    theirs = kind().fit(x.numpy(), y.numpy())
    probe = Probe.of(theirs)
    assert np.allclose(probe.decision_function(x.numpy()), theirs.decision_function(x.numpy()))
    assert (probe.predict(x.numpy()).numpy() == theirs.predict(x.numpy())).all()
    assert probe.score(x.numpy(), y) == pytest.approx(theirs.score(x.numpy(), y.numpy()))
    if kind is LogisticRegression:
        assert np.allclose(probe.predict_proba(x), theirs.predict_proba(x.numpy()))
    assert probe.how["recipe"] == repr(theirs)


def test_what_is_no_linear_classifier_is_refused():
    x, y = blobs(60, 3)
    with pytest.raises(TypeError, match="no fitted linear classifier"):
        Probe.of(LogisticRegression())
    with pytest.raises(ValueError, match="tells \\['a', 'b', 'c'\\] apart"):
        Probe.of(LogisticRegression().fit(x.numpy(), np.array(["a", "b", "c"])[y]))
    with pytest.raises(ValueError, match="says something else than its coefficients"):
        Probe.of(SVC(kernel="linear").fit(x.numpy(), y.numpy()))


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_a_probe_of_two_classes_has_two_probabilities(hidden):
    x, y = blobs(40)
    probe = Trained(hidden, epochs=5).fit(x, y)
    found = probe.predict_proba(x)
    assert found.shape == (40, 2) and torch.equal(found[:, 1], probe.probabilities(x))
    assert torch.equal(probe.predict(x), found.argmax(1))
    assert probe.score(x, y) == (probe.predict(x) == y).double().mean()


@pytest.mark.parametrize("classes", [2, 3])
def test_predictions_keep_the_axes_of_what_is_asked_about(classes):
    x, y = blobs(40, classes)
    probe = Logistic().fit(x, y)
    rows, chances = probe.predict(x), probe.predict_proba(x)
    assert torch.equal(probe.predict(x.unflatten(0, (5, 8))), rows.unflatten(0, (5, 8)))
    assert torch.equal(probe.predict_proba(x.unflatten(0, (5, 8))), chances.unflatten(0, (5, 8)))
    assert torch.equal(probe.predict(x[7]), rows[7])
    torch.testing.assert_close(probe.predict_proba(x[7]), chances[7])


def test_a_penalty_on_sizes_leaves_the_weights_that_matter():
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = (x[:, 3] > 0).long()
    free, sparse = (
        Trained(epochs=60, weight_decay=0.0, l1=l1).fit(x, labels).weights.abs() for l1 in (0, 0.05)
    )
    assert sparse[3] == sparse.max() and sparse.sort().values[:-1].sum() < 0.3 * free.sort().values[:-1].sum()
    with pytest.raises(ValueError, match="l1=-1: a penalty"):
        Trained(l1=-1)
