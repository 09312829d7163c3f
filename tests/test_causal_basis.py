"""Causal bases against search by brute force, and what ablating them does to lens and model."""

from __future__ import annotations

import math

import pytest
import torch
from families import EVERY_FAMILY, VOCAB, tiny
from transformers import GPT2Config, GPT2LMHeadModel

from interventions import Model, Project
from interventions.lenses import LogitLens, TunedLens, last_site
from interventions.lenses.causal_ablation import AblationCurves, ablations, fidelity
from interventions.lenses.causal_basis import AblateSubspace, CausalBasis, resampled, to_mean, to_zero
from interventions.lenses.causal_extraction import activations, causal_basis
from interventions.splice import applied

TEXT = torch.randint(3, VOCAB, (8, 12), generator=torch.Generator().manual_seed(0))
QUIET = {"progress": False}


def narrow(width=3):
    """A model so narrow that every direction can be tried."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=VOCAB, n_embd=width, n_layer=2, n_head=1, n_positions=64)
        module = GPT2LMHeadModel(config).double().eval()
        for weight in module.parameters():
            weight.data.add_(0.5 * torch.randn_like(weight))
    return Model.load(module)


@torch.no_grad()
def energies(lens, site, held, directions, ablation=to_mean):
    log_p = lens.logits(site, held).log_softmax(-1)
    found = []
    for v in directions:
        log_q = lens.logits(site, ablation(held, v[None], held.mean(0))).log_softmax(-1)
        found.append((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return torch.stack(found)


def sphere(width, count=1000):
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("ablation", [to_mean, to_zero, resampled])
def test_no_direction_of_a_thousand_is_better_than_the_one_found(ablation):
    lens = LogitLens(narrow())
    basis = causal_basis(lens, TEXT, "resid.0", 3, ablation=ablation, **QUIET)
    held = activations(lens, TEXT, "resid.0", tokens=512)
    assert len(held) == TEXT.numel() and torch.equal(basis.mean, held.mean(0))
    tried = energies(lens, "resid.0", held, sphere(3), ablation)
    assert basis.energies[0] >= tried.max() - 1e-6
    assert basis.energies[0] <= tried.max() * 1.05  # a thousand are that far from each other
    torch.testing.assert_close(energies(lens, "resid.0", held, basis.vectors, ablation), basis.energies)
    torch.testing.assert_close(basis.vectors @ basis.vectors.mT, torch.eye(3, dtype=torch.float64))
    around = torch.stack(
        [math.cos(a) * basis.vectors[1] + math.sin(a) * basis.vectors[2] for a in range(100)]
    )
    second = energies(lens, "resid.0", held, around, ablation).max()
    assert basis.energies[1] >= second - 1e-6 and (basis.energies.diff() <= 0).all()


def as_published(lens, site, held, steps=60):
    """The first direction as the authors' code finds it: L-BFGS from a singular vector of the unembedding."""
    head = lens.model.module.lm_head.weight
    v = torch.linalg.svd(head.mT, full_matrices=False).U[:, 0].clone().requires_grad_()
    log_p = lens.logits(site, held).log_softmax(-1)

    def loss():
        optimiser.zero_grad()
        u = v / v.norm()
        log_q = lens.logits(site, to_mean(held, u[None], held.mean(0))).log_softmax(-1)
        total = -(log_p.exp() * (log_p - log_q)).sum(-1).mean()
        total.backward()
        return total

    optimiser = torch.optim.LBFGS([v], max_iter=steps, line_search_fn="strong_wolfe")
    optimiser.step(loss)
    return energies(lens, site, held, [(v / v.norm()).detach()])[0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba", "gemma2"])
def test_the_first_direction_is_as_good_as_that_of_the_published_search(family):
    model = tiny(family)
    lens = LogitLens(model, ["resid.1"])
    basis = causal_basis(lens, TEXT, "resid.1", 1, **QUIET)
    held = activations(lens, TEXT, "resid.1", tokens=512)
    assert basis.energies[0] >= 0.999 * as_published(lens, "resid.1", held)
    started = causal_basis(lens, TEXT, "resid.1", 1, steps=0, **QUIET)
    assert started.energies[0] >= 0.5 * basis.energies[0]  # the second order is a good beginning


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_has_causal_bases_whose_ablation_does_more_than_a_random_one(family):
    model = tiny(family)
    lens = TunedLens.untrained(model, ["resid.0"], dtype=model.dtype)
    basis = causal_basis(lens, TEXT, "resid.0", 2, tokens=48, steps=8, starts=1, **QUIET)
    assert (basis.vectors @ basis.vectors.mT - torch.eye(2)).abs().max() < 1e-5
    curves = ablations(basis, lens, TEXT[:3], **QUIET)
    assert curves.ranks == (1, 2) and curves.rows == 3
    assert (curves.lens["causal"] > curves.lens["random"]).all()
    assert (curves.model["causal"] > 0).all()


def test_at_the_last_block_lens_and_model_are_one():
    model = tiny("gpt2")
    last = last_site(model)
    lens = LogitLens(model, [last])
    basis = causal_basis(lens, TEXT, last, 3, steps=5, **QUIET)
    curves = ablations(basis, lens, TEXT, ranks=[1, 3], **QUIET)
    for kind, x in curves.lens.items():
        torch.testing.assert_close(x, curves.model[kind])
    found = fidelity(basis, lens, TEXT)
    torch.testing.assert_close(found.lens, basis.energies)
    torch.testing.assert_close(found.alignment, torch.ones(3, dtype=torch.float64))
    assert found.correlation == pytest.approx(1)


def test_random_text_elsewhere_gives_rank_correlations_and_tables():
    model = tiny("llama")
    lens = LogitLens(model)
    basis = causal_basis(lens, TEXT, "resid.1", 4, steps=5, **QUIET)
    found = fidelity(basis, lens, TEXT)
    assert -1 <= found.correlation <= 1 and (found.alignment.abs() <= 1 + 1e-9).all()
    assert "rank correlation" in str(found)
    assert str(basis).splitlines()[0].split()[0] == "resid.1" and "%" in str(basis)
    assert len(str(ablations(basis, lens, TEXT[:2], **QUIET)).splitlines()) == 4


def test_the_ablations_are_those_of_project():
    model = tiny("gpt2")
    basis = causal_basis(LogitLens(model), TEXT, "resid.0", 2, steps=2, **QUIET)
    for ablation, project in ((to_mean, basis.ablating(2)), (to_zero, basis.removing(2))):
        assert isinstance(project, Project)
        with applied(model, project):
            expected = model.logits(TEXT)
        with applied(model, AblateSubspace("resid.0", basis.vectors, basis.mean, ablation)):
            torch.testing.assert_close(model.logits(TEXT), expected)


def test_resampling_moves_every_token_and_keeps_what_is_outside():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    vectors = torch.eye(5)[:2]
    y = resampled(x, vectors, x.mean((0, 1)))
    assert torch.equal(y[..., 2:], x[..., 2:]) and (y[..., :2] != x[..., :2]).all()
    torch.testing.assert_close(
        y[..., :2].flatten(0, 1).sort(0).values, x[..., :2].flatten(0, 1).sort(0).values
    )
    with pytest.raises(ValueError, match="no other token"):
        resampled(x[:1, :1], vectors, x[0, 0])


def test_bases_and_curves_come_back_as_they_were(tmp_path):
    model = tiny("gpt2")
    lens = LogitLens(model)
    basis = causal_basis(lens, TEXT, "resid.0", 3, steps=2, **QUIET)
    basis.save(tmp_path)
    again = CausalBasis.load(tmp_path)
    assert str(again) == str(basis) and again.how == basis.how and again.fingerprint == model.fingerprint
    assert torch.equal(again.vectors, basis.vectors) and torch.equal(again.principal, basis.principal)
    curves = ablations(again, lens, TEXT[:2], **QUIET)
    curves.save(tmp_path)
    assert str(AblationCurves.load(tmp_path)) == str(curves)
    with pytest.raises(FileNotFoundError, match="no basis"):
        CausalBasis.load(tmp_path / "else")


def test_what_cannot_be_found_is_refused():
    model = tiny("gpt2")
    lens = LogitLens(model)
    with pytest.raises(LookupError, match=r"No lens at .mlp\.0."):
        causal_basis(lens, TEXT, "mlp.0", 2)
    with pytest.raises(ValueError, match=r"resid\.0 has 32 directions; 33"):
        causal_basis(lens, TEXT, "resid.0", 33)
    with pytest.raises(ValueError, match="The text has 4 tokens: for 4 directions"):
        causal_basis(lens, TEXT, "resid.0", 4, tokens=4)
    basis = causal_basis(lens, TEXT, "resid.0", 2, steps=0, **QUIET)
    with pytest.raises(ValueError, match="ranks are 1 to that"):
        ablations(basis, lens, TEXT, ranks=[3])
    with pytest.raises(ValueError, match="no first 3"):
        basis.ablating(3)
    with pytest.raises(ValueError, match="of another model"):
        fidelity(basis, LogitLens(tiny("llama")), TEXT)
