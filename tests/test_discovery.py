import json
from dataclasses import replace
from functools import partial
from weakref import WeakSet

import networkx
import pytest
import torch
from families import EVERY_FAMILY
from oracles import autoencoders, fresh, slow_edges, task, tiny, total_gradients, writers
from torch import nn

import circuits.discovery
from circuits import (
    OUTPUT,
    Evaluation,
    Node,
    above,
    attribution_patching,
    draw,
    find,
    integrated_gradients,
    means,
    share,
)
from circuits.checkpoint import Checkpoint
from circuits.wiring import Edges
from interventions.acts import Identity
from interventions.model import Model
from interventions.sites import Layout
from interventions.splice import run
from tasks import Pair, Task

simple = partial(find, method=attribution_patching, progress=False, batch_size=3)


def test_the_whole_circuit_holds_every_effect_and_edge_averaged_over_batches():
    model, question = tiny("gpt2"), task(7)
    dictionaries = autoencoders(model, n_features=6)
    circuit = simple(model, question, dictionaries, node=share(1.0), edge=share(1.0))
    (whole,) = question.batches(None, 7)
    gradients, deltas = total_gradients(model, whole, question.metric, dictionaries)
    nodes = {s: gradients[s].nodes(deltas[s]).sum(1) for s in dictionaries}
    slow = slow_edges(model, whole, question.metric, dictionaries, gradients, deltas)
    for node, effect, error in zip(circuit.nodes[:-1], circuit.effect, circuit.effect_error, strict=False):
        values = nodes[node.site][:, node.feature]
        torch.testing.assert_close(effect, values.mean())
        torch.testing.assert_close(error, values.std(correction=1) / 7**0.5)
    for (up, down), weight in zip(circuit.edges.T.tolist(), circuit.weight, strict=True):
        u, d = circuit.nodes[up], circuit.nodes[down]
        torch.testing.assert_close(weight, slow[u.site, d.site][d.feature, u.feature])


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_gives_an_acyclic_circuit_with_the_same_call(family):
    model = tiny(family)
    circuit = find(model, task(4), autoencoders(model), node=30, edge=200, progress=False)
    graph = circuit.to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    assert len(circuit) == 30 and 0 < graph.number_of_edges() <= 200
    assert Node(OUTPUT, 0) in graph


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_nodes_per_position_add_up_to_nodes_summed_over_positions(family):
    model, question = tiny(family), task(4)
    dictionaries = autoencoders(model, n_features=5)
    summed = simple(model, question, dictionaries, node=share(1.0), edge=None)
    apart = simple(model, question, dictionaries, node=share(1.0), edge=share(1.0), per_position=True)
    assert apart.positions is not None
    total: dict[Node, float] = {}
    for node, effect in zip(apart.nodes[:-1], apart.effect.tolist(), strict=False):
        total[node._replace(position=None)] = total.get(node._replace(position=None), 0) + effect
    for node, effect in zip(summed.nodes[:-1], summed.effect.tolist(), strict=False):
        assert total[node] == pytest.approx(effect, rel=1e-4, abs=1e-9)


def test_a_circuit_wired_in_parts_is_the_same(monkeypatch):
    model = tiny("llama")
    dictionaries = autoencoders(model)
    whole = simple(model, task(4), dictionaries, node=60, edge=share(1.0))
    monkeypatch.setattr(circuits.discovery, "_PART_BUDGET", 100)
    parts = simple(model, task(4), dictionaries, node=60, edge=share(1.0))

    def by_ends(circuit):
        return {
            tuple(ends): w for ends, w in zip(circuit.edges.T.tolist(), circuit.weight.tolist(), strict=True)
        }

    assert by_ends(parts) == pytest.approx(by_ends(whole), rel=1e-6, abs=1e-12)


def test_only_one_part_is_held_as_matrices(monkeypatch):
    model, alive, parts = tiny("llama"), WeakSet(), []
    add = Edges.add

    def watched(self, *args):
        alive.add(self)
        parts.append(id(self))
        assert len(alive) == 1
        add(self, *args)

    monkeypatch.setattr(circuits.discovery, "_PART_BUDGET", 100)
    monkeypatch.setattr(Edges, "add", watched)
    simple(model, task(4), autoencoders(model), node=60, edge=share(1.0))
    assert len(parts) > 2


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_in", ["effects", "edges"])
def test_work_that_was_cut_off_goes_on_to_the_same_bits(killed_in, tmp_path, monkeypatch):
    model = tiny("llama", torch.float32)
    dictionaries = autoencoders(model)
    whole = simple(model, task(9), dictionaries, node=40)
    calls = 0

    def dying(original):
        def method(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise Killed
            return original(*args, **kwargs)

        return method

    place, name = (Checkpoint, "save_effects") if killed_in == "effects" else (Edges, "add")
    with monkeypatch.context() as patched:
        patched.setattr(place, name, dying(getattr(place, name)))
        with pytest.raises(Killed):
            simple(model, task(9), dictionaries, node=40, checkpoint=tmp_path)
    resumed = simple(model, task(9), dictionaries, node=40, checkpoint=tmp_path)
    assert resumed.nodes == whole.nodes
    for name in ("effect", "effect_error", "edges", "weight", "weight_error"):
        a, b = getattr(whole, name), getattr(resumed, name)
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), name


def test_another_choice_of_nodes_reuses_the_scores_of_a_checkpoint(tmp_path, monkeypatch):
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    simple(model, task(4), dictionaries, node=10, checkpoint=tmp_path)
    monkeypatch.setattr(Checkpoint, "save_effects", None)
    again = simple(model, task(4), dictionaries, node=20, checkpoint=tmp_path)
    assert len(again) == 20


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    simple(model, task(4), dictionaries, node=10, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="differs in task"):
        simple(model, task(5), dictionaries, node=10, checkpoint=tmp_path)


def test_a_damaged_checkpoint_file_is_named(tmp_path):
    model = tiny("gpt2")
    dictionaries = autoencoders(model)
    simple(model, task(4), dictionaries, node=10, checkpoint=tmp_path)
    file = tmp_path / "effects-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"effects-00001\.safetensors is damaged"):
        simple(model, task(4), dictionaries, node=10, checkpoint=tmp_path)


def test_no_node_above_the_threshold_says_how_large_the_largest_is():
    model = tiny("gpt2")
    with pytest.raises(
        ValueError, match=r"No node is kept by above\(threshold=1000.0\): the largest effect is"
    ):
        simple(model, task(4), autoencoders(model), node=above(1000.0))


def test_a_site_that_is_not_there_is_named_with_those_that_are():
    model = tiny("gpt2")
    with pytest.raises(LookupError, match=r"No site 'mlp.12'; this model has .*mlp.0 to mlp.2"):
        simple(model, task(4), {"mlp.12": Identity()})


def test_a_dictionary_of_another_width_is_refused_with_the_widths():
    model = tiny("gpt2")
    wrong = autoencoders(tiny("gpt2"))["mlp.0"]
    wrong.W_enc = torch.zeros(16, 40, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"mlp.0 has width 32, but the dictionary at mlp.0 refuses it"):
        simple(model, task(4), {"mlp.0": wrong})


@pytest.mark.parametrize("method", [attribution_patching, integrated_gradients])
def test_weights_that_are_not_finite_are_traced_to_the_first_site(method):
    model = fresh("gpt2")
    model.module.transformer.h[1].mlp.c_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"activation at mlp\.1 is not finite"):
        find(model, task(4), autoencoders(model), method=method, progress=False)


def test_running_out_of_memory_says_which_batch_size_to_try(monkeypatch):
    model = tiny("gpt2")

    def logits(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Model, "logits", logits)
    with pytest.raises(MemoryError, match="Out of memory at batch_size=8: try batch_size=4"):
        find(model, task(4), autoencoders(model), batch_size=8, progress=False)


def test_a_folder_that_cannot_be_written_is_an_error_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="Cannot write to"):
        simple(tiny("gpt2"), task(4), {"mlp.0": Identity()}, checkpoint=tmp_path / "file")


def test_a_circuit_says_what_it_was_made_from():
    model = tiny("gpt2")
    circuit = simple(model, task(4), {"mlp.0": Identity()}, node=5)
    assert circuit.about["model"]["fingerprint"] == model.fingerprint
    assert circuit.about["task"]["name"] == "random"
    assert circuit.about["dictionaries"]["mlp.0"]["name"] == "Identity()"
    assert circuit.about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    json.dumps(dict(circuit.about))


@pytest.mark.parametrize("to_mean", [False, True])
def test_unpaired_prompts_move_to_zero_or_to_a_reference(to_mean, tmp_path):
    model, question = tiny("gpt2"), task(4, paired=False)
    neurons = {name: Identity() for name in writers(model)}
    (batch,) = question.batches(None, 4)
    reference = means(model, [batch], neurons) if to_mean else None
    circuit = simple(model, question, neurons, node=20, edge=None, reference=reference)
    leaves = run(model, batch.clean, neurons)
    assert set(circuit.about["metric"]) == {"clean"}
    draw(circuit, tmp_path / "circuit.svg")
    (gradient,) = torch.autograd.grad(
        question.metric(leaves.logits, batch).sum(), leaves.used["resid.2"].features
    )
    values = leaves.used["resid.2"].features.detach()
    moved = values.mean(0) - values if to_mean else -values
    effect = (gradient * moved).sum(1).mean(0)
    for node, found in zip(circuit.nodes, circuit.effect.tolist(), strict=True):
        if node.site == "resid.2":
            assert found == pytest.approx(effect[node.feature].item())


def test_no_dictionaries_at_all_is_an_error():
    with pytest.raises(ValueError, match=r"There are no dictionaries; for neurons pass"):
        simple(tiny("gpt2"), task(4), {})


def test_methods_that_have_no_name_are_told_apart(tmp_path):
    model = tiny("gpt2")
    search = partial(find, model, task(4), {"mlp.1": Identity()}, node=5, checkpoint=tmp_path, progress=False)
    search(method=lambda *args, **settings: attribution_patching(*args, **settings))
    with pytest.raises(ValueError, match="differs in method"):
        search(method=lambda *args, **settings: integrated_gradients(*args, **settings))


class Halves:
    """A dictionary that is nothing but two methods."""

    def encode(self, x):
        return x / 2

    def decode(self, features):
        return features * 2


def test_plain_objects_and_functions_are_known_again(tmp_path):
    model = tiny("gpt2")
    for _ in range(2):

        def metric(logits, batch):
            return logits[:, -1, 3]

        question = replace(task(4), metric=metric)
        circuit = simple(model, question, {"mlp.1": Halves()}, node=5, edge=None, checkpoint=tmp_path)
    Evaluation(model, task(4), {"mlp.1": Halves()}).check(circuit)


@pytest.mark.parametrize(
    ("dictionaries", "error", "says"),
    [
        ([Identity()], TypeError, "Pass dictionaries as {site: dictionary}, not as list"),
        ({"mlp.1": Identity}, TypeError, "no `encode` and `decode`"),
        (
            {"mlp.1": type("Bent", (Halves,), {"decode": lambda self, f: f.tanh()})()},
            ValueError,
            "not affine",
        ),
    ],
)
def test_what_is_no_dictionary_is_refused(dictionaries, error, says):
    with pytest.raises(error, match=says):
        simple(tiny("gpt2"), task(4), dictionaries)


def test_a_reference_for_pairs_is_refused():
    model = tiny("gpt2")
    reference = means(model, task(4).batches(None, 4), {"mlp.1": Identity()})
    with pytest.raises(ValueError, match="all paired"):
        simple(model, task(4), {"mlp.1": Identity()}, reference=reference)


def test_tokens_that_the_model_does_not_have_are_named():
    question = Task("wrong", [Pair((3, 99, 4), (3, 5, 4), (7,), (8,))])
    with pytest.raises(ValueError, match="token 99, but the model's tokens go from 0 to 63"):
        simple(tiny("gpt2"), question, {"mlp.1": Identity()})


def test_models_without_block_outputs_have_circuits_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(16, 16)

        def forward(self, x):
            return self.mix(x.cumsum(1)).tanh()

    class Summing(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)
            self.blocks = nn.ModuleList(Block() for _ in range(2))

        def forward(self, tokens):
            x = self.embed(tokens)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    torch.manual_seed(0)
    layout = Layout(blocks="blocks", embed="embed", head="head", parts={"delta": ""})
    model = Model.load(Summing(), layout=layout)
    neurons = {name: Identity() for name in ("embed", "delta.0", "delta.1")}
    circuit = find(model, task(4), neurons, node=10, edge=10, progress=False)
    assert Evaluation(model, task(4), neurons, start_layer=1).faithfulness(circuit).nodes == 10
