from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCAB, tiny
from torch.nn.functional import normalize

from interventions.acts import Identity
from interventions.dictionaries import SparseCoder, quality, recipes, table, train
from interventions.dictionaries.learner import Learner
from interventions.dictionaries.pairs import Pairs
from interventions.dictionaries.pool import Pool, geometric_median
from interventions.model import Model
from interventions.sites import Site

D, TRUE = 24, 48  # width, and how many features the data have


class Source:
    """Stands in for a model whose sites hold known sparse combinations of known directions."""

    def __init__(self, noise: float = 0.0, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.sites = {name: Site(i, name, name, width=D) for i, name in enumerate(["resid", "mlp_in", "mlp"])}
        self.features = {name: normalize(random(TRUE, D), dim=-1) for name in self.sites}
        self.offset = {name: 5 * random(D) for name in self.sites}
        active = torch.rand(2**13, TRUE, generator=generator) < 2.0 / TRUE
        self.strengths = active * (1 + 4 * torch.rand(2**13, TRUE, generator=generator))
        self.noise = noise * random(2**13, D)
        self.reads = 0

    def site(self, name: str | Site) -> Site:
        return name if isinstance(name, Site) else self.sites[name]

    def read(self, tokens, sites):
        self.reads += 1
        return {
            s: self.strengths[tokens] @ self.features[s.name] + self.offset[s.name] + self.noise[tokens]
            for s in sites
        }


def _train(source: Any, sites, recipe, **options) -> dict[str, SparseCoder]:
    given = {"n_features": 96, "steps": 700, "batch_size": 128, "lr": 3e-3, **options}
    return train(source, torch.arange(2**13).reshape(-1, 32), sites, recipe=recipe, **given)


def _learner(recipe, *, reads: str = "resid", writes: str = "resid", skip: bool = False):
    source: Any = Source()
    sites = [source.sites[name] for name in dict.fromkeys([reads, writes])]
    pool = Pool(source, torch.arange(2**13).reshape(-1, 32), sites, size=2**13)
    learner = Learner(source.sites[reads], source.sites[writes], 96, recipe, pool, skip=skip)
    batch = pool.batch(64)
    return learner, pool, batch[learner.reads], batch[learner.writes]


RECIPES = pytest.mark.parametrize(
    "recipe",
    [recipes.TopK(3, start=12), recipes.BatchTopK(3), recipes.L1(0.1)],
    ids=lambda recipe: type(recipe).__name__,
)


@RECIPES
def test_training_finds_the_features_the_data_were_made_of(recipe):
    source = Source()
    coder = _train(source, ["resid"], recipe)["resid"]
    cosines = source.features["resid"] @ coder.W_dec.T
    assert cosines.max(-1).values.mean() > 0.9
    assert coder.meta["fvu"] < 0.15
    x = source.read(torch.arange(4096), [source.sites["resid"]])[source.sites["resid"]]
    fvu = (coder(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu == pytest.approx(coder.meta["fvu"], abs=0.02)
    torch.testing.assert_close(coder.W_dec.norm(dim=-1), torch.ones(96))


def test_a_transcoder_with_skip_learns_a_sparse_map_beside_a_linear_one():
    source = Source()
    linear = torch.randn(D, D, generator=torch.Generator().manual_seed(1)) / 10
    read = source.read

    def with_linear(tokens, sites):
        seen = read(tokens, sites)
        return {
            s: x + seen[source.sites["mlp_in"]] @ linear if s.name == "mlp" else x for s, x in seen.items()
        }

    source.read = with_linear
    pair = [("mlp_in", "mlp")]
    coder = _train(source, pair, recipes.TopK(3), skip=True)["mlp"]
    plain = _train(source, pair, recipes.TopK(3))["mlp"]
    assert (coder.site, coder.reads) == ("mlp", "mlp_in")
    assert coder.W_skip is not None and plain.W_skip is None
    assert coder.meta["fvu"] < 0.2
    assert coder.meta["fvu"] < plain.meta["fvu"]


def test_the_threshold_of_batch_top_k_leaves_k_features_active():
    source = Source(noise=0.3)
    coder = _train(source, ["resid"], recipes.BatchTopK(3), steps=200)["resid"]
    x = source.read(torch.arange(2**13), [source.sites["resid"]])[source.sites["resid"]]
    assert (coder.encode(x) != 0).sum(-1).double().mean() == pytest.approx(3, rel=0.01)


def test_k_falls_from_its_start_while_annealed():
    recipe = recipes.TopK(4, start=24, anneal=0.5)
    z = torch.rand(10, 50)
    assert [int(recipe.kept(z, p).sum(-1).max()) for p in (0.0, 0.25, 0.5, 1.0)] == [24, 14, 4, 4]
    assert recipes.BatchTopK(4).kept(z, 0.0).sum() == 40


def test_dead_features_are_revived_through_encoder_and_decoder():
    learner, _, x, y = _learner(recipes.TopK(3))
    dead = torch.tensor([1, 5])
    with torch.no_grad():
        learner.W_enc[dead] *= 1e-3  # so small that they are never among the largest
        learner.silent[dead] = 1000

    def gradients(auxk: float) -> list[torch.Tensor]:
        loss = learner.loss(x, y, 0.5, auxk=auxk, dead_after=100)
        return list(torch.autograd.grad(loss, learner.parameters))

    without, revived = gradients(0.0), gradients(1 / 32)
    for name, before, after in zip(["W_enc", "b_enc", "W_dec"], without, revived, strict=False):
        assert not before[dead].any(), name
        assert after[dead].flatten(1).any(-1).all() if after.ndim > 1 else after[dead].all(), name
        others = torch.ones(96, dtype=torch.bool).index_fill(0, dead, False)
        torch.testing.assert_close(before[others], after[others], msg=name)


def test_features_that_died_come_back():
    left = {}
    for auxk in (0.0, 1 / 32):
        learner, pool, _, _ = _learner(recipes.TopK(3))
        with torch.no_grad():
            learner.W_enc[16:] *= 1e-3  # 16 alone cannot stand for the 48 of the data
        for _ in range(500):
            x = pool.batch(128)[learner.reads]
            learner.step(x, x, 0.5, lr=3e-3, auxk=auxk, dead_after=20)
        left[auxk] = learner.state(dead_after=20)
    assert left[0.0]["dead"] > 0.7 and left[1 / 32]["dead"] < 0.5
    assert left[1 / 32]["fvu"] < left[0.0]["fvu"] / 2


@pytest.mark.parametrize("reads", ["resid", "mlp_in"])
def test_gradients_over_active_pairs_are_those_of_dense_products(reads):
    learner, _, x, y = _learner(recipes.TopK(3), reads=reads, writes="resid")
    learner.parameters = [p.detach().double().requires_grad_() for p in learner.parameters]
    learner.W_enc, learner.b_enc, learner.W_dec, learner.b_dec = learner.parameters
    with torch.no_grad():
        learner.b_enc += torch.rand(96)
        learner.b_dec += torch.rand(D)
    x, y = x.double(), y.double()
    loss = learner.loss(x, y, 0.5, auxk=0.0, dead_after=100)
    sparse = torch.autograd.grad(loss, learner.parameters)

    centred = x - learner.b_dec if learner.tied else x
    z = centred @ learner.W_enc.T + learner.b_enc
    values, index = z.topk(3)
    f = torch.zeros_like(z).scatter(-1, index, values.relu())
    expected = (y - f @ learner.W_dec - learner.b_dec).square().sum() / y.numel()
    dense = torch.autograd.grad(expected, learner.parameters)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pairs_without_active_features_decode_to_zero():
    pairs = Pairs(torch.zeros(4, 6, dtype=torch.bool))
    W_dec = torch.randn(6, 3, requires_grad=True)
    y = pairs.decoded(torch.zeros(0, requires_grad=True), W_dec)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(4, 3)) and W_dec.grad is not None and not W_dec.grad.any()


@pytest.mark.parametrize("reads", ["resid", "mlp_in"])
@RECIPES
def test_scales_and_centres_are_folded_exactly(recipe, reads):
    learner, pool, _, _ = _learner(recipe, reads=reads, skip=True)
    generator = torch.Generator().manual_seed(2)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
        weight = getattr(learner, name)
        if weight is not None:
            noise = torch.rand(weight.shape, generator=generator, dtype=torch.float64) / 10
            setattr(learner, name, weight.detach().double() + noise)
    if recipe.unit_decoder:
        learner.W_dec = normalize(learner.W_dec, dim=-1)
    for values in (pool.centre, pool._held):
        values.update({site: value.double() for site, value in values.items()})

    coder = learner.finished(pool, {})
    x = pool.sample(learner.reads, 500)
    raw = x / pool.scale[learner.reads] + pool.centre[learner.reads]
    z = (x - learner.b_dec if learner.tied else x) @ learner.W_enc.T + learner.b_enc
    norms = learner.W_dec.norm(dim=-1)
    torch.testing.assert_close(coder.pre_activations(raw), z * norms / pool.scale[learner.writes])

    f = torch.where(coder.encode(raw) != 0, z, 0.0)
    y = f @ learner.W_dec + learner.b_dec + (0 if learner.W_skip is None else x @ learner.W_skip)
    torch.testing.assert_close(coder(raw), y / pool.scale[learner.writes] + pool.centre[learner.writes])


def test_training_is_deterministic_and_its_seed_matters():
    coders = [
        _train(Source(), ["resid"], recipes.TopK(3), steps=20, seed=seed)["resid"] for seed in (0, 0, 1)
    ]
    assert coders[0].fingerprint == coders[1].fingerprint != coders[2].fingerprint


def test_a_dictionary_does_not_depend_on_those_trained_beside_it():
    alone = _train(Source(), ["resid"], recipes.TopK(3), steps=20)
    beside = _train(Source(), [("mlp_in", "mlp"), "resid"], recipes.TopK(3), steps=20)
    assert list(beside) == ["mlp", "resid"]
    assert alone["resid"].fingerprint == beside["resid"].fingerprint


def test_training_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    _train(Source(), ["resid"], recipes.TopK(3), steps=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_works_where_gradients_are_off():
    with torch.no_grad():
        coder = _train(Source(), ["resid"], recipes.TopK(3), steps=20)["resid"]
    assert not any(weight.requires_grad for weight in coder.parameters())


def test_a_loss_that_is_not_finite_names_the_site():
    with pytest.raises(FloatingPointError, match="resid diverged"):
        _train(Source(), ["resid"], recipes.L1(0.1), steps=200, lr=1e20)


@pytest.mark.parametrize(
    ("sites", "options", "message"),
    [
        ([], {}, "at least one"),
        (["resid", ("mlp_in", "resid")], {}, "One dictionary per site"),
        ([("mlp", "mlp_in")], {}, "mlp_in cannot be predicted from mlp"),
        (["resid"], {"steps": 0}, "at least one step"),
        (["resid"], {"n_features": 3}, "more than 3 features"),
        (["resid"], {"batch_size": 2**14}, "needs a larger pool"),
        (["resid"], {"ignore": range(2**13)}, "leaves none"),
    ],
)
def test_settings_that_cannot_work_are_refused(sites, options, message):
    with pytest.raises(ValueError, match=message):
        _train(Source(), sites, recipes.TopK(3), **options)


def test_activations_that_are_not_finite_name_the_site():
    source = Source()
    source.strengths[100] = torch.inf
    with pytest.raises(ValueError, match="resid are not finite"):
        _train(source, ["resid"], recipes.TopK(3))


# the pool


class Counting:
    """A model whose only site holds the token itself."""

    site = Site(0, "embed", "embed", width=2)

    def __init__(self) -> None:
        self.reads = 0

    def read(self, tokens, sites):
        self.reads += 1
        return {self.site: torch.stack([tokens, tokens % 7], -1)}


def _seen(pool: Pool, n: int, batches: int) -> Counter[int]:
    site = Counting.site
    taken = [pool.batch(n)[site] / pool.scale[site] + pool.centre[site] for _ in range(batches)]
    return Counter(torch.cat(taken)[:, 0].round().int().tolist())


def test_a_pool_that_holds_the_text_reads_it_once_and_shows_each_position_once_an_epoch():
    model: Any = Counting()
    pool = Pool(model, torch.arange(1000).reshape(-1, 10), [model.site], size=2000, ignore=[5, 999])
    reads = model.reads
    assert set(_seen(pool, 499, 2).items()) == {(i, 1) for i in range(1000) if i not in (5, 999)}
    assert set(_seen(pool, 499, 4).values()) == {2}
    assert model.reads == reads


def test_a_small_pool_is_refilled_and_loses_nothing():
    model: Any = Counting()
    batches = [torch.arange(i, i + 100)[None] for i in range(0, 10_000, 100)]
    pool = Pool(model, iter(batches), [model.site], size=1000)
    seen = _seen(pool, 100, 90)
    assert max(seen.values()) == 1 and sum(seen.values()) == 9000
    with pytest.raises(ValueError, match="can be read once"):
        _seen(pool, 100, 100)


def test_a_pool_begins_a_list_of_batches_anew():
    model: Any = Counting()
    batches = [torch.arange(i, i + 100)[None] for i in range(0, 2000, 100)]
    seen = _seen(Pool(model, batches, [model.site], size=1000), 100, 60)
    assert len(seen) == 2000 and max(seen.values()) <= 4


def test_activations_in_the_pool_are_centred_and_scaled():
    source: Any = Source()
    site = source.sites["resid"]
    x = Pool(source, torch.arange(2**13).reshape(-1, 32), [site], size=2**13).sample(site, 2**13)
    assert x.square().sum(-1).mean() == pytest.approx(D, rel=1e-4)
    assert geometric_median(x).norm() < 0.01


# quality


def _tiny() -> tuple[Model, torch.Tensor]:
    torch.manual_seed(0)
    model = Model.load(FAMILIES["llama"]())
    return model, torch.randint(3, VOCAB, (6, 12), generator=torch.Generator().manual_seed(0))


def test_the_neurons_reconstruct_everything():
    model, tokens = _tiny()
    q = quality(model, {"mlp.1": Identity(), "resid.0": Identity()}, tokens, batch_size=4)["mlp.1"]
    assert (q.fvu, q.dead, q.l0) == (0, 0, 32)
    assert q.spliced == pytest.approx(q.loss) and q.recovered == pytest.approx(1)
    logits = model.logits(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert q.loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_dictionary_that_says_the_mean_explains_no_variance_and_recovers_nothing_of_it():
    model, tokens = _tiny()
    site = model.site("resid.1")
    coder = SparseCoder.random(32, 64, site="resid.1")
    coder.W_dec.zero_()
    coder.b_dec.copy_(model.read(tokens, [site])[site].flatten(0, 1).mean(0))
    q = quality(model, coder, tokens)["resid.1"]
    assert q.fvu == pytest.approx(1, rel=1e-5)
    assert q.spliced == pytest.approx(q.averaged, rel=1e-5)
    assert q.recovered_from_mean == pytest.approx(0, abs=1e-4)
    coder.b_dec.zero_()
    zero = quality(model, coder, tokens)["resid.1"]
    assert zero.spliced == pytest.approx(q.zeroed) and zero.recovered == 0
    assert zero.fvu > 1


def test_padding_does_not_count():
    model, tokens = _tiny()
    coder = SparseCoder.random(32, 64, site="mlp.1", reads="mlp_in.1")
    padded = torch.cat([tokens, torch.zeros(6, 3, dtype=torch.long)], dim=1)
    mask = torch.ones_like(padded)
    mask[:, 12:] = 0
    plain, with_padding = (
        quality(model, coder, tokens)["mlp.1"],
        quality(model, coder, padded, mask=mask)["mlp.1"],
    )
    for name in ("fvu", "l0", "dead", "loss", "spliced", "zeroed", "averaged"):
        assert getattr(plain, name) == pytest.approx(getattr(with_padding, name), rel=1e-4), name


def test_dictionaries_trained_on_a_model_beat_its_mean_and_fit_a_table():
    model, tokens = _tiny()
    sites = ["embed", ("mlp_in.1", "mlp.1"), "resid.1"]
    coders = train(
        model, tokens, sites, n_features=128, recipe=recipes.TopK(8), steps=150, batch_size=32, lr=3e-3
    )
    assert coders["mlp.1"].meta["model"] == model.fingerprint
    qualities = quality(model, coders, tokens)
    assert list(qualities) == ["embed", "mlp.1", "resid.1"]
    assert all(q.fvu < 0.5 for q in qualities.values())
    assert len(table(qualities).splitlines()) == 4


def test_a_bare_site_and_texts_without_a_tokenizer_are_refused():
    options = {"n_features": 8, "recipe": recipes.TopK(2)}
    with pytest.raises(TypeError, match="Pass a list of sites, and tokens"):
        train(tiny("gpt2"), torch.zeros(2, 3).long(), "resid.0", **options)
    with pytest.raises(ValueError, match="no tokenizer"):
        train(tiny("gpt2"), ["a text"], ["resid.0"], **options)
