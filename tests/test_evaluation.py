from dataclasses import replace
from functools import partial

import pytest
import torch
from families import EVERY_FAMILY
from oracles import autoencoders, fresh, task, tiny, transcoders

from circuits import (
    Curve,
    Evaluation,
    attribution_patching,
    completeness,
    faithfulness,
    find,
    mean_ablation,
    means,
    resample_ablation,
    share,
    zero_ablation,
)
from interventions.acts import Identity
from tasks import KL

simple = partial(find, method=attribution_patching, progress=False, edge=None)
ABLATIONS = [mean_ablation, zero_ablation, resample_ablation]


def whole(evaluation):
    return {s.name: torch.ones(p.n_features + 1).bool() for s, p in evaluation.bound.items()}


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("kind", [autoencoders, transcoders])
def test_the_whole_model_is_faithful_and_nothing_is_not(family, kind):
    model = tiny(family)
    dictionaries = kind(model)
    if not dictionaries:
        pytest.skip("no site for it")
    evaluation = Evaluation(model, task(4), dictionaries)
    score = evaluation._score(evaluation.metric(whole(evaluation)), 0)
    assert score.value == pytest.approx(1.0, abs=1e-4)
    assert evaluation._score(evaluation.metric({}), 0).value == pytest.approx(0.0, abs=1e-9)


def test_resampling_everything_gives_the_metric_of_the_patched_prompts():
    model, question = tiny("llama"), task(4)
    evaluation = Evaluation(model, question, autoencoders(model), ablation=resample_ablation)
    (batch,) = question.batches(None, 4)
    torch.testing.assert_close(
        evaluation.nothing_metric, question.metric(model.logits(batch.patch), batch), rtol=1e-5, atol=1e-7
    )


def test_means_are_taken_over_patched_prompts_position_by_position():
    model, question = tiny("gpt2"), task(5)
    found = means(model, question.batches(None, 2), {"mlp.1": Identity()})["mlp.1"]
    (batch,) = question.batches(None, 5)
    site = model.site("mlp.1")
    torch.testing.assert_close(found.features, model.read(batch.patch, [site])[site].mean(0))


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_faithfulness_and_completeness_of_a_circuit_and_its_complement_swap(ablation):
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    circuit = simple(model, task(6), dictionaries, node=40)
    evaluation = Evaluation(model, task(6), dictionaries, ablation=ablation)
    masks = {site: ~mask for site, mask in circuit.masks().items()}
    swapped = evaluation._score(evaluation.metric(masks), 0)
    assert evaluation.completeness(circuit).value == swapped.value
    assert faithfulness(model, circuit, task(6), dictionaries, ablation=ablation) == evaluation.faithfulness(
        circuit
    )
    assert completeness(model, circuit, task(6), dictionaries, ablation=ablation).value == swapped.value


def test_errors_are_scored_kept_or_removed():
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    values = {}
    for errors in ("scored", "kept", "removed"):
        evaluation = Evaluation(model, task(4), dictionaries, errors=errors)
        everything = whole(evaluation)
        features = {
            site: mask & (torch.arange(len(mask)) < len(mask) - 1) for site, mask in everything.items()
        }
        for name, masks in (("all", everything), ("features", features)):
            values[name, errors] = evaluation.metric(masks)
    real = task(4).metric(model.logits(task(4).batches(None, 4)[0].clean), task(4).batches(None, 4)[0])
    for same in (("all", "scored"), ("all", "kept"), ("features", "kept")):
        torch.testing.assert_close(values[same], real)
    torch.testing.assert_close(values["all", "removed"], values["features", "scored"])
    assert not torch.allclose(values["all", "removed"], real)


def test_blocks_before_the_first_layer_are_left_alone():
    model = tiny("gpt2")
    evaluation = Evaluation(model, task(4), autoencoders(model), start_layer=2)
    assert {site.name for site in evaluation.dictionaries} == {"attn.2", "mlp.2", "resid.2"}


def test_a_curve_ends_at_the_circuit_and_is_saved(tmp_path):
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    circuit = simple(model, task(6), dictionaries, node=50)
    evaluation = Evaluation(model, task(6), dictionaries)
    curve = evaluation.curve(circuit, random=2)
    assert curve.sizes[0] == 1 and curve.sizes[-1] == 50
    assert curve.faithfulness[-1] == evaluation.faithfulness(circuit)
    assert all(score.low <= score.value <= score.high for score in curve.faithfulness)
    assert len(curve.random[0]) == 2
    curve.save(tmp_path / "curve.json")
    assert Curve.load(tmp_path / "curve.json") == curve
    assert str(curve).count("\n") == len(curve.sizes)


def test_nodes_per_position_are_ablated_per_position():
    model = tiny("gpt2")
    dictionaries = autoencoders(model, n_features=6)
    circuit = simple(model, task(4), dictionaries, node=share(1.0), per_position=True)
    evaluation = Evaluation(model, task(4), dictionaries, ablation=resample_ablation)
    assert evaluation.faithfulness(circuit).value == pytest.approx(1.0, abs=0.05)
    first = circuit.subgraph(lambda node: node.position == 0)
    assert evaluation.faithfulness(first).value == pytest.approx(0.0, abs=1e-6)


def test_a_circuit_of_another_model_is_refused():
    dictionaries = {"mlp.1": Identity()}
    circuit = simple(tiny("llama"), task(4), dictionaries, node=5)
    with pytest.raises(ValueError, match="found in another model"):
        faithfulness(tiny("gpt2"), circuit, task(4), dictionaries)


def test_a_circuit_of_another_dictionary_is_refused():
    model = tiny("gpt2")
    circuit = simple(model, task(4), autoencoders(model), node=5)
    with pytest.raises(ValueError, match="another dictionary at embed"):
        faithfulness(model, circuit, task(4), autoencoders(model, seed=7))


def test_resampling_needs_pairs():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match="needs pairs"):
        Evaluation(model, task(4, paired=False), {"mlp.1": Identity()}, ablation=resample_ablation)


def test_a_circuit_of_prompts_of_another_length_is_refused():
    model = tiny("gpt2")
    dictionaries = {"mlp.1": Identity()}
    circuit = simple(model, task(4, n_pos=5), dictionaries, node=5, per_position=True)
    with pytest.raises(ValueError, match=r"nodes at 5 positions; the prompts have \[6\] tokens"):
        faithfulness(model, circuit, task(4, n_pos=6), dictionaries)


def test_a_mean_over_few_prompts_is_warned_of():
    model = tiny("gpt2")
    with pytest.warns(UserWarning, match="one of 2 only"):
        Evaluation(model, task(2), {"mlp.1": Identity()})


def test_a_curve_from_a_later_layer_ranks_nodes_from_there_on():
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    circuit = simple(model, task(6), dictionaries, node=200)
    later = sum(node.site.endswith(".2") for node in circuit.nodes)
    curve = Evaluation(model, task(6), dictionaries, start_layer=2).curve(circuit, random=1)
    assert curve.sizes[-1] == later < len(circuit)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"errors": "remove"}, "Errors are scored, kept, removed; 'remove' is none"),
        ({"level": 95}, "between 0 and 1; 95 does not"),
        ({"start_layer": 3}, "start_layer goes from 0 to 2; it is 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    model = tiny("gpt2")
    with pytest.raises(ValueError, match=says):
        Evaluation(model, task(4), {"mlp.1": Identity()}, **settings)


def test_masks_may_be_keyed_by_site_and_those_of_other_sites_are_refused():
    model = tiny("gpt2")
    evaluation = Evaluation(model, task(4), {"mlp.1": Identity()})
    everything = torch.ones(33, dtype=torch.bool)
    torch.testing.assert_close(evaluation.metric({model.site("mlp.1"): everything}), evaluation.model_metric)
    with pytest.raises(ValueError, match=r"no dictionary at mlp\.7"):
        evaluation.metric({"mlp.7": everything})


def test_sites_anywhere_can_be_evaluated():
    model = tiny("gpt2")
    site = model.at("transformer.h.1.mlp.c_fc")
    circuit = simple(model, task(4), {site: Identity()}, node=10)
    assert Evaluation(model, task(4), {site: Identity()}).faithfulness(circuit).nodes == 10


def test_means_in_half_precision_do_not_overflow():
    model = fresh("gpt2", torch.float16)
    with torch.no_grad():
        model.module.transformer.wte.weight[:, 0] = 3000.0
    found = means(model, task(64).batches(None, 32), {"embed": Identity()})["embed"].features
    assert found.dtype == torch.float16 and found[0, 0] == 3000


def test_a_divergence_is_from_the_model_as_it_is():
    model = tiny("gpt2")
    question = replace(task(4), metric=KL())
    evaluation = Evaluation(model, question, autoencoders(model))
    assert evaluation.model_metric.abs().max() < 1e-9 < evaluation.nothing_metric.min()
