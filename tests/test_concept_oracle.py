"""SCR and TPP in closed form are those of encoding, setting to zero, decoding and pooling again."""

from __future__ import annotations

import concept_oracle as oracle
import pytest
import torch
from families import FAMILIES, tiny

from interventions import SparseCoder
from interventions.concepts import pooled, scr, tpp
from interventions.concepts.perturbation import _against
from interventions.concepts.scores import Ablation, ablated_logits, fitted
from interventions.dictionaries.activations import JumpReLU, TopK
from interventions.dictionaries.normalisation import LayerNorm, RescaleNorm
from interventions.probing import Logistic
from interventions.probing.selected import Selected
from interventions.probing.trained import Trained

SIZES, SITE, N = (0, 1, 3, 10, 48), "resid.1", 48
RECIPE = Logistic(l2=0.3)


def texts(n: int, seed: int) -> tuple[list[tuple[int, ...]], list[tuple[str, str]]]:
    """Rows of several lengths, their class and their first token at random."""
    generator = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for _ in range(n):
        length, a, b = (int(torch.randint(k, (1,), generator=generator)) for k in (5, 2, 2))
        body = torch.randint(3, 28, (2 + length,), generator=generator) + 14 * a
        rows.append((60 + b, *body.tolist()))
        labels.append(("pq"[a], "xy"[b]))
    return rows, labels


def coder(**changes) -> SparseCoder:
    """Features that are active where there is nothing: at padding, they would count."""
    made = SparseCoder.random(32, N, seed=1)
    generator = torch.Generator().manual_seed(2)
    weights = {name: x for name, x in made.named_parameters()}
    weights |= {"b_enc": 0.3 + torch.rand(N, generator=generator), "b_dec": torch.ones(32)}
    return SparseCoder(**weights, **{"activation": made.activation, **changes}).double()


CODERS = {
    "active at padding": coder(),
    "top k": coder(activation=TopK(9)),
    "thresholds": coder(activation=JumpReLU(torch.full((N,), 0.2))),
    "rescaled": coder(normalise=RescaleNorm()),
    "layer norm": coder(normalise=LayerNorm()),
}


def means(model, dictionary, train, test):
    return (
        pooled(model, {SITE: dictionary}, rows, batch_size=8, progress=False)[SITE] for rows in (train, test)
    )


def check_tpp(model, dictionary, *, recipe=RECIPE, seed=0):
    (train, seen), (test, unseen) = texts(40, 0), texts(30, 1)
    # three classes, of which one is rare
    here, there = (
        ["".join(pair) if pair != ("q", "y") else "px" for pair in side] for side in (seen, unseen)
    )
    how = {"sizes": SIZES, "recipe": recipe, "seed": seed}
    found = tpp(*_with(means(model, dictionary, train, test), here, there), **how)
    slow = [oracle.padded(model, SITE, side) for side in (train, test)]
    clean, after = oracle.tpp(dictionary, *_with(slow, here, there), **how)
    torch.testing.assert_close(found.clean, clean.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.after, after.double(), rtol=0, atol=1e-6)
    assert (found.after[0] == found.clean).all()
    return found


def check_scr(model, dictionary, *, recipe=RECIPE, seed=0):
    (train, seen), (test, unseen) = texts(40, 0), texts(30, 1)
    how = {"sizes": SIZES, "recipe": recipe, "seed": seed}
    found = scr(*_with(means(model, dictionary, train, test), seen, unseen), **how)
    slow = [oracle.padded(model, SITE, side) for side in (train, test)]
    base, ceiling, after = oracle.scr(dictionary, *_with(slow, seen, unseen), pairs=found.together, **how)
    for ours, expected in ((found.base, base), (found.ceiling, ceiling), (found.after, after)):
        torch.testing.assert_close(ours, expected.double(), rtol=0, atol=1e-6)
    return found


def _with(sides, here, there):
    first, second = sides
    return first, here, second, there


@pytest.mark.parametrize("name", CODERS)
def test_scores_are_those_of_explicit_ablation(name):
    model = tiny("llama")
    found = check_tpp(model, CODERS[name])
    assert found.after[-1].ne(found.clean).any()
    removed = check_scr(model, CODERS[name], seed=3)
    assert removed.after[:, -1].ne(removed.base).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_means_after_an_ablation_are_those_of_explicit_ablation_in_every_family(family):
    model, dictionary, rows = tiny(family), CODERS["active at padding"], texts(7, 1)[0]
    here = pooled(model, {SITE: dictionary}, rows, batch_size=2, progress=False)[SITE]
    features = torch.arange(0, N, 2)
    ablation = Ablation.of(here, features)
    gone = oracle.ablated(dictionary, oracle.padded(model, SITE, rows), features)
    # some families work in float32 within, whatever the model's precision, and so differ between batches
    torch.testing.assert_close(here.acts - ablation.values @ ablation.rows, gone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "recipe", [Selected([Logistic(), Logistic(l2=1e3)]), Trained(lr=1e-3, epochs=4, batch_size=16)]
)
def test_so_they_are_with_other_recipes(recipe):
    model = tiny("gpt2")
    check_tpp(model, CODERS["thresholds"], recipe=recipe)
    check_scr(model, CODERS["thresholds"], recipe=recipe)


@pytest.mark.parametrize("name", CODERS)
def test_logits_are_those_of_explicit_ablation_to_rounding(name):
    model, dictionary = tiny("llama"), CODERS[name]
    (train, _), (test, _) = texts(40, 0), texts(30, 1)
    here, there = means(model, dictionary, train, test)
    slow = oracle.padded(model, SITE, test)
    members = [torch.arange(0, 20), torch.arange(20, 40)]
    probe = fitted(RECIPE, here, *_against(members, 0, torch.Generator().manual_seed(0)))
    features = torch.randperm(N, generator=torch.Generator().manual_seed(4))[:30]
    ours = ablated_logits(there, probe, torch.arange(30), Ablation.of(there, features), (0, 1, 7, 30))
    for i, size in enumerate((0, 1, 7, 30)):
        gone = probe.logits(oracle.ablated(dictionary, slow, features[:size]))
        torch.testing.assert_close(ours[i], gone, rtol=1e-9, atol=1e-9)


def test_padding_that_is_not_masked_would_show():
    """What SAEBench counts where a text is over: the features of zeros."""
    model, dictionary = tiny("llama"), CODERS["active at padding"]
    assert dictionary.encode(torch.zeros(1, 32)).count_nonzero() > 0
    slow = oracle.padded(model, SITE, texts(30, 1)[0])
    features = torch.arange(N)
    right = oracle.ablated(dictionary, slow, features)
    whole = oracle.Padded(slow.x, torch.ones_like(slow.mask))
    wrong = oracle.ablated(dictionary, whole, features) * slow.mask.shape[1] / slow.mask.sum(1, keepdim=True)
    assert (right - wrong).abs().max() > 1


def test_a_recipe_whose_probes_are_not_linear_is_refused():
    model, dictionary = tiny("gpt2"), CODERS["top k"]
    (train, seen), (test, unseen) = texts(40, 0), texts(30, 1)
    with pytest.raises(TypeError, match=r"linear ones of two classes; Trained\(hidden=\(4,\)"):
        scr(*_with(means(model, dictionary, train, test), seen, unseen), recipe=Trained(hidden=(4,)))
