"""Which features a classifier uses: against autograd, the closed form, and zeroing features one by one."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny
from shift_texts import LABELS, classifier, coders, probe, texts, tokenizer

from circuits import attribution_patching, exact_patching, integrated_gradients
from circuits.shift.ranking import Ranking, ranking
from interventions import Identity, run
from interventions.edits import Ablate
from tasks import Pair, Task

pytestmark = pytest.mark.filterwarnings("ignore:On these texts")  # probes are random


def _ranked(model, held, given=None, **how):
    return ranking(model, given or texts(), held, classes=LABELS, progress=False, **how)


def _logit(model, text) -> torch.Tensor:
    """How much more the label gets than the others."""
    tokens = torch.tensor([model.tokenizer.encode(text.text)])
    logits = model.logits(tokens)[0, -1]
    right = LABELS.index(text.label)
    return logits[right] - torch.cat([logits[:right], logits[right + 1 :]]).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_site_of_the_probe_effects_are_those_of_the_closed_form(family):
    model, held, given = classifier(family), coders("resid.1"), texts()
    coder, effects = held["resid.1"], []
    for text in given:
        tokens = torch.tensor([model.tokenizer.encode(text.text)])
        x = model.inner.read(tokens, ["resid.1"])[model.inner.site("resid.1")][0, 1:]
        slope = coder.decoder_rows(torch.arange(48)) @ probe().direction
        sign = 1 if text.label == LABELS[1] else -1
        effects.append(sign * coder.encode(x).mean(0) * slope)
    values = torch.stack(effects).detach()
    found = _ranked(model, held, most=1000)
    listed = [candidate.feature for candidate in found]
    assert sorted(listed) == values.mean(0).nonzero()[:, 0].tolist()
    for candidate in found:
        column = values[:, candidate.feature]
        # Some families compute parts in float32, which other batch sizes round otherwise.
        assert candidate.effect == pytest.approx(column.mean().item(), rel=1e-6, abs=1e-8)
        assert candidate.error == pytest.approx(column.std().item() / len(column) ** 0.5, rel=1e-6, abs=1e-8)
    sizes = [abs(candidate.effect) for candidate in found]
    assert sizes == sorted(sizes, reverse=True)


def test_before_the_probe_first_order_effects_are_those_of_autograd():
    model, held, given = classifier(), coders("mlp.0"), texts(6)
    coder, total = held["mlp.0"], torch.zeros(48, dtype=torch.float64)
    for text in given:
        kept = {}

        def visit(_site, x, kept=kept):
            kept["x"] = x.detach().requires_grad_()
            return kept["x"].clone()

        with model.visiting(["mlp.0"], visit):
            value = _logit(model, text)
        (gradient,) = torch.autograd.grad(value, kept["x"])
        features = coder.encode(kept["x"].detach())
        total += (features * (gradient @ coder.W_dec.T))[0, 1:].sum(0).detach()
    found = _ranked(model, held, given, most=1000, method=attribution_patching)
    for candidate in found:
        assert candidate.effect == pytest.approx(total[candidate.feature].item() / 6, rel=1e-9, abs=1e-12)


def test_the_effect_of_one_feature_is_minus_what_zeroing_it_changes():
    model, held, given, change = classifier(), coders("resid.1"), texts(4), 0.0
    first, second = (_ranked(model, held, given, method=m)[0] for m in (integrated_gradients, exact_patching))
    for text in given:
        tokens = torch.tensor([model.tokenizer.encode(text.text)])
        right = LABELS.index(text.label)
        whole = model.logits(tokens)[0, -1]
        without = run(model, tokens, held, [Ablate({first.site: [first.feature]})]).logits[0, -1]
        gap = whole - without
        change += (gap[right] - gap[1 - right]).item() / 4
    assert first.effect == pytest.approx(change, rel=1e-9)
    assert second.effect == pytest.approx(change, rel=1e-9)


def test_features_and_errors_of_a_site_add_up_to_what_the_whole_site_does():
    model, held, given = classifier(), coders("resid.1"), texts()
    found = _ranked(model, held, given, most=1000)
    coder, whole = held["resid.1"], 0.0
    bias = coder.decode(torch.zeros(1, 48, dtype=torch.float64))[0].detach()
    for text in given:
        right = LABELS.index(text.label)
        sign = 1 if right else -1
        empty = sign * model.probe.logits(bias).item()
        whole += (_logit(model, text).item() - empty) / len(given)
    total = found.totals["resid.1"]
    assert total.features + total.error == pytest.approx(whole, rel=1e-9)
    assert sum(candidate.effect for candidate in found) == pytest.approx(total.features, rel=1e-9)
    assert 0 < total.missed < 1
    assert found.missed == total.missed


def test_nothing_is_missed_of_neurons():
    model = classifier()
    found = _ranked(model, {"resid.1": Identity()}, most=5)
    assert found.totals["resid.1"].missed == pytest.approx(0, abs=1e-12)
    assert len(found) == 5


def test_tokens_that_open_a_text_do_not_count():
    model, held = classifier(), coders("resid.0")
    found = _ranked(model, held, most=1000)
    bare = tiny("llama")
    bare.tokenizer = replace_specials(tokenizer())
    other = bare.probed(model.probe, at="resid.1")
    task = texts().task(model.tokenizer, LABELS)
    counted = ranking(other, task, held, most=1000, progress=False)
    assert [c.effect for c in found] != [c.effect for c in counted]


def replace_specials(made):
    """A tokenizer that says of no token that it is special."""

    class Plain:
        all_special_ids: tuple[int, ...] = ()

        def __getattr__(self, name):
            return getattr(made, name)

    return Plain()


def test_the_first_features_of_several_sites_are_the_largest_of_all():
    model, held = classifier(), coders("mlp.0", "resid.0", "resid.1")
    whole = _ranked(model, held, most=1000)
    first = _ranked(model, held, most=7)
    assert first.candidates == whole.candidates[:7]
    assert whole.first(7).candidates == first.candidates
    assert {site for site, some in first.features.items() if some} <= set(held)
    assert sum(map(len, first.features.values())) == 7


def test_a_probe_of_three_classes_is_ranked():
    model = classifier(classes=3)
    found = ranking(model, texts(), coders("resid.1"), classes=(*LABELS, "teacher"), most=5, progress=False)
    assert len(found) == 5


class _Counted:
    """A method that stops before a batch; called the same wherever it stops."""

    def __init__(self, stop=None):
        self.stop, self.calls = stop, 0

    def __call__(self, *args, **how):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return attribution_patching(*args, **how)

    def __repr__(self):
        return "counted"


def test_with_a_checkpoint_the_result_is_the_same_after_an_interruption(tmp_path):
    model, held, given = classifier(), coders("resid.0"), texts()
    straight = _ranked(model, held, given, batch_size=4, method=attribution_patching)
    with pytest.raises(KeyboardInterrupt):
        _ranked(model, held, given, batch_size=4, method=_Counted(stop=2), checkpoint=tmp_path)
    rest = _Counted()
    resumed = _ranked(model, held, given, batch_size=4, method=rest, checkpoint=tmp_path)
    assert rest.calls == len(given.task(model.tokenizer, LABELS).batches(model.tokenizer, 4)) - 2
    assert resumed.candidates == straight.candidates
    assert resumed.totals == straight.totals


def test_a_checkpoint_of_other_texts_is_refused(tmp_path):
    model, held = classifier(), coders("resid.1")
    _ranked(model, held, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another run, which differs in task"):
        _ranked(model, held, texts(seed=9), checkpoint=tmp_path)


def test_a_ranking_is_saved_and_loaded_as_it_is(tmp_path):
    found = _ranked(classifier(), coders("resid.0", "resid.1"), most=9)
    found.save(tmp_path / "a" / "ranking.json")
    again = Ranking.load(tmp_path / "a" / "ranking.json")
    assert again == found
    assert str(again) == str(found)
    alone = _ranked(classifier(), coders("resid.1"), texts(2).where(lambda one: one.label == "nurse"))
    alone.save(tmp_path / "one.json")
    assert Ranking.load(tmp_path / "one.json")[0].error != Ranking.load(tmp_path / "one.json")[0].error


def test_files_that_hold_no_ranking_are_refused(tmp_path):
    path = tmp_path / "ranking.json"
    with pytest.raises(FileNotFoundError, match="no file"):
        Ranking.load(path)
    for content, why in (
        ("{", "not complete JSON"),
        ("[]", "does not hold ranking"),
        ('{"format": "circuits.shift.ranking", "version": 7}', "version 7"),
        ('{"format": "circuits.shift.ranking", "version": 1}', "does not describe ranking"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=why):
            Ranking.load(path)


def test_a_ranking_is_refused_by_other_models_and_dictionaries():
    model, held = classifier(), coders("resid.1")
    found = _ranked(model, held)
    found.check(model, held)
    with pytest.raises(ValueError, match="these differ: the model"):
        found.check(classifier(seed=6), held)
    with pytest.raises(ValueError, match=r"differ: the dictionary at resid\.1\."):
        found.check(model, {"resid.1": coders("resid.0", "resid.1")["resid.1"]})


def test_the_table_names_features_and_what_errors_miss():
    found = _ranked(classifier(), coders("resid.1"), most=30)
    table = found.table(most=3)
    assert found[0].name in table
    assert f"... and {len(found) - 3} more" in table
    assert "missed" in table.splitlines()[-2]


def test_classes_in_the_wrong_order_are_told():
    model, given = classifier(), texts()
    right = _ranked(model, coders("resid.1"), given).clean
    order = LABELS if right < 0 else LABELS[::-1]
    with pytest.warns(UserWarning, match="in the order that it was trained with"):
        ranking(model, given, coders("resid.1"), classes=order, progress=False)


def test_the_names_of_a_classifiers_classes_say_their_order():
    bare, held, given = classifier().inner, coders("resid.1"), texts()
    assert given.classes == LABELS
    named = bare.probed(probe(), at="resid.1", classes=LABELS[::-1])
    found = ranking(named, given, held, progress=False)
    assert list(found) == list(_ranked_as(named, given, held, LABELS[::-1]))
    unnamed = bare.probed(probe(), at="resid.1")
    assert list(ranking(unnamed, given, held, progress=False)) == list(
        _ranked_as(unnamed, given, held, LABELS)
    )


def _ranked_as(model, given, held, classes):
    return ranking(model, given, held, classes=classes, progress=False)


def test_labels_that_are_not_the_classes_are_told():
    model, held = classifier(classes=3), coders("resid.1")
    with pytest.raises(ValueError, match="tells 3 classes apart, and these are 2: nurse, professor"):
        ranking(model, texts(), held, progress=False)
    with pytest.raises(ValueError, match="tells 2 classes apart, and these are 3"):
        _ranked_as(classifier(), texts(), held, (*LABELS, "painter"))
    with pytest.raises(ValueError, match="are of tokens, and labels are asked about: make it a classifier"):
        ranking(model.inner, texts(), held, progress=False)


def test_bad_input_is_told():
    model, held = classifier(), coders("resid.1")
    with pytest.raises(ValueError, match="most=0"):
        _ranked(model, held, most=0)
    with pytest.raises(ValueError, match="no dictionaries"):
        _ranked(model, {})
    with pytest.raises(LookupError, match=r"resid\.2 comes after it"):
        _ranked(model, coders("resid.2"))
    with pytest.raises(ValueError, match="are paired"):
        ranking(model, Task("two", [Pair((3, 4), (3, 5), (0,), (1,))]), held)
    flat = coders("resid.1")
    with torch.no_grad():
        flat["resid.1"].W_dec.zero_()
    with pytest.raises(ValueError, match=r"No feature at resid\.1 has an effect"):
        _ranked(model, flat)


def test_probes_at_other_sites_make_other_classifiers():
    assert classifier().fingerprint != classifier(at="resid.0").fingerprint
    assert probe(1).direction.shape == (32,)
