import pytest
import torch
from families import FAMILIES
from oracles import (
    autoencoders,
    batch,
    dense_nodes,
    headless,
    tiny,
    tolerance,
    total_gradients,
    transcoders,
    writers,
)

from circuits.attribution import (
    attribution_patching,
    exact_patching,
    gauss_legendre,
    input_integrated_gradients,
    integrated_gradients,
    left_riemann,
    midpoint,
)
from interventions.acts import Identity
from interventions.edits import Patch
from interventions.splice import run
from tasks import LogitDifference

metric = LogitDifference()
ROUTED = ("mixtral", "jamba", "qwen3_next")  # the choice of an expert jumps, and no gradient sees a jump


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_change_times_gradient_of_a_spliced_run(family):
    model = tiny(family)
    for dictionaries in (autoencoders(model), transcoders(model)):
        if not dictionaries:
            continue
        found = dense_nodes(attribution_patching(model, batch(), metric, dictionaries))
        gradients, deltas = total_gradients(model, batch(), metric, dictionaries)
        for site in dictionaries:
            torch.testing.assert_close(found[site], gradients[site].nodes(deltas[site]), **tolerance(family))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ROUTED])
def test_integrated_gradients_add_up_to_the_change_when_a_site_is_patched(family):
    model, prompts = tiny(family), batch()
    dictionaries = autoencoders(model)
    found = integrated_gradients(model, prompts, metric, dictionaries, rule=gauss_legendre(200))
    patched = run(model, prompts.patch, dictionaries).used
    for site in dictionaries:
        moved = run(model, prompts.clean, {site: dictionaries[site]}, [Patch({site: patched[site]})])
        change = metric(moved.logits, prompts) - found.clean
        whole = found[site].dense().sum((1, 2))
        torch.testing.assert_close(whole, change.detach(), rtol=1e-3, atol=5e-3, check_dtype=False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_six_midpoints_integrate_better_than_ten_left_hand_steps(family):
    model, prompts = tiny(family), batch()
    dictionaries = autoencoders(model)
    exact = integrated_gradients(model, prompts, metric, dictionaries, rule=gauss_legendre(60))

    def distance(rule):
        found = integrated_gradients(model, prompts, metric, dictionaries, rule=rule)
        return sum(float((found[s].dense() - exact[s].dense()).abs().sum()) for s in found)

    assert distance(midpoint(6)) < distance(left_riemann(10)) / 2


def test_exact_patching_is_a_run_with_one_node_replaced():
    model, prompts = tiny("gpt2"), batch(n=2, n_pos=4)
    dictionaries = autoencoders(model, n_features=8)
    found = exact_patching(model, prompts, metric, dictionaries, at_once=7)
    clean, patched = (run(model, t, dictionaries).used for t in (prompts.clean, prompts.patch))
    for site in ("embed", "attn.1", "mlp.2"):
        effects = found[site].dense()
        for pos in range(4):
            for node in range(9):
                acts = clean[site].map(torch.clone)
                part = acts.error if node == 8 else acts.features
                other = patched[site].error if node == 8 else patched[site].features
                index = (slice(None), pos) if node == 8 else (slice(None), pos, node)
                part.data[index] = other[index].detach()
                moved = run(model, prompts.clean, {site: dictionaries[site]}, [Patch({site: acts})])
                change = metric(moved.logits, prompts) - found.clean
                torch.testing.assert_close(effects[:, pos, node], change.detach(), rtol=1e-7, atol=1e-10)


def test_all_methods_agree_where_the_metric_is_linear_in_the_site():
    """From the last block's output on, a model without a final norm is linear."""
    model, prompts = headless(), batch()
    last = writers(model)[-1]
    dictionaries = {last: Identity()}
    first = attribution_patching(model, prompts, metric, dictionaries)[last].dense()
    for method in (integrated_gradients, input_integrated_gradients, exact_patching):
        torch.testing.assert_close(method(model, prompts, metric, dictionaries)[last].dense(), first)


def test_input_integrated_gradients_of_the_embedding_add_up_to_the_whole_change():
    model, prompts = tiny("llama"), batch()
    found = input_integrated_gradients(model, prompts, metric, autoencoders(model), rule=gauss_legendre(24))
    torch.testing.assert_close(
        found["embed"].dense().sum((1, 2)), found.patch - found.clean, rtol=1e-4, atol=1e-6
    )
