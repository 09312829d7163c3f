"""Many dictionaries on one data set: each as by itself, one pass of the model for all, and what is kept."""

from __future__ import annotations

import json

import pytest
import torch
from families import tiny

from interventions import SparseCoder
from interventions.concepts import SCR, TPP, Sweep, pooled, scr, scr_sweep, tpp, tpp_sweep
from interventions.probing import Logistic
from interventions.probing.selected import Selected
from tasks.labelled import LabelledSet, LabelledText

SIZES = (1, 5, 20)


class Rows:
    """Labelled rows of tokens: the label is which tokens they hold, the spurious label their first one."""

    def __init__(self, n: int, seed: int, noise: float = 0.0):
        generator = torch.Generator().manual_seed(seed)
        self.texts = []
        for i in range(n):
            a, b = i % 2, int(torch.rand(1, generator=generator) < 0.5)
            length = int(torch.randint(3, 8, (1,), generator=generator))
            body = torch.randint(3, 30, (length,), generator=generator) + 20 * a
            ids = (60 + b, *body.tolist())
            wrong = torch.rand(1, generator=generator) < noise
            self.texts.append(LabelledRow(ids, "pq"[1 - a if wrong else a], "xy"[b]))

    def __len__(self):
        return len(self.texts)

    def __iter__(self):
        return iter(self.texts)


class LabelledRow:
    def __init__(self, text, label, spurious):
        self.text, self.label, self.spurious = text, label, spurious


def coder(n: int, seed: int = 1) -> SparseCoder:
    return SparseCoder.random(32, n, seed=seed).double()


@pytest.fixture(scope="module")
def given():
    dictionaries = {
        "resid.1": {"narrow": coder(40), "wide": coder(90)},
        "resid.0": coder(64, 3),
    }
    return tiny("llama"), dictionaries, Rows(80, 0), Rows(60, 1)


def alone(model, site, dictionary, train, test):
    return [
        pooled(model, {site: dictionary}, [one.text for one in texts], progress=False)[site]
        for texts in (train, test)
    ]


def test_each_dictionary_has_the_scores_that_it_has_alone(given):
    model, dictionaries, train, test = given
    kept = {"sizes": SIZES, "seeds": (0, 5), "batch_size": 7, "progress": False}
    one = tpp_sweep(model, dictionaries, train, test, **kept)
    other = scr_sweep(model, dictionaries, train, test, **kept)
    assert list(one) == list(other) == ["resid.1/narrow", "resid.1/wide", "resid.0"]
    for name, site, dictionary in (
        ("resid.1/wide", "resid.1", dictionaries["resid.1"]["wide"]),
        ("resid.0", "resid.0", dictionaries["resid.0"]),
    ):
        here, there = alone(model, site, dictionary, train, test)
        labels, others = ([x.label for x in texts] for texts in (train, test))
        pairs, other_pairs = ([(x.label, x.spurious) for x in texts] for texts in (train, test))
        for i, seed in enumerate((0, 5)):
            expected = tpp(here, labels, there, others, sizes=SIZES, seed=seed)
            torch.testing.assert_close(one[name].scores[i].after, expected.after)
            removed = scr(here, pairs, there, other_pairs, sizes=SIZES, seed=seed)
            torch.testing.assert_close(other[name].scores[i].after, removed.after)
            assert isinstance(one[name].scores[i], TPP) and isinstance(other[name].scores[i], SCR)
        mean = torch.stack([found.score for found in one[name].scores]).mean(0)
        torch.testing.assert_close(one[name].score, mean)
        assert one[name].l0 == there.l0 and one[name].n_features == dictionary.n_features


def test_the_model_reads_each_text_once_whatever_the_number_of_dictionaries(given, monkeypatch):
    model, dictionaries, train, test = given
    seen, logits = [], type(model).logits

    def counted(self, tokens, *args, **kwargs):
        seen.append(len(tokens))
        return logits(self, tokens, *args, **kwargs)

    monkeypatch.setattr(type(model), "logits", counted)
    tpp_sweep(model, dictionaries, train, test, sizes=SIZES, progress=False)
    assert sum(seen) == len(train) + len(test)


def test_a_folder_goes_on_where_it_stopped_and_takes_more_dictionaries(given, tmp_path, monkeypatch):
    import interventions.concepts.sweep as module

    model, dictionaries, train, test = given
    kept = {"sizes": SIZES, "folder": tmp_path, "progress": False}
    seen, pool = [], module.pool

    def counted(splice, at):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(splice.n_features)
        return pool(splice, at)

    monkeypatch.setattr(module, "pool", counted)
    with pytest.raises(KeyboardInterrupt):
        scr_sweep(model, dictionaries, train, test, **kept)
    assert seen == [40, 40, 90, 90] and list(Sweep.load(tmp_path)) == ["resid.1/narrow", "resid.1/wide"]
    seen.clear()
    whole = scr_sweep(model, dictionaries, train, test, **kept)
    assert seen == [64, 64]
    seen.clear()
    more = {**dictionaries, "mlp.1": coder(33)}
    assert list(scr_sweep(model, more, train, test, **kept)) == [*whole, "mlp.1"] and seen == [33, 33]
    seen.clear()
    changed = {"resid.0": coder(64, 4)}
    again = scr_sweep(model, changed, train, test, **kept)
    assert seen == [64, 64] and again["resid.0"].dictionary != whole["resid.0"].dictionary
    assert list(Sweep.load(tmp_path)) == [*whole, "mlp.1"]
    with pytest.raises(ValueError, match=r"holds a sweep of SCR on other texts, or with other options"):
        scr_sweep(model, dictionaries, train, test, recipe=Logistic(l2=3.0), **kept)
    with pytest.raises(ValueError, match="on another model"):
        scr_sweep(tiny("gpt2"), dictionaries, train, test, **kept)


def test_a_sweep_survives_files(given, tmp_path):
    model, dictionaries, train, test = given
    found = tpp_sweep(model, dictionaries, train, test, sizes=SIZES, seeds=(0, 1), progress=False)
    found.save(tmp_path)
    again = Sweep.load(tmp_path)
    assert str(again) == str(found) and again.at(5) == found.at(5) and repr(again) == repr(found)
    assert str(found).splitlines()[0].split() == ["TPP", "features", "L0", "1", "5", "20", "seconds"]
    about = json.loads((tmp_path / "sweep.json").read_text())
    (tmp_path / "sweep.json").write_text(json.dumps({**about, "kind": "other"}))
    with pytest.raises(ValueError, match="does not describe a sweep"):
        Sweep.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no sweep"):
        Sweep.load(tmp_path / "nowhere")
    with pytest.raises(LookupError, match="No score at 7 features; there are some at 1, 5, 20"):
        found.at(7)
    with pytest.raises(KeyError, match=r"No dictionary 'resid\.9'"):
        found["resid.9"]


def test_intervals_hold_the_score_and_narrow_with_more_texts(given):
    model, dictionaries, train, _ = given
    one = {"resid.0": dictionaries["resid.0"]}
    spans = []
    for n in (40, 360):
        found = tpp_sweep(model, one, train, Rows(n, 2, noise=0.3), sizes=(3,), progress=False)
        score, low, high = found.at(3)["resid.0"]
        assert low <= score <= high
        spans.append(high - low)
    assert spans[1] < spans[0] / 2  # of nine times as many texts
    noisy = Rows(40, 2, noise=0.3)
    seeds = tpp_sweep(model, one, train, noisy, sizes=SIZES, seeds=(0, 1, 2), progress=False)["resid.0"]
    low, high = seeds.interval().T
    assert ((low <= seeds.score) & (seeds.score <= high)).all()


def test_labelled_sets_do_as_they_are_and_recipes_are_chosen_on_held_out_texts():
    from circuits import embedded

    model, dictionaries = embedded.model(), embedded.dictionaries()
    texts = []
    for i in range(48):
        a, b = i % 2, i // 2 % 2
        noun, verb = (("artist", " likes"), ("artists", " like"))[b]
        texts.append(LabelledText(f"The friend{'s' * a} that the {noun}{verb}", "sp"[a], "om"[b]))
    train, test = LabelledSet("nouns", texts), LabelledSet("nouns", texts[:16])
    found = scr_sweep(
        model,
        {"resid.1": dictionaries["resid.1"]},
        train,
        test,
        recipe=Selected(),
        sizes=SIZES,
        progress=False,
    )
    assert found["resid.1"].score.isfinite().all() and found["resid.1"].scores[0].together[0][0] == "p"


def test_what_cannot_be_scored_is_refused_before_the_model_runs(given, monkeypatch):
    model, dictionaries, train, test = given
    monkeypatch.setattr(type(model), "logits", lambda *_, **__: pytest.fail("the model ran"))
    one = [LabelledRow(x.text, "p", x.spurious) for x in train]
    with pytest.raises(ValueError, match="All texts are p: give texts of two classes or more"):
        tpp_sweep(model, dictionaries, one, test, progress=False)
    lacking = [x for x in test if (x.label, x.spurious) != ("q", "y")]
    with pytest.raises(ValueError, match="No text to test on has label 'q' and spurious 'y'"):
        scr_sweep(model, dictionaries, train, lacking, progress=False)
    plain = [LabelledRow(x.text, x.label, "") for x in train]
    with pytest.raises(ValueError, match="spurious has the values ''; it takes two"):
        scr_sweep(model, dictionaries, plain, test, progress=False)
    with pytest.raises(
        ValueError, match=r"resid\.1/odd: resid\.1 has width 32, but the dictionary at resid\.1 takes"
    ):
        tpp_sweep(model, {"resid.1": {"odd": SparseCoder.random(16, 20)}}, train, test, progress=False)
    across = SparseCoder.random(32, 64, reads="mlp_in.1", site="mlp.1").double()
    with pytest.raises(ValueError, match=r"The dictionary at mlp.1 reads mlp_in.1.*Give autoencoders"):
        tpp_sweep(model, {"mlp.1": across}, train, test, progress=False)
    with pytest.raises(ValueError, match="train text 3"):
        empty = [LabelledRow(() if i == 3 else x.text, x.label, x.spurious) for i, x in enumerate(train)]
        tpp_sweep(model, dictionaries, empty, test, progress=False)
    for none in ({}, {"resid.0": {}}):
        with pytest.raises(ValueError, match="dictionaries"):
            tpp_sweep(model, none, train, test, progress=False)
    with pytest.raises(ValueError, match="seeds: give at least one"):
        tpp_sweep(model, dictionaries, train, test, seeds=(), progress=False)
    with pytest.raises(ValueError, match="context=0: at least one token"):
        tpp_sweep(model, dictionaries, train, test, context=0, progress=False)


def test_only_so_many_tokens_of_a_text_are_read(given):
    model, _, train, test = given
    cut = Rows(0, 0)
    cut.texts = [LabelledRow(x.text[:4], x.label, x.spurious) for x in train]
    one = {"resid.1": coder(40)}
    whole = tpp_sweep(model, one, train, test, sizes=SIZES, context=4, progress=False)
    short = tpp_sweep(model, one, cut, test, sizes=SIZES, context=4, progress=False)
    torch.testing.assert_close(whole["resid.1"].scores[0].after, short["resid.1"].scores[0].after)
