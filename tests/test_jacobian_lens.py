"""Jacobian lenses against autograd's own Jacobians."""

from __future__ import annotations

import pytest
import torch
from families import EVERY_FAMILY, fresh, tiny
from oracles import headless, tolerance
from torch.autograd.functional import jacobian

from interventions.lenses import last_site
from interventions.lenses.jacobian import JacobianLens
from interventions.lenses.jacobian_fitting import jacobian_lens, matched_jacobian_lens

TOKENS = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(0))
SKIP = 2
KEPT = range(SKIP, TOKENS.shape[1] - 1)


def whole(model, site, tokens):
    """d(what the last block writes) / d(what a site holds) of one row: (kept d_model pos width)."""
    last, held = last_site(model), {}
    x = model.read(tokens[None], [site])[model.site(site)]

    def written(x):
        def visit(at, y):
            if at.name == site:
                return x
            held[last] = y
            return y

        with model.visiting([site, last], visit):
            model.logits(tokens[None])
        return held[last][0, list(KEPT)]

    return jacobian(written, x)[:, :, 0]


def slow(model, site, *, matched):
    rows = []
    for tokens in TOKENS:
        found = whole(model, site, tokens)
        parts = [found[s - SKIP, :, t] for t in KEPT for s in ([t] if matched else KEPT)]
        rows.append(sum(parts) / len(KEPT))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_matrices_are_the_mean_jacobians_of_autograd(family):
    model = tiny(family)
    last = last_site(model)
    lens = jacobian_lens(model, TOKENS, ["embed", "resid.1", last], skip=SKIP, batch=2)
    assert torch.equal(lens.jacobians[last], torch.eye(model.width, dtype=model.dtype))
    for site in ("embed", "resid.1"):
        torch.testing.assert_close(
            lens.jacobians[site], slow(model, site, matched=False), **tolerance(family)
        )


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mamba", "rwkv", "recurrent_gemma"])
def test_with_all_signs_the_matched_matrices_are_exact(family):
    model = tiny(family)
    lens = matched_jacobian_lens(model, TOKENS, ["resid.0"], skip=SKIP, draws=None)
    torch.testing.assert_close(
        lens.jacobians["resid.0"], slow(model, "resid.0", matched=True), **tolerance(family)
    )


def test_one_draw_of_signs_is_right_on_average():
    model = tiny("gpt2")
    exact = slow(model, "embed", matched=True)
    summed = slow(model, "embed", matched=False)
    drawn = torch.stack(
        [
            matched_jacobian_lens(model, TOKENS, ["embed"], skip=SKIP, seed=seed).jacobians["embed"]
            for seed in range(24)
        ]
    )
    off, error = drawn.mean(0) - exact, drawn.std(0) / len(drawn) ** 0.5
    assert off.norm() < 1.5 * error.norm()
    assert off.norm() < 0.3 * (summed - exact).norm()


def test_sites_between_and_beside_the_blocks_have_jacobians_too():
    model = tiny("gpt_neox")  # attention and MLP side by side: neither leads to the other
    lens = jacobian_lens(model, TOKENS, ["attn.1", "mlp.1"], skip=SKIP)
    for site in ("attn.1", "mlp.1"):
        torch.testing.assert_close(lens.jacobians[site], slow(model, site, matched=False))
    model = tiny("gpt2")
    wide = model.at("transformer.h.1.mlp.c_fc")
    assert jacobian_lens(model, TOKENS, [wide], skip=SKIP).jacobians[wide.name].shape == (32, wide.width)


def test_a_centred_lens_maps_mean_to_mean():
    model = headless()
    plain = jacobian_lens(model, TOKENS, skip=SKIP)
    lens, last = plain.centred(), last_site(model)
    acts = {s.name: x[:, KEPT].flatten(0, 1) for s, x in model.read(TOKENS, [*lens.sites, last]).items()}
    for site in lens.sites:
        torch.testing.assert_close(lens.transport(site, acts[site].mean(0)), acts[last].mean(0))
        torch.testing.assert_close(plain.transport(site, acts[site]), acts[site] @ plain.jacobians[site].T)
    with pytest.raises(ValueError, match="does not know what embed holds on average"):
        JacobianLens(model, plain.jacobians).centred()


def test_of_linear_blocks_the_matched_lens_gives_the_models_own_logits():
    model = fresh("gpt2")
    for block in model.blocks:  # nothing is left but the stream, and so the Jacobian is the identity
        block.attn.c_proj.weight.zero_()
        block.mlp.c_proj.weight.zero_()
    lens = matched_jacobian_lens(model, TOKENS, ["resid.0", "resid.1"], skip=SKIP).centred()
    acts = model.read(TOKENS, lens.sites)
    for site in lens.sites:
        torch.testing.assert_close(lens.jacobians[site], torch.eye(32, dtype=model.dtype))
        torch.testing.assert_close(lens.logits(site, acts[model.site(site)]), model.logits(TOKENS))


def test_a_fit_goes_on_from_its_checkpoint(tmp_path):
    model = tiny("gpt2")
    at_once = jacobian_lens(model, TOKENS, skip=SKIP, batch=1)
    assert set(at_once.how["relative_error"]) == set(at_once.sites)
    jacobian_lens(model, TOKENS, skip=SKIP, batch=1, rows=1, checkpoint=tmp_path)
    again = jacobian_lens(model, TOKENS, skip=SKIP, batch=1, checkpoint=tmp_path)
    assert again.how == at_once.how and again.how["rows"] == 2
    for site in again.sites:
        assert torch.equal(again.jacobians[site], at_once.jacobians[site])
    with pytest.raises(ValueError, match="another sites"):
        jacobian_lens(model, TOKENS, ["embed"], skip=SKIP, batch=1, checkpoint=tmp_path)


def test_random_signs_go_on_from_a_checkpoint_too(tmp_path):
    model = tiny("gpt2")
    at_once = matched_jacobian_lens(model, TOKENS, skip=SKIP, batch=1)
    matched_jacobian_lens(model, TOKENS, skip=SKIP, batch=1, rows=1, checkpoint=tmp_path)
    again = matched_jacobian_lens(model, TOKENS, skip=SKIP, batch=1, checkpoint=tmp_path)
    for site in again.sites:
        assert torch.equal(again.jacobians[site], at_once.jacobians[site])


def test_what_cannot_be_fitted_is_refused():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="skip is at least 0, not -1"):
        jacobian_lens(model, TOKENS, skip=-1)
    with pytest.raises(ValueError, match="Rows have 5 tokens, of which the first 16"):
        jacobian_lens(model, TOKENS)
    with pytest.raises(ValueError, match="no row of tokens"):
        jacobian_lens(model, TOKENS[:0])
    with pytest.raises(LookupError, match="No site 'else'"):
        jacobian_lens(model, TOKENS, ["else"])
    with pytest.raises(ValueError, match="one site at least"):
        jacobian_lens(model, TOKENS, [])
    with pytest.raises(ValueError, match="At least one draw"):
        matched_jacobian_lens(model, TOKENS, draws=0)
