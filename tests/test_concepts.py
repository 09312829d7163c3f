"""What ablating features does to probes of pooled activations, against ablating them at every token."""

from __future__ import annotations

import pytest
import torch
from families import tiny

from circuits import embedded
from interventions import SparseCoder, run
from interventions.concepts import SCR, TPP, pooled, scr, tpp
from interventions.concepts.scores import Ablation, ablated_logits, attributions, fitted, right
from interventions.edits import Ablate
from interventions.probing import Logistic

SIZES = (1, 3, 10, 64)


def _texts(n: int, seed: int) -> list[tuple[int, ...]]:
    """Rows of several lengths; the class is which tokens they hold."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        length = int(torch.randint(3, 8, (1,), generator=generator))
        rows.append(tuple((torch.randint(3, 20, (length,), generator=generator) + 12 * (i % 3)).tolist()))
    return rows


def _labels(n: int) -> list[str]:
    return ["abc"[i % 3] for i in range(n)]


@pytest.fixture(scope="module")
def sets():
    model = tiny("llama")
    coder = SparseCoder.random(32, 64, seed=1).double()
    train, test = (
        pooled(model, {"resid.1": coder}, _texts(n, n), batch_size=8, progress=False)["resid.1"]
        for n in (60, 45)
    )
    return model, coder, train, test


def _explicitly(model, coder, rows, probe, features):
    """The logits with features zero at every token, the error kept, one text at a time."""
    found = []
    for row in rows:
        x = model.read(torch.tensor([row]), ["resid.1"])[model.site("resid.1")][0]
        acts = coder.encode(x)
        kept = acts.clone()
        kept[:, features] = 0
        changed = coder.decode(kept) + (x - coder.decode(acts))
        found.append(probe.logits(changed.mean(0)))
    return torch.stack(found)


def test_means_are_those_of_each_text_alone(sets):
    model, coder, train, _ = sets
    for i in (0, 7, 31):
        x = model.read(torch.tensor([_texts(60, 60)[i]]), ["resid.1"])[model.site("resid.1")][0]
        torch.testing.assert_close(train.acts[i], x.mean(0))
        torch.testing.assert_close(train.features[i].to_dense(), coder.encode(x).mean(0))


def test_the_closed_form_is_what_explicit_ablation_gives(sets):
    model, coder, train, test = sets
    texts, labels = torch.arange(45), torch.arange(45) % 3 == 0
    probe = fitted(Logistic(), train, torch.arange(60), torch.arange(60) % 3 == 0)
    features = torch.tensor([5, 1, 40, 63, 22])
    rows = test.splice.decoder_rows(features).double()
    closed = probe.logits(test.acts) - test.some(features) @ (rows @ probe.direction)
    explicit = _explicitly(model, coder, _texts(45, 45), probe, features)
    torch.testing.assert_close(closed, explicit, rtol=1e-9, atol=1e-9)
    expected = ((explicit > 0) == labels).double().mean().item()
    ablation = Ablation.of(test, features)
    assert right(ablated_logits(test, probe, texts, ablation, (5,)), labels).mean().item() == expected


def test_the_closed_form_is_what_an_ablation_in_the_model_gives(sets):
    model, coder, _, test = sets
    features, row = [5, 1, 40], _texts(45, 45)[3]
    edit = Ablate({"resid.1": features})
    used = run(model, torch.tensor([row]), {"resid.1": coder}, [edit]).used["resid.1"]
    found = coder.decode(used.features) + used.error
    index = torch.tensor(features)
    gone = test.some(index)[3] @ test.splice.decoder_rows(index).double()
    torch.testing.assert_close(test.acts[3] - gone, found[0].mean(0), rtol=1e-9, atol=1e-9)


def test_attributions_add_up_to_what_features_do_for_the_difference_of_the_means(sets):
    _, coder, train, _ = sets
    texts, labels = torch.arange(60), torch.arange(60) % 3 == 1
    probe = fitted(Logistic(), train, texts, labels)
    decoded = coder.decode(train.features.to_dense()) - coder.decode(torch.zeros(1, 64).double())
    logits = decoded @ probe.direction
    apart = logits[labels].mean() - logits[~labels].mean()
    torch.testing.assert_close(attributions(train, probe, texts, labels).sum(), apart)


def test_tpp_is_that_of_explicit_ablation(sets):
    _, _, train, test = sets
    found = tpp(train, _labels(60), test, _labels(45), sizes=SIZES, seed=3)
    for a in range(3):
        # the last size takes every feature of the class that has an effect
        assert found.chosen[-1, a] == found.chosen[:, a].max() < 64
    assert found.clean.min() > 0.7
    assert found.intended[-1] > 0.05
    whole = found.clean[None, None] - found.after
    for i in range(len(SIZES)):
        own = torch.stack([whole[i, c, c] for c in range(3)]).mean()
        others = torch.stack([whole[i, a, c] for a in range(3) for c in range(3) if a != c]).mean()
        torch.testing.assert_close(found.score[i], own - others)


def test_scores_survive_files(sets, tmp_path):
    _, _, train, test = sets
    found = tpp(train, _labels(60), test, _labels(45), sizes=SIZES)
    found.save(tmp_path)
    again = TPP.load(tmp_path)
    assert str(again) == str(found) and torch.equal(again.after, found.after)
    assert str(found).splitlines()[0].split() == ["features", "TPP", "from", "to", "intended", "unintended"]


def _planted(n: int, seed: int):
    """Sentences of the embedded model: the label is the number of the subject, the spurious label the kind of
    the noun between."""
    generator = torch.Generator().manual_seed(seed)
    pairs, texts = [], []
    one, many = ("The friend", "The friends"), ("the artist", "the artists")
    for i in range(n):
        a, b = i % 2, (i // 2) % 2
        verb = (" likes", " like")[b]
        end = (" is", " are")[a] if torch.rand(1, generator=generator) < 0.5 else ""
        texts.append(f"{one[a]} that {many[b]}{verb}{end}")
        pairs.append((["singular", "plural"][a], ["one", "several"][b]))
    return texts, pairs


def test_features_of_one_label_free_a_spurious_probe_from_it_in_the_embedded_model(tmp_path):
    model, dictionaries = embedded.model(), embedded.dictionaries()
    name = "resid.1"
    chosen = {site: d for site, d in dictionaries.items() if str(site) == name}
    (texts, pairs), (others, other_pairs) = _planted(64, 0), _planted(32, 1)
    train = pooled(model, chosen, texts, progress=False)[name]
    test = pooled(model, chosen, others, progress=False)[name]
    found = scr(train, pairs, test, other_pairs, sizes=(1, 5, 20), keep=("number", "noun"))
    assert (found.ceiling > 0.9).all()
    assert (found.recovered <= 1.0 + 1e-9).all()
    found.save(tmp_path)
    assert str(SCR.load(tmp_path)) == str(found)


def test_of_a_tie_of_bases_the_mean_of_both_directions_counts():
    together = (("p", "x"), ("q", "y"))
    rest = {"after": torch.tensor([[0.75], [1.0]]), "chosen": torch.ones(2, 1), "drawn": torch.ones(9, 1)}
    tie = SCR(
        ("a", "b"), together, (1,), base=torch.tensor([0.5, 0.5]), ceiling=torch.tensor([1.0, 1.0]), **rest
    )
    assert tie.score.item() == 0.75 and tie.room == 0.5
    stuck = SCR(
        ("a", "b"), together, (1,), base=torch.tensor([0.5, 0.9]), ceiling=torch.tensor([0.5, 1.0]), **rest
    )
    assert stuck.score.item() == 0.0 and stuck.room == 0.0


def test_labels_that_do_not_fit_are_refused(sets):
    model, coder, train, test = sets
    with pytest.raises(ValueError, match="There are 60 texts, and 59 labels"):
        tpp(train, _labels(59), test, _labels(45))
    with pytest.raises(ValueError, match="All texts are a:"):
        tpp(train, ["a"] * 60, test, ["a"] * 45)
    with pytest.raises(ValueError, match="texts of 'c' to fit or to test on, but not both"):
        tpp(train, _labels(60), test, ["a", "b", "b"] * 15)
    with pytest.raises(ValueError, match="label has the values 'a'; it takes two"):
        scr(train, [("a", "x")] * 60, test, [("a", "x")] * 45)
    pairs = [("a", "x"), ("b", "y")] * 30
    with pytest.raises(ValueError, match="No text to fit on has label 'a' and spurious 'y'"):
        scr(train, pairs, test, pairs[:45])
    with pytest.raises(ValueError, match="There are no dictionaries"):
        pooled(model, {}, [(1, 2)])
    with pytest.raises(ValueError, match="at least one token"):
        pooled(model, {"resid.1": coder}, [(3, 4), ()])
    reading = SparseCoder.random(32, 64, reads="mlp_in.1", site="mlp.1").double()
    with pytest.raises(ValueError, match=r"The dictionary at mlp.1 reads mlp_in.1"):
        pooled(model, {"mlp.1": reading}, [(3, 4)])


@pytest.mark.parametrize("sizes", [(), (-1,), (1.5,)])
def test_numbers_of_features_are_checked(sets, sizes):
    *_, train, _ = sets
    with pytest.raises(ValueError, match="numbers of features, from 0 on"):
        tpp(train, _labels(60), train, _labels(60), sizes=sizes)
    pairs = [("xy"[i % 2], "pq"[i // 2 % 2]) for i in range(60)]
    with pytest.raises(ValueError, match="numbers of features, from 0 on"):
        scr(train, pairs, train, pairs, keep=("X", "P"), sizes=sizes)
    with pytest.raises(ValueError, match=r"a pair of labels, \(X, P\), not 'a'"):
        scr(train, _labels(60), train, pairs, keep=("X", "P"))  # type: ignore[arg-type]


def test_texts_are_chosen_by_number_or_by_yes_and_no(sets):
    *_, train, _ = sets
    wanted = torch.arange(60) % 7 == 3
    one, other = train.of(wanted), train.of(wanted.nonzero()[:, 0])
    assert len(one) == len(other) == 9
    assert torch.equal(one.acts, other.acts) and torch.equal(
        one.features.to_dense(), other.features.to_dense()
    )


def test_a_dictionary_that_is_silent_or_narrow_has_fewer_features_to_ablate():
    model = tiny("gpt2")
    coder = SparseCoder.random(32, 3, seed=1).double()
    silent = SparseCoder.random(32, 4, seed=1).double()
    with torch.no_grad():
        silent.b_enc.fill_(-1e3)
    found = pooled(model, {"mlp.0": coder, "attn.0": silent}, _texts(30, 30), progress=False)
    pairs = [("xy"[i % 2], "pq"[i // 2 % 2]) for i in range(30)]
    for site, most in (("mlp.0", 3), ("attn.0", 0)):
        acts = found[site]
        seen = tpp(acts, _labels(30), acts, _labels(30), sizes=(2, 50))
        assert int(seen.chosen.max()) <= most and (most or (seen.after == seen.clean).all())
        recovered = scr(acts, pairs, acts, pairs, keep=("X", "P"), sizes=(2, 50))
        assert int(recovered.chosen.max()) <= most and recovered.score.isfinite().all()
