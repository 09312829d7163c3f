"""Circuits as interventions: ablating, clamping and steering with what was found."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from circuits import Circuit, embedded, find
from circuits.circuit_interventions import ablation, clamping, everywhere, steering
from circuits.graph import ERROR, Node
from interventions import Ablate, acts_of, applied, mean_acts, run
from interventions.features import MadeWith


@lru_cache
def base():
    return embedded.model(), embedded.dictionaries(), embedded.task("across_rc", n=80).split(0.5)


@lru_cache
def found(per_position):
    model, dictionaries, (found_on, _) = base()
    return find(model, found_on, dictionaries, node=30, edge=40, per_position=per_position, progress=False)


@lru_cache
def prompts():
    """Those held out: 40 pairs that differ in the number of the subject."""
    model, _, (_, tested_on) = base()
    (batch,) = tested_on.batches(model.tokenizer, batch_size=40)
    assert batch.patch is not None
    return batch, batch.clean, batch.patch


def _mask(intervention, site):
    assert isinstance(intervention, MadeWith) and isinstance(intervention.inner, Ablate)
    return {str(s): nodes for s, nodes in intervention.inner.nodes.items()}[site]


def metric_under(intervention):
    model, dictionaries, (_, task) = base()
    batch, clean, _ = prompts()
    with applied(model, intervention, dictionaries=dictionaries):
        return task.metric(model.logits(clean), batch)


def sides():
    """Tokens of prompts with a plural and a singular subject, and how to read the number of the verb."""
    model = base()[0]
    _, clean, patch = prompts()
    tokens = torch.cat([clean, patch])
    plural_verb, singular_verb = (model.tokenizer.encode(verb)[-1] for verb in ("are", "is"))

    def plural(tokens):
        logits = model.logits(tokens)[:, -1]
        return logits[:, plural_verb] > logits[:, singular_verb]

    return tokens[plural(tokens)], tokens[~plural(tokens)], plural


@pytest.mark.parametrize("per_position", [False, True])
def test_without_the_features_of_the_circuit_the_verb_no_longer_agrees(per_position):
    dictionaries = base()[1]
    circuit = found(per_position)
    right = (metric_under(ablation(circuit, dictionaries=dictionaries)) > 0).float()
    assert 0.3 < right.mean() < 0.7


@pytest.mark.parametrize("per_position", [False, True])
def test_with_the_features_of_the_other_prompt_the_verb_follows_them(per_position):
    model, dictionaries, _ = base()
    _, _clean, patch = prompts()
    circuit = found(per_position)
    other = acts_of(model, patch, list(circuit.features), dictionaries)
    assert (metric_under(ablation(circuit, to=other)) < 0).all()


def test_values_at_the_positions_of_a_circuit_go_with_texts_of_any_length():
    model, dictionaries, _ = base()
    _, clean, patch = prompts()
    other = acts_of(model, patch, list(found(True).features), dictionaries)
    ablate = ablation(found(True), to=other)
    with applied(model, ablate, dictionaries=dictionaries):
        text = model.generate(clean, max_new_tokens=3)
        assert torch.equal(text, model.generate(clean, max_new_tokens=3, use_cache=False))
        logits = model.logits(clean)
        longer = model.logits(torch.cat([clean, patch], dim=1))
    torch.testing.assert_close(longer[:, : clean.shape[1]], logits, rtol=0, atol=1e-4)


def test_ablation_is_that_with_the_masks_of_the_circuit():
    model, dictionaries, _ = base()
    _, _clean, patch = prompts()
    circuit = found(False)
    other = acts_of(model, patch, list(circuit.features), dictionaries)
    masks = circuit.masks()
    for mask in masks.values():
        mask[-1] = False
    plain = metric_under(Ablate(masks, to=other))
    torch.testing.assert_close(metric_under(ablation(circuit, to=other)), plain)


def test_errors_are_kept_unless_they_are_asked_for():
    circuit = found(False)
    site = circuit.nodes[0].site
    node, error = Node(site, 3), Node(site, ERROR)
    numbers = torch.ones(3)
    small = replace(
        circuit, nodes=(node, error, circuit.nodes[-1]), effect=numbers, effect_error=numbers,
        edges=circuit.edges[:, :0], weight=numbers[:0], weight_error=numbers[:0],
    )  # fmt: skip
    kept, ablated = ablation(small), ablation(small, errors=True)
    assert _mask(kept, site).nonzero().flatten().tolist() == [3]
    assert _mask(ablated, site).nonzero().flatten().tolist() == [3, circuit.features[site]]
    with pytest.raises(ValueError, match="error nodes only"):
        ablation(small.subgraph([error]))
    assert "error" not in repr(clamping(small))


@pytest.mark.parametrize("per_position", [False, True])
def test_clamping_to_zero_is_ablating_to_zero(per_position):
    circuit = found(per_position)
    torch.testing.assert_close(
        metric_under(clamping(circuit)),
        metric_under(ablation(circuit)),
    )


@pytest.mark.parametrize("per_position", [False, True])
def test_clamping_to_the_mean_is_ablating_to_the_mean(per_position):
    model, dictionaries, _ = base()
    _, _clean, patch = prompts()
    circuit = found(per_position)
    means = mean_acts(model, patch, list(circuit.features), dictionaries)
    torch.testing.assert_close(
        metric_under(clamping(circuit, to=means)),
        metric_under(ablation(circuit, to=means)),
    )
    values = {str(node): 0.5 for node in circuit.nodes}
    half = clamping(circuit, to=lambda node: values[str(node)])
    torch.testing.assert_close(
        metric_under(half),
        metric_under(clamping(circuit, to=0.5)),
    )


@pytest.mark.parametrize("per_position", [False, True])
def test_steering_along_the_circuit_turns_the_verb_round_and_back(per_position):
    model, dictionaries, _ = base()
    circuit = found(per_position)
    plural, singular, is_plural = sides()
    for toward, away, wanted in ((plural, singular, 1.0), (singular, plural, 0.0)):
        steer = steering(circuit, model, dictionaries, toward=toward, away=away)
        with applied(model, steer, dictionaries=dictionaries):
            assert is_plural(away).float().mean() == wanted
        with applied(model, steer):  # what is added needs no dictionary
            assert is_plural(away).float().mean() == wanted
        with applied(model, steering(circuit, model, dictionaries, toward=toward, away=away, scale=0.0)):
            assert is_plural(away).float().mean() == 1 - wanted


def test_the_same_number_of_random_features_turns_nothing_round():
    model, dictionaries, _ = base()
    circuit = found(False)
    plural, singular, is_plural = sides()
    generator = torch.Generator().manual_seed(0)
    inside = set(circuit.nodes)
    other = tuple(
        Node(node.site, int(feature))
        for node in circuit.nodes[:-1]
        for feature in [torch.randint(circuit.features[node.site], (), generator=generator)]
    )
    other = tuple(dict.fromkeys(node for node in other if node not in inside))
    n = torch.zeros(len(other) + 1)
    none = n[:0]
    random = replace(
        circuit, nodes=(*other, circuit.nodes[-1]), effect=n, effect_error=n, edges=circuit.edges[:, :0],
        weight=none, weight_error=none,
    )  # fmt: skip
    with applied(model, steering(random, model, dictionaries, toward=plural, away=singular)):
        assert is_plural(singular).float().mean() < 0.2
    assert (metric_under(ablation(random)) > 0).float().mean() > 0.8


def test_nodes_with_a_position_touch_that_token_of_the_prompt_only():
    model, dictionaries, _ = base()
    _, clean, _ = prompts()
    circuit = found(True)
    passed = run(model, clean, dictionaries, [clamping(circuit, to=7.0)])
    for site, mask in circuit.masks().items():
        changed = passed.used[site].features != passed.computed[site].features
        assert torch.equal(changed.all(0), mask[:, :-1])
        assert torch.equal(changed.any(0), mask[:, :-1])


def test_nodes_everywhere_have_the_sum_of_their_effects():
    circuit = found(True)
    flat = everywhere(circuit)
    assert flat.positions is None
    assert len(flat) == len({node._replace(position=None) for node in circuit.nodes[:-1]})
    torch.testing.assert_close(flat.effect.sum(), circuit.effect.sum())
    assert everywhere(flat) is flat


def test_a_circuit_from_its_folder_intervenes_as_before(tmp_path):
    circuit = found(False)
    circuit.save(tmp_path)
    torch.testing.assert_close(
        metric_under(ablation(Circuit.load(tmp_path))), metric_under(ablation(circuit))
    )


def test_other_models_and_other_dictionaries_are_refused():
    _, dictionaries, _ = base()
    _, clean, patch = prompts()
    circuit = found(False)
    other = embedded.model()
    with torch.no_grad():
        next(other.module.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="another model"), applied(other, ablation(circuit)):
        pass
    with pytest.raises(ValueError, match="another model"):
        steering(circuit, other, dictionaries, toward=clean, away=patch)
    site = circuit.nodes[0].site
    mixed = {**dictionaries, site: dictionaries["resid.2" if site != "resid.2" else "resid.1"]}
    with pytest.raises(ValueError, match="not the one"):
        ablation(circuit, dictionaries=mixed)


def test_what_cannot_be_intervened_on_is_said():
    model, dictionaries, _ = base()
    _, clean, patch = prompts()
    circuit = found(False)
    with pytest.raises(ValueError, match="empty"):
        clamping(circuit.top(nodes=0))
    with pytest.raises(ValueError, match="no values for"):
        ablation(circuit, to={})
    with pytest.raises(ValueError, match="no values for"):
        clamping(circuit, to={})
    with pytest.raises(ValueError, match="no dictionary at"):
        steering(circuit, model, {}, toward=clean, away=patch)
    positioned = found(True)
    with pytest.raises(ValueError, match="positions"):
        steering(positioned, model, dictionaries, toward=clean[:, :4], away=patch)
    for wrong in (clean[0], clean[:0]):
        with pytest.raises(ValueError, match=r"Prompts are tokens \(row pos\), one row or more"):
            steering(positioned, model, dictionaries, toward=wrong, away=patch)
