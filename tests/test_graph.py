import json

import networkx
import pytest
import torch

from circuits import ERROR, OUTPUT, Circuit, Node
from interventions.writing import write


def example(**changes) -> Circuit:
    """embed/0 -> mlp.0/3 -> output, embed/0 -> output, and mlp.0's error, which leads nowhere."""
    parts = dict(
        nodes=(Node("embed", 0), Node("mlp.0", 3), Node("mlp.0", ERROR), Node(OUTPUT, 0)),
        effect=torch.tensor([0.5, -2.0, 0.1, -3.0], dtype=torch.float64),
        effect_error=torch.tensor([0.1, 0.2, 0.3, torch.nan], dtype=torch.float64),
        edges=torch.tensor([[0, 0, 1], [1, 3, 3]]),
        weight=torch.tensor([0.4, -0.1, -2.0], dtype=torch.float64),
        weight_error=torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64),
        features={"embed": 4, "mlp.0": 8},
        about={"task": {"name": "toy"}},
    )
    return Circuit(**{**parts, **changes})


def test_above_keeps_nodes_and_edges_over_thresholds():
    smaller = example().above(0.3, 0.2)
    assert smaller.nodes == (Node("embed", 0), Node("mlp.0", 3), Node(OUTPUT, 0))
    assert smaller.edges.tolist() == [[0, 1], [1, 2]]
    assert smaller.weight.tolist() == [0.4, -2.0]


def test_top_keeps_the_largest_by_size():
    smaller = example().top(nodes=1, edges=1)
    assert smaller.nodes == (Node("mlp.0", 3), Node(OUTPUT, 0))
    assert smaller.weight.tolist() == [-2.0]


def test_connected_drops_what_does_not_lead_to_the_output():
    assert Node("mlp.0", ERROR) not in example().connected()
    assert len(example().connected()) == 2


def test_connected_follows_long_paths():
    chain = example(edges=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert len(chain.connected()) == 3
    broken = example(edges=torch.tensor([[0, 2], [1, 3]]), weight=torch.ones(2), weight_error=torch.ones(2))
    assert broken.connected().nodes == (Node("mlp.0", ERROR), Node(OUTPUT, 0))


def test_subgraph_takes_nodes_or_a_predicate():
    assert len(example().subgraph([Node("embed", 0)])) == 1
    assert len(example().subgraph(lambda node: node.site == "mlp.0")) == 2
    with pytest.raises(KeyError, match=r"mlp\.0/7"):
        example().subgraph([Node("mlp.0", 7)])


def test_methods_leave_the_circuit_as_it_was():
    circuit = example()
    circuit.above(1.0), circuit.top(1, 1), circuit.connected()
    assert len(circuit) == 3 and circuit.edges.shape == (2, 3)


def test_masks_say_for_every_site_what_is_in():
    masks = example().masks()
    assert masks["embed"].tolist() == [True, False, False, False, False]
    assert masks["mlp.0"].nonzero()[:, 0].tolist() == [3, 8]


def test_masks_of_nodes_with_positions_have_a_line_for_each():
    nodes = (Node("embed", 0, 1), Node("mlp.0", 3, 2), Node("mlp.0", ERROR, 0), Node(OUTPUT, 0))
    masks = example(nodes=nodes, positions=("The", "boy", "near")).masks()
    assert masks["mlp.0"].shape == (3, 9)
    assert masks["mlp.0"].nonzero().tolist() == [[0, 8], [2, 3]]


def test_networkx_has_every_number():
    graph = example().to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.nodes[Node("mlp.0", 3)] == {"effect": -2.0, "effect_error": 0.2, "error_node": False}
    assert graph.edges[Node("embed", 0), Node("mlp.0", 3)] == {"weight": 0.4, "weight_error": 0.01}


def test_summary_lists_the_largest_nodes_first():
    lines = example().summary(most=2).splitlines()
    assert lines[0] == "Circuit('toy', 3 nodes, 3 edges)"
    assert lines[2].startswith("mlp.0/3") and "-2.000 ± 0.200" in lines[2] and "output (-2.000)" in lines[2]
    assert lines[3].startswith("embed/0")
    assert lines[4] == "... and 1 more"


def test_a_circuit_is_saved_and_loaded_whole(tmp_path):
    circuit = example(positions=None)
    loaded = Circuit.load(circuit.save(tmp_path / "new" / "folder"))
    assert loaded.nodes == circuit.nodes and loaded.about == circuit.about
    assert loaded.features == circuit.features and loaded.positions is None
    for name in ("effect", "effect_error", "edges", "weight", "weight_error"):
        assert torch.equal(getattr(loaded, name).nan_to_num(), getattr(circuit, name).nan_to_num())


@pytest.mark.parametrize("name", ["circuit.json", "circuit.safetensors"])
def test_a_file_that_is_cut_off_is_refused(name, tmp_path):
    example().save(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"not valid JSON|damaged"):
        Circuit.load(tmp_path)


def test_a_file_that_was_changed_is_refused(tmp_path):
    example().save(tmp_path)
    text = (tmp_path / "circuit.json").read_text()
    (tmp_path / "circuit.json").write_text(text.replace("embed/0", "embed/1"))
    with pytest.raises(ValueError, match="damaged or was changed"):
        Circuit.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"circuit\.json is missing"):
        Circuit.load(tmp_path)


def test_another_format_is_refused_by_number(tmp_path):
    example().save(tmp_path)
    text = json.loads((tmp_path / "circuit.json").read_text())
    (tmp_path / "circuit.json").write_text(json.dumps({**text, "format": 99}))
    with pytest.raises(ValueError, match="has format 99; this version reads 1"):
        Circuit.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write(file, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_nodes_print_and_parse():
    for node in (Node("mlp.3", 120), Node("resid.0", ERROR), Node("attn.1", 5, 4), Node(OUTPUT, 0)):
        assert Node.parse(str(node)) == node
    with pytest.raises(ValueError, match="Not a node"):
        Node.parse("mlp.3/x")


def test_edges_must_end_at_nodes():
    with pytest.raises(ValueError, match="does not exist"):
        example(edges=torch.tensor([[0, 0, 1], [1, 3, 9]]))
