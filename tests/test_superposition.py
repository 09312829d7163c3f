from __future__ import annotations

import itertools
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interventions.dictionaries import CrossLayerJob, SparseCoder, quality, recipes, train, train_jobs
from interventions.dictionaries.activations import JumpReLU
from interventions.model import Model
from tasks import Superposition, recovery
from tasks.matching import assignment

WORLD = Superposition(32, 64, active=3.0)
WIDE = Superposition(1024, 64, active=3.0)  # features hardly interfere here
RANDOM = torch.Generator


def _drawn(world: Superposition, n: int = 20_000, seed: int = 0):
    return world.sample(n, RANDOM().manual_seed(seed))


def _truth(world: Superposition, threshold: float = 0.3) -> SparseCoder:
    """The true directions, as a dictionary."""
    return SparseCoder(
        W_enc=world.features.T,
        b_enc=torch.zeros(world.n_features),
        W_dec=world.features,
        b_dec=torch.zeros(world.d),
        activation=JumpReLU(torch.full((world.n_features,), threshold)),
    )


# the data


def test_features_fire_as_often_as_asked_and_more_or_less_as_words_do():
    _, strengths = _drawn(WORLD, 50_000)
    often = (strengths > 0).float().mean(0)
    assert (strengths > 0).sum(-1).float().mean() == pytest.approx(3.0, rel=0.01)
    torch.testing.assert_close(often, WORLD.frequencies, atol=0.008, rtol=0)
    assert often[0] / often[15] == pytest.approx(4.0, rel=0.1)  # the square root of 16


def test_strengths_have_median_one():
    _, strengths = _drawn(WORLD)
    fired = strengths[strengths > 0]
    assert fired.median() == pytest.approx(1.0, abs=0.02)
    assert fired.log().std() == pytest.approx(0.5, abs=0.02)


def test_activations_are_sums_of_what_fires_and_noise():
    noisy = Superposition(32, 64, noise=0.1)
    x, strengths = _drawn(noisy)
    left = x - strengths @ noisy.features
    assert left.std() == pytest.approx(0.1, rel=0.01)
    torch.testing.assert_close(noisy.features.norm(dim=-1), torch.ones(64))


def test_correlated_features_fire_together_and_no_more_often():
    world = Superposition(32, 64, active=6.0, zipf=0.0, correlation=0.5, group=8)
    fires = (_drawn(world, 50_000)[1] > 0).float()
    torch.testing.assert_close(fires.mean(0), world.frequencies, atol=0.008, rtol=0)
    r = torch.corrcoef(fires.T)
    assert r[:8, :8][~torch.eye(8, dtype=torch.bool)].min() > 0.15
    assert r[:8, 8:16].abs().max() < 0.03


def test_children_fire_only_with_their_parent_and_one_at_a_time():
    world = Superposition(32, 64, active=4.0, parents=6, children=3)
    fires = _drawn(world)[1] > 0
    families = fires[:, -18:].unflatten(-1, (6, 3))
    assert not (families.any(-1) & ~fires[:, :6]).any()
    assert families.sum(-1).max() == 1
    given = families.any(-1).sum(0) / fires[:, :6].sum(0)
    torch.testing.assert_close(given, torch.full((6,), 0.75), atol=0.03, rtol=0)
    torch.testing.assert_close(fires.float().mean(0), world.frequencies, atol=0.012, rtol=0)
    assert fires.sum(-1).float().mean() == pytest.approx(4.0, rel=0.02)


def test_the_same_seed_draws_the_same():
    for first, second in zip(_drawn(WORLD), _drawn(WORLD), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(_drawn(WORLD)[0], _drawn(WORLD, seed=1)[0])
    assert not torch.equal(WORLD.features, Superposition(32, 64, active=3.0, seed=1).features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parents": 30}, "do not fit"),
        ({"active": 40.0}, "cannot fire"),
        ({"active": 0.0}, "cannot fire"),
        ({"correlation": 1.0}, "below 1"),
    ],
)
def test_worlds_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Superposition(32, 64, **options)


def test_each_layer_writes_what_its_features_and_earlier_ones_do():
    known = Superposition(16, 24, noise=0.1).map(layers=3, linear=0.7)
    layers = known.sample(100, RANDOM().manual_seed(0))
    last = layers[2].x @ known.matrices[2]
    for layer in range(3):
        last = last + layers[layer].strengths @ known.writes[layer][2]
    torch.testing.assert_close(layers[2].y, last)
    over = torch.stack(list(known.writes[0].values())).square().sum((0, 2))
    torch.testing.assert_close(over, torch.ones(24))
    assert not torch.equal(layers[0].strengths, layers[1].strengths)


# the model


def test_the_model_holds_at_its_sites_what_was_drawn():
    known = Superposition(16, 24, noise=0.1).map(layers=2, linear=0.5)
    model: Any = Model.load(known.module(2000))
    tokens = model.module.text(8, 12)
    read = model.read(tokens, ["embed", "mlp_in.0", "mlp.0", "mlp_in.1", "mlp.1", "resid.1"])
    at = {site.name: x for site, x in read.items()}
    strengths = [model.module.strengths(tokens, layer) for layer in range(2)]
    torch.testing.assert_close(at["embed"], at["mlp_in.0"])
    for layer in range(2):
        left = at[f"mlp_in.{layer}"] - strengths[layer] @ known.sources[layer].features
        assert left.std() == pytest.approx(0.1, rel=0.1)
    written = strengths[0] @ known.writes[0][0] + at["mlp_in.0"] @ known.matrices[0]
    torch.testing.assert_close(at["mlp.0"], written)
    torch.testing.assert_close(at["resid.1"], at["embed"] + at["mlp.0"] + at["mlp.1"])


def test_positions_hold_different_samples_that_earlier_tokens_alone_decide():
    module = WORLD.module(4000)
    tokens = torch.randint(64, (512, 32), generator=RANDOM().manual_seed(0))
    index = module.index(tokens)
    assert len(index.unique()) > 0.9 * 4000
    changed = tokens.clone()
    changed[:, 20] += 1
    assert torch.equal(module.index(changed)[:, :20], index[:, :20])
    assert (module.index(changed)[:, 20:23] != index[:, 20:23]).float().mean() > 0.99


def test_the_truth_recovers_the_loss_of_the_model_and_chance_does_not():
    model: Any = Model.load(WIDE.module(4000))
    text = model.module.text(64, 32)
    true = quality(model, {"embed": _truth(WIDE)}, text)["embed"]
    chance = quality(model, {"embed": SparseCoder.random(1024, 64)}, text)["embed"]
    assert true.loss < true.averaged - 0.1
    assert true.recovered_from_mean > 0.9 and chance.recovered_from_mean < 0.5


# recovery


def test_the_truth_is_recovered_whatever_the_order():
    shuffled = _truth(WIDE).select(torch.randperm(64, generator=RANDOM().manual_seed(0)))
    found = recovery(shuffled, WIDE.features, *_drawn(WIDE))
    assert found.cosine == pytest.approx(1.0) and found.matched == pytest.approx(1.0)
    assert found.found == 1.0
    assert found.f1 > 0.95


def test_where_features_interfere_the_true_directions_alone_do_not_tell_what_fires():
    found = recovery(_truth(WORLD), WORLD.features, *_drawn(WORLD))
    assert found.cosine == pytest.approx(1.0) and found.f1 < 0.5


def test_a_row_stands_for_one_feature_only():
    half = _truth(WORLD).select(list(range(32)))
    twice = SparseCoder(
        W_enc=half.W_enc.repeat(1, 2), b_enc=half.b_enc.repeat(2), W_dec=half.W_dec.repeat(2, 1),
        b_dec=half.b_dec, activation=JumpReLU(torch.full((64,), 0.3)),
    )  # fmt: skip
    found = recovery(twice, WORLD.features, *_drawn(WORLD))
    assert found.found == 0.5
    assert found.matched < found.cosine
    assert recovery(half, WORLD.features, *_drawn(WORLD)).found == 0.5


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 6), (6, 3), (5, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_best_of_all(shape, seed):
    gain = torch.randn(shape, generator=RANDOM().manual_seed(seed))
    found = assignment(gain)
    rows = (found >= 0).nonzero()[:, 0]
    assert len(rows) == min(shape) == len(found[rows].unique())
    small = gain if shape[0] <= shape[1] else gain.T
    best = max(
        sum(small[i, j].item() for i, j in enumerate(columns))
        for columns in itertools.permutations(range(small.shape[1]), small.shape[0])
    )
    assert gain[rows, found[rows]].sum().item() == pytest.approx(best, abs=1e-5)


# training


def _text(n_features: int) -> torch.Tensor:
    return torch.randint(n_features, (128, 256), generator=RANDOM().manual_seed(0))


TRAINED = Superposition(64, 96, active=4.0)
RECIPES = [
    recipes.L1(0.2),
    recipes.PAnneal(0.2),
    recipes.Gated(0.6),
    recipes.TopK(4, start=12),
    recipes.BatchTopK(4),
    recipes.Matryoshka(4, widths=(1 / 2,)),
    recipes.JumpReLU(4),
]
SPREAD = (recipes.Gated, recipes.TopK, recipes.Matryoshka, recipes.JumpReLU)  # in the usual run
ARCHITECTURES = pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=() if type(recipe) in SPREAD else pytest.mark.slow) for recipe in RECIPES],
    ids=lambda recipe: type(recipe).__name__,
)


def _trained(recipe: Any, **options: Any) -> SparseCoder:
    given = {"batch_size": 256, "lr": 4e-3, "dead_after": 50, **options}
    model = Model.load(TRAINED.module(2**14))
    return train(model, _text(96), ["embed"], recipe=recipe, **given)["embed"]


@ARCHITECTURES
def test_every_architecture_finds_the_true_features(recipe):
    coder = _trained(recipe, n_features=128, steps=500)
    found = recovery(coder, TRAINED.features, *_drawn(TRAINED, seed=1))
    assert found.cosine > 0.9
    assert found.f1 > 0.6


@pytest.mark.slow
@ARCHITECTURES
def test_every_architecture_finds_the_true_features_with_no_more_room_than_these_take(recipe):
    found = recovery(_trained(recipe, n_features=96, steps=3000), TRAINED.features, *_drawn(TRAINED, seed=1))
    assert found.cosine > 0.9


@pytest.mark.parametrize("skip", [False, True], ids=["transcoder", "skip transcoder"])
def test_transcoders_find_what_features_write(skip):
    known = TRAINED.map()
    model = Model.load(known.module(2**14))
    pair = [("mlp_in.0", "mlp.0")]
    options = {"steps": 500, "batch_size": 256, "lr": 4e-3, "dead_after": 50}
    coder = train(model, _text(96), pair, n_features=128, recipe=recipes.TopK(4), skip=skip, **options)[
        "mlp.0"
    ]
    # what the skip path writes for a feature's direction is not left to the feature
    carried = 0 if coder.W_skip is None else TRAINED.features @ coder.W_skip
    (held,) = known.sample(4096, RANDOM().manual_seed(1))
    assert recovery(coder, known.writes[0][0] - carried, held.x, held.strengths).cosine > 0.9


def test_a_cross_layer_transcoder_finds_what_features_write_at_every_layer():
    known = TRAINED.map(layers=2)
    model = Model.load(known.module(2**14))
    pairs = [(f"mlp_in.{layer}", f"mlp.{layer}") for layer in range(2)]
    job = CrossLayerJob(sites=pairs, n_features=128, recipe=recipes.BatchTopK(4), lr=4e-3, dead_after=50)
    layers = train_jobs(model, _text(96), {"all": job}, steps=500, batch_size=256)["all"].layers()
    held = known.sample(4096, RANDOM().manual_seed(1))
    for layer, coder in enumerate(layers.values()):
        assert recovery(coder, known.writes[layer][layer], held[layer].x, held[layer].strengths).cosine > 0.9
    first = layers["mlp.0"]
    onward = SimpleNamespace(encode=first.encode, decoder_rows=first.later["mlp.1"].decoder_rows)
    assert recovery(onward, known.writes[0][1], held[0].x, held[0].strengths).cosine > 0.9


def test_a_skip_path_carries_what_is_dense():
    known = Superposition(32, 64, active=3.0, noise=0.2).map(linear=0.5)
    model = Model.load(known.module(2**14))
    (held,) = known.sample(4096, RANDOM().manual_seed(1))
    fvu = {}
    for skip in (False, True):
        coder = train(
            model, _text(64), [("mlp_in.0", "mlp.0")], n_features=64, recipe=recipes.TopK(3), steps=800,
            batch_size=256, lr=3e-3, skip=skip,
        )["mlp.0"]  # fmt: skip
        error = held.y - coder(held.x)
        fvu[skip] = (error.square().sum() / (held.y - held.y.mean(0)).square().sum()).item()
    assert fvu[True] < 0.8 * fvu[False]


# the script of docs/superposition.md


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs" / "examples")
    return import_module("superposition")


def test_measures_are_read_between_the_dictionaries_of_a_sweep(script):
    def point(l0: float, fvu: float, seed: int = 0) -> Any:
        return script.Point("TopK", "k", seed, fvu, l0, 0.0, 0.9, 0.8, 0.7, 1.0)

    sweep = [point(4, 0.4), point(16, 0.1)]
    assert script.at(sweep, 8, "fvu") == pytest.approx(0.2)
    assert script.at(sweep, 8, "cosine") == pytest.approx(0.9)
    assert script.at(sweep, 32, "fvu") is None
    assert script.spread([0.1, 0.3]) == "0.200 ± 0.141" and script.spread([0.1, None]) == "-"
    assert "| TopK | 0.400 | 0.200 | 0.100 | 0.900 | 0.800 | 0.700 |" in script.table(sweep)


def test_the_script_trains_measures_and_draws(script, tmp_path, capsys):
    options = {"seeds": 2, "samples": 2**12, "steps": 30, "batch_size": 64, "lr": 3e-3}
    sweeps = {"TopK": [recipes.TopK(2), recipes.TopK(6)], "ReLU + L1": [recipes.L1(0.1), recipes.L1(0.3)]}
    points = script.frontier(WORLD, sweeps, **options)
    assert [p.seed for p in points] == [0] * 4 + [1] * 4
    assert points[1].l0 == pytest.approx(6, rel=0.1) and points[1].fvu < points[0].fvu < 1
    pairs = script.transcoders(WORLD, [2], linear=0.5, **options)
    assert [p.architecture for p in pairs] == ["transcoder", "skip transcoder"] * 2
    assert len(script.table([*points, *pairs]).splitlines()) == 6
    assert capsys.readouterr().out.count("FVU") == 12
    assert len(script.families(script.FAMILIES, {"TopK": recipes.TopK(4)}, **options).splitlines()) == 3
    script.draw(points, tmp_path / "frontier.svg")
    drawn = (tmp_path / "frontier.svg").read_bytes()
    script.draw(points, tmp_path / "frontier.svg")
    assert b"<svg" in drawn and drawn == (tmp_path / "frontier.svg").read_bytes()
