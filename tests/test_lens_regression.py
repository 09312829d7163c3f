"""Lenses by least squares."""

from __future__ import annotations

import pytest
import torch
from families import EVERY_FAMILY, VOCAB, fresh, tiny

from interventions.lenses import TunedLens, fit, last_site, lens_sites
from interventions.lenses.regression import Products, by_size, evenly, regressed

ROWS = torch.randint(3, VOCAB, (20, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", [evenly, by_size])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_maps_are_those_of_least_squares(family, weights):
    model = tiny(family)
    last = last_site(model)
    lens = regressed(model, ROWS, ridge=0, weights=weights, micro_batch=40, dtype=torch.float64)
    acts = {
        site.name: x.reshape(ROWS.numel(), -1) for site, x in model.read(ROWS, [*lens.sites, last]).items()
    }
    written = acts[last].double()
    root = weights(written).sqrt()[:, None]
    for site in lens.sites:
        x = acts[site].double()
        ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        solution = torch.linalg.lstsq(ones * root, written * root, driver="gelsd").solution
        torch.testing.assert_close(lens.transport(site, x), ones @ solution, rtol=1e-6, atol=1e-6)


def test_sites_of_other_widths_are_regressed_too():
    model = tiny("gpt2")
    wide = model.at("transformer.h.0.mlp.c_fc")
    lens = regressed(model, ROWS, [wide], ridge=0, dtype=torch.float64)
    acts = model.read(ROWS, [wide, "resid.2"])
    x, y = (acts[site].flatten(0, 1) for site in (wide, model.site("resid.2")))
    left = (y - lens.transport(wide, x)) * by_size(y)[:, None]
    assert (x - x.mean(0)).T.matmul(left).abs().max() < 1e-8  # nothing is left that x could tell
    assert left.sum(0).abs().max() < 1e-8


def test_products_of_parts_are_those_of_the_whole_however_far_from_zero():
    generator = torch.Generator().manual_seed(0)
    x = 1e4 + torch.randn(50, 4, generator=generator, dtype=torch.float64)
    y, w = x @ torch.randn(4, 3, generator=generator).double(), torch.rand(50, generator=generator).double()
    whole, parts = Products(), Products()
    whole.add(x, y, w)
    for part in (slice(0, 1), slice(1, 30), slice(30, 30), slice(30, 50)):
        parts.add(x[part], y[part], w[part])
    for name in ("mean_x", "mean_y", "xx", "xy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_directions_that_the_text_has_nothing_of_are_left_to_the_logit_lens():
    model = tiny("llama")
    lens = regressed(model, ROWS[:2], ["embed"], dtype=torch.float64)
    x = model.read(ROWS[:2], ["embed"])[model.site("embed")].flatten(0, 1)
    unseen = torch.linalg.svd(x - x.mean(0)).Vh[-1]
    torch.testing.assert_close(lens.transport("embed", x[0] + unseen) - lens.transport("embed", x[0]), unseen)


def test_a_lens_of_least_squares_is_a_better_start_than_the_logit_lens():
    model = tiny("gpt2", torch.float32)
    start = regressed(model, ROWS)
    assert start.how["made by"] == "regressed" and start.how["tokens"] == ROWS.numel()
    options = {"steps": 1, "tokens_per_step": 9, "held_out": ROWS}
    near, far = (fit(lens, ROWS, **options).held_out for lens in (start, TunedLens.untrained(model)))
    assert all(near[site][0] < 0.8 * far[site][0] for site in lens_sites(model))


def test_what_cannot_be_regressed_is_said():
    model = fresh("gpt2")
    with pytest.raises(ValueError, match="no tokens to read"):
        regressed(model, ROWS[:0])
    with pytest.raises(ValueError, match="`ignore` leaves none"):
        regressed(model, ROWS, ignore=range(VOCAB))
    with pytest.raises(ValueError, match="A ridge is 0 or more"):
        regressed(model, ROWS, ridge=-1.0)
    with pytest.raises(LookupError, match=r"No site 'resid\.9'"):
        regressed(model, ROWS, ["resid.9"])
    model.module.transformer.h[2].mlp.c_proj.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        regressed(model, ROWS, ["resid.0"])
