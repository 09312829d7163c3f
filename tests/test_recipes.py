"""Recipes: what they find, what their gradients are, and what remains of them in the finished dictionary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_train import TRUE, D, Source, _train
from torch.nn.functional import normalize

from interventions.dictionaries import AbsTopK, BatchTopK, GroupMax, JumpReLU, ReLU, recipes
from interventions.dictionaries.cross_learner import CrossLearner
from interventions.dictionaries.learner import Learner
from interventions.dictionaries.pool import Pool
from interventions.dictionaries.recipes.jump import jump
from interventions.sites import Site

FINDS = [
    recipes.L1(0.2),
    recipes.TopK(3),
    recipes.BatchTopK(3),
    recipes.JumpReLU(3),
    recipes.JumpReLU(recipes.QuadraticL0(3)),
    recipes.Gated(0.8),
    recipes.PAnneal(0.2),
    recipes.GroupMax(3),
]
ALL = [*FINDS, recipes.Matryoshka(3), recipes.AbsTopK(3), recipes.JumpReLU(recipes.L0(0.02))]


def _name(recipe: recipes.Recipe) -> str:
    sparsity = getattr(recipe, "l0", None)
    return type(recipe).__name__ + (type(sparsity).__name__ if isinstance(sparsity, recipes.Sparsity) else "")


def _pool(source: Any, *names: str) -> Pool:
    return Pool(source, torch.arange(2**13).reshape(-1, 32), [source.sites[n] for n in names], size=2**13)


def _learner(recipe: recipes.Recipe, n_features: int = 96) -> tuple[Learner, Pool]:
    source: Any = Source()
    pool = _pool(source, "resid")
    site = source.sites["resid"]
    return Learner(site, site, n_features, recipe, pool), pool


# The first three find theirs in test_train.
@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, marks=pytest.mark.slow) for recipe in FINDS[:3]] + FINDS[3:], ids=_name
)
def test_recipes_find_the_features_the_data_were_made_of(recipe):
    source = Source()
    coder = _train(source, ["resid"], recipe)["resid"]
    assert (source.features["resid"] @ coder.W_dec.T).max(-1).values.mean() > 0.9
    assert coder.has_unit_decoder and coder.meta["fvu"] < 0.2


@pytest.mark.parametrize("recipe", ALL, ids=_name)
def test_the_finished_dictionary_computes_what_was_trained(recipe):
    learner, pool = _learner(recipe)
    for step in range(60):
        learner.advance(pool.batch(128), step / 60, lr=3e-3)
    coder = learner.finished(pool, {})
    x = pool.sample(learner.reads, 2000)
    raw = x / pool.scale[learner.reads] + pool.centre[learner.reads]
    z = (x - learner.b_dec) @ learner.W_enc.T + learner.b_enc
    if isinstance(recipe, recipes.BatchTopK):
        f = torch.where(coder.encode(raw) != 0, z, 0.0)  # its threshold is of the whole pool
    elif isinstance(recipe, recipes.Gated):
        u = z - learner.b_enc
        f = (z > 0) * (u * learner.weights["r_mag"].exp() + learner.weights["b_mag"]).relu()
    elif isinstance(recipe, recipes.JumpReLU):
        f = z * (z > learner.weights["log_threshold"].exp())
    else:
        kept = recipe.kept(z, 1.0)
        f = z.relu() if kept is None else z * kept
    y = (f @ learner.W_dec + learner.b_dec) / pool.scale[learner.writes] + pool.centre[learner.writes]
    off = (coder(raw) - y).norm(dim=-1) > 1e-3 * y.norm(dim=-1)
    assert off.double().mean() < 1e-2  # a value at its very threshold may fall on either side


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        (recipes.Gated(0.3), JumpReLU),
        (recipes.JumpReLU(3), JumpReLU),
        (recipes.PAnneal(0.1), ReLU),
        (recipes.Matryoshka(3), BatchTopK),
        (recipes.AbsTopK(3), AbsTopK),
        (recipes.GroupMax(3), GroupMax),
    ],
    ids=lambda x: getattr(x, "__name__", None) or _name(x),
)
def test_recipes_end_in_their_activation(recipe, kind):
    assert type(_train(Source(), ["resid"], recipe, steps=3)["resid"].activation) is kind


@pytest.mark.parametrize("l0", [2, 6])
def test_as_many_features_are_active_as_jump_relu_is_asked_for(l0):
    source: Any = Source(noise=0.1)
    coder = _train(source, ["resid"], recipes.JumpReLU(l0))["resid"]
    x = source.read(torch.arange(4096), [source.sites["resid"]])[source.sites["resid"]]
    assert (coder.encode(x) != 0).sum(-1).double().mean() == pytest.approx(l0, rel=0.1)
    assert coder.units.threshold == "stored"


def test_a_price_that_is_far_off_leaves_the_other_weights_their_gradients():
    gradients = []
    for weight in (1e-6, 1e6):
        learner, pool = _learner(recipes.JumpReLU(recipes.TargetL0(1, weight)))
        learner.advance(pool.batch(256), 0.5, lr=1e-3)
        grads = [parameter.grad for parameter in learner.parameters]
        assert all(grad is not None for grad in grads)
        gradients.append(grads)
    for few, many in zip(*(grads[:-1] for grads in gradients), strict=True):
        torch.testing.assert_close(few, many)
    assert gradients[1][-1].norm() == pytest.approx(1, rel=1e-3)


def test_the_gradient_across_the_jump_is_that_of_the_expected_loss():
    """Against differences, for the reconstruction and L0 together, over a million quantiles."""
    z = 1 + torch.special.ndtri((torch.arange(1_000_000, dtype=torch.float64)[:, None] + 0.5) / 1_000_000)
    target = 0.7 * z + 0.2

    def loss(log_threshold: torch.Tensor) -> torch.Tensor:
        features, l0 = jump(z, log_threshold, 0.02)
        return (features - target).square().mean() + 0.3 * l0

    log_threshold = torch.tensor([0.2], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(log_threshold), log_threshold)
    h = 0.002
    with torch.no_grad():
        difference = (loss(log_threshold + h) - loss(log_threshold - h)) / (2 * h)
    assert gradient.item() == pytest.approx(difference.item(), rel=0.01)


def test_the_window_about_a_threshold_has_both_its_halves():
    z = torch.tensor([[0.9], [1.1], [2.0]], requires_grad=True)
    log_threshold = torch.zeros(1, requires_grad=True)
    features, l0 = jump(z, log_threshold, 0.5)
    assert torch.equal(features, torch.tensor([[0.0], [1.1], [2.0]])) and l0.item() == pytest.approx(2 / 3)
    by_z, by_threshold = torch.autograd.grad(features.sum() + 3 * l0, [z, log_threshold])
    assert torch.equal(by_z, torch.tensor([[0.0], [1.0], [1.0]]))  # L0 has no gradient to z
    assert by_threshold.item() == pytest.approx(-(2 * 1.0 + 3 * 2 / 3) / 0.5)


def test_gates_learn_from_their_own_reconstruction_and_leave_the_decoder_alone():
    learner, pool = _learner(recipes.Gated(0.3))
    x = pool.batch(256)[learner.reads]
    z = (x @ learner.W_enc.T + learner.b_enc).detach().requires_grad_()
    step = recipes.Step(
        z, learner.b_enc, learner.W_dec.norm(dim=-1), lambda f: learner._unexplained(x, f),
        learner.weights, {}, 1.0,
    )  # fmt: skip
    _, penalty = learner.recipe.features(step)
    assert isinstance(penalty, torch.Tensor)
    by_z, by_decoder = torch.autograd.grad(penalty, [z, learner.W_dec], allow_unused=True)
    expected = (x - z.relu() @ learner.W_dec).square().sum() / x.numel()
    expected = expected + 0.3 * (z.relu() @ learner.W_dec.norm(dim=-1).detach()).mean()
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(by_z, torch.autograd.grad(expected, z)[0])
    by_norms = 0.3 * z.relu().mean(0)[:, None] * learner.W_dec / learner.W_dec.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(by_decoder, by_norms)


@pytest.mark.parametrize("recipe", [recipes.Gated(0.3), recipes.L1(0.1), recipes.PAnneal(0.1)], ids=_name)
def test_the_decoder_bias_of_an_autoencoder_has_the_gradient_of_the_loss(recipe):
    """It is subtracted from the input too, and its gradient takes a way of its own.

    Left out is the reconstruction from gates, which holds the decoder and its bias fixed.
    """
    learner, pool = _learner(recipe)
    learner._unexplained = lambda wanted, features: 0 * features.sum()  # type: ignore[method-assign]
    x = pool.batch(64)[learner.reads].double()
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        weight = getattr(learner, name).detach().double()
        setattr(learner, name, (weight + 0.01 * torch.rand_like(weight)).requires_grad_())
    learner.weights = {k: (v.detach() + 0.1).double().requires_grad_() for k, v in learner.weights.items()}

    def loss() -> torch.Tensor:
        return learner.loss(x, x, 0.5, auxk=0.0, dead_after=100)

    (gradient,) = torch.autograd.grad(loss(), learner.b_dec)
    h = 1e-7
    for axis in range(4):
        with torch.no_grad():
            learner.b_dec[axis] += h
            above = loss()
            learner.b_dec[axis] -= 2 * h
            below = loss()
            learner.b_dec[axis] += h
        assert gradient[axis].item() == pytest.approx((above - below).item() / (2 * h), rel=1e-3, abs=1e-7)


def test_the_price_does_not_jump_when_p_falls():
    recipe = recipes.PAnneal(0.5, warmup=0, p=0.2, start=0.2, updates=4)
    z = torch.randn(64, 40, generator=torch.Generator().manual_seed(0)).abs()
    memory = recipe.memory()

    def price(progress: float) -> float:
        step = recipes.Step(z, torch.zeros(40), torch.ones(40), lambda f: f.sum(), {}, memory, progress)
        return float(recipe.features(step)[1])

    before = price(0.0)
    prices = [price(progress) for progress in torch.linspace(0, 1, 40).tolist()]
    assert prices == pytest.approx([before] * 40, rel=1e-5)
    assert memory["p"].item() == pytest.approx(0.2) and memory["scale"].item() != 1
    assert [round(recipe.p_at(progress), 2) for progress in (0.2, 0.4, 0.6, 0.8, 1.0)] == [
        1.0, 0.8, 0.6, 0.4, 0.2
    ]  # fmt: skip


@pytest.mark.parametrize("p", [0.0, -1.0, 1.5])
def test_powers_that_have_no_meaning_are_refused(p):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        recipes.PAnneal(0.1, p=p)
    with pytest.raises(ValueError, match="one step or more"):
        recipes.PAnneal(0.1, start=1.0)
    with pytest.raises(ValueError, match="one step or more"):
        recipes.PAnneal(0.1, updates=0)


def test_every_prefix_of_a_matryoshka_dictionary_reconstructs():
    source: Any = Source()
    x = source.read(torch.arange(4096), [source.sites["resid"]])[source.sites["resid"]]

    def fvu(coder) -> float:
        return ((coder(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()

    nested = _train(source, ["resid"], recipes.Matryoshka(3, widths=(24, 48)), steps=400)["resid"]
    plain = _train(source, ["resid"], recipes.BatchTopK(3), steps=400)["resid"]
    assert nested.prefixes == (24, 48, 96)
    parts = [fvu(nested.prefix(width)) for width in nested.prefixes]
    assert parts == sorted(parts, reverse=True) and parts[-1] < 0.25
    assert parts[0] < fvu(plain.select(slice(24))) - 0.1


def test_the_loss_of_a_matryoshka_dictionary_is_the_mean_over_its_prefixes():
    learner, pool = _learner(recipes.Matryoshka(3, widths=(0.25, 0.5)))
    x = pool.batch(64)[learner.reads]
    loss = learner.loss(x, x, 0.5, auxk=0.0, dead_after=100)
    z = (x - learner.b_dec) @ learner.W_enc.T + learner.b_enc
    f = z * learner.recipe.kept(z, 0.5)
    expected = sum(
        (x - f[:, :n] @ learner.W_dec[:n] - learner.b_dec).square().sum() / x.numel() / 3
        for n in (24, 48, 96)
    )
    torch.testing.assert_close(loss, expected)
    for weight in (learner.W_enc, learner.b_enc, learner.W_dec):
        ours, theirs = (torch.autograd.grad(of, weight, retain_graph=True)[0] for of in (loss, expected))
        torch.testing.assert_close(ours, theirs)


def test_prefixes_wider_than_the_dictionary_are_refused():
    with pytest.raises(ValueError, match="asks for prefixes"):
        _learner(recipes.Matryoshka(3, widths=(200,)))


@pytest.mark.parametrize("recipe", ALL, ids=_name)
def test_a_learner_goes_on_from_its_tensors_to_the_same_bits(recipe):
    whole, pool = _learner(recipe)
    batches = [pool.batch(64) for _ in range(12)]
    for i, batch in enumerate(batches[:6]):
        whole.advance(batch, i / 12, lr=3e-3, dead_after=2)
    kept = {name: value.clone() for name, value in whole.tensors().items()}
    again, _ = _learner(recipe)
    again.restore(kept)
    for learner in (whole, again):
        for i, batch in enumerate(batches[6:], start=6):
            learner.advance(batch, i / 12, lr=3e-3, dead_after=2)
    assert whole.tensors().keys() == again.tensors().keys()
    for name, value in whole.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name


# cross-layer transcoders


class Layered:
    """Stands in for a model of two layers: what layer 0 reads is written at both, in different directions."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        names = ["mlp_in.0", "mlp.0", "mlp_in.1", "mlp.1"]
        self.sites = {name: Site(i, name, name, width=D) for i, name in enumerate(names)}

        def directions() -> torch.Tensor:
            return normalize(torch.randn(TRUE, D, generator=generator), dim=-1)

        self.read_from = [directions(), directions()]
        self.written = {(0, 0): directions(), (0, 1): directions(), (1, 1): directions()}
        active = torch.rand(2, 2**13, TRUE, generator=generator) < 2.0 / TRUE
        self.strengths = active * (1 + 4 * torch.rand(2, 2**13, TRUE, generator=generator))

    def site(self, name: Any) -> Site:
        return name if isinstance(name, Site) else self.sites[name]

    def read(self, tokens, sites):
        f = self.strengths[:, tokens]
        values = {
            "mlp_in.0": f[0] @ self.read_from[0],
            "mlp_in.1": f[1] @ self.read_from[1],
            "mlp.0": f[0] @ self.written[0, 0],
            "mlp.1": f[0] @ self.written[0, 1] + f[1] @ self.written[1, 1],
        }
        return {site: values[site.name] + 3 for site in sites}


def _layered(recipe: recipes.Recipe, n_features: int = 64) -> tuple[CrossLearner, Pool, Any]:
    source: Any = Layered()
    pool = _pool(source, "mlp_in.0", "mlp.0", "mlp_in.1", "mlp.1")
    pairs = [(source.sites[f"mlp_in.{i}"], source.sites[f"mlp.{i}"]) for i in (0, 1)]
    return CrossLearner(pairs, n_features, recipe, pool), pool, source


@pytest.mark.parametrize(
    "recipe",
    [recipes.TopK(3), recipes.JumpReLU(3), pytest.param(recipes.L1(0.2), marks=pytest.mark.slow)],
    ids=_name,
)
def test_a_cross_layer_transcoder_finds_what_each_feature_writes_at_each_layer(recipe):
    learner, pool, source = _layered(recipe)
    for step in range(1000):
        learner.advance(pool.batch(128), step / 1000, lr=3e-3 * min(1.0, (1000 - step) / 200))
    clt = learner.finished(pool, {})
    layers = clt.layers()
    found = {
        (0, 0): layers["mlp.0"].own.W_dec,
        (0, 1): layers["mlp.0"].later["mlp.1"].W_dec,
        (1, 1): layers["mlp.1"].own.W_dec,
    }
    for key, directions in source.written.items():
        cosines = directions @ normalize(found[key], dim=-1).T
        assert cosines.max(-1).values.mean() > 0.9, key
    read = source.read(torch.arange(4096), list(source.sites.values()))
    inputs = [read[source.sites[name]] for name in clt.reads]
    for name, y in zip(clt.writes, clt(inputs), strict=True):
        x = read[source.sites[name]]
        assert (y - x).square().sum() / (x - x.mean(0)).square().sum() < 0.25


@pytest.mark.parametrize("recipe", [recipes.TopK(3), recipes.BatchTopK(3), recipes.PAnneal(0.1)], ids=_name)
def test_a_cross_layer_transcoder_in_training_has_the_loss_of_the_finished_one(recipe):
    learner, pool, source = _layered(recipe)
    for step in range(40):
        learner.advance(pool.batch(128), step / 40, lr=3e-3)
    clt = learner.finished(pool, {})
    batch = {site: pool.sample(site, 4096) for site in source.sites.values()}
    loss = learner.batch_loss(batch, 0.0, auxk=0.0, dead_after=100)
    raw = {site: x / pool.scale[site] + pool.centre[site] for site, x in batch.items()}
    predicted = clt([raw[site] for site in learner.reads])
    shares = [
        ((y - raw[s]) * pool.scale[s]).square().mean() for s, y in zip(learner.writes, predicted, strict=True)
    ]
    assert loss.item() == pytest.approx(float(sum(shares)) / 2, rel=0.02)


def test_a_cross_layer_transcoder_goes_on_from_its_tensors_to_the_same_bits():
    whole, pool, _ = _layered(recipes.PAnneal(0.1))
    batches = [pool.batch(64) for _ in range(8)]
    for i, batch in enumerate(batches[:4]):
        whole.advance(batch, i / 8, lr=3e-3)
    kept = {name: value.clone() for name, value in whole.tensors().items()}
    again, _, _ = _layered(recipes.PAnneal(0.1))
    again.restore(kept)
    for learner in (whole, again):
        for i, batch in enumerate(batches[4:], start=4):
            learner.advance(batch, i / 8, lr=3e-3)
    assert all(torch.equal(value, again.tensors()[name]) for name, value in whole.tensors().items())


@pytest.mark.parametrize("recipe", [recipes.Gated(0.3), recipes.Matryoshka(3)], ids=_name)
def test_recipes_that_cannot_train_a_cross_layer_transcoder_say_so(recipe):
    with pytest.raises(ValueError, match=r"asks for prefixes|reconstructs from each layer alone"):
        learner, pool, _ = _layered(recipe)
        learner.advance(pool.batch(64), 0.0, lr=1e-3)
