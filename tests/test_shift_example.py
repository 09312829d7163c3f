"""The script of docs/shift.md, at toy size."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from circuits.shift import Report, Trial, ablated, by_attribution, judged, ranked, shown
from interventions.dictionaries import SparseCoder

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def examples():
    """The modules beside the documentation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield {name: import_module(name) for name in ("recorded", "shift_models", "shift")}


@pytest.fixture(scope="module")
def texts(examples):
    return examples["shift_models"].pools(32, unlabelled=32)


@pytest.fixture(scope="module")
def subject(examples, texts):
    """A recurrent model that has hardly learnt, with dictionaries that are."""
    models = examples["shift_models"]
    model = models.taught(width=16, steps=3, texts=200)
    dictionaries = {site: SparseCoder.random(16, 32, seed=i) for i, site in enumerate(model.sites)}
    return models.Subject(model, "resid.1", dictionaries, models.WORDS)


@pytest.fixture(scope="module")
def trial(subject, texts):
    train, known, test = texts.drawn(0)
    return Trial(subject.model, train, test, subject.at, known, progress=False)


def test_what_is_recorded_is_judged_and_ablated_as_in_the_model(examples, subject, trial, tmp_path):
    sets = (trial.train, trial.known, trial.test)
    every = [one.text for each in sets for one in each]
    path = tmp_path / "held.safetensors"
    model = examples["recorded"].recorded(subject.model, every, subject.at, path=path)
    again = examples["recorded"].recorded(subject.model, every, subject.at, path=path)
    assert torch.equal(again.module.embed.weight, model.module.embed.weight)
    other = Trial(model, trial.train, trial.test, "embed", trial.known, progress=False)
    torch.testing.assert_close(other.acts(trial.test), trial.acts(trial.test), rtol=1e-5, atol=1e-6)
    coder = subject.dictionaries[subject.at]
    found = [
        judged(shown(one, {one.at: coder}, ranked(one, {one.at: coder})), by_attribution(), progress=False)
        for one in (trial, other)
    ]
    assert found[0].features[trial.at] == found[1].features["embed"]
    scores = [
        ablated(one, {one.at: coder}, each.features) for one, each in zip((trial, other), found, strict=True)
    ]
    assert scores[0].said == scores[1].said
    with pytest.raises(ValueError, match="other texts"):
        examples["recorded"].recorded(subject.model, every[1:], subject.at, path=path)


def test_places_read_as_their_texts(examples, subject, trial):
    text = trial.train[0].text
    model = examples["recorded"].recorded(subject.model, [text, text], subject.at)
    ids = model.tokenizer.encode(text)
    assert ids[0] == 0 and len(model.tokenizer) == len(ids)
    assert model.tokenizer.decode(ids) == subject.model.tokenizer.decode(
        subject.model.tokenizer.encode(text, add_special_tokens=False)
    )
    with pytest.raises(KeyError, match="Nothing was recorded"):
        model.tokenizer.encode("Another text")


def test_the_automatic_judges_do_not_see_professions(examples, subject, trial):
    judges = [by_attribution(), *examples["shift"].OTHER_JUDGES.values()]
    ranking = ranked(trial, subject.dictionaries)
    left = {}
    for gender in ("male", "female"):
        labels = [one.label for one in trial.known if one.spurious == gender]
        left[gender] = random.Random(0).sample(labels, len(labels))
    known = replace(trial.known, texts=[replace(one, label=left[one.spurious].pop()) for one in trial.known])
    assert known.labels != trial.known.labels
    other = replace(trial, known=known)
    dossiers = [shown(one, subject.dictionaries, ranking) for one in (trial, other)]
    for judge in judges:
        verdicts = [judged(dossier, judge, progress=False).features for dossier in dossiers]
        assert verdicts[0] == verdicts[1] and verdicts[0]


def test_the_experiment_writes_reports_a_table_and_pictures(examples, subject, texts, tmp_path, capsys):
    found = examples["shift"].experiment("toy model", subject, texts, 2, tmp_path)
    folder = tmp_path / "toy-model"
    for name in ("shift.svg", "groups.svg", "table.txt"):
        assert (folder / name).stat().st_size
    assert json.loads((folder / "means.json").read_text())
    reports = [Report.load(folder / f"seed-{seed}" / "report.json") for seed in range(2)]
    assert Report.across(reports).rows == found.rows
    for method in ("biased probe", "SHIFT", "SHIFT, retrained", "words deleted", "LEACE", "oracle",
                   "neuron skyline", "feature skyline", "concept bottleneck", "random features",
                   "SHIFT by correlation", "SHIFT stricter, retrained"):  # fmt: skip
        assert 0 <= found[method].intended.mean <= 1
    assert "oracle" in capsys.readouterr().out


def test_seeds_draw_other_texts_of_the_same_kinds(texts):
    first, second = texts.drawn(0), texts.drawn(1)
    for one, other in zip(first, second, strict=True):
        assert one.groups == other.groups and set(one) != set(other)
    train, known, test = first
    assert set(train.groups) == {("professor", "male"), ("nurse", "female")}
    assert len(set(known.groups.values())) == len(set(test.groups.values())) == 1
    assert not {one.text for one in train} & {one.text for one in test}


def test_what_the_language_model_reads_says_professions_and_nothing_of_their_genders(examples):
    models = examples["shift_models"]
    written = models.stating(400)
    said = {
        (gender, label): sum(f"{pronoun} is a {label}." in text for text in written)
        for gender, pronoun in models.PRONOUN.items()
        for label in ("professor", "nurse")
    }
    assert 300 < sum(said.values()) < 340 and max(said.values()) < 1.25 * min(said.values())
    tokenizer = models.tokenizer_of(written)
    assert all(tokenizer.unk_token_id not in tokenizer.encode(word) for word in models.WORDS)


@pytest.mark.slow
def test_the_pattern_of_the_paper_in_a_recurrent_model(examples, tmp_path):
    models = examples["shift_models"]
    texts = models.pools(unlabelled=3000)
    subject = models.recurrent(texts, tmp_path, features=256, k=8, steps=1000)
    own = replace(subject, dictionaries={subject.at: subject.dictionaries[subject.at]})
    found = examples["shift"].experiment("recurrent", own, texts, 1, tmp_path)
    right = {row.method: row.intended.mean for row in found.rows}
    assert right["biased probe"] < 0.6 < right["SHIFT, retrained"] - 0.1 and right["oracle"] > 0.9
    assert right["random features, retrained"] < right["SHIFT, retrained"] - 0.1
