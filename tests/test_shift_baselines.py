"""The baselines of SHIFT, where what they find is planted or worked out anew."""

from __future__ import annotations

import weakref

import pytest
import torch
from planted import NOUNS, WORDS, double, texts, token, words

from circuits.shift import (
    Trial,
    biased,
    compared,
    concept_bottleneck,
    erased,
    erased_retrained,
    feature_skyline,
    feature_skyline_retrained,
    neuron_skyline,
    oracle,
    random_features,
    random_features_retrained,
    words_deleted,
)
from circuits.shift.shift import ranked, shown
from circuits.shift.skylines import mean_ablation, spurious_features
from interventions.concepts.ablation import ablated_means, active_features
from tasks import LabelledSet, LabelledText

TRAIN = texts(12, ambiguous=True)
TEST = texts(8, ambiguous=False, seed=1)
KNOWN = texts(12, ambiguous=False, seed=2)


@pytest.fixture(scope="module")
def model():
    return double()


@pytest.fixture(scope="module")
def dictionaries(model):
    return {"embed": words(model)}


@pytest.fixture(scope="module")
def trial(model):
    return Trial(model, TRAIN, TEST, "embed", KNOWN, progress=False)


@pytest.fixture(scope="module")
def bare(model):
    return Trial(model, TRAIN, TEST, "embed", progress=False)


def _deleted(given):
    return [" ".join(word for word in text.split() if word not in WORDS.values()) for text in given]


def test_the_biased_probe_and_the_oracle_are_the_two_ends(trial):
    worst, best = biased(trial), oracle(trial)
    assert (worst.spurious.mean, worst.intended.mean, worst.worst.mean) == (1, 0.5, 0)
    assert (best.spurious.mean, best.intended.mean, best.worst.mean) == (0.5, 1, 1)
    assert worst.needs == "" and best.needs == "texts of every pair"


def test_the_feature_skyline_is_the_planted_words(model, trial, dictionaries):
    planted = sorted(token(model, word) for word in WORDS.values())
    assert spurious_features(trial, dictionaries, 2) == {"embed": planted}
    found = feature_skyline(trial, dictionaries, 2)
    assert found.spurious.mean == 0.5 and found.ablated == {"embed": 2}
    again = feature_skyline_retrained(trial, dictionaries, 2)
    assert (again.spurious.mean, again.intended.mean) == (0.5, 1)


def test_features_that_do_nothing_for_the_spurious_label_are_left_in(trial, dictionaries):
    found = spurious_features(trial, dictionaries, 10**6)["embed"]
    assert 2 <= len(found) < 30  # the words of the texts, at most


def test_neurons_are_held_at_their_means(trial):
    edit = mean_ablation(trial, {"embed": [3, 5]})
    held = trial.changed(trial.test, [edit])
    expected = trial.acts(trial.test).clone()
    expected[:, [3, 5]] = trial.acts(trial.required("")).mean(0)[[3, 5]]
    torch.testing.assert_close(held, expected, rtol=1e-9, atol=1e-9)


def test_all_neurons_at_their_means_leave_a_probe_that_says_one_thing(trial):
    found = neuron_skyline(trial, ["embed"], 10**6)
    some = neuron_skyline(trial, ["embed"], 3)
    assert some.ablated == {"embed": 3} and found.ablated["embed"] > 3
    assert found.spurious.mean < 1  # those that tell the label alone are left


def test_random_features_are_as_many_of_the_same_site_and_active(model, trial, dictionaries):
    planted = {"embed": [token(model, word) for word in WORDS.values()]}
    found = random_features(trial, dictionaries, planted, draws=4)
    assert found.draws == 4 and found.ablated == {"embed": 2}
    assert found.spurious.mean > 0.6  # other words tell it no less
    assert random_features(trial, dictionaries, planted, draws=4) == found
    again = random_features_retrained(trial, dictionaries, planted, draws=2)
    assert again.draws == 2 and again.ablated == found.ablated
    with pytest.raises(ValueError, match="draws=0"):
        random_features(trial, dictionaries, planted, draws=0)


def test_random_features_of_all_that_are_active_leave_nothing(model, trial, dictionaries):
    everything = {"embed": list(range(140))}
    found = random_features(trial, dictionaries, everything, draws=1)
    assert found.spurious.mean == found.intended.mean == 0.5
    active = active_features(model, dictionaries, [text.text for text in TRAIN], progress=False)
    assert found.ablated == {"embed": len(active["embed"])}  # and not 140
    texts = [text.text for text in TEST][:3]
    left = ablated_means(model, dictionaries, texts, everything, at="embed", progress=False)
    assert left.abs().max() < 1e-9


def test_the_concept_bottleneck_reads_cosines_with_words_alone(model, trial):
    names = [noun for nouns in NOUNS.values() for noun in nouns]
    given = [f"The {name}" for name in names]
    found = concept_bottleneck(trial, given)
    assert found.needs == "8 words of the labels"
    vectors = []
    for text in given:
        ids = torch.tensor([model.tokenizer.encode(text)])
        vectors.append(model.read(ids, ["embed"])[model.site("embed")][0, -1])
    vectors = torch.stack(vectors) - torch.stack(vectors).mean(0)

    def cosines(acts):
        return (acts @ vectors.T) / acts.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1)

    probe = trial.recipe.fit(cosines(trial.acts(TRAIN)), trial.targets(TRAIN))
    slow = trial.scores(
        "concept bottleneck", probe.logits(cosines(trial.acts(trial.test))), needs=found.needs
    )
    assert found == slow
    assert found.intended.mean > biased(trial).intended.mean


def test_a_concept_bottleneck_takes_two_words(trial):
    with pytest.raises(ValueError, match="at least two different words"):
        concept_bottleneck(trial, ["dog", "dog"])


def test_a_word_that_the_model_does_not_know_is_named(trial):
    with pytest.raises(ValueError, match="'zebra' has no token that counts"):
        concept_bottleneck(trial, ["The friend", "zebra"])


def test_deleting_the_words_leaves_the_label(trial):
    found = words_deleted(trial, _deleted)
    assert (found.intended.mean, found.spurious.mean) == (1, 0.5)


def test_a_text_of_which_no_word_is_left_is_named(trial):
    with pytest.raises(ValueError, match="Nothing is left of 'The"):
        words_deleted(trial, lambda given: ["" for _ in given])
    with pytest.raises(ValueError, match="deleting words left 1"):
        words_deleted(trial, lambda given: given[:1])


def test_erasing_the_spurious_label_leaves_the_label(trial):
    for method in (erased, erased_retrained):
        found = method(trial)
        assert found.spurious.mean == 0.5 and found.needs.startswith("spurious labels")
    assert erased_retrained(trial).intended.mean == 1


def test_what_knows_the_spurious_label_asks_for_texts_of_every_pair(bare, dictionaries):
    for method, said in (
        (lambda: oracle(bare), "The oracle"),
        (lambda: erased(bare), "LEACE"),
        (lambda: feature_skyline(bare, dictionaries, 2), "A skyline"),
        (lambda: neuron_skyline(bare, ["embed"], 2), "A skyline"),
    ):
        with pytest.raises(ValueError, match=f"{said} takes texts .* give them as `known`"):
            method()


def test_baselines_are_those_that_there_is_what_they_need_for(bare, trial, dictionaries):
    without = compared(bare, dictionaries, {}, draws=0)
    assert [one.method for one in without] == ["biased probe", "SHIFT", "SHIFT, retrained"]
    every = compared(trial, dictionaries, {}, words=["dog", "box"], delete=_deleted, draws=1)
    assert [one.method for one in every] == [
        "biased probe", "SHIFT", "SHIFT, retrained", "random features", "random features, retrained",
        "concept bottleneck", "words deleted", "neuron skyline", "feature skyline",
        "feature skyline, retrained", "LEACE", "LEACE, retrained", "oracle",
    ]  # fmt: skip


def test_three_labels_are_told_apart(model):
    third = [
        LabelledText(f"The {word} {noun} near the {word} wall .", "person", spurious)
        for noun in ("boy", "girl", "king", "doctor")
        for spurious, word in WORDS.items()
    ]
    test = LabelledSet("three", [*TEST, *third])
    train = LabelledSet("three", [*TRAIN, *(one for one in third if one.spurious == "after")])
    found = Trial(model, train, test, "embed", LabelledSet("k", [*KNOWN, *third]), progress=False)
    scores = oracle(found)
    assert len(scores.classes) == 3 and scores.n == 6 * 4
    assert scores.intended.mean > 0.9 and biased(found).intended.mean < scores.intended.mean


def test_a_spurious_label_of_several_labels_leaves_the_skylines_out(model, dictionaries):
    third = [
        LabelledText(f"The {word} {noun} near the {word} wall .", "person", spurious)
        for noun in ("boy", "girl", "king", "doctor")
        for spurious, word in WORDS.items()
    ]
    train = LabelledSet("three", [*TRAIN, *(one for one in third if one.spurious == "after")])
    test, known = (LabelledSet("three", [*texts, *third]) for texts in (TEST, KNOWN))
    found = Trial(model, train, test, "embed", known, progress=False)
    with pytest.raises(ValueError, match="Each spurious label has to go with one label"):
        spurious_features(found, dictionaries, 2)
    methods = [one.method for one in compared(found, dictionaries, {}, draws=0)]
    assert methods == ["biased probe", "SHIFT", "SHIFT, retrained", "LEACE", "LEACE, retrained", "oracle"]


@pytest.mark.parametrize("which", ["test", "known"])
def test_a_third_spurious_label_goes_with_no_label(model, dictionaries, which):
    def three(texts):
        more = [LabelledText(one.text.replace("old", "small"), one.label, "size") for one in texts]
        return LabelledSet("three", [*texts, *(one for one in more if "small" in one.text)])

    sets = {"test": TEST, "known": KNOWN}
    sets[which] = three(sets[which])
    found = Trial(model, TRAIN, **sets, at="embed", progress=False)
    assert found.attributes == ("before", "after", "size")[: 3 if which == "known" else 2]
    dossier = shown(found, dictionaries, ranked(found, dictionaries, most=3))
    assert all(one.attribution is not None for one in dossier)
    methods = [one.method for one in compared(found, dictionaries, {}, draws=0)]
    assert ("feature skyline" in methods) == (which == "test") and "LEACE" in methods
    assert oracle(found).spurious.mean == (1 / 2 if which == "known" else 1 / 3)


def test_what_is_remembered_of_a_dictionary_is_not_said_of_another_one(model):
    # by its id, which a new one may get when the old one is gone
    found, held = Trial(model, TRAIN, TEST, "embed", KNOWN, progress=False), {"embed": words(model)}
    before = spurious_features(found, held, 2)
    old = weakref.ref(held["embed"])
    held["embed"] = words(model)
    assert old() is not None and spurious_features(found, held, 2) == before
