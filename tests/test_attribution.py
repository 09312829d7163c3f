import pytest
import torch
from families import EVERY_FAMILY
from oracles import (
    autoencoders,
    batch,
    dense_nodes,
    headless,
    task,
    tiny,
    tolerance,
    total_gradients,
    transcoders,
    writers,
)

from circuits import Evaluation, find
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
from interventions.dictionaries import SparseCoder
from interventions.edits import Patch
from interventions.splice import applied, run
from interventions.tensor_edits import Add
from tasks import LogitDifference

metric = LogitDifference()
ROUTED = ("mixtral", "jamba", "qwen3_next")  # the choice of an expert jumps, and no gradient sees a jump


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_effects_are_change_times_gradient_of_a_spliced_run(family):
    model = tiny(family)
    for dictionaries in (autoencoders(model), transcoders(model)):
        if not dictionaries:
            continue
        found = dense_nodes(attribution_patching(model, batch(), metric, dictionaries))
        gradients, deltas = total_gradients(model, batch(), metric, dictionaries)
        for site in dictionaries:
            torch.testing.assert_close(found[site], gradients[site].nodes(deltas[site]), **tolerance(family))


@pytest.mark.parametrize("family", [family for family in EVERY_FAMILY if family.id not in ROUTED])
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


@pytest.mark.parametrize("family", ["olmo2", "cohere", "phi", "falcon_h1", "gpt2"])
def test_effects_at_what_a_module_reads_are_of_that_module_alone(family):
    model, prompts = tiny(family), batch()
    site = model.site("mlp_in.1")
    found = attribution_patching(model, prompts, metric, {site: Identity()})["mlp_in.1"].dense().sum((1, 2))
    clean, patch = (model.read(tokens, [site])[site] for tokens in (prompts.clean, prompts.patch))
    values = []
    for sign in (1, -1):
        moved = 1e-3 * sign * (patch - clean)
        with torch.no_grad(), model.visiting([site], lambda _site, x, moved=moved: x + moved):
            values.append(metric(model.logits(prompts.clean), prompts))
    torch.testing.assert_close(found, (values[0] - values[1]) / 2e-3, rtol=1e-2, atol=1e-3)


def test_integrated_gradients_under_an_intervention_apply_it_once(monkeypatch):
    model, prompts = tiny("llama"), batch()
    direction = 2 * torch.randn(32, generator=torch.Generator().manual_seed(5)).double()
    found = []
    with applied(model, Add({"resid.1": direction})):
        for resumes in (True, False):
            monkeypatch.setitem(model.__dict__, "resumes", resumes)
            neurons = {"mlp.2": Identity()}
            found.append(integrated_gradients(model, prompts, metric, neurons)["mlp.2"].dense())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dictionaries_may_be_more_precise_than_the_model(family, dtype):
    model = tiny(family, dtype)
    coders = {"resid.1": SparseCoder.random(32, 64), "resid.2": SparseCoder.random(32, 64, seed=1)}
    circuit = find(model, task(4), coders, node=20, edge=50, progress=False)
    assert len(circuit) == 20 and circuit.effect.isfinite().all()
    assert Evaluation(model, task(4), coders).faithfulness(circuit).nodes == 20
    assert exact_patching(model, batch(), metric, coders)["resid.2"].effect.isfinite().all()


def test_a_metric_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"one number per example, \(3,\); .* gave \(3, 2\)"):
        attribution_patching(
            tiny("gpt2"), batch(), lambda logits, _: logits[:, -1, :2], {"mlp.1": Identity()}
        )
