"""Effects of the entries of a state, against patching and finite differences, in float64 throughout."""

from __future__ import annotations

import pytest
import torch
from recurrent_families import float64_throughout, tiny, tokens

from interventions.recurrence import (
    integrated_state_effects,
    patched_state_effects,
    read_state,
    resume,
    state_effects,
)
from tasks import Batch, LogitDifference

FAMILIES = ["mamba", "rwkv", "mamba2", "recurrent_gemma", "falcon_h1", "xlstm", "lstm"]
answers = torch.tensor([[7], [9]])
CLEAN, PATCH = tokens(2, 6, 1), tokens(2, 6, 1)
PATCH[:, 1:3] = tokens(2, 2, 2)
BATCH = Batch(CLEAN, PATCH, answers=answers, foils=answers + 1)
METRIC = LogitDifference()


def _on_one_scale(clean, patch):
    """The states after a token, both written at the larger of each couple's scales."""
    return clean + 0.0 * patch, patch + 0.0 * clean


def _after(model, state, at):
    before = model.logits(CLEAN)[:, :at]
    return METRIC(torch.cat([before, resume(model, state, CLEAN[:, at:])], dim=1), BATCH)


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_slopes_towards_the_patch(family):
    model = tiny(family)
    with float64_throughout():
        effects = state_effects(model, BATCH, METRIC)
        torch.testing.assert_close(effects.clean, METRIC(model.logits(CLEAN), BATCH), rtol=0, atol=1e-6)
        torch.testing.assert_close(effects.patch, METRIC(model.logits(PATCH), BATCH), rtol=0, atol=1e-6)
        for at in (2, 3, 5):
            here, there = _on_one_scale(read_state(model, CLEAN[:, :at]), read_state(model, PATCH[:, :at]))
            for name in here:
                assert effects[name].shape == (2, 5, *here[name].shape[1:])
                step = 1e-4 * (there[name] - here[name])
                with torch.no_grad():
                    ends = [
                        _after(model, here.replaced({name: here[name] + sign * step}), at) for sign in (1, -1)
                    ]
                slope = (ends[0] - ends[1]) / 2e-4
                mine = effects.summed()[name][:, at - 1]
                torch.testing.assert_close(mine, slope.to(mine), rtol=1e-3, atol=1e-6, msg=f"{name} {at}")


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_the_effect_of_one_entry_is_its_own_slope(family):
    model = tiny(family)
    with float64_throughout():
        effects = state_effects(model, BATCH, METRIC)
        at = 3
        here, there = _on_one_scale(read_state(model, CLEAN[:, :at]), read_state(model, PATCH[:, :at]))
        for name in ("recurrent.1",) if family == "mamba" else ("num.1", "den.2", "time_shift.0"):
            entries = effects[name][:, at - 1].flatten(1)
            for entry in [*entries.abs().sum(0).topk(3).indices.tolist(), 0]:
                step = torch.zeros_like(here[name]).flatten(1)
                step[:, entry] = 1e-4 * (there[name] - here[name]).flatten(1)[:, entry]
                step = step.reshape(here[name].shape)
                with torch.no_grad():
                    ends = [
                        _after(model, here.replaced({name: here[name] + sign * step}), at) for sign in (1, -1)
                    ]
                slope = (ends[0] - ends[1]) / 2e-4
                torch.testing.assert_close(entries[:, entry], slope.to(entries), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "family",
    ["mamba", "rwkv", "recurrent_gemma", "lstm"]
    + [pytest.param(family, marks=pytest.mark.slow) for family in ("mamba2", "falcon_h1", "xlstm")],
)
def test_integrated_effects_add_up_to_patching_the_whole_state(family):
    model = tiny(family)
    with float64_throughout():
        effects = integrated_state_effects(model, BATCH, METRIC, points=12, progress=False)
        patched = patched_state_effects(model, BATCH, METRIC, names=[])[""]
    torch.testing.assert_close(effects.whole(), patched.to(effects.whole()), rtol=1e-3, atol=1e-3)
    assert patched[:, 0].abs().max() < 1e-6  # the first tokens are the same
    assert patched[:, 1:].abs().max() > 1e-2


@pytest.mark.parametrize("family", ["mamba", "rwkv", "lstm"])
def test_where_nothing_else_is_carried_patching_the_state_is_the_patch_prompt(family):
    model = tiny(family)
    with float64_throughout():
        patched = patched_state_effects(model, BATCH, METRIC)
        effects = state_effects(model, BATCH, METRIC)
    # From the fourth token on both prompts are the same, so the state there is all the difference there is.
    for at in (2, 3, 4):
        torch.testing.assert_close(patched[""][:, at], effects.patch - effects.clean, rtol=0, atol=1e-5)
    assert set(patched) == {*effects, ""}


def test_effects_say_what_they_are_and_what_they_need():
    model = tiny("mamba")
    effects = state_effects(model, BATCH, METRIC)
    assert repr(effects).startswith("StateEffects(batch 2, after 5 tokens: conv.0, recurrent.0")
    assert effects.whole().shape == (2, 5) and len(effects) == 6
    with pytest.raises(ValueError, match="clean and patch tokens"):
        state_effects(model, Batch(CLEAN, None, answers=answers, foils=answers), METRIC)
    with pytest.raises(LookupError, match=r"No 'ssm\.0' in the state; it has conv\.0"):
        patched_state_effects(model, BATCH, METRIC, names=["ssm.0"])
    with pytest.raises(ValueError, match="no recurrent state"):
        state_effects(tiny("llama"), BATCH, METRIC)
