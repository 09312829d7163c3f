"""Directions from pairs: what is read, how it is batched, controls, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import VOCAB, WIDTH, fresh, module, tiny
from oracles import PlainSAE, PlainTranscoder, tolerance

from interventions import Model, SparseCoder
from interventions.steering import (
    LDA,
    Direction,
    FeatureDifference,
    Position,
    contrast,
    differing,
    every,
    feature_direction,
    lda,
    linear_probe,
    logistic_probe,
    mean_difference,
    pair_activations,
    paired_pca,
    pca,
    separation,
    separations,
)
from interventions.steering.controls import cross_validated

SITES = ["resid.0", "mlp.1", "resid.2"]


def drawn(n: int = 12, seed: int = 0) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of token ids of many lengths, which differ in their last token and elsewhere."""
    g = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(n):
        lengths = torch.randint(2, 9, (2,), generator=g).tolist()
        a, b = (torch.randint(3, VOCAB // 2, (length,), generator=g) for length in lengths)
        pairs.append((tuple(a.tolist()), (*b[:-1].tolist(), b[-1].item() + VOCAB // 2 - 3)))
    return pairs


def one_by_one(model: Model, pairs, site: str, places=lambda n: [n - 1]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each text read alone."""
    sides = []
    for side in range(2):
        rows = []
        for pair in pairs:
            x = model.read(torch.tensor([pair[side]]), [site])[model.site(site)][0].double()
            rows.append(x[places(len(x))].mean(0))
        sides.append(torch.stack(rows))
    return sides[0], sides[1]


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "mamba2", "rwkv", "recurrent_gemma"])
def test_batches_and_padding_change_nothing(family):
    model, pairs = tiny(family), drawn()
    sites = [site for site in SITES if site in model.sites]
    found = [contrast(model, pairs, sites, batch_size=size) for size in (1, 5, 64)]
    for site in sites:
        positive, negative = one_by_one(model, pairs, site)
        for each in found:
            assert each[site].dtype == torch.float32
            expected = (positive.mean(0) - negative.mean(0)).float()
            torch.testing.assert_close(each[site], expected, rtol=1e-4, atol=1e-5)
    acts = [pair_activations(model, pairs, sites, batch_size=size) for size in (1, 5, 64)]
    for site in sites:
        positive, negative = one_by_one(model, pairs, site)
        for each in acts:
            torch.testing.assert_close(each.positive[site].double(), positive, **tolerance(family))
            torch.testing.assert_close(each.negative[site].double(), negative, **tolerance(family))


def test_one_pass_over_each_text_serves_all_sites():
    model, pairs = tiny("gpt2"), drawn(10)
    rows = []
    model.pads  # noqa: B018 (found by passes of its own)
    handle = model.module.register_forward_hook(
        lambda _module, args, kwargs, _out: rows.append(len(args[0] if args else kwargs["input_ids"])),
        with_kwargs=True,
    )
    contrast(model, pairs, list(model.sites)[2:], batch_size=8)
    assert rows == [8, 8, 4]
    rows.clear()
    contrast(model, pairs, SITES, method=logistic_probe, batch_size=20, bootstrap=3, folds=2)
    handle.remove()
    assert rows == [20]


@pytest.mark.parametrize("method", [mean_difference, paired_pca, pca, lda, linear_probe], ids=repr)
def test_streamed_moments_give_what_held_activations_give(method):
    model, pairs = tiny("gpt2"), drawn()
    held = contrast(model, pair_activations(model, pairs, SITES), SITES, method=method)
    streamed = contrast(model, pairs, SITES, method=method, batch_size=4)
    for site in SITES:
        torch.testing.assert_close(streamed[site], held[site], rtol=1e-5, atol=1e-6)


def test_the_order_of_pairs_does_not_matter():
    model, pairs = tiny("gpt2"), drawn()
    one, other = contrast(model, pairs, SITES), contrast(model, pairs[::-1], SITES)
    for site in SITES:
        torch.testing.assert_close(one[site], other[site])


def test_chosen_tokens_are_averaged():
    model, pairs = tiny("gpt2"), drawn()
    found = contrast(model, pairs, SITES, tokens=every)
    for site in SITES:
        positive, negative = one_by_one(model, pairs, site, lambda n: list(range(n)))
        expected = (positive.mean(0) - negative.mean(0)).float()
        torch.testing.assert_close(found[site], expected, rtol=1e-5, atol=1e-6)
    second = contrast(model, pairs, SITES, tokens=lambda ids, tokenizer: [1, 0])
    positive, negative = one_by_one(model, pairs, "resid.2", lambda n: [0, 1])
    torch.testing.assert_close(second["resid.2"], (positive - negative).mean(0).float(), rtol=1e-5, atol=1e-6)


def test_tokens_from_where_the_texts_differ():
    model = tiny("gpt2")
    pairs = [((5, 6, 7, 8), (5, 6, 9)), ((4, 4, 4), (4, 3, 3))]
    found = contrast(model, pairs, ["resid.1"], tokens=differing)
    rows = [
        model.read(torch.tensor([ids]), ["resid.1"])[model.site("resid.1")][0]
        for pair in pairs
        for ids in pair
    ]
    expected = (rows[0][2:].mean(0) - rows[1][2:].mean(0) + rows[2][1:].mean(0) - rows[3][1:].mean(0)) / 2
    torch.testing.assert_close(found["resid.1"], expected.float(), rtol=1e-5, atol=1e-6)


def planted(noise: float = 0.0) -> tuple[Model, torch.Tensor]:
    """A model in which tokens of the upper half are those of the lower half and a known vector."""
    built = module("gpt2")
    g = torch.Generator().manual_seed(7)
    vector = torch.randn(WIDTH, generator=g, dtype=torch.float64)
    weights = built.transformer.wte.weight
    half = VOCAB // 2
    weights[half:] = (
        weights[:half] + vector + noise * torch.randn(half, WIDTH, generator=g, dtype=torch.float64)
    )
    built.transformer.wpe.weight.zero_()
    return Model.load(built), vector


@pytest.fixture
def plants():
    with torch.no_grad():
        return planted(noise=0.05)


@pytest.mark.parametrize("method", [mean_difference, paired_pca, lda, linear_probe, logistic_probe], ids=repr)
def test_a_planted_direction_is_found(plants, method):
    model, vector = plants
    pairs = [((1, t + VOCAB // 2), (1, t)) for t in range(3, VOCAB // 2)]
    found = contrast(model, pairs, ["embed"], method=method, folds=4, bootstrap=20)
    assert torch.cosine_similarity(found["embed"].double(), vector, dim=0) > 0.8
    assert found.norms["embed"] == pytest.approx(vector.norm().item(), rel=0.2)
    assert found.how["separation"]["embed"]["auroc"] > 0.95
    assert found.how["bootstrap"]["embed"]["low"] > 0.6 and found.how["split_half"]["embed"] > 0.6


def test_a_planted_direction_is_exactly_the_mean_difference():
    with torch.no_grad():
        model, vector = planted()
    pairs = [((1, t + VOCAB // 2), (1, t)) for t in range(3, VOCAB // 2)]
    for method in (mean_difference, paired_pca):
        found = contrast(model, pairs, ["embed"], method=method)
        torch.testing.assert_close(found["embed"], vector.float())


def test_what_it_says_of_itself():
    model, pairs = tiny("gpt2"), drawn(5)
    found = contrast(model, pairs, ["resid.1"], method=LDA(0.5), tokens=Position(-1), shuffled=3)
    assert dict(found.how) == {
        "method": "LDA(shrinkage=0.5)", "tokens": "Position(at=-1)", "pairs": 5, "shuffled": 3,
    }  # fmt: skip
    assert found.fingerprint == model.fingerprint
    assert found.check(model) is found

    def mine(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return positive[0].double() - negative[-1].double()

    own = contrast(model, pairs, ["resid.1"], method=mine)
    assert own.how["method"] == "mine"
    positive, negative = one_by_one(model, pairs, "resid.1")
    torch.testing.assert_close(own["resid.1"], (positive[0] - negative[-1]).float(), rtol=1e-5, atol=1e-6)


def test_texts_are_opened_once():
    model, words = fresh("gpt2"), Opening()
    model.tokenizer = words
    plain = contrast(model, [("ab", "cd")], ["resid.1"])
    assert plain == contrast(model, [("^ab", "^cd")], ["resid.1"])
    ids = [(1, *words.encode(text, add_special_tokens=False)) for text in ("ab", "cd")]
    assert plain == contrast(model, [ids], ["resid.1"]) == contrast(model, [torch.tensor(ids)], ["resid.1"])


class Opening:
    """A token for each letter, one that opens a text and one that ends it."""

    all_special_ids = (1, 2)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [1 if c == "^" else 3 + ord(c) % (VOCAB - 3) for c in text]
        return [1, *ids, 2] if add_special_tokens else ids


# Controls


def test_shuffled_labels_are_exchanged_pairs():
    model, pairs = tiny("gpt2"), drawn()
    acts = pair_activations(model, pairs, SITES)
    swapped = acts.shuffled(4)
    flip = (swapped.positive["mlp.1"] != acts.positive["mlp.1"]).any(1)
    assert flip.sum() == len(pairs) // 2
    other = [(n, p) if f else (p, n) for (p, n), f in zip(pairs, flip.tolist(), strict=True)]
    expected = contrast(model, other, SITES)
    for found in (contrast(model, acts, SITES, shuffled=4), contrast(model, pairs, SITES, shuffled=4)):
        for site in SITES:
            torch.testing.assert_close(found[site], expected[site], rtol=1e-5, atol=1e-6)


def test_shuffled_labels_separate_nothing(plants):
    model, _ = plants
    pairs = [((1, t + VOCAB // 2), (1, t)) for t in range(3, VOCAB // 2)]
    true = contrast(model, pairs, ["embed"])
    for seed in range(6):
        found = contrast(model, pairs, ["embed"], shuffled=seed, folds=4)
        assert found.how["separation"]["embed"]["auroc"] < 0.65
        assert found.norms["embed"] < 0.1 * true.norms["embed"]
    with pytest.raises(ValueError, match="at least two pairs, or groups"):
        contrast(model, pairs[:1], ["embed"], shuffled=0)


def test_the_bootstrap_is_that_of_redrawn_pairs_and_the_same_each_time():
    model, pairs = tiny("gpt2"), drawn()
    acts = pair_activations(model, pairs, ["resid.1"])
    found = contrast(model, acts, ["resid.1"], bootstrap=50, seed=3)
    g, cosines = torch.Generator().manual_seed(3), []
    rows = acts.positive["resid.1"].double() - acts.negative["resid.1"].double()
    for _ in range(50):
        index = torch.randint(len(pairs), (len(pairs),), generator=g)
        cosines.append(torch.cosine_similarity(rows[index].mean(0), rows.mean(0), dim=0).item())
    said = found.how["bootstrap"]["resid.1"]
    assert said["cosine"] == pytest.approx(sum(cosines) / 50)
    low, high = (
        torch.tensor(cosines, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    )
    assert (said["low"], said["high"]) == (pytest.approx(low), pytest.approx(high))
    assert contrast(model, pairs, ["resid.1"], bootstrap=50, seed=3).how == found.how


def test_pairs_that_agree_are_surer_than_pairs_that_do_not(plants):
    model, _ = plants
    sure = [((1, t + VOCAB // 2), (1, t)) for t in range(3, 20)]
    unsure = [((1, t), (1, t + 1)) for t in range(3, 20)]
    a, b = (contrast(model, p, ["embed"], bootstrap=50, folds=4).how for p in (sure, unsure))
    assert a["bootstrap"]["embed"]["low"] > 0.95 > b["bootstrap"]["embed"]["low"]
    assert a["split_half"]["embed"] > b["split_half"]["embed"]


def test_pairs_of_a_group_are_drawn_held_out_and_exchanged_together():
    model, pairs = tiny("gpt2"), drawn(12)
    labels = [i // 3 for i in range(12)]
    acts = pair_activations(model, pairs, ["resid.1"])
    flip = (acts.shuffled(1, labels).positive["resid.1"] != acts.positive["resid.1"]).any(1).reshape(4, 3)
    assert flip.all(1).eq(flip.any(1)).all() and flip.sum() == 6

    seen = []

    def mine(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        rows = acts.positive["resid.1"]
        seen.append(sorted((positive[:, None] == rows).all(-1).long().argmax(1).tolist()))
        return (positive - negative).mean(0)

    contrast(model, acts, ["resid.1"], method=mine, bootstrap=4, folds=2, groups=labels)
    assert len(seen) == 1 + (1 + 4) + 2 + 20
    for index in seen:
        counts = torch.bincount(torch.tensor(index), minlength=12).reshape(4, 3)
        assert (counts == counts[:, :1]).all()
    assert sorted(seen[6] + seen[7]) == list(range(12))
    with pytest.raises(ValueError, match="There are 1 groups for 12 pairs"):
        contrast(model, pairs, ["resid.1"], groups=[1])
    with pytest.raises(ValueError, match="There are 2 groups for 12 pairs"):
        contrast(model, acts, ["resid.1"], folds=2, groups=[1, 2])
    with pytest.raises(ValueError, match="at least 5 groups of pairs; there are 4"):
        contrast(model, acts, ["resid.1"], folds=5, groups=labels)


def test_what_the_pairs_of_a_group_share_is_no_separation():
    """Names without a contrast: known again in other pairs, they pass for one."""
    g = torch.Generator().manual_seed(0)
    names = torch.randn(2, 8, 1, 20, generator=g, dtype=torch.float64).expand(2, 8, 6, 20)
    texts = torch.randn(2, 8, 6, 20, generator=g, dtype=torch.float64) * 0.1
    positive, negative = (names + texts).reshape(2, 48, 20)
    groups = [list(range(6 * i, 6 * i + 6)) for i in range(8)]
    apart, _ = cross_validated(lda, positive, negative, folds=4)
    together, _ = cross_validated(lda, positive, negative, folds=4, groups=groups)
    assert apart.auroc > 0.95 and together.auroc < 0.75


def test_separation_is_counted_over_all_pairs():
    g = torch.Generator().manual_seed(0)
    positive = torch.randint(0, 8, (30,), generator=g).double() + 1
    negative = torch.randint(0, 8, (30,), generator=g).double()
    found = separation(positive, negative)
    wins = (positive[:, None] > negative).double() + (positive[:, None] == negative).double() / 2
    assert found.auroc == pytest.approx(wins.mean().item())
    assert found.ordered == pytest.approx(wins.diagonal().mean().item())
    pooled = ((positive.var() + negative.var()) / 2).sqrt()
    assert found.d == pytest.approx(((positive.mean() - negative.mean()) / pooled).item())
    assert separation(torch.ones(2), torch.zeros(2)).d == pytest.approx(1e6)
    assert separation(torch.ones(2), torch.ones(2)).d == 0
    assert str(found).startswith("AUROC 0.")


def test_other_pairs_are_separated_along_a_direction():
    model, pairs, others = tiny("gpt2"), drawn(), drawn(9, seed=1)
    direction = contrast(model, pairs, SITES)
    found = separations(model, others, direction, batch_size=4)
    for site in SITES:
        positive, negative = one_by_one(model, others, site)
        expected = separation(positive @ direction[site].double(), negative @ direction[site].double())
        assert found[site].auroc == pytest.approx(expected.auroc) and found[site].d == pytest.approx(
            expected.d, rel=1e-4
        )
    with pytest.raises(ValueError, match="another model"):
        separations(model, others, Direction(dict(direction), "f" * 64))


# Features


def test_the_difference_of_features_is_what_they_write():
    model, pairs = tiny("gpt2"), drawn()
    torch.manual_seed(0)
    sae = PlainSAE(WIDTH, 40).double()
    found = contrast(model, pairs, ["resid.1"], method=FeatureDifference(), dictionaries={"resid.1": sae})
    positive, negative = one_by_one(model, pairs, "resid.1")
    difference = sae.encode(positive).mean(0) - sae.encode(negative).mean(0)
    torch.testing.assert_close(found["resid.1"], (difference @ sae.W_dec).float(), rtol=1e-4, atol=1e-6)

    size = difference.abs() * sae.W_dec.norm(dim=1)
    kept = torch.zeros_like(difference)
    top = size.topk(3).indices
    kept[top] = difference[top]
    some = contrast(model, pairs, ["resid.1"], method=FeatureDifference(3), dictionaries={"resid.1": sae})
    torch.testing.assert_close(some["resid.1"], (kept @ sae.W_dec).float(), rtol=1e-4, atol=1e-6)
    held = contrast(
        model,
        pairs,
        ["resid.1"],
        method=FeatureDifference(3),
        dictionaries={"resid.1": sae},
        folds=3,
        bootstrap=5,
    )
    torch.testing.assert_close(held["resid.1"], some["resid.1"], rtol=1e-4, atol=1e-6)
    assert held.how["method"] == "FeatureDifference(k=3)"


def test_a_transcoder_is_read_where_it_reads():
    model, pairs = tiny("gpt2"), drawn()
    torch.manual_seed(0)
    transcoder = PlainTranscoder(WIDTH, 40, WIDTH, "mlp_in.1").double()
    options: dict[str, Any] = {"method": FeatureDifference(), "dictionaries": {"mlp.1": transcoder}}
    found = contrast(model, pairs, ["mlp.1"], **options, folds=3)
    positive, negative = one_by_one(model, pairs, "mlp_in.1")
    difference = transcoder.encode(positive).mean(0) - transcoder.encode(negative).mean(0)
    torch.testing.assert_close(found["mlp.1"], (difference @ transcoder.W_dec).float(), rtol=1e-4, atol=1e-6)
    streamed = contrast(model, pairs, ["mlp.1"], **options)
    torch.testing.assert_close(streamed["mlp.1"], found["mlp.1"])


def test_a_feature_is_a_direction():
    model, coder = tiny("gpt2", torch.float32), SparseCoder.random(WIDTH, 50)
    found = feature_direction(model, {"resid.1": coder}, "resid.1", 7)
    torch.testing.assert_close(found["resid.1"], coder.W_dec[7])
    both = feature_direction(model, {"resid.1": coder}, "resid.1", {7: 2.0, 9: -1.0})
    torch.testing.assert_close(both["resid.1"], 2 * coder.W_dec[7] - coder.W_dec[9])
    assert found.fingerprint == model.fingerprint
    plain = PlainSAE(WIDTH, 20)
    found = feature_direction(model, {"resid.0": plain}, "resid.0", 3)
    torch.testing.assert_close(found["resid.0"], plain.W_dec[3], rtol=1e-4, atol=1e-5)
    with pytest.raises(LookupError, match=r"No feature 50 at resid\.1: the dictionary has features 0 to 49"):
        feature_direction(model, {"resid.1": coder}, "resid.1", 50)
    with pytest.raises(LookupError, match=r"no dictionary at resid\.0; there are dictionaries at: resid\.1"):
        feature_direction(model, {"resid.1": coder}, "resid.0", 5)


# What is refused


@pytest.mark.parametrize(
    "pairs, error, why",
    [
        ([], ValueError, "There are no pairs"),
        ([((3, 4), (3, 5)), ((3, 4), ())], ValueError, "Pair 1 has an empty text"),
        ([((3, 4), (3, 4))], ValueError, r"Pair 0 has the same text twice: \[3, 4\]|\(3, 4\)"),
        ([((3, 4),)], TypeError, "Pair 0 is not two texts"),
        (["ab"], TypeError, "Pair 0 is not two texts, positive and negative, but 'ab'"),
        ([5], TypeError, "Pair 0 is not two texts"),
        ([("a", "b")], TypeError, "no tokenizer for texts such as 'a'"),
        ([(3, (4, 5))], TypeError, "Pair 0: a text is a string or token ids, not a int"),
    ],
)
def test_what_is_no_pair_is_refused(pairs, error, why):
    with pytest.raises(error, match=why):
        contrast(tiny("gpt2"), pairs, ["resid.1"])


def test_what_does_not_fit_the_model_is_refused():
    model, pairs = tiny("gpt2"), drawn(4)
    with pytest.raises(LookupError, match=r"No site 'resid\.9'"):
        contrast(model, pairs, ["resid.9"])
    with pytest.raises(TypeError, match=r"Pass a list of sites, such as \['resid\.1'\]"):
        contrast(model, pairs, "resid.1")
    with pytest.raises(ValueError, match="no site"):
        contrast(model, pairs, [])
    with pytest.raises(LookupError, match=r"no dictionary at resid\.1; there are dictionaries at: none"):
        contrast(model, pairs, ["resid.1"], method=FeatureDifference())
    with pytest.raises(ValueError, match=r"has width 32, but the dictionary at resid\.1"):
        contrast(
            model, pairs, ["resid.1"], method=FeatureDifference(), dictionaries={"resid.1": PlainSAE(8, 9)}
        )
    with pytest.raises(TypeError, match="such as mean_difference or LDA"):
        contrast(model, pairs, ["resid.1"], method=LDA)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="such as mean_difference"):
        contrast(model, pairs, ["resid.1"], method="pca")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"The method gave \(4, 32\) at resid\.1, not a vector \(32\)"):
        contrast(model, pairs, ["resid.1"], method=lambda p, n: p)
    with pytest.raises(ValueError, match="batch_size=0"):
        contrast(model, pairs, ["resid.1"], batch_size=0)


def test_tokens_that_are_the_same_on_both_sides_are_refused():
    with pytest.raises(
        ValueError, match=r"At resid\.0 the texts of the pairs do not differ at the chosen tokens"
    ):
        contrast(tiny("gpt2"), [((3, 4), (3, 5)), ((6, 4), (6, 7))], ["resid.0"], tokens=Position(0))


def test_too_few_pairs_for_a_control_are_refused():
    model, pairs = tiny("gpt2"), drawn(3)
    with pytest.raises(ValueError, match="at least 5 pairs; there are 3"):
        contrast(model, pairs, ["resid.1"], folds=5)
    with pytest.raises(ValueError, match="folds=1"):
        contrast(model, drawn(9), ["resid.1"], folds=1)
    with pytest.raises(ValueError, match="at least 2 pairs; there are 1"):
        contrast(model, pairs[:1], ["resid.1"], bootstrap=5)


def test_activations_are_for_their_model_and_their_sites():
    model, pairs = tiny("gpt2"), drawn(4)
    acts = pair_activations(model, pairs, ["resid.1"])
    assert repr(acts) == "PairActivations(4 pairs, 1 sites)"
    with pytest.raises(LookupError, match=r"resid\.0 was not read; these activations are at resid\.1"):
        contrast(model, acts, ["resid.0"])
    with pytest.raises(ValueError, match="another model"):
        contrast(tiny("llama"), acts, ["resid.1"])
    with pytest.raises(ValueError, match="were read at last, not at every"):
        contrast(model, acts, ["resid.1"], tokens=every)
    few = contrast(model, acts.of([0, 2, 2]), ["resid.1"])
    torch.testing.assert_close(
        few["resid.1"], contrast(model, [pairs[i] for i in (0, 2, 2)], ["resid.1"])["resid.1"]
    )


def test_a_negative_number_of_draws_is_refused():
    with pytest.raises(ValueError, match="bootstrap=-1: draws"):
        contrast(tiny("gpt2"), [((1, 2), (1, 3)), ((4, 2), (4, 3))], ["resid.1"], bootstrap=-1)
