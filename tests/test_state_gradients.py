"""Logits as a function of the state: gradients against finite differences, in float64 throughout."""

from __future__ import annotations

import pytest
import torch
from recurrent_families import EVERY_RECURRENT, RECURRENT, float64_throughout, tiny, tokens

from interventions import applied
from interventions.observation import arguments
from interventions.recurrence import AddState, read_state, resume

TOKENS = tokens(2, 7)
# These compute in float32 in places, whatever their weights are (routers; the scan of the delta rule).
ROUGH = {"jamba": 1e-3, "qwen3_next": 1e-3, "zamba2": 1e-4}


def _weights(shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _metric(logits):
    return (_weights(logits.shape) * logits.double()).sum()


@pytest.mark.parametrize("family", EVERY_RECURRENT)
def test_gradients_in_the_state_are_finite_differences(family):
    model, rough = tiny(family), ROUGH.get(family)
    with float64_throughout():
        state = read_state(model, TOKENS[:, :4]).map(torch.Tensor.double)
        leaves = {name: x.clone().requires_grad_() for name, x in state.items()}
        measured = _metric(resume(model, state.replaced(leaves), TOKENS[:, 4:]))
        grads = torch.autograd.grad(measured, list(leaves.values()), materialize_grads=True)
        for (name, x), grad in zip(state.items(), grads, strict=True):
            direction, step = x.abs().mean() * _weights(x.shape, 5), 1e-3 if rough else 1e-5
            with torch.no_grad():
                ends = [
                    _metric(resume(model, state.replaced({name: x + sign * step * direction}), TOKENS[:, 4:]))
                    for sign in (1, -1)
                ]
            slope = (ends[0] - ends[1]) / (2 * step)
            atol = rough * abs(measured.item()) if rough else 1e-7
            torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("family", RECURRENT)
def test_the_backward_pass_may_run_later_and_twice(family):
    model = tiny(family)
    state = read_state(model, TOKENS[:, :4])
    leaves = {name: x.detach().clone().requires_grad_() for name, x in state.items()}
    state = state.replaced(leaves)
    measured = _metric(resume(model, state, TOKENS[:, 4:]))
    with torch.no_grad():
        resume(model, state, TOKENS[:, 2:])  # what passes overwrite is their own copy
        model.logits(TOKENS)
    once = torch.autograd.grad(measured, list(leaves.values()), retain_graph=True, materialize_grads=True)
    twice = torch.autograd.grad(measured, list(leaves.values()), materialize_grads=True)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    assert any(bool(grad.abs().max() > 0) for grad in once)
    assert all(torch.equal(state[name], x) for name, x in leaves.items())


@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv", "recurrent_gemma", "falcon_h1", "lstm"])
def test_gradients_in_a_difference_that_is_added(family):
    model = tiny(family)
    delta = (read_state(model, tokens(1, 5, 1)) - read_state(model, tokens(1, 5, 2))).map(torch.Tensor.double)
    name = list(delta)[-1] if family != "rwkv" else "num.1"
    with float64_throughout():

        def measured(x):
            # At a small scale no sum of weights runs out, where the step would be cut short.
            with applied(model, AddState(delta.replaced({name: x}), scale=0.01)):
                return _metric(model.logits(TOKENS))

        leaf = delta[name].clone().requires_grad_()
        grad = torch.autograd.grad(measured(leaf), leaf)[0]
        direction = _weights(leaf.shape)
        with torch.no_grad():
            ends = [measured(delta[name] + sign * 1e-3 * direction) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / 2e-3
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-3, atol=1e-6)
    assert slope.abs() > 1e-5


def test_passes_without_a_cache_are_differentiable_in_rwkv():
    model = tiny("rwkv")
    assert arguments(model.module)["use_cache"] is False  # its state, written in place, would forbid it
    x = model.module.get_input_embeddings()(TOKENS).detach().requires_grad_()
    model.module(inputs_embeds=x, **arguments(model.module)).logits.sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
