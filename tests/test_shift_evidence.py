"""What judges see of features: numbers against numpy and brute force, contexts, and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from shift_texts import ATTRIBUTES, LABELS, classifier, coders, dossier, probe, texts

from circuits import integrated_gradients
from circuits.shift.attributions import attributions
from circuits.shift.dossier import Correlation, Dossier, marked
from circuits.shift.evidence import evidence
from circuits.shift.peaks import correlations
from circuits.shift.ranking import ranking
from interventions.concepts import pooled
from interventions.concepts.scores import attributions as of_probe
from interventions.dictionaries.measures import promoted

pytestmark = pytest.mark.filterwarnings("ignore:On these texts")


@pytest.fixture(scope="module")
def gathered():
    """A classifier, its dictionaries at two sites, texts, the ranking, the evidence."""
    model, held, given = classifier(), coders("resid.0", "resid.1"), texts()
    found = ranking(model, given, held, classes=LABELS, most=60, progress=False)
    seen = evidence(
        model, found, given, held, attribute=probe(8), attributes=ATTRIBUTES, n=4, before=2, after=1,
        batch_size=5, progress=False,
    )  # fmt: skip
    return model, held, given, found, seen


def _values(model, held, given, candidate):
    """The feature at every token of each text but the one that opens it."""
    rows = []
    for text in given:
        tokens = torch.tensor([model.tokenizer.encode(text.text)])
        x = model.inner.read(tokens, [candidate.site])[model.inner.site(candidate.site)][0]
        rows.append(held[candidate.site].encode(x)[1:, candidate.feature].detach())
    return rows


def test_the_evidence_is_in_the_order_of_the_ranking(gathered):
    _, _, _, found, seen = gathered
    assert [one.candidate for one in seen] == list(found)
    assert {one.site for one in seen} == {"resid.0", "resid.1"}


def test_density_and_means_are_those_over_all_tokens_of_text(gathered):
    model, held, given, _, seen = gathered
    for one in seen:
        rows = _values(model, held, given, one.candidate)
        flat = torch.cat(rows)
        assert one.density == pytest.approx((flat != 0).double().mean().item())
        assert one.mean == pytest.approx(flat[flat != 0].mean().item())
        assert one.largest == pytest.approx(flat[flat.abs().argmax()].item())


def test_correlations_are_those_of_numpy(gathered):
    model, held, given, _, seen = gathered
    label = np.array([text.label == LABELS[0] for text in given], float)
    attribute = np.array([text.spurious == ATTRIBUTES[0] for text in given], float)
    for one in seen:
        means = np.array([row.mean().item() for row in _values(model, held, given, one.candidate)])
        assert one.spurious is not None
        assert one.label.given[LABELS[0]] == pytest.approx(np.corrcoef(means, label)[0, 1])
        assert one.label.given[LABELS[1]] == pytest.approx(-np.corrcoef(means, label)[0, 1])
        assert one.spurious.given[ATTRIBUTES[0]] == pytest.approx(np.corrcoef(means, attribute)[0, 1])


def test_correlations_apart_are_partial_correlations():
    generator = torch.Generator().manual_seed(0)
    label, other = (torch.randint(0, k, (60,), generator=generator) for k in (2, 3))
    x = torch.randn(60, 2, generator=generator, dtype=torch.float64) + other[:, None] + 0.5 * label[:, None]
    _, apart = correlations(x, [str(i) for i in label.tolist()], [str(i) for i in other.tolist()])
    dummies = np.eye(3)[other.numpy()]
    y = (label.numpy() == 1).astype(float)
    for column, row in zip(x.numpy().T, apart, strict=True):
        left = [v - dummies @ np.linalg.lstsq(dummies, v, rcond=None)[0] for v in (column, y)]
        assert row["1"] == pytest.approx(np.corrcoef(*left)[0, 1])


def test_where_one_label_says_the_other_nothing_is_apart():
    x = torch.randn(8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given, apart = correlations(x, ["a", "b"] * 4, ["m", "f"] * 4)
    assert set(given[0]) == {"a", "b"}
    assert apart == [{}]


def test_what_does_not_vary_correlates_with_nothing():
    given, _ = correlations(torch.ones(4, 1, dtype=torch.float64), ["a", "b", "a", "b"], [""] * 4)
    assert given == [{"a": 0.0, "b": 0.0}]


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e8])
def test_rounding_correlates_with_nothing_whatever_the_size_of_a_feature(size):
    labels, other = ["a", "b"] * 30, ["x", "x", "y"] * 20
    x = size * torch.tensor([1 + (label == "a") for label in labels], dtype=torch.float64)
    flat = torch.full((60,), size, dtype=torch.float64) * (1 + 2e-16 * torch.arange(60) % 3).double()
    whole, apart = correlations(torch.stack([x, flat], dim=1), labels, other)
    assert whole[0]["a"] == pytest.approx(1) and apart[0]["a"] == pytest.approx(1)
    assert set(whole[1].values()) == set(apart[1].values()) == {0.0}


def test_of_two_labels_the_one_with_the_positive_correlation_is_named():
    for value, name in ((0.4, "a"), (-0.4, "b")):
        assert Correlation({"a": value, "b": -value}, {}).strongest == (name, 0.4)


def test_contexts_are_the_highest_peaks_with_other_words_before_them(gathered):
    model, held, given, _, seen = gathered
    for one in seen:
        rows = _values(model, held, given, one.candidate)
        best = {}
        for i, (text, row) in enumerate(zip(given, rows, strict=True)):
            ids = model.tokenizer.encode(text.text)
            at = int(row.abs().argmax()) + 1
            if row[at - 1] != 0:
                key, value = tuple(ids[max(0, at - 2) : at + 1]), row[at - 1].item()
                if key not in best or abs(value) > abs(best[key][0]):
                    best[key] = (value, i, at)
        expected = sorted(best.values(), key=lambda peak: (-abs(peak[0]), peak[1]))[:4]
        assert [(c.row, c.pos) for c in one.contexts] == [(row, at) for _, row, at in expected]
        for context, (value, row, at) in zip(one.contexts, expected, strict=True):
            ids = model.tokenizer.encode(given[row].text)
            assert context.value == pytest.approx(value)
            shown = ids[max(0, at - 2) : at + 2]
            assert len(context.tokens) == len(context.values) == len(shown)
            word = f"w{ids[at]}"
            assert context.tokens[context.at].strip() == word
            assert f"[[{word}]]" in marked(context)


def test_batches_do_not_matter(gathered):
    model, held, given, found, seen = gathered
    again = evidence(
        model, found, given, held, attribute=probe(8), attributes=ATTRIBUTES, n=4, before=2, after=1,
        batch_size=1, progress=False,
    )  # fmt: skip
    for one, other in zip(seen, again, strict=True):
        assert one.contexts[0].tokens == other.contexts[0].tokens
        assert one.density == other.density
        assert one.mean == pytest.approx(other.mean, rel=1e-9)
        assert one.attribution == pytest.approx(other.attribution, rel=1e-9)


def test_promoted_tokens_are_those_of_the_model_inside(gathered):
    model, held, _, _, seen = gathered
    for one in seen:
        expected = promoted(model.inner, held[one.site], [one.feature], k=10)[0]
        assert one.raised is not None
        assert one.lowered is not None
        assert [token for token, _ in one.raised] == [token for token, _ in expected.raised]
        assert [token for token, _ in one.lowered] == [token for token, _ in expected.lowered]


def test_the_attribution_is_that_of_scr_at_the_site_of_a_probe(gathered):
    model, held, given, _, seen = gathered
    labels = torch.tensor([text.spurious == ATTRIBUTES[1] for text in given])
    whole = pooled(model.inner, {"resid.1": held["resid.1"]}, [text.text for text in given], progress=False)[
        "resid.1"
    ]
    expected = of_probe(whole, probe(8), torch.arange(len(given)), labels)
    for one in seen:
        if one.site == "resid.1":
            assert one.attribution == pytest.approx(expected[one.feature].item() / 2, rel=1e-9)


def test_before_the_probe_the_attribution_is_by_the_gradient():
    model, held, given = classifier(), coders("mlp.0"), texts(8)
    other = model.inner.probed(probe(8), at="resid.1")
    from circuits import attribution_patching

    found = attributions(
        other, given, held, {"mlp.0": list(range(48))}, method=attribution_patching, classes=ATTRIBUTES,
        progress=False,
    )  # fmt: skip
    total, clean = torch.zeros(48, dtype=torch.float64), 0.0
    for text in given:
        sign = 1 if text.spurious == ATTRIBUTES[1] else -1
        kept = {}

        def visit(_site, x, kept=kept):
            kept["x"] = x.detach().requires_grad_()
            return kept["x"].clone()

        with other.visiting(["mlp.0"], visit):
            value = sign * other.logits(torch.tensor([model.tokenizer.encode(text.text)]))[0, -1, 1]
        clean += value.item() / 8
        (gradient,) = torch.autograd.grad(value, kept["x"])
        each = held["mlp.0"].encode(kept["x"]) * (gradient @ held["mlp.0"].W_dec.T)
        total += each[0, 1:].sum(0).detach() / 8  # without the token that opens the text
    assert found.clean == pytest.approx(clean)
    for feature in range(48):
        assert found.effects["mlp.0", feature] == pytest.approx(total[feature].item(), rel=1e-9, abs=1e-12)


def test_attributions_are_what_a_ranking_for_the_attribute_says():
    model, held, given = classifier(), coders("resid.0"), texts()
    turned = [replace(one, label=one.spurious, spurious=one.label) for one in given]
    found = ranking(
        model, replace(given, texts=turned), held, classes=ATTRIBUTES, most=1000, progress=False,
    )  # fmt: skip
    said = attributions(
        model, given, held, found.features, method=integrated_gradients, classes=ATTRIBUTES, progress=False
    )
    for one in found:
        assert said.effects[one.site, one.feature] == pytest.approx(one.effect, rel=1e-9, abs=1e-12)


def test_groups_of_texts_count_alike_in_attributions(gathered):
    model, held, given, found, _ = gathered
    more = replace(given, texts=[*given, *(text for text in given if text.group == given[0].group)])
    once, twice = (
        evidence(model, found, some, held, attribute=probe(8), attributes=ATTRIBUTES, progress=False)
        for some in (given, more)
    )
    for one, other in zip(once, twice, strict=True):
        assert one.attribution == pytest.approx(other.attribution, rel=1e-9)
        assert one.attribution_share == pytest.approx(other.attribution_share, rel=1e-9)


def test_shares_are_of_what_the_classifiers_give(gathered):
    _, _, _, found, seen = gathered
    for one in seen:
        assert one.share == pytest.approx(one.effect / found.clean)
        assert one.attribution_share is not None


def test_contexts_of_other_text_are_shown_beside():
    rows = torch.randint(3, 64, (6, 9), generator=torch.Generator().manual_seed(0))
    seen = dossier(3, other=rows)
    assert all(len(one.elsewhere) > 0 for one in seen)
    assert "elsewhere:" in str(seen[0])


def test_texts_without_a_spurious_label_have_no_correlation_with_it():
    model, held = classifier(), coders("resid.1")
    given = replace(texts(), texts=[replace(text, spurious="") for text in texts()])
    found = ranking(model, given, held, classes=LABELS, most=3, progress=False)
    seen = evidence(model, found, given, held, progress=False)
    assert seen[0].spurious is None
    assert seen[0].label.given and seen[0].label.apart == {} and "apart" not in str(seen[0])
    with pytest.raises(ValueError, match="spurious labels of two values"):
        evidence(model, found, given, held, attribute=probe(8), progress=False)


def test_evidence_is_saved_and_loaded_as_it_is(gathered, tmp_path):
    seen = gathered[-1]
    seen.save(tmp_path / "evidence.json")
    assert Dossier.load(tmp_path / "evidence.json") == seen
    assert str(Dossier.load(tmp_path / "evidence.json")) == str(seen)


def test_files_that_hold_no_evidence_are_refused(tmp_path):
    path = tmp_path / "evidence.json"
    path.write_text('{"format": "circuits.shift.evidence", "version": 1, "evidence": [{}]}')
    with pytest.raises(ValueError, match="does not describe evidence"):
        Dossier.load(path)


def test_what_models_and_files_say_cannot_drive_a_terminal(gathered):
    one = gathered[-1][0]
    bad = "\x1b]0;title\x07\x1b[2J\u202e\n"
    context = replace(one.contexts[0], tokens=tuple(bad for _ in one.contexts[0].tokens))
    shown = replace(one, contexts=(context,), raised=((bad, 1.0),)).shown()
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def test_a_ranking_of_another_classifier_is_refused(gathered):
    _, held, given, found, _ = gathered
    with pytest.raises(ValueError, match="these differ: the model"):
        evidence(classifier(seed=7), found, given, held, progress=False)


def test_a_model_that_is_not_probed_is_asked_where_the_probe_reads(gathered):
    model, held, given, found, _ = gathered
    plain = model.inner
    about = {**found.about, "model": {"fingerprint": plain.fingerprint}}
    with pytest.raises(TypeError, match="does not say where"):
        evidence(plain, replace(found, about=about), given, held, attribute=probe(8), progress=False)
