"""The circuit that the embedded model's agreement is found to have, against what is known of the grammar."""

import pytest
import torch

from circuits import ERROR, Evaluation, embedded, find
from interventions import Ablate, applied, run

SUBJECT, LAST = 2, 6  # <bos> The SUBJECT that the noun VERB


@pytest.fixture(scope="module")
def job():
    model, dictionaries = embedded.model(), embedded.dictionaries()
    found_on, tested_on = embedded.task("across_rc", n=160).split(0.5)
    circuit = find(model, found_on, dictionaries, node=30, edge=120, per_position=True, progress=False)
    return model, dictionaries, tested_on, circuit


def test_under_five_percent_of_active_nodes_do_what_the_model_does_and_random_ones_nothing(job):
    model, dictionaries, tested_on, circuit = job
    curve = Evaluation(model, tested_on, dictionaries).curve(circuit, sizes=[20, 30], random=3)
    assert 30 / curve.active < 0.05
    assert curve.faithfulness[0].low > 0.8
    assert curve.faithfulness[1].value == pytest.approx(1.0, abs=0.05)
    assert abs(curve.completeness[1].value) < 0.05
    assert max(map(abs, curve.random[1])) < 0.1


def test_number_is_carried_by_the_subject_and_then_by_the_last_token(job):
    *_, circuit = job
    for node in circuit.nodes[:-1]:
        early = node.site in ("embed", "attn.0", "mlp.0", "resid.0", "attn.1", "mlp.1", "resid.1")
        assert node.position == (SUBJECT if early else LAST)


def test_features_of_the_circuit_are_of_one_number_each(job):
    model, dictionaries, tested_on, circuit = job
    (batch,) = tested_on.batches(model.tokenizer, len(tested_on))
    plural = torch.tensor([case.startswith("plural") for case in batch.cases])
    assert 0 < plural.sum() < len(plural)
    computed = run(model, batch.clean, dictionaries).computed
    selective = 0
    features = [node for node in circuit.nodes[:-1] if node.feature != ERROR]
    for node in features:
        active = computed[node.site].features[:, node.position, node.feature] > 0
        shares = [active[plural].float().mean(), active[~plural].float().mean()]
        selective += min(shares) < 0.05
    assert selective >= 0.9 * len(features)


def test_edges_cross_from_the_subject_to_the_verb_at_the_last_attention_only(job):
    *_, circuit = job
    crossing = {
        (circuit.nodes[up].site, circuit.nodes[down].site)
        for up, down in circuit.edges.T.tolist()
        if circuit.nodes[up].position == SUBJECT and circuit.nodes[down].position == LAST
    }
    assert crossing and crossing <= {("resid.1", "attn.2")}


def test_the_verb_follows_the_found_features(job):
    model, dictionaries, tested_on, circuit = job
    (batch,) = tested_on.batches(model.tokenizer, len(tested_on))
    other = run(model, batch.patch, dictionaries).computed
    nodes = {site: mask for site, mask in circuit.top(nodes=10).masks().items() if mask.any()}
    with applied(model, Ablate(nodes, to=other), dictionaries=dictionaries):
        flipped = tested_on.metric(model.logits(batch.clean), batch)
    assert (tested_on.metric(model.logits(batch.clean), batch) > 0).all()
    assert (flipped < 0).float().mean() > 0.95
