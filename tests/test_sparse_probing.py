"""Probes of few features, and dense baselines: held against scikit-learn; test texts teach them nothing."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import tiny

from circuits.sparse_probing_plots import plot_regime, plot_sizes
from interventions import SparseCoder
from interventions.probing.scores import auroc
from interventions.sparse_probing import (
    DenseLogistic,
    Examples,
    KSparse,
    Neighbours,
    PrincipalLogistic,
    Quiver,
    Trees,
    baselines,
    features_of,
    imbalance,
    l1_logistic,
    l2_logistic,
    mean_differences,
    noise,
    normal,
    one_against_rest,
    quiver,
    running,
    scaled_mean_differences,
    scarcity,
    shift,
    trial,
)
from interventions.sparse_probing.dense import MISSING_TREES
from interventions.sparse_probing.folds import folds
from interventions.sparse_probing.method import validated
from interventions.sparse_probing.paired import mean_auroc, mean_difference
from interventions.sparse_probing.penalised import PENALTIES
from interventions.steering.confidence import resampled
from interventions.steering.token_choice import last

PLANTED = 17
TAILS = torch.tensor([0.025, 0.975], dtype=torch.float64)
QUICK = [DenseLogistic((1.0, 0.1)), KSparse(1, penalties=(1.0,)), KSparse(3, penalties=(1.0,))]


def texts(n: int, seed: int, *, apart: float = 0.7, name: str = "planted") -> Examples:
    """Coordinate 0 says a little of the label; feature 17 alone says much."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    labels[:2] = torch.tensor([0, 1])
    acts = torch.randn(n, 6, generator=generator)
    acts[:, 0] += apart * labels
    on = torch.rand(n, 40, generator=generator) < 0.1
    features = on * torch.rand(n, 40, generator=generator)
    drawn = torch.rand(n, generator=generator)
    features[:, PLANTED] = torch.where(drawn < 0.9, labels, 1 - labels) * (0.5 + drawn)
    return Examples(name, acts, features.to_sparse(), labels)


@pytest.fixture(scope="module")
def planted():
    return texts(160, 0), texts(120, 1)


# --- regressions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 8), (25, 30)])
def test_regressions_are_those_of_scikit_learn(shape):
    linear = pytest.importorskip("sklearn.linear_model")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positive = x[:, 0] - x[:, 1] + 0.5 * x[:, 2].sin() > 0.1
    for solve, size in ((l2_logistic, 0.0), (l1_logistic, 1.0)):
        weights, bias = solve(x, positive, (3.0, 0.3))
        for i, penalty in enumerate((3.0, 0.3)):
            theirs = linear.LogisticRegression(
                C=1 / penalty, l1_ratio=size, solver="saga" if size else "lbfgs", tol=1e-9, max_iter=200_000
            ).fit(x.numpy(), positive.numpy())
            np.testing.assert_allclose(weights[i].numpy(), theirs.coef_[0], atol=2e-5)
            assert bias[i].item() == pytest.approx(theirs.intercept_[0], abs=2e-5)


@pytest.mark.parametrize("n, width", [(30, 5), (60, 60), (40, 90)])
def test_regressions_are_at_their_least_whatever_the_penalty(n, width):
    generator = torch.Generator().manual_seed(n)
    x = (torch.randn(n, width, generator=generator).double()).relu()
    positive = torch.rand(n, generator=generator) < 0.4
    for size, solve in ((True, l1_logistic), (False, l2_logistic)):
        for penalty, w, b in zip(PENALTIES, *solve(x, positive, PENALTIES), strict=True):
            gradient = x.T @ ((x @ w + b).sigmoid() - positive.double())
            if size:
                outside = (gradient.abs() - penalty).clamp_min(0)
                off = torch.where(w == 0, outside, gradient + penalty * w.sign())
            else:
                off = gradient + penalty * w
            assert off.abs().max().item() < 1e-6 * n


def test_a_strong_penalty_on_sizes_leaves_no_weight_and_the_share_of_positives():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    weights, bias = l1_logistic(x, torch.arange(20) < 5, [1e4])
    assert not weights.any()
    assert bias.sigmoid().item() == pytest.approx(0.25)


# --- methods ------------------------------------------------------------------------------------------------


def test_neighbours_are_those_of_scikit_learn(planted):
    neighbors = pytest.importorskip("sklearn.neighbors")
    train, test = planted
    method = Neighbours()
    settings = method.settings(len(train))
    ours = method.scores(train, test, settings)
    scale = train.acts.std(0, correction=0)
    x, y = ((one.acts - train.acts.mean(0)) / scale for one in (train, test))
    for setting, scores in zip(settings, ours, strict=True):
        theirs = neighbors.KNeighborsClassifier(n_neighbors=setting["neighbours"]).fit(x, train.labels)
        np.testing.assert_allclose(scores + 0.5, theirs.predict_proba(y)[:, 1], atol=1e-12)


def test_principal_components_with_logistic_regression_are_those_of_scikit_learn(planted):
    pytest.importorskip("sklearn")
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = planted
    for n in (1, 4, 6):
        (ours,) = PrincipalLogistic().scores(train, test, [{"components": n}])
        theirs = make_pipeline(StandardScaler(), PCA(n), LogisticRegression(tol=1e-10, max_iter=10_000))
        theirs.fit(train.acts.numpy(), train.labels.numpy())
        np.testing.assert_allclose(ours, theirs.decision_function(test.acts.numpy()), atol=1e-5)


def test_the_penalty_of_the_logistic_baseline_is_the_one_that_scikit_learn_chooses(planted):
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    train = planted[0].of(range(100))
    splits = folds(train.labels)
    means = []
    for penalty in PENALTIES:
        found = []
        for fitted, held in splits:
            x, y = train.acts[fitted], train.acts[held]
            scale = x.std(0, correction=0)
            theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
            theirs.fit((x / scale).numpy(), train.labels[fitted].numpy())
            found.append(roc_auc_score(train.labels[held], theirs.decision_function((y / scale).numpy())))
        means.append(np.mean(found))
    chosen = validated(DenseLogistic(), train, splits)
    assert chosen.auroc == pytest.approx(max(means), abs=1e-9)
    assert chosen.setting["penalty"] == PENALTIES[int(np.argmax(np.round(means, 12)))]


@pytest.mark.parametrize("ranking", [mean_differences, scaled_mean_differences])
def test_a_planted_feature_is_the_one_that_is_read(planted, ranking):
    train, test = planted
    probe = KSparse(1, ranking=ranking).fit(train)
    assert probe.features.tolist() == [PLANTED]
    assert auroc(probe.logits(test), test.labels) > 0.75


def test_rankings_are_what_they_say(planted):
    train, _ = planted
    dense = torch.from_numpy(train.features.toarray())
    apart = (dense[train.positive].mean(0) - dense[~train.positive].mean(0)).abs()
    assert torch.allclose(mean_differences(train), apart)
    active = dense.sum(0) / (dense != 0).sum(0).clamp(min=1)
    assert torch.allclose(scaled_mean_differences(train), apart / active)


def test_features_that_are_never_active_are_never_read():
    features = torch.zeros(12, 5)
    features[:6, 2] = 1.0
    train = Examples("x", torch.randn(12, 2), features, [1] * 6 + [0] * 6)
    assert KSparse(4).fit(train).features.tolist() == [2]
    silent = replace(train, features=torch.zeros(12, 5))
    assert KSparse(4).fit(silent).logits(silent).tolist() == [0.0] * 12


def test_trees_and_what_is_said_where_they_are_missing(planted, monkeypatch):
    pytest.importorskip("sklearn")
    train, test = planted
    assert auroc(Trees(1).scores(train, test, Trees(1).settings(9))[0], test.labels) > 0.5
    monkeypatch.setattr("interventions.sparse_probing.dense.has_trees", lambda: False)
    monkeypatch.setattr("interventions.sparse_probing.running.has_trees", lambda: False)
    assert "trees" not in [method.name for method in baselines()]
    found = quiver(normal(train, test), QUICK, progress=False)
    assert MISSING_TREES in found.table() and MISSING_TREES in found.method_table()


# --- what is fitted to and what is tested on ----------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 7, 12, 60, 127, 128, 600])
def test_folds_have_both_classes_on_either_side_and_share_no_text(n):
    labels = (torch.arange(n) % 3 == 0).long()
    found = folds(labels)
    assert len(found) == (1 if n >= 128 else min(6, int(labels.sum())))
    for fitted, held in found:
        assert not set(fitted.tolist()) & set(held.tolist())
        assert len(fitted) + len(held) == n
        assert len(labels[fitted].unique()) == len(labels[held].unique()) == 2
    if n < 128:
        assert sorted(i for _, held in found for i in held.tolist()) == list(range(n))
    else:
        assert len(found[0][1]) == pytest.approx(min(0.2 * n, 100), abs=2)


def test_one_text_of_a_class_leaves_nothing_to_validate_with(planted):
    train, test = planted
    few = train.of([0, 1])
    assert folds(few.labels) == []
    found = trial(normal(few, test)[0], QUICK)
    assert [one.validation for one in found.tried] == [None] * 3
    assert found.best().method == "logistic"
    assert found.best(sparse=True).method == "k=1"


def test_every_method_takes_two_texts(planted):
    train, test = planted
    found = trial(scarcity(train, test, sizes=[2])[0], [*baselines(trees=1, epochs=2), KSparse(4)])
    assert all(math.isfinite(one.test) for one in found.tried)


def test_features_are_chosen_anew_in_every_fold(planted):
    train, _ = planted
    seen = []

    def ranking(examples):
        seen.append(len(examples))
        return scaled_mean_differences(examples)

    splits = folds(train.of(range(60)).labels)
    validated(KSparse(2, ranking=ranking, penalties=(1.0,)), train.of(range(60)), splits)
    assert seen == [len(fitted) for fitted, _ in splits]


def test_what_is_picked_hangs_on_nothing_in_the_test_texts(planted):
    train, test = planted
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(3))
    other = test.relabelled(test.labels[order])
    for one, same in zip(noise(train, test), noise(train, other), strict=True):
        found, again = trial(one, QUICK), trial(same, QUICK)
        assert found.best().method == again.best().method
        assert [t.validation for t in found.tried] == [t.validation for t in again.tried]
        assert [t.setting for t in found.tried] == [t.setting for t in again.tried]
        assert [t.ranks for t in found.tried] == [t.ranks for t in again.tried]
    assert found.best().test != again.best().test


# --- regimes ------------------------------------------------------------------------------------------------


def test_few_texts_are_among_more_of_them_and_of_both_classes(planted):
    found = scarcity(*planted, sizes=[2, 10, 40])
    rows = [{tuple(row) for row in one.train.acts.tolist()} for one in found]
    assert [len(one) for one in rows] == [2, 10, 40]
    assert rows[0] < rows[1] < rows[2]
    assert [int(one.train.labels.sum()) for one in found] == [1, 5, 20]
    assert [one.value for one in scarcity(*planted)][-1] == 160


def test_ratios_are_of_as_many_texts(planted):
    found = imbalance(*planted, ratios=(0.1, 0.5, 0.9))
    (n,) = {len(one.train) for one in found}
    assert [int(one.train.labels.sum()) for one in found] == [round(r * n) for r in (0.1, 0.5, 0.9)]
    assert all(one.test is planted[1] for one in found)


def test_exactly_the_share_of_labels_is_wrong_and_only_in_training(planted):
    train, test = planted
    before = torch.zeros(len(train), dtype=torch.bool)
    for one in noise(train, test, shares=(0.0, 0.1, 0.33)):
        wrong = one.train.labels != train.labels
        assert int(wrong.sum()) == round(one.value * len(train))
        assert not (before & ~wrong).any()
        assert torch.equal(one.test.labels, test.labels)
        before = wrong


def test_the_same_seed_leaves_the_same_texts_and_another_leaves_others(planted):
    for regime in (scarcity, imbalance, noise):
        one, same, other = (regime(*planted, seed=seed)[2] for seed in (0, 0, 1))
        assert one.train.digest == same.train.digest != other.train.digest


def test_texts_of_another_kind_are_tested_on_and_never_trained_on(planted):
    train = planted[0]
    (one,) = shift(train, {"elsewhere": texts(50, 9)})
    assert len(one.test) == 50 and one.train is train and one.data == "planted, elsewhere"


# --- the quiver ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(planted):
    other = texts(160, 5, apart=3.0, name="dense"), texts(120, 6, apart=3.0, name="dense")
    situations = [*normal(*planted), *scarcity(*planted, sizes=[4, 20]), *normal(*other)]
    return quiver(situations, QUICK, progress=False)


def test_the_dictionary_is_picked_where_it_is_better_and_the_baseline_stands_beside_it(found):
    first, *_, last_one = found.trials
    assert first.best().sparse and not last_one.best().sparse
    whole = found.of("normal").comparison()
    assert (whole.picked, whole.n) == (1, 2)
    assert whole.both.mean > whole.dense.mean
    assert whole.difference.mean == pytest.approx(whole.both.mean - whole.dense.mean)
    table = found.table()
    assert "best dense" in table and "1 of 2" in table and "normal" in table and "scarcity" in table
    assert list(found.methods()) == ["logistic", "k=1", "k=3"] and "logistic" in found.method_table()


def test_where_the_same_is_picked_the_difference_is_exactly_zero(found):
    apart = found.where(lambda one: one.data == "dense").comparison().difference
    assert (apart.mean, apart.low, apart.high) == (0.0, 0.0, 0.0)


def test_paired_intervals_are_those_of_draws_one_by_one(found):
    one = found.trials[0]
    dense, both = one.best(sparse=False), one.best()
    labels, n = one.positive, len(one.labels)
    counts = resampled(n, 200, 4 + zlib.crc32(one.data.encode()))
    apart = []
    for draw in counts.long():
        index = torch.arange(n).repeat_interleave(draw)
        scores = [torch.tensor(each.ranks)[index] for each in (both, dense)]
        apart.append(auroc(scores[0], labels[index]) - auroc(scores[1], labels[index]))
    tails = torch.tensor(apart, dtype=torch.float64).quantile(TAILS)
    interval = mean_difference([one], [both], [dense], resamples=200, seed=4)
    assert [interval.low, interval.high] == pytest.approx(tails.tolist(), abs=1e-12)
    alone = [mean_auroc([one], [each], resamples=200, seed=4) for each in (both, dense)]
    assert interval.high - interval.low < sum(each.high - each.low for each in alone)


def test_a_run_goes_on_where_it_stopped_and_gives_the_same(planted, found, tmp_path, monkeypatch):
    path = tmp_path / "quiver.json"
    situations = [*normal(*planted), *scarcity(*planted, sizes=[4, 20])]
    quiver(situations[:2], QUICK, path=path, progress=False)
    done = []
    real = running.trial
    monkeypatch.setattr(running, "trial", lambda one, *a, **k: done.append(one.value) or real(one, *a, **k))
    again = quiver(situations, QUICK, path=path, progress=False)
    assert done == [20]
    assert again.trials == found.trials[:3] == Quiver.load(path).trials
    quiver(situations, [DenseLogistic((1.0,)), *QUICK[1:]], path=path, progress=False)
    assert len(done) == 4  # of other methods nothing is known


def test_results_reload_as_they_were_and_broken_files_are_refused(found, tmp_path):
    path = found.save(tmp_path / "new" / "quiver.json")
    assert Quiver.load(path) == found and str(Quiver.load(path)) == str(found)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="not complete JSON"):
        Quiver.load(path)
    with pytest.raises(FileNotFoundError, match=r"no file .*other\.json"):
        Quiver.load(tmp_path / "other.json")


def test_pictures_are_drawn(found, tmp_path):
    assert plot_sizes(found.of("normal"), tmp_path / "sizes.svg").read_bytes().startswith(b"<?xml")
    assert plot_regime(found.of("scarcity"), tmp_path / "few.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="one regime that varies"):
        plot_regime(found.of("normal"), tmp_path / "none.svg")


# --- texts --------------------------------------------------------------------------------------------------


def test_texts_are_read_once_and_their_features_are_those_of_each_alone():
    model = tiny("llama")
    coder = SparseCoder.random(32, 64, seed=1).double()
    rows = [(3, 4, 5), (7, 8), (9, 3, 6, 4)]
    for tokens, pool in ((None, lambda x: x.mean(0)), (last, lambda x: x[-1])):
        options = {} if tokens is None else {"tokens": tokens}
        read = features_of(model, {"resid.1": coder}, rows, [0, 1, 1], progress=False, **options)["resid.1"]
        for i, row in enumerate(rows):
            x = model.read(torch.tensor([row]), ["resid.1"])[model.site("resid.1")][0]
            assert torch.allclose(read.acts[i], pool(x), atol=1e-9)
            ours = torch.from_numpy(read.features[[i]].toarray())[0]
            assert torch.allclose(ours, pool(coder.encode(x)), atol=1e-9)


def test_wide_dictionaries_take_the_room_of_what_is_active():
    generator = torch.Generator().manual_seed(0)
    n, width, each = 2000, 65_536, 100
    index = torch.stack(
        [torch.arange(n).repeat_interleave(each), torch.randint(width, (n * each,), generator=generator)]
    )
    values = torch.rand(n * each, generator=generator)
    values[::each] = 5.0 * (torch.arange(n) % 2)
    index[1, ::each] = 777
    train = Examples(
        "wide",
        torch.randn(n, 4, generator=generator),
        torch.sparse_coo_tensor(index, values, (n, width)),
        torch.arange(n) % 2,
    )
    assert train.features.data.nbytes < 3e6
    assert KSparse(1).fit(train).features.tolist() == [777]


def test_what_is_wrong_is_said():
    acts, features = torch.zeros(4, 2), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="jobs: All 4 labels are 1"):
        Examples("jobs", acts, features, [1, 1, 1, 1])
    with pytest.raises(ValueError, match="there are 3 classes; probe each against the rest"):
        Examples("jobs", acts, features, [0, 1, 2, 1])
    with pytest.raises(ValueError, match="activations of 4 texts, and features of 3"):
        Examples("jobs", acts, features[:3], [0, 1, 0, 1])
    with pytest.raises(ValueError, match="nothing to tell apart"):
        one_against_rest(["nurse", "nurse"])
    assert list(one_against_rest(["a", "b", "c", "a"])) == ["a", "b", "c"]
    good = Examples("jobs", acts, features, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="5 texts cannot be taken; jobs has 4"):
        scarcity(good, good, sizes=[5])
    with pytest.raises(ValueError, match="1 is no share of positives"):
        imbalance(good, good, ratios=[1.0])
    with pytest.raises(ValueError, match="too few for these ratios"):
        imbalance(replace(good, labels=[0, 0, 0, 1]), good, ratios=[0.001, 0.999])
    with pytest.raises(ValueError, match="All 4 labels are 1"):
        noise(replace(good, labels=[0, 0, 0, 1]), good, shares=[0.75], seed=_seed_that_flips())
    with pytest.raises(ValueError, match="k=0"):
        KSparse(0)
    for some, lacking in ((QUICK[:1], "reads the dictionary"), (QUICK[1:], "is a dense baseline")):
        with pytest.raises(ValueError, match=f"None of the methods {lacking}"):
            quiver(normal(good, good), some, progress=False)
    with pytest.raises(ValueError, match="Several methods are named 'k=1'"):
        quiver(normal(good, good), [*QUICK, KSparse(1)], progress=False)
    with pytest.raises(ValueError, match="no situations"):
        quiver([], QUICK, progress=False)


def _seed_that_flips() -> int:
    """One for which three wrong labels of four leave a single class."""
    for seed in range(100):
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
        if set(order[:3].tolist()) == {0, 1, 2}:
            return seed
    raise AssertionError
