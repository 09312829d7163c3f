"""Tuned lenses are fitted as published, only faster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import EVERY_FAMILY, VOCAB, fresh, tiny

from interventions.lenses import (
    Adam,
    Fitted,
    LogitLens,
    NotFinite,
    Objective,
    SGDNesterov,
    TunedLens,
    cross_entropy,
    fit,
    kl,
    lens_sites,
)
from interventions.lenses.gradients import Gradients
from interventions.lenses.head import Head, Whole, ending_of
from interventions.lenses.site_pass import site_pass
from interventions.lenses.token_rows import Piece

TOKENS = torch.randint(3, VOCAB, (4, 7), generator=torch.Generator().manual_seed(0))


def _lens(model, sites=None, size=0.1, dtype=torch.float64):
    """A lens with random maps."""
    lens = TunedLens.untrained(model, sites, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    tensors = {
        k: size * torch.randn(x.shape, generator=generator, dtype=dtype) for k, x in lens.tensors().items()
    }
    return TunedLens.restored(model, lens.sites, tensors, {})


def _plain(model, lens, tokens, loss):
    """Losses and gradients by autograd, through the formulas as they are written down."""
    tensors = {key: x.clone().requires_grad_() for key, x in lens.tensors().items()}
    lens = TunedLens.restored(model, lens.sites, tensors, {})
    acts = {site.name: x for site, x in model.read(tokens, lens.sites).items()}
    final = model.logits(tokens).detach().double().log_softmax(-1)
    losses = {}
    for site in lens.sites:
        said = lens.logits(site, acts[site].reshape(*tokens.shape, -1)).double().log_softmax(-1)
        if loss is kl:
            losses[site] = (final.exp() * (final - said)).sum(-1).mean()
        else:
            losses[site] = -said[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    sum(losses.values()).backward()
    return losses, {key: x.grad for key, x in tensors.items()}


@pytest.mark.parametrize("loss", [kl, cross_entropy], ids=repr)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_losses_and_gradients_are_those_of_autograd_through_the_plain_formula(family, loss):
    model = tiny(family)
    lens = _lens(model)
    found = Gradients(lens.tensors())
    acts = site_pass(model, Piece(TOKENS), lens.sites, follows=loss.follows)
    found.add(acts, loss, chunk=5)
    losses, gradients = _plain(model, lens, TOKENS, loss)
    ours, theirs = found.means()
    near = {"rtol": 1e-5, "atol": 1e-6}  # some families compute in float32 inside
    for site in lens.sites:
        assert ours[site] == pytest.approx(losses[site].item(), rel=1e-5)
    for key, x in theirs.items():
        torch.testing.assert_close(x, gradients[key], **near)


def test_the_gradient_of_many_small_passes_is_that_of_one_large():
    model = tiny("llama")
    lens = _lens(model)
    whole, parts = Gradients(lens.tensors()), Gradients(lens.tensors())
    whole.add(site_pass(model, Piece(TOKENS), lens.sites), kl, chunk=1000)
    for rows in TOKENS.split(1):
        parts.add(site_pass(model, Piece(rows), lens.sites), kl, chunk=2)
    one, many = whole.means(), parts.means()
    assert one[0] == pytest.approx(many[0], rel=1e-12)
    for key, x in one[1].items():
        torch.testing.assert_close(x, many[1][key], rtol=1e-10, atol=1e-14)


def test_fitting_brings_a_lens_nearer_to_the_model():
    model = tiny("rwkv", torch.float32)
    rows = torch.randint(3, VOCAB, (64, 16), generator=torch.Generator().manual_seed(2))
    fitted = fit(TunedLens.untrained(model), rows, steps=40, tokens_per_step=256, held_out=TOKENS)
    assert fitted.lens.sites == lens_sites(model)
    for x in fitted.held_out.values():
        assert x.min() < 0.9 * x[0]


# Taking steps

ROWS = torch.randint(3, VOCAB, (24, 8), generator=torch.Generator().manual_seed(3))
QUICK = {"steps": 6, "tokens_per_step": 40, "micro_batch": 16, "every": 2}


def _same(a, b):
    assert a.lens.tensors().keys() == b.lens.tensors().keys()
    assert all(torch.equal(x, b.lens.tensors()[key]) for key, x in a.lens.tensors().items())
    assert all(torch.equal(x, b.losses[site]) for site, x in a.losses.items())
    assert all(torch.equal(x, b.held_out[site]) for site, x in a.held_out.items())
    assert (a.steps, a.tokens, a.evaluated) == (b.steps, b.tokens, b.evaluated)
    return True


def test_steps_are_those_of_the_published_recipe():
    model, steps = fresh("llama"), 5
    batches = list(ROWS[:20].split(4))
    fitted = fit(
        TunedLens.untrained(model),
        batches,
        steps=steps,
        tokens_per_step=32,
        micro_batch=16,
        dtype=torch.float64,
    )
    sites = lens_sites(model)
    layers = torch.nn.ModuleList([torch.nn.Linear(32, 32).double() for _ in sites])
    for x in layers.parameters():
        torch.nn.init.zeros_(x)
    sgd = torch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for step, tokens in enumerate(batches):
        sgd.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        out = model.module(tokens, output_hidden_states=True)
        labels = out.logits.log_softmax(-1)
        for layer, h in zip(layers, out.hidden_states[:-1], strict=True):
            said = model.module.lm_head(model.module.model.norm(h + layer(h))).log_softmax(-1)
            (labels.exp() * (labels - said)).sum(-1).mean().backward()
        torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
        sgd.step()
        sgd.zero_grad()
    for site, layer in zip(sites, layers, strict=True):
        translator = fitted.lens.translators[site]
        torch.testing.assert_close(translator.weight, layer.weight.detach(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(translator.bias, layer.bias.detach(), rtol=1e-5, atol=1e-7)


def test_adam_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    ours = {"x": torch.randn(5, 3, generator=generator, dtype=torch.float64)}
    theirs = ours["x"].clone().requires_grad_()
    rule = Adam(1e-2, weight_decay=0.1)
    carried = rule.begun(ours)
    adam = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    for done in range(5):
        gradient = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        rule.step(ours, {"x": gradient}, carried, done=done, pace=1.0)
        theirs.grad = gradient
        adam.step()
    torch.testing.assert_close(ours["x"], theirs.detach())


def test_the_lens_that_is_fitted_stays_as_it_is():
    lens = TunedLens.untrained(tiny("gpt2", torch.float32))
    fit(lens, ROWS, **QUICK)
    assert all((x == 0).all() for x in lens.tensors().values())


@pytest.mark.parametrize("family", ["mamba", "rwkv", "recurrent_gemma"])
def test_recurrent_models_are_fitted_on_the_same_stream(family):
    model = tiny(family, torch.float32)
    options = {**QUICK, "loss": cross_entropy, "optimiser": Adam(1e-2), "tokens_per_step": ROWS.numel()}
    fitted = fit(TunedLens.untrained(model), ROWS, **options)
    assert all(x[-1] < x[0] for x in fitted.losses.values())
    assert fitted.tokens == 6 * ROWS.numel() * 7 // 8  # nothing follows the last token of a row


def test_a_model_in_half_precision_is_fitted_in_single():
    options = {**QUICK, "optimiser": Adam(1e-2), "tokens_per_step": ROWS.numel()}
    fitted = fit(TunedLens.untrained(tiny("llama", torch.bfloat16)), ROWS, **options)
    assert {x.dtype for x in fitted.lens.tensors().values()} == {torch.float32}
    assert all(x[-1] < x[0] for x in fitted.losses.values())


# Taking up again

CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_lens_fitting as t
from interventions.lenses import fit_run

class Killed(fit_run.Run):
    def _pass(self, piece):
        if self.now.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._pass(piece)

import interventions.lenses.fitting as fitting
fitting.Run = Killed
t._whole({folder!r})
"""


def _whole(folder=None):
    lens = TunedLens.untrained(tiny("llama", torch.float32))
    options = {**QUICK, "optimiser": Adam(1e-2), "held_out": TOKENS, "folder": folder}
    return fit(lens, ROWS, **options)


def test_a_training_that_was_killed_goes_on_to_the_same_lens_bit_for_bit(tmp_path):
    code = CHILD.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"))
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, cwd=root)
    assert done.returncode == -9
    whole = _whole()
    assert whole.steps == 6 and whole.evaluated == (0, 2, 4, 6)
    assert _same(_whole(tmp_path / "run"), whole)
    assert _same(_whole(tmp_path / "run"), whole)  # and, once finished, is only read


def test_what_ctrl_c_interrupts_is_kept_to_the_last_step(tmp_path, monkeypatch):
    passes = iter(range(100))

    def stopping(*args, **kwargs):
        if next(passes) == 10:
            raise KeyboardInterrupt
        return site_pass(*args, **kwargs)

    monkeypatch.setattr("interventions.lenses.fit_run.site_pass", stopping)
    lens = TunedLens.untrained(tiny("gpt2", torch.float32))
    with pytest.raises(KeyboardInterrupt):
        fit(lens, ROWS, **{**QUICK, "every": 100}, folder=tmp_path)
    monkeypatch.undo()
    whole = fit(lens, ROWS, **{**QUICK, "every": 100})
    assert _same(fit(lens, ROWS, **{**QUICK, "every": 100}, folder=tmp_path), whole)
    assert next(passes) == 11


@pytest.mark.parametrize("stop", [1, 3, 7, 12, 16, 20])
def test_wherever_ctrl_c_comes_also_in_an_evaluation_the_lens_is_the_same_in_the_end(
    tmp_path, monkeypatch, stop
):
    passes = iter(range(1000))

    def stopping(*args, **kwargs):
        if next(passes) == stop:
            raise KeyboardInterrupt
        return site_pass(*args, **kwargs)

    monkeypatch.setattr("interventions.lenses.fit_run.site_pass", stopping)
    with pytest.raises(KeyboardInterrupt):
        _whole(tmp_path)
    assert _same(_whole(tmp_path), _whole())


def test_where_the_tokens_run_out_what_was_learned_of_them_is_kept(tmp_path):
    lens, options = TunedLens.untrained(tiny("gpt2", torch.float32)), {**QUICK, "every": 100}
    with pytest.raises(ValueError, match="The tokens ran out"):
        fit(lens, iter(ROWS[:18].split(2)), **options, folder=tmp_path)
    found = fit(lens, iter(ROWS.repeat(2, 1).split(2)), **options, folder=tmp_path)
    assert _same(found, fit(lens, list(ROWS.repeat(2, 1).split(2)), **options))


def test_a_held_out_loss_that_is_not_finite_ends_it_too(tmp_path):
    class Late(Bursting):
        """Not a number where nothing is learned, from the second reading of two passes on."""

        def __call__(self, logits, target):
            losses, gradients = kl(logits, target)
            self.calls += len(logits) == TOKENS.numel()
            return losses * (torch.nan if self.calls > 4 and len(logits) == TOKENS.numel() else 1), gradients

    lens = TunedLens.untrained(tiny("gpt2", torch.float32), ["embed", "resid.1"])
    options = {"steps": 6, "tokens_per_step": 16, "every": 1, "held_out": TOKENS}
    with pytest.raises(NotFinite, match="embed, after step 2: the loss on held-out text is nan") as error:
        fit(lens, ROWS, loss=Late(), **options)
    kept = error.value.fitted
    assert kept.steps == 2 and kept.evaluated == (0, 1)
    assert all(x.isfinite().all() for x in kept.lens.tensors().values())


def test_a_folder_with_another_training_is_refused_with_what_differs(tmp_path):
    lens = TunedLens.untrained(tiny("gpt2", torch.float32))
    fit(lens, ROWS, **QUICK, folder=tmp_path)
    with pytest.raises(ValueError, match=r"differs in steps \(6, not 7\)\. Give another"):
        fit(lens, ROWS, **{**QUICK, "steps": 7}, folder=tmp_path)
    with pytest.raises(ValueError, match="differs in optimiser SGDNesterov lr_scale"):
        fit(lens, ROWS, **QUICK, optimiser=SGDNesterov(0.5), folder=tmp_path)
    with pytest.raises(ValueError, match="differs in text sha256"):
        fit(lens, ROWS + 1 - 2 * (ROWS > 30).long(), **QUICK, folder=tmp_path)


# What comes of it


def test_a_result_is_saved_and_read_again(tmp_path):
    model = tiny("gpt2", torch.float32)
    fitted = fit(TunedLens.untrained(model), ROWS, **QUICK, held_out=TOKENS)
    fitted.save(tmp_path)
    again = Fitted.load(tmp_path, model)
    assert _same(again, fitted)
    assert str(again) == str(fitted)
    assert again.lens.how["made by"] == "fit"
    assert all(site in str(fitted) for site in fitted.lens.sites) and "tokens in" in str(fitted)
    assert fitted.peak_memory > 0 and fitted.tokens_per_second > 0


def test_training_ends_early_and_each_site_keeps_the_map_that_did_best():
    model = tiny("gpt2", torch.float32)
    options = {**QUICK, "steps": 60, "held_out": TOKENS, "patience": 3}
    # What follows is random here: what helps at the rows harms elsewhere.
    fitted = fit(TunedLens.untrained(model), ROWS, loss=cross_entropy, optimiser=Adam(3e-2), **options)
    assert fitted.steps < 60
    x = site_pass(model, Piece(TOKENS), fitted.lens.sites, follows=True)
    found = Gradients(fitted.lens.tensors())
    found.add(x, cross_entropy, chunk=100)
    for site, value in found.means()[0].items():
        assert value == pytest.approx(float(fitted.held_out[site].min()), rel=1e-5)


# Bad input


class Bursting(Objective):
    """A loss that is not finite at the fifth call."""

    name, follows = "bursting", False

    def __init__(self):
        self.calls = 0

    def __call__(self, logits, target):
        self.calls += 1
        losses, gradients = kl(logits, target)
        return (losses * float("nan") if self.calls == 5 else losses), gradients


def test_a_loss_that_is_not_finite_ends_it_with_the_last_good_lens(tmp_path):
    lens = TunedLens.untrained(tiny("gpt2", torch.float32), ["embed", "resid.1"])
    options = {"steps": 6, "tokens_per_step": 16, "folder": tmp_path}
    with pytest.raises(
        NotFinite, match=r"embed, step 3: the loss there is nan\. The lens of step 2 is kept"
    ) as error:
        fit(lens, ROWS, loss=Bursting(), **options)
    kept = error.value.fitted
    assert kept.steps == 2 and all(x.isfinite().all() for x in kept.lens.tensors().values())
    loss = Bursting()
    loss.calls = 100
    assert _same(fit(lens, ROWS, loss=loss, **options), fit(lens, ROWS, steps=6, tokens_per_step=16))


def test_padding_on_the_right_is_left_out_and_on_the_left_refused():
    model = fresh("llama", torch.float64)
    lens = _lens(model)
    mask = torch.ones_like(TOKENS)
    mask[1, 4:] = mask[3, 2:] = 0
    fitted = fit(lens, {"input_ids": TOKENS, "attention_mask": mask}, steps=1, tokens_per_step=28, clip=None)
    found = Gradients(lens.tensors())
    for row, kept in zip(TOKENS, mask, strict=True):
        found.add(site_pass(model, Piece(row[None, : kept.sum()]), lens.sites), kl, chunk=100)
    assert fitted.tokens == mask.sum() == found.tokens
    for site, value in found.means()[0].items():
        assert fitted.losses[site][0] == pytest.approx(value, rel=1e-5)
    with pytest.raises(ValueError, match="padding on the left"):
        fit(lens, {"input_ids": TOKENS, "attention_mask": mask.flip(1)}, steps=1)
    with pytest.raises(ValueError, match="padding on the left"):
        fit(lens, [{"input_ids": TOKENS, "attention_mask": mask.flip(1)}], steps=1)
    model.tokenizer = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with pytest.raises(ValueError, match="padding on the left"):
        fit(lens, (TOKENS * mask).flip(1), steps=1)


def test_padding_is_refused_where_it_disturbs_the_model():
    model = tiny("rwkv", torch.float32)
    model.__dict__["pads"] = False
    mask = torch.ones_like(TOKENS)
    mask[1, 4:] = 0
    with pytest.raises(ValueError, match="changes with padding"):
        fit(TunedLens.untrained(model), {"input_ids": TOKENS, "attention_mask": mask}, steps=1)


def test_what_cannot_be_fitted_is_said():
    model = tiny("gpt2", torch.float32)
    lens = TunedLens.untrained(model)
    for empty in (ROWS[:0], [], iter([])):
        with pytest.raises(ValueError, match="no tokens to read"):
            fit(lens, empty, steps=1)
    with pytest.raises(ValueError, match="The text is empty"):
        fit(lens, "", steps=1)
    with pytest.raises(ValueError, match="go up to 99, and GPT2LMHeadModel has a vocabulary of 64"):
        fit(lens, torch.full((2, 4), 99), steps=1)
    with pytest.raises(ValueError, match="no token to measure"):
        fit(lens, ROWS, steps=1, held_out=ROWS, ignore=range(VOCAB))
    with pytest.raises(ValueError, match="no token to train on"):
        fit(lens, ROWS, steps=1, ignore=range(VOCAB))
    with pytest.raises(TypeError, match="not a LogitLens"):
        fit(LogitLens(model), ROWS)
    with pytest.raises(ValueError, match="steps is 1 at least, not 0"):
        fit(lens, ROWS, steps=0)
    with pytest.raises(ValueError, match="ran out"):
        fit(lens, iter([ROWS]), steps=100, tokens_per_step=100)
    with pytest.raises(ValueError, match="A scale above 0"):
        SGDNesterov(lr_scale=0)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("loss", [kl, cross_entropy], ids=repr)
def test_a_head_apart_gives_the_gradients_of_the_whole_ending(family, loss):
    model = tiny(family)
    lens = TunedLens.untrained(model, dtype=model.dtype)
    acts = site_pass(model, Piece(TOKENS), lens.sites, follows=loss.follows)
    whole, quick = Gradients(lens.tensors(), Whole(model)), Gradients(lens.tensors(), ending_of(model))
    for found in (whole, quick):
        found.add(acts, loss, chunk=3)
    for (one, slopes), (other, others) in [(whole.means(), quick.means())]:
        assert one == pytest.approx(other, rel=1e-6)
        for key, slope in slopes.items():
            torch.testing.assert_close(slope, others[key], rtol=1e-5, atol=1e-7)


def test_a_head_is_taken_apart_where_nothing_comes_after_it():
    assert isinstance(ending_of(tiny("llama")), Head)
    assert isinstance(ending_of(tiny("phi")), Head)  # its head has a bias
    assert isinstance(ending_of(tiny("cohere")), Head)  # a logit scale may come before
    assert isinstance(ending_of(tiny("gemma2")), Whole)  # a soft cap may not
