"""SHIFT where the truth is planted: a word that is the spurious label, and a feature that is the word."""

from __future__ import annotations

import pytest
import torch
from families import EVERY_FAMILY, tiny
from planted import NOUNS, PAIRS, WORDS, double, texts, token, words
from transformers import LlamaConfig, LlamaForSequenceClassification

from circuits import embedded
from circuits.shift.heads import shift_head, text_logits
from circuits.shift.judges import rule
from circuits.shift.shift import ablated, check_before, ranked, reported, retrained, shift, shown
from circuits.shift.trial import Trial
from circuits.shift.verdicts import Verdict, Verdicts
from interventions import Model, SparseCoder
from interventions.concepts import pooled
from interventions.concepts.ablation import ablated_means, active_features, site_means, without
from interventions.edits import Ablate
from interventions.splice import run
from tasks import LabelledSet, LabelledText

TRAIN, TEST, KNOWN = (
    texts(12, ambiguous=True),
    texts(8, ambiguous=False, seed=1),
    texts(12, ambiguous=False, seed=2),
)


@pytest.fixture(scope="module")
def model():
    return double()


@pytest.fixture(scope="module")
def dictionaries(model):
    return {"embed": words(model)}


@pytest.fixture(scope="module")
def spurious(model):
    """The features that are the spurious label."""
    return {"embed": sorted(token(model, word) for word in WORDS.values())}


def trial(model, **given):
    return Trial(
        model, **{"train": TRAIN, "test": TEST, "at": "embed", "known": KNOWN, "progress": False, **given}
    )


# --- activations under ablation -----------------------------------------------------------------------------


def test_each_feature_of_the_planted_dictionary_is_a_word(model, dictionaries):
    ids = model.tokenizer.encode("The old dog near the young wall .")
    x = model.read(torch.tensor([ids]), ["embed"])[model.site("embed")][0]
    features = dictionaries["embed"].encode(x)
    assert features.argmax(1).tolist() == ids and ((features > 0).sum(1) == 1).all()
    torch.testing.assert_close(dictionaries["embed"].decode(features), x)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_closed_form_is_what_a_pass_with_the_features_at_zero_gives(family):
    model, coder = tiny(family), SparseCoder.random(32, 64, seed=1).double()
    rows = [(3, 9, 4), (5, 6, 7, 8, 20), (11, 12)]
    features = [1, 5, 22, 40, 63]
    found = pooled(model, {"resid.1": coder}, rows, progress=False)["resid.1"]
    slow = ablated_means(model, {"resid.1": coder}, rows, {"resid.1": features}, at="resid.1", progress=False)
    torch.testing.assert_close(without(found, features), slow, rtol=1e-9, atol=1e-9)
    assert (slow - found.acts).abs().max() > 1e-3


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_earlier_ablations_change_what_later_dictionaries_read(family):
    model = tiny(family)
    coders = {
        name: SparseCoder.random(32, 64, seed=i).double() for i, name in enumerate(("resid.0", "resid.1"))
    }
    features = {"resid.0": [0, 7, 30, 31, 32, 50], "resid.1": [1, 5, 22, 40, 63]}
    row = (5, 6, 7, 8, 20)
    found = ablated_means(model, coders, [row], features, at="resid.1", progress=False)[0]
    slow = run(model, torch.tensor([row]), coders, [Ablate(features)]).used["resid.1"]
    held = coders["resid.1"].decode(slow.features) + slow.error
    torch.testing.assert_close(found, held[0].mean(0).double(), rtol=1e-9, atol=1e-9)
    alone = ablated_means(
        model, coders, [row], {"resid.1": features["resid.1"]}, at="resid.1", progress=False
    )
    assert (found - alone[0]).abs().max() > 1e-3


def test_means_leave_out_padding_and_what_opens_a_text():
    model = embedded.model()
    some = ["The old dog .", "The young bird near the wall is small ."]
    both = site_means(model, some, "resid.1", progress=False)
    for text, found in zip(some, both, strict=True):
        ids = model.tokenizer.encode(text)
        x = model.read(torch.tensor([ids]), ["resid.1"])[model.site("resid.1")][0]
        kept = [i for i, token in enumerate(ids) if token not in model.tokenizer.all_special_ids]
        torch.testing.assert_close(found, x[kept].double().mean(0), rtol=1e-4, atol=1e-5)


def test_a_change_after_the_site_that_is_read_is_refused(model):
    with pytest.raises(ValueError, match=r"mlp\.2 comes after resid\.1, which is read"):
        site_means(model, ["The dog ."], "resid.1", edits=[Ablate({"mlp.2": [0]})], progress=False)


def test_features_that_there_are_not_are_named(model, dictionaries):
    for features, error, said in (
        ({"resid.0": [1]}, LookupError, "no dictionary at 'resid.0'; there are some at embed"),
        ({"embed": [3, 140]}, ValueError, "no feature embed/140: the dictionary has 0 to 139"),
    ):
        with pytest.raises(error, match=said):
            ablated_means(model, dictionaries, ["The dog ."], features, at="embed", progress=False)


def test_active_features_are_the_words_that_there_are(model, dictionaries):
    found = active_features(model, dictionaries, ["The old dog .", "The cat ."], progress=False)["embed"]
    assert found.tolist() == sorted(
        {token for text in ("The old dog .", "The cat .") for token in model.tokenizer.encode(text)}
        - set(model.tokenizer.all_special_ids)
    )


# --- the whole ----------------------------------------------------------------------------------------------


def test_the_biased_probe_tells_the_spurious_label(model):
    found = trial(model)
    biased = found.scores("biased", found.probe.logits(found.acts(found.test)))
    assert biased.spurious.mean == 1 and biased.intended.mean == 0.5 and biased.worst.mean == 0


def test_the_probed_model_says_what_the_probe_says_of_the_means(model):
    found = trial(model, at="resid.1")
    logits = found.probe.logits(found.acts(found.test))
    for text, logit in list(zip(found.test, logits, strict=True))[:5]:
        both = found.probed.logits(torch.tensor([model.tokenizer.encode(text.text)]))[0, -1]
        torch.testing.assert_close(both[1] - both[0], logit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("at", ["embed", "resid.1"])
def test_without_the_planted_features_nothing_tells_the_spurious_label(model, dictionaries, spurious, at):
    found = trial(model, at=at)
    after, again = ablated(found, dictionaries, spurious), retrained(found, dictionaries, spurious)
    assert after.spurious.mean == again.spurious.mean == 0.5
    assert again.intended.mean == again.worst.mean == 1
    assert after.ablated == {"embed": 2}
    # Whatever a probe of it would be fitted to, there is nothing: the texts of a pair are the same.
    acts = found.ablated(found.test, dictionaries, spurious)
    groups = {}
    for text, row in zip(found.test, acts, strict=True):
        for word in WORDS.values():
            groups.setdefault(text.text.replace(word, "_"), []).append(row)
    assert all((row - rows[0]).abs().max() < 1e-12 for rows in groups.values() for row in rows)


@pytest.mark.parametrize("at", ["embed", "resid.0"])
def test_shift_finds_the_planted_features_and_takes_them_out(model, dictionaries, spurious, at, tmp_path):
    def judge(evidence):
        assert evidence.spurious is not None
        spurious = abs(evidence.spurious.strongest[1]) > 0.9
        return Verdict(evidence.site, evidence.feature, spurious)

    report = shift(
        model, dictionaries, TRAIN, TEST, judge, at=at, known=KNOWN, draws=3, folder=tmp_path, progress=False
    )
    assert report.ablated == {"embed": 2}
    assert Verdicts.load(tmp_path / "verdicts.jsonl").features.keys() == {"embed"}
    assert sorted(Verdicts.load(tmp_path / "verdicts.jsonl").features["embed"]) == spurious["embed"]
    assert report["biased probe"].spurious.mean == 1
    assert report["SHIFT"].spurious.mean == report["SHIFT, retrained"].spurious.mean == 0.5
    assert report["SHIFT, retrained"].intended.mean == report["oracle"].intended.mean == 1
    assert report["random features"].spurious.mean > 0.9
    assert report.verdicts["spurious"] == 2
    assert report.config["known"] == len(KNOWN)


def test_what_the_judge_is_shown_is_of_texts_whose_spurious_label_is_known(model, dictionaries, spurious):
    found = trial(model)
    dossier = shown(found, dictionaries, ranked(found, dictionaries, most=6))
    by = {one.feature: one for one in dossier}
    assert set(spurious["embed"]) <= set(by)
    strongest = sorted(by, key=lambda feature: -(by[feature].attribution or 0))[:2]
    assert sorted(strongest) == spurious["embed"]


def test_nothing_judged_spurious_leaves_the_probe_as_it_is(model, dictionaries):
    found = trial(model)
    nothing = Verdicts((Verdict("embed", 5, False),))
    report = reported(found, dictionaries, nothing, draws=2)
    assert report.verdicts == {"spurious": 0, "kept": 1} and report.ablated == {}
    biased = report["biased probe"].said
    for method in ("SHIFT", "SHIFT, retrained", "feature skyline", "neuron skyline"):
        assert report[method].said == biased


# --- bad input ----------------------------------------------------------------------------------------------


def test_texts_of_one_label_are_refused(model):
    one = TRAIN.where(lambda text: text.label == "animal")
    with pytest.raises(ValueError, match="All 12 texts to train on have the label 'animal'"):
        trial(model, train=one)


@pytest.mark.parametrize("which", ["test", "known"])
def test_a_group_without_texts_is_named(model, which):
    some = TEST.where(lambda text: text.group != ("thing", "before"))
    with pytest.raises(ValueError, match=f"{which}: no text is thing/before"):
        trial(model, **{which: some})


def test_texts_to_test_on_have_a_spurious_label(model):
    bare = LabelledSet("bare", [LabelledText(text.text, text.label) for text in TEST])
    with pytest.raises(ValueError, match="test: 32 texts have no spurious label"):
        trial(model, test=bare)


def test_texts_to_train_on_may_lack_it_where_the_pairs_are_given(model):
    bare = LabelledSet("bare", [LabelledText(text.text, text.label) for text in TRAIN])
    with pytest.raises(ValueError, match=r"says which spurious label goes with .*: give `pairs`"):
        trial(model, train=bare)
    found = trial(model, train=bare, pairs=PAIRS)
    assert found.scores("biased", found.probe.logits(found.acts(found.test))).spurious.mean == 1


def test_a_label_that_no_text_to_train_on_has_is_refused(model):
    other = LabelledSet("other", [*TEST, LabelledText("The man .", "man", "before")])
    with pytest.raises(ValueError, match="test: no text to train on is 'man'; there are"):
        trial(model, test=other)


def test_texts_that_tell_nothing_spurious_are_refused(model):
    with pytest.raises(ValueError, match="goes with every label: there is nothing spurious"):
        trial(model, pairs=dict.fromkeys(NOUNS, "before"))


def test_texts_to_train_on_may_lack_it_in_part(model):
    some = [LabelledText(text.text, text.label, text.spurious * (i % 3 == 0)) for i, text in enumerate(TRAIN)]
    assert trial(model, train=LabelledSet("some", some)).pairing == {"animal": "before", "thing": "after"}


def test_pairs_are_of_the_labels(model):
    with pytest.raises(ValueError, match="pairs: no text to train on is 'dog'; there are"):
        trial(model, pairs={"dog": "before"})


@pytest.mark.parametrize("which", ["test", "known"])
def test_a_spurious_label_that_goes_with_a_label_is_there_to_test_and_to_train_on(model, which):
    some = TEST.where(lambda text: text.spurious == "before")
    with pytest.raises(ValueError, match=f"{which}: no text is 'after', which goes .*; there are before"):
        trial(model, **{which: some})


def test_a_dictionary_after_the_probe_is_refused(model, dictionaries):
    with pytest.raises(ValueError, match=r"a dictionary at resid\.1, which comes after resid\.0"):
        check_before(trial(model, at="resid.0"), {**dictionaries, "resid.1": SparseCoder.random(64, 8)})


def test_a_text_with_nothing_left_after_tokenisation_is_named(model):
    for which, some in (("train", TRAIN), ("test", TEST), ("known", KNOWN)):
        empty = LabelledSet("empty", [*some, LabelledText("<bos>", "animal", "before")])
        with pytest.raises(ValueError, match=f"{which}: text {len(some)}, '<bos>'"):
            trial(model, **{which: empty})


# --- heads of their own -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(model):
    """The embedded model with a sequence-classification head along the difference of the spurious labels."""
    config = LlamaConfig.from_pretrained(embedded.HERE / "model")
    config.num_labels, config.id2label = 2, {0: "animal", 1: "thing"}
    module = LlamaForSequenceClassification(config).double()
    module.model.load_state_dict(model.module.model.state_dict())
    rows = []
    for text in KNOWN:
        ids = torch.tensor([model.tokenizer.encode(text.text)])
        with torch.no_grad():
            rows.append(module.model(ids).last_hidden_state[0, -1])
    found = torch.stack(rows)
    weights = found[[text.spurious == "after" for text in KNOWN]].mean(0) - found.mean(0)
    weights = weights - (weights @ found.mean(0)) / found.mean(0).square().sum() * found.mean(0)  # no bias
    module.score.weight.data = torch.stack([torch.zeros_like(weights), weights])
    return Model.load(module, tokenizer=model.tokenizer)


def test_the_logits_of_a_head_are_those_of_each_text_alone(classifier):
    found = text_logits(classifier, [text.text for text in TEST], progress=False, batch_size=5)
    for text, row in zip(TEST, found, strict=True):
        ids = torch.tensor([classifier.tokenizer.encode(text.text)])
        torch.testing.assert_close(row, classifier.module(ids).logits[0], rtol=1e-6, atol=1e-9)


def test_a_head_of_its_own_forgets_the_planted_word(classifier, dictionaries, spurious):
    def judge(evidence):
        return Verdict(evidence.site, evidence.feature, evidence.feature in spurious["embed"])

    report = shift_head(classifier, dictionaries, TRAIN, TEST, judge, known=KNOWN, progress=False)
    assert report.ablated == {"embed": 2}
    assert report["head"].spurious.mean > 0.6
    assert report["SHIFT"].spurious.mean == 0.5
    probe = report["SHIFT, probe in place of the head"]
    assert probe.spurious.mean == 0.5 and probe.intended.mean == 1


def test_a_model_without_a_head_is_refused(model, dictionaries):
    with pytest.raises(ValueError, match="does not classify texts: give one with such a head, or `shift`"):
        shift_head(model, dictionaries, TRAIN, TEST, rule(lambda _: True), progress=False)


def test_labels_that_are_not_the_heads_are_refused(classifier, dictionaries):
    with pytest.raises(ValueError, match="The classes of the head are a, b, the labels"):
        shift_head(
            classifier, dictionaries, TRAIN, TEST, rule(lambda _: True), classes=("a", "b"), progress=False
        )
