"""The scripts beside the documentation, at toy size."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch

import tasks
from circuits import Node
from interventions.acts import Identity
from interventions.dictionaries import own_samples
from interventions.model import Model

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture
def pronouns(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module("pronouns")


@pytest.fixture
def recurrent(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module("recurrent")


@pytest.fixture
def weights(pronouns):
    folder = Path(pronouns.WEIGHTS)
    if not (folder / "stories260K").exists() or not (folder / "ml5-charRNN-shakespeare").exists():
        pytest.skip("the weights of the examples are not here")
    return folder


@pytest.fixture
def stories(weights):
    return Model.load(weights / "stories260K")


@pytest.fixture
def batches(stories):
    with pytest.warns(UserWarning, match="do not fit"):
        return tasks.pronouns(n=100).batches(stories.tokenizer)


def test_text_is_sampled_once_and_a_part_of_it_held_out(pronouns, stories, tmp_path):
    text, unseen = pronouns.own_text(stories, 16, tmp_path)
    assert (text.shape, unseen.shape) == ((15, 256), (1, 256))
    again = pronouns.own_text(None, 16, tmp_path)
    assert all(torch.equal(*pair) for pair in zip(again, (text, unseen), strict=True))


def test_contexts_show_where_a_feature_is_most_active(pronouns, stories):
    text = own_samples(stories, rows=4, length=12)
    acts = stories.read(text, ["resid.2"])[stories.site("resid.2")]
    node = Node("resid.2", int((acts.amax((0, 1)) + acts.amin((0, 1))).argmax()))  # most of it positive
    found = pronouns.contexts(stories, {"resid.2": Identity()}, [node], text, most=1)
    values = acts[..., node.feature]
    row, at = divmod(int(values.argmax()), text.shape[1])
    token = stories.tokenizer.convert_ids_to_tokens(text[row, at].item()).replace("▁", " ")
    assert f"[{token}]" in found[node][0]


def test_all_neurons_of_the_last_site_patched_give_the_patched_prompt(pronouns, stories, batches):
    task = tasks.pronouns(n=100)
    nodes = [Node("resid.4", i) for i in range(64)]
    found = pronouns.margins(stories, task, batches, {"resid.4": Identity()}, nodes, patched=True)
    wanted = torch.cat([task.metric(stories.logits(batch.patch), batch) for batch in batches])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_features_to_compare_with_are_others_of_the_same_sites(pronouns, stories, batches):
    nodes = [Node("mlp.1", 3), Node("mlp.1", 4), Node("attn.2", 0)]
    dictionaries = {"mlp.1": Identity(), "attn.2": Identity()}
    drawn = pronouns.like(nodes, stories, dictionaries, batches, seed=0)
    assert sorted(node.site for node in drawn) == ["attn.2", "mlp.1", "mlp.1"]
    assert not set(drawn) & set(nodes)


def test_activity_by_name_is_a_mean_over_prompts(pronouns, stories, batches):
    node = Node("embed", 7)
    found = pronouns.by_name(stories, {"embed": Identity()}, batches, [node])[node]
    name, mean = next(iter(found.items()))
    site, totals = stories.site("embed"), []
    for batch in batches:
        values = stories.read(batch.clean, [site])[site][..., 7].sum(1).tolist()
        prompts = [stories.tokenizer.decode(tokens) for tokens in batch.clean]
        totals += [value for value, prompt in zip(values, prompts, strict=True) if name in prompt]
    assert mean == pytest.approx(sum(totals) / len(totals), abs=1e-5)


def test_names_are_set_apart(pronouns):
    some, others = pronouns.apart(tasks.pronouns(n=300))
    assert "Lily" in str(some.pairs) and "Lily" not in str(others.pairs)
    assert "Lucy" in str(others.pairs) and "Lucy" not in str(some.pairs)
    assert len(some) + len(others) < 300


def test_a_description_names_the_loudest_and_both_groups(pronouns):
    found = {"Lily": 2.0, "Mia": 1.0, "Tim": 0.5, "Tom": 0.0}
    assert pronouns.described(found, most=2) == "Lily 2.0, Mia 1.0, girls 1.50, boys 0.25"


def test_the_character_model_reads_shakespeare(recurrent, weights):
    model = recurrent.shakespeare(weights / "ml5-charRNN-shakespeare")
    assert list(model.sites) == ["embed", "resid.0", "resid.1"]
    verse = "But, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun."
    tokens = torch.tensor([model.tokenizer.encode(verse)])
    assert model.tokenizer.decode(tokens[0].tolist()) == verse
    loss = torch.nn.functional.cross_entropy(model.logits(tokens)[0, :-1], tokens[0, 1:])
    assert loss / math.log(2) < 3  # the frequencies of characters alone give 4.8


def test_the_character_model_says_he_has_and_they_have(recurrent, weights):
    model, task = recurrent.shakespeare(weights / "ml5-charRNN-shakespeare"), recurrent.has_or_have()
    batches = task.batches(model.tokenizer)
    right = torch.cat([task.metric(model.logits(batch.clean), batch) > 0 for batch in batches])
    assert len(right) == len(task) and right.double().mean() > 0.9


def test_sampling_carries_the_state_of_every_layer(recurrent):
    torch.manual_seed(0)
    module = recurrent.CharRNN(5, 8, 2)
    module.head.weight.data *= 1e4  # the likeliest character is all but certain
    text = module.sampled(2, 6, first=3)
    assert torch.equal(text[:, 1:], module(text)[:, :-1].argmax(-1))


def test_a_recurrent_model_goes_through_the_calls_of_a_transformer(recurrent, capsys):
    torch.manual_seed(0)
    task = recurrent.has_or_have().take(24)
    characters = sorted({c for pair in task.pairs for c in f"{pair.clean}{pair.patch}sv"})
    names = recurrent.Characters({c: i for i, c in enumerate(characters)})
    model = Model.load(recurrent.CharRNN(len(characters), 8, 2), tokenizer=names)
    circuit, curve = recurrent.circuit_of(model, task, {site: Identity() for site in model.sites}, nodes=10)
    assert len(circuit) == 10 and curve.sizes[-1] == 10
    assert "pairs to test on" in capsys.readouterr().out


@pytest.mark.slow
def test_the_pronoun_example_runs_through(pronouns, weights, tmp_path, capsys):
    sizes = ["--rows", "64", "--features", "128", "--steps", "50", "--pairs", "200", "--nodes", "60"]
    pronouns.main(["--weights", str(weights), "--out", str(tmp_path), *sizes])
    assert "causal check" in capsys.readouterr().out
    assert (tmp_path / "circuit.svg").exists() and (tmp_path / "curve.svg").exists()


@pytest.mark.slow
def test_the_recurrent_example_runs_through(recurrent, weights, tmp_path, capsys):
    sizes = ["--rows", "512", "--steps", "50", "--mamba-steps", "40"]
    recurrent.main(["--weights", str(weights), "--out", str(tmp_path), *sizes])
    assert "circuit of the Mamba" in capsys.readouterr().out
    assert (tmp_path / "mamba.svg").exists() and (tmp_path / "lstm-curve.svg").exists()
