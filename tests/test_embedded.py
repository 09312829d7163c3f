from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuits import embedded
from circuits.embedded.train_model import train, untrained
from interventions.dictionaries import SparseCoder, quality
from interventions.model import Model
from interventions.sites import Site
from tasks.grammar import CONDITIONS, VOCABULARY, texts
from tasks.questions import accuracy

SITES = ["embed", *(f"{stem}.{layer}" for layer in range(3) for stem in ("attn", "mlp", "resid"))]


@cache
def ours() -> Model:
    return embedded.model()


@cache
def sparse() -> dict[str, SparseCoder]:
    return embedded.dictionaries()


@cache
def unseen() -> Tensor:
    return torch.stack(list(islice(texts(10**6), 60)))


def differences(construction: str, patched: str, position: int) -> tuple[Tensor, Tensor]:
    """Answer minus foil at the end of clean prompts, before and after one position of a site is patched."""
    model = ours()
    (batch,) = embedded.task(construction, n=80, seed=1).batches(model.tokenizer, batch_size=80)
    assert batch.patch is not None
    site = model.site(patched)
    other = model.read(batch.patch, [site])[site]

    def visit(_site: Site, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, position] = other[:, position]
        return x

    def difference(logits: Tensor) -> Tensor:
        last = logits[:, -1]
        return (last.gather(1, batch.answers) - last.gather(1, batch.foils))[:, 0]

    with torch.no_grad():
        before = difference(model.logits(batch.clean))
        with model.visiting([site], visit):
            return before, difference(model.logits(batch.clean))


def test_verbs_agree_in_every_condition_on_what_was_held_out() -> None:
    scores = accuracy(ours().logits, 500, seed=10**6)
    assert set(scores) == set(CONDITIONS)
    assert min(scores.values()) > 0.995, scores


@pytest.mark.parametrize("construction", embedded.CONSTRUCTIONS)
def test_the_tasks_are_mastered(construction: str) -> None:
    task = embedded.task(construction, n=100, seed=2)
    for batch in task.batches(ours().tokenizer):
        with torch.no_grad():
            assert (task.metric(ours().logits(batch.clean), batch) > 3).all()
            assert batch.patch is not None
            assert (task.metric(ours().logits(batch.patch), batch) < -3).all()


def test_an_unknown_construction_is_named() -> None:
    with pytest.raises(ValueError, match="No construction 'near'; there are simple, across_pp"):
        embedded.task("near")


def test_the_tokenizer_that_ships_has_the_words_of_the_grammar() -> None:
    tokenizer = ours().tokenizer
    assert tokenizer.convert_ids_to_tokens(range(len(VOCABULARY))) == list(VOCABULARY)
    assert len(tokenizer) == len(VOCABULARY) == ours().unembed(torch.zeros(1, 1, 64)).shape[-1]
    assert tokenizer.encode("The boy is old.") == [
        VOCABULARY.index(w) for w in ["<bos>", "The", "boy", "is", "old", "."]
    ]


def test_number_waits_at_the_subject_until_the_last_layer_fetches_it() -> None:
    for construction in ("across_pp", "across_rc"):
        for site, position in (("resid.1", 2), ("attn.2", -1), ("resid.2", -1)):
            before, after = differences(construction, site, position)
            assert (before > 0).all() and (after < 0).all(), (construction, site)
        for site, position in (("resid.1", -1), ("resid.2", 2), ("attn.1", -1)):
            before, after = differences(construction, site, position)
            torch.testing.assert_close(after, before, atol=0.5, rtol=0)


def test_every_site_has_a_dictionary() -> None:
    assert list(sparse()) == SITES
    for name, coder in sparse().items():
        assert (coder.site, coder.d_in, coder.n_features) == (name, 64, 256)
        assert coder.meta["model"] == ours().fingerprint
    assert embedded.dictionaries().keys() == {name for name in ours().sites if "_in." not in name}


def test_dictionaries_reconstruct_with_few_features() -> None:
    for name, found in quality(ours(), sparse(), unseen()[:20]).items():
        assert found.fvu < 0.03 and found.l0 < 5, name
        assert found.recovered_from_mean > 0.99, name


def test_the_model_agrees_on_reconstructions_alone() -> None:
    """With every site replaced by what its dictionary says of it, all errors dropped."""

    def reconstructed(tokens: Tensor) -> Tensor:
        with ours().visiting(sparse(), lambda site, x: sparse()[site.name](x)):
            return ours().logits(tokens)

    assert min(accuracy(reconstructed, 100, seed=5).values()) > 0.95


def test_what_ships_is_small() -> None:
    files = [path for path in embedded.HERE.rglob("*") if path.suffix in (".json", ".safetensors")]
    assert sum(path.stat().st_size for path in files) < 3e6
    assert {path.parent.name for path in files} == {"model", "dictionaries"}


def test_training_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, second = (train(untrained(width=16, layers=1), steps=3, batch=4) for _ in range(2))
    assert first == second
    assert train(untrained(width=16, layers=1, seed=1), steps=3, batch=4) != first


def test_the_other_family_trains_too() -> None:
    losses = train(untrained("mamba", width=16, layers=1), steps=4, batch=2, rate=1e-2)
    assert losses[-1] < losses[0]
