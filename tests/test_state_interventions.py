"""Changes of the state between tokens: the same in one pass, in many, cached or not, and in generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from recurrent_families import EVERY_RECURRENT, RECURRENT, float64_throughout, tiny, tokens

from interventions import Add, Where, applied, run
from interventions.dictionaries import SparseCoder
from interventions.features import separation
from interventions.joined import PerRow
from interventions.recurrence import (
    AblateState,
    AddState,
    PatchState,
    State,
    advance,
    read_state,
    resume,
    state_changes,
)
from interventions.recurrence.finding import carrier
from interventions.steering import contrast

PROMPTS = tokens(2, 6)
EVERYWHERE = Where(prompt=[2, -1], generation="all")
pytestmark = pytest.mark.filterwarnings("ignore:.*sums of weights")


def _delta(model, rows=1) -> State:
    return read_state(model, tokens(rows, 5, 1)) - read_state(model, tokens(rows, 5, 2))


def _direction(model) -> Add:
    x = torch.randn(model.width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Add({"resid.0": x}, scale=0.5)


def _written(model, prompts, **kwargs):
    return model.generate(prompts, max_new_tokens=5, eos_token_id=None, **kwargs)


@pytest.mark.parametrize("family", RECURRENT)
def test_a_change_before_the_last_token_is_a_resume_from_the_changed_state(family):
    model = tiny(family)
    delta = _delta(model, 2)
    with float64_throughout(), torch.no_grad():
        before = read_state(model, PROMPTS[:, :-1])
        wanted = resume(model, before.moved(delta, 0.5), PROMPTS[:, -1:])
        plain = model.logits(PROMPTS)
        with applied(model, AddState(delta, scale=0.5)):
            logits = model.logits(PROMPTS)
            last = model.logits(PROMPTS, last=1)
    torch.testing.assert_close(logits[:, -1:], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(last, logits[:, -1:], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[:, :-1], plain[:, :-1], rtol=0, atol=1e-5)
    assert (logits[:, -1] - plain[:, -1]).abs().max() > 1e-2
    torch.testing.assert_close(model.logits(PROMPTS), plain.to(model.logits(PROMPTS)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", EVERY_RECURRENT)
@pytest.mark.parametrize("where", [None, EVERYWHERE], ids=["before-last", "everywhere"])
def test_cached_uncached_and_teacher_forced_are_one(family, where):
    model = tiny(family)
    change = AddState(_delta(model), scale=0.5)
    steer = _direction(model) | (change if where is None else change.at(where))
    uncached = {} if model.writes in ("own", "uncached") else {"use_cache": False}
    with applied(model, steer):
        text = _written(model, PROMPTS)
        assert torch.equal(text, _written(model, PROMPTS, **uncached))
    with applied(model, steer, prompt=6), torch.no_grad():
        logits = model.logits(text)
    assert torch.equal(logits[:, 5:-1].argmax(-1), text[:, 6:])
    with torch.no_grad():
        assert (logits - model.logits(text))[:, 5:].abs().max() > 1e-2


@pytest.mark.parametrize("family", ["mamba", "rwkv", "recurrent_gemma", "falcon_h1", "xlstm"])
def test_the_odds_of_cached_steps_are_those_of_one_pass(family):
    model = tiny(family)
    steer = AddState(_delta(model), scale=0.5, before=EVERYWHERE)
    with float64_throughout(), torch.no_grad(), applied(model, steer, prompt=6):
        whole = model.logits(tokens(1, 9))
    state, logits = read_state(model, tokens(1, 9)[:, :1]), []
    with float64_throughout(), torch.no_grad():
        for at in range(1, 9):
            if at == 2 or at >= 5:
                state = state.moved(_delta(model), 0.5)
            out, state = advance(model, state, tokens(1, 9)[:, at : at + 1])
            logits.append(out)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole[:, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["jamba", "falcon_h1", "qwen3_next", "lfm2", "zamba2", "mamba2"])
def test_beams_are_the_same_with_and_without_a_cache(family):
    model = tiny(family)
    with applied(model, AddState(_delta(model, 2), scale=0.5, before=EVERYWHERE)):
        each = [_written(model, PROMPTS, num_beams=3, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*each)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "recurrent_gemma", "jamba", "qwen3_next"])
def test_samples_are_the_same_with_and_without_a_cache(family):
    model, each = tiny(family), []
    with applied(model, AddState(_delta(model, 2), scale=0.5, before=EVERYWHERE)):
        for cache in (True, False):
            torch.manual_seed(0)
            each.append(_written(model, PROMPTS, use_cache=cache, do_sample=True, num_return_sequences=2))
    assert torch.equal(*each)


@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv", "jamba", "falcon_h1", "qwen3_next", "lfm2"])
def test_prompts_of_unequal_length_are_steered_each_as_if_alone(family):
    model = tiny(family)
    padded, mask = PROMPTS.clone(), torch.ones_like(PROMPTS)
    padded[0, :2], mask[0, :2] = 0, 0
    places = [-1] if carrier(model).attends else [1, -1]
    with applied(model, AddState(_delta(model), scale=0.5, before=Where(prompt=places, generation="all"))):
        together = _written(model, padded, mask=mask)
        assert torch.equal(together[1:, 6:], _written(model, PROMPTS[1:])[:, 6:])
        assert torch.equal(together[:1, -5:], _written(model, PROMPTS[:1, 2:])[:, 4:])


def test_patched_states_are_those_of_the_other_prompt():
    model, other = tiny("mamba2"), tokens(2, 6, 7)
    with torch.no_grad():
        state = read_state(model, other[:, :4])
        with applied(model, PatchState(state, before=Where(prompt=4, generation=None))):
            logits = model.logits(PROMPTS)
        wanted = model.logits(torch.cat([other[:, :4], PROMPTS[:, 4:]], dim=1))
    torch.testing.assert_close(logits[:, 4:], wanted[:, 4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "xlstm"])
def test_parts_of_a_state_are_ablated(family):
    model = tiny(family)
    before = read_state(model, PROMPTS[:, :-1])
    scales = {couple.scale for couple in before.couples}
    zero = before.replaced({n: torch.zeros_like(x) for n, x in before.items() if n not in scales})
    part = next(name for name in before if name.endswith(".1") and name not in scales)
    with torch.no_grad():
        with applied(model, AblateState()):
            logits = model.logits(PROMPTS)[:, -1:]
        torch.testing.assert_close(logits, resume(model, zero, PROMPTS[:, -1:]), rtol=0, atol=1e-5)
        mean = read_state(model, tokens(4, 5, 5)).mean()
        with applied(model, AblateState(part, to=mean)):
            logits = model.logits(PROMPTS)[:, -1:]
        patched = PatchState(mean.only(part)).changed(before)
        assert all(torch.equal(patched[n], before[n]) for n in before if not n.endswith(".1"))
        torch.testing.assert_close(logits, resume(model, patched, PROMPTS[:, -1:]), rtol=0, atol=1e-5)


def test_every_row_may_have_its_own_place_and_its_own_difference():
    model = tiny("rwkv")
    delta = _delta(model, 2)
    with torch.no_grad():
        with applied(model, AddState(delta, before=Where(prompt=-1, generation=None, rows=[1]))):
            logits = model.logits(PROMPTS)
        with applied(model, AddState(delta)):
            both = model.logits(PROMPTS)
        torch.testing.assert_close(logits[0], model.logits(PROMPTS)[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(logits[1], both[1], rtol=0, atol=1e-6)
        with applied(model, AddState(delta.rows([1]))):
            torch.testing.assert_close(model.logits(PROMPTS[1:])[0], both[1], rtol=0, atol=1e-6)


def test_changes_compose_in_order_and_nest_and_are_undone():
    model = tiny("mamba")
    add, ablate = AddState(_delta(model)), AblateState("recurrent.*")
    with torch.no_grad():
        plain = model.logits(PROMPTS)
        with applied(model, add | ablate):
            first = model.logits(PROMPTS)
        with applied(model, ablate, add):
            second = model.logits(PROMPTS)
        with applied(model, ablate), applied(model, add):
            nested = model.logits(PROMPTS)
        with applied(model, add, AddState(_delta(model)).inverse()):
            undone = model.logits(PROMPTS)
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(nested, second)  # what was opened first is done first
    torch.testing.assert_close(undone, plain, rtol=0, atol=1e-5)
    assert torch.equal(model.logits(PROMPTS), plain) and "forward" not in vars(model.module)


def test_changes_of_state_are_found_in_other_interventions():
    model = tiny("mamba")
    add, direction = AddState(_delta(model)), _direction(model)
    early = Where(prompt=3, generation=None)
    assert [c.before for c in state_changes((direction | add).at(early).keeping_norm())] == [early]
    with torch.no_grad(), applied(model, PerRow([None, direction | add])):
        logits = model.logits(PROMPTS)
    torch.testing.assert_close(logits[:1], model.logits(PROMPTS[:1]), rtol=0, atol=1e-5)
    with torch.no_grad(), applied(model, direction, add):
        torch.testing.assert_close(logits[1:], model.logits(PROMPTS[1:]), rtol=0, atol=1e-5)


def test_states_are_read_and_resumed_as_the_model_itself_carries_them():
    model = tiny("mamba")
    direction = _direction(model).at(Where(prompt=5, generation=None))
    with torch.no_grad():
        state, plain = read_state(model, PROMPTS[:, :3]), model.logits(PROMPTS)
        with applied(model, AblateState()):
            assert torch.equal(read_state(model, PROMPTS[:, :3])["recurrent.0"], state["recurrent.0"])
            logits = resume(model, state, PROMPTS[:, 3:])
        torch.testing.assert_close(logits, plain[:, 3:], rtol=0, atol=1e-5)
        with applied(model, direction):  # residual ones apply, where the tokens stand in the whole text
            whole, logits = model.logits(PROMPTS), resume(model, state, PROMPTS[:, 3:])
    torch.testing.assert_close(logits, whole[:, 3:], rtol=0, atol=1e-5)
    assert (logits - plain[:, 3:]).abs().max() > 1e-2


def test_activations_of_a_changed_pass_are_read_whole():
    model, dictionary = tiny("mamba2"), {"resid.1": SparseCoder.random(32, 48)}
    change = AddState(_delta(model), before=Where(prompt=[2, 4]))
    site = model.site("resid.1")
    plain = model.read(PROMPTS, [site])[site]
    with applied(model, change):
        read = model.read(PROMPTS, [site])[site]
        early = model.read(PROMPTS[:, :5], [site])[site]
        with pytest.raises(ValueError, match="on whose way the state is changed"):
            separation(model, dictionary, [(3, 4, 5, 6, 7)], [(4, 5, 6, 7, 3)], progress=False)
    assert read.shape == plain.shape
    torch.testing.assert_close(read[:, :2], plain[:, :2], rtol=0, atol=1e-6)
    torch.testing.assert_close(read[:, :5], early, rtol=0, atol=1e-6)
    assert (read - plain)[:, 2:].abs().max() > 1e-2


def test_passes_in_generation_that_change_nothing_are_the_module_s_own(monkeypatch):
    model = tiny("mamba")
    calls, own = [], type(model.module).forward

    def counted(self, *args, **kwargs):
        calls.append(kwargs.get("input_ids", args[0] if args else None).shape[1])
        return own(self, *args, **kwargs)

    counted.__wrapped__ = own
    _ = model.writes
    monkeypatch.setattr(type(model.module), "forward", counted)
    with applied(model, AddState(_delta(model))):
        calls.clear()
        _written(model, PROMPTS)
    assert calls == [5, 1, 1, 1, 1, 1]  # the prompt in two parts, then token by token as ever


def test_the_modules_hold_no_steered_state_afterwards():
    model = tiny("recurrent_gemma")
    model.module(PROMPTS[:, :3], use_cache=True)
    left = model.module.model.layers[0].temporal_block.conv1d_state
    with applied(model, AddState(_delta(model))):
        model.logits(PROMPTS)
        assert model.module.model.layers[0].temporal_block.conv1d_state is left
        _written(model, PROMPTS)
    assert model.module.model.layers[0].temporal_block.conv1d_state is left


def test_what_cannot_be_changed_is_refused_at_once():
    mamba, llama = tiny("mamba"), tiny("llama")
    delta = _delta(mamba)
    for model, change, why in (
        (tiny("mamba2"), AddState(delta), "made with another model"),
        (llama, AblateState(), "no recurrent state"),
    ):
        with pytest.raises(ValueError, match=why), applied(model, change):
            pass
    with (
        pytest.raises(LookupError, match=r"No 'ssm\.\*' in this state"),
        applied(mamba, AblateState("ssm.*")),
    ):
        pass
    other = State({"recurrent.9": torch.zeros(1, 64, 8)}, mamba.fingerprint)
    with pytest.raises(LookupError, match=r"No 'recurrent\.9'"), applied(mamba, PatchState(other)):
        pass
    when = Where(when=lambda x, passage: x[..., 0] > 0)
    with (
        pytest.raises(ValueError, match="before activations are known"),
        applied(mamba, AddState(delta, before=when)),
    ):
        pass
    with pytest.raises(ValueError, match="before the first token"), applied(mamba, AddState(delta)):
        mamba.logits(PROMPTS[:, :1])
    three = AddState(_delta(mamba, 3))
    with pytest.raises(ValueError, match="3 rows of state, and there are 2 rows"), applied(mamba, three):
        mamba.logits(PROMPTS)
    for made in (AddState, PatchState):
        with pytest.raises(TypeError, match="is made of a `State`"):
            made({"conv.0": torch.zeros(1)})
    with pytest.raises(ValueError, match="no schedule"):
        AddState(delta).at(Where(), schedule=lambda n: n)
    with pytest.raises(ValueError, match="no norm to keep"):
        AddState(delta).keeping_norm()
    with pytest.raises(ValueError, match="smaller scale"):
        AddState(delta).clipped(1.0)


def test_padding_that_would_be_read_into_the_state_is_refused():
    model = tiny("rwkv")
    mask = torch.ones_like(PROMPTS)
    mask[0, :2] = 0
    with applied(model, AddState(_delta(model))):
        with pytest.raises(ValueError, match="changes with padding"):
            model.module(PROMPTS, attention_mask=mask)
        assert _written(model, PROMPTS, mask=mask).shape[1] == 11  # grouped by length
    hybrid = tiny("jamba")
    early = AddState(_delta(hybrid), before=Where(prompt=1))
    with pytest.raises(ValueError, match="equal length"), applied(hybrid, early):
        hybrid.module(PROMPTS, attention_mask=mask)
    mamba2 = tiny("mamba2")
    with (
        pytest.raises(ValueError, match="equal length"),
        applied(mamba2, AddState(_delta(mamba2), before=Where(prompt=1))),
    ):
        mamba2.module(PROMPTS[:, :3], attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))


@pytest.mark.parametrize("family", ["mamba", "mamba2", "jamba", "falcon_h1"])
def test_padded_prompts_changed_early_are_written_on_as_each_alone(family):
    model, prompts = tiny(family), tokens(3, 6)
    mask = torch.ones_like(prompts)
    mask[0, :2] = mask[2, :4] = 0
    change = AddState(_delta(model, 3), scale=0.5, before=Where(prompt=[1, -1], generation="all"))
    with applied(model, change):
        together = _written(model, prompts, mask=mask)
    for i, n in enumerate(mask.sum(1).tolist()):
        with applied(model, replace(change, delta=change.delta.rows([i]))):
            assert torch.equal(together[i, -5:], _written(model, prompts[i : i + 1, 6 - n :])[0, -5:])


@pytest.mark.parametrize("family", ["mamba", "rwkv", "jamba", "xlstm"])
def test_a_changed_pass_returns_what_it_is_asked_for_or_says_why_not(family):
    model = tiny(family)
    with torch.no_grad(), applied(model, AddState(_delta(model))):
        logits = model.logits(PROMPTS)
        out = model.module(PROMPTS, return_dict=False)
        with pytest.raises(ValueError, match="no loss: leave out labels"):
            model.module(PROMPTS, labels=PROMPTS)
    assert isinstance(out, tuple) and torch.equal(out[0], logits)


def test_what_reads_whole_passes_is_refused_while_the_state_is_changed():
    model = tiny("mamba2")
    delta = read_state(model, tokens(1, 4)) - read_state(model, tokens(1, 4, seed=1))
    with applied(model, AddState(delta)):
        with pytest.raises(ValueError, match="made in parts, so it cannot be spliced by `run`"):
            run(model, tokens(2, 6), {})
        with pytest.raises(ValueError, match="read while the state is left alone"):
            contrast(model, [((5, 9), (5, 7))], ["resid.1"], progress=False)
