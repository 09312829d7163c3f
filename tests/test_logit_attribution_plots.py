"""Pictures of attribution and of clean-up: whole files, the same each time, whatever the model has."""

import os
from importlib import import_module
from pathlib import Path

import pytest
import torch
from cleaning_model import CLEANER, VOCAB, WRITER, cleaning_model
from families import tiny

from circuits.cleanup_plots import plot_cleanup, plot_misled
from circuits.logit_attribution_plots import plot_direct_logits, plot_removals
from interventions import Model
from interventions.logit_attribution import (
    Removals,
    cleanup,
    difference,
    direct_logits,
    logit,
    misled,
    removals,
)

WEIGHTS = Path(os.environ.get("BREADBOARD_WEIGHTS") or Path(__file__).parents[2] / "shared" / "weights")
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
TOKENS = torch.randint(0, VOCAB, (8, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("suffix", "first"), [("svg", 4), ("png", 1), pytest.param("png", 4, marks=pytest.mark.slow)]
)
def test_pictures_are_the_same_each_time(tmp_path, suffix, first):
    model = cleaning_model()
    search = removals(model, TOKENS, progress=False)
    found = cleanup(model, TOKENS, WRITER, progress=False)
    of = difference(torch.arange(8), (torch.arange(8) + 3) % VOCAB)
    seen = misled(model, TOKENS, of, WRITER, [CLEANER], progress=False)
    for i, (plot, value) in enumerate(
        [(plot_removals, search), (plot_cleanup, found), (plot_misled, seen),
         (plot_direct_logits, direct_logits(model, TOKENS, of))][:first]
    ):  # fmt: skip
        one = plot(value, tmp_path / f"{i}.{suffix}", title="Made to clean up").read_bytes()
        assert plot(value, tmp_path / f"other.{suffix}", title="Made to clean up").read_bytes() == one


@pytest.mark.parametrize("family", ["mamba", "jamba", "gpt2"])
def test_models_with_and_without_heads_are_drawn(tmp_path, family):
    model, tokens = tiny(family), torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    found = direct_logits(model, tokens, logit(torch.tensor([9, 8])))
    text = plot_direct_logits(found, tmp_path / "direct").read_text()
    assert text.startswith("<?xml")
    plot_removals(removals(model, tokens, progress=False), tmp_path / "removals")


def test_a_component_that_comes_after_none_cannot_be_drawn(tmp_path):
    found = removals(tiny("mamba"), torch.tensor([[3, 1, 4]]), progress=False)
    alone = Removals(found.names[:1], found.products[:1, :1], found.squares[:1], found.n_tokens)
    with pytest.raises(ValueError, match=r"Of mixer\.0 none comes after"):
        plot_removals(alone, tmp_path / "removals")


@pytest.mark.skipif(not (WEIGHTS / "stories260K").exists(), reason="the weights are not here")
def test_the_example_searches_a_model_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    example = import_module("logit_attribution")
    story = "One day a little girl named Mia went to the park with her mom and saw a big red dog. " * 5
    (tmp_path / "text.txt").write_text(f"{story}\nToo short.\n{story[17:]}\n")
    options = ["--model", str(WEIGHTS / "stories260K"), "--text", str(tmp_path / "text.txt")]
    example.main([*options, "--length", "12", "--out", str(tmp_path)])
    assert "and later components write" in capsys.readouterr().out
    assert (tmp_path / "removals.svg").exists() and (tmp_path / "cleanup.svg").exists()
    (tmp_path / "text.txt").write_text("Too short.")
    with pytest.raises(SystemExit):
        example.main(options)
    assert "no line of more than 300 characters" in capsys.readouterr().err


@pytest.mark.skipif(not (WEIGHTS / "stories260K").exists(), reason="the weights are not here")
def test_in_a_real_model_one_head_of_the_last_layer_says_she_or_he():
    model = Model.load(WEIGHTS / "stories260K")
    she, he = (model.tokenizer.encode(x, add_special_tokens=False)[-1] for x in (" she", " he"))
    ids = [model.tokenizer.encode(f"{name} was happy because") for name in ("Mia", "Sue")]
    found = direct_logits(
        model, torch.tensor(ids), difference(torch.tensor([she, she]), torch.tensor([he, he]))
    )
    assert next(iter(found.top(1))) == "heads.4.2" and found.remainder < 1e-5
    assert float(found.total.mean()) == pytest.approx(2.2, abs=0.1)
