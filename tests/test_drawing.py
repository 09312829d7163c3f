import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
import torch
from oracles import autoencoders, task, tiny

from circuits.annotations import texts, token, visible, wrapped
from circuits.curves import plot_curve
from circuits.drawing import dot, draw
from circuits.evaluation import Curve, Score
from circuits.graph import ERROR, OUTPUT, Circuit, Node
from circuits.layout import page
from circuits.picture import NEGATIVE, POSITIVE, picture
from circuits.plots import plot

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="the graphviz program is missing")
SITES = ("embed", "attn.0", "mlp.0", "resid.0")


def circuit(nodes, edges=(), *, positions=None, task="agreement"):
    """Nodes with effects, and edges between them by number with weights; -1 is the output."""
    named = [*(node for node, _ in nodes), Node(OUTPUT, 0)]
    effect = torch.tensor([*(effect for _, effect in nodes), -3.0], dtype=torch.float64)
    ends = torch.tensor([(u, d % len(named)) for u, d, _ in edges], dtype=torch.long).reshape(-1, 2).T
    weight = torch.tensor([w for *_, w in edges], dtype=torch.float64)
    about = {"task": {"name": task, "metric": "LogitDifference()"}, "metric": {"clean": 2.0, "patch": -1.0}}
    return Circuit(
        tuple(named), effect, 0.1 * effect.abs(), ends, weight, 0.1 * weight.abs(),
        dict.fromkeys(SITES, 2000), positions, about,
    )  # fmt: skip


def small():
    return circuit(
        [(Node("embed", 3), -1.0), (Node("attn.0", 7), 0.5), (Node("attn.0", ERROR), -0.25)],
        [(0, 1, 0.4), (0, 2, -0.2), (1, -1, -0.8), (2, -1, 0.1)],
    )


def aligned():
    nodes = [
        (Node("embed", 3, 0), -1.0), (Node("embed", 3, 1), -0.5), (Node("embed", 4, 1), 0.5),
        (Node("embed", 5, 1), 0.5), (Node("attn.0", ERROR, 2), 0.4),
    ]  # fmt: skip
    return circuit(nodes, [(0, 4, -1.0), (1, 4, 0.5), (4, -1, 0.2)], positions=("<s>", " boy", "\n"))


def random_circuit(n, n_edges, *, positions=None, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draws(high, size):
        return torch.randint(high, (size,), generator=generator).tolist()

    places = [None] * n if positions is None else draws(len(positions), n)
    rows = zip(draws(len(SITES), n), draws(2000, n), places, strict=True)
    nodes = [Node(SITES[s], ERROR if f < 200 else f, p) for s, f, p in sorted(set(rows), key=str)]
    nodes = sorted(set(nodes), key=lambda node: (SITES.index(node.site), str(node)))
    effects = torch.randn(len(nodes), generator=generator).tolist()
    pairs = zip(draws(len(nodes), n_edges), draws(len(nodes) + 1, n_edges), strict=True)
    order = [SITES.index(node.site) for node in nodes] + [len(SITES)]
    weights = torch.randn(n_edges, generator=generator).tolist()
    ends = sorted({(u, d) for u, d in pairs if order[u] < order[d]})
    edges = [(u, d, w) for (u, d), w in zip(ends, weights, strict=False)]
    return circuit(list(zip(nodes, effects, strict=True)), edges, positions=positions)


def shown(circuit, **settings):
    return picture(circuit, **{"given": None, "title": None, "most": 60, "most_edges": 150, **settings})


def curve(n=100, active=1000, shift=1.0):
    sizes = tuple(sorted({round(n ** (k / 5)) for k in range(6)}))
    good = [size / (size + 10 * shift) for size in sizes]
    return Curve(
        sizes,
        tuple(Score(v, v - 0.1, v + 0.1, s) for v, s in zip(good, sizes, strict=True)),
        tuple(Score(1 - v, 0.9 - v, 1.1 - v, s) for v, s in zip(good, sizes, strict=True)),
        tuple((v / 10, v / 20) for v in good),
        active,
        "agreement",
    )


def test_the_source_holds_every_node_and_edge_in_the_rank_of_its_site():
    source = dot(shown(small())).source
    ranks = re.findall(r"\{([^{}]*rank=same[^{}]*)\}", source)
    names = [re.findall(r'^\s*"?((?:embed|attn|output)\S*?)"? \[', rank, re.M) for rank in ranks]
    assert names == [["embed/3"], ["attn.0/7", "attn.0/error"], ["output"]]
    assert len(re.findall(r"-> .*tooltip", source)) == 4
    assert '"embed/3" -> "attn.0/7"' in source
    assert re.search(r'"attn.0/error" \[.*shape=triangle', source)


def test_colour_is_the_sign_and_width_the_size():
    drawn = shown(small())
    assert drawn.marks[0].fill == NEGATIVE  # the largest
    red, _, blue = (int(drawn.marks[1].fill[i : i + 2], 16) for i in (1, 3, 5))
    assert red > blue
    assert [abs(line.width) for line in drawn.lines] == sorted(line.width for line in drawn.lines)
    assert drawn.lines[-1].color == NEGATIVE and drawn.lines[-1].note.endswith(
        "weight \N{MINUS SIGN}0.80 ± 0.080"
    )
    one = shown(circuit([(Node("embed", 1), 2.0)]))
    assert (
        one.marks[0].fill == POSITIVE
        and one.marks[0].text == ("embed/1",)
        and one.marks[0].small == ("+2.0",)
    )


def test_the_output_names_the_metric_and_its_change():
    output = shown(small()).marks[-1]
    assert output.text == ("LogitDifference",) and output.small == ("+2.00 → \N{MINUS SIGN}1.00",)


@needs_graphviz
@pytest.mark.parametrize("suffix, start", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
@pytest.mark.parametrize("make", [small, aligned])
def test_a_picture_and_its_source_are_written(tmp_path, make, suffix, start):
    path = tmp_path / "new" / f"circuit.{suffix}"
    assert draw(make(), path) == [path, path.with_suffix(".dot")]
    assert path.read_bytes().startswith(start) and path.stat().st_size > 2000
    assert "digraph" in path.with_suffix(".dot").read_text()


def test_svg_is_the_default_and_the_source_may_stand_alone(tmp_path, monkeypatch):
    assert draw(small(), tmp_path / "alone.dot") == [tmp_path / "alone.dot"]
    assert [path.name for path in tmp_path.iterdir()] == ["alone.dot"]
    assert plot(small(), tmp_path / "circuit").name == "circuit.svg"
    with pytest.raises(
        ValueError, match=r"Cannot draw a \.jpeg file .*\.svg, \.png, \.pdf and \.dot will do"
    ):
        draw(small(), tmp_path / "circuit.jpeg")
    with pytest.raises(ValueError, match=r"\.svg, \.png and \.pdf will do"):
        plot(small(), tmp_path / "circuit.gif")


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_without_the_graphviz_program_matplotlib_draws_and_says_so(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / f"circuit.{suffix}"
    with pytest.warns(UserWarning, match="apt install graphviz, or brew install graphviz") as warned:
        written = draw(small(), path)
    assert len(warned) == 1 and warned[0].filename == __file__
    assert written == [path, path.with_suffix(".dot")]
    assert path.read_bytes() == plot(small(), tmp_path / f"other.{suffix}").read_bytes()


def test_the_global_style_and_backend_are_left_alone_and_not_used(tmp_path):
    before = plot(small(), tmp_path / "before.svg").read_bytes()
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red", "text.usetex": True}):
        held = dict(matplotlib.rcParams)
        after = plot(small(), tmp_path / "after.svg").read_bytes()
        assert dict(matplotlib.rcParams) == held
    assert after == before


@needs_graphviz
@pytest.mark.parametrize("make", [small, aligned])
def test_the_same_circuit_gives_the_same_files(tmp_path, make):
    for name in ("a", "b"):
        draw(make(), tmp_path / f"{name}.svg")
        plot(make(), tmp_path / f"{name}.pdf")
        plot_curve(curve(), tmp_path / f"{name}-curve.svg")
    for suffix in (".svg", ".dot", ".pdf", "-curve.svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert b"dc:date" not in (tmp_path / "a-curve.svg").read_bytes()


def test_a_big_circuit_shows_the_largest_and_says_how_many_are_left_out():
    given = random_circuit(300, 2000)
    drawn = shown(given, most=20, most_edges=30)
    assert len(drawn.marks) == 21 and len(drawn.lines) <= 30
    largest = given.top(nodes=20)
    assert [mark.name for mark in drawn.marks] == [str(node) for node in largest.nodes]
    assert f"20 of {len(given)} nodes" in drawn.subtitle
    assert f"({len(given) - 20} nodes and" in drawn.subtitle and "left out" in drawn.subtitle
    assert drawn.subtitle in dot(drawn).source
    assert "left out" not in shown(small()).subtitle


@pytest.mark.parametrize("positions", [None, ("a", "b", "c", "d")])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_overlaps_and_no_line_runs_through_a_mark(positions, seed):
    drawn = shown(random_circuit(50, 300, positions=positions, seed=seed))
    on = page(drawn)
    boxes = on.boxes
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            apart = abs(a.x - b.x) - (a.width + b.width) / 2, abs(a.y - b.y) - (a.height + b.height) / 2
            assert max(apart) > 0
    for line, curve in zip(drawn.lines, on.curves, strict=True):
        assert curve[0][1] == boxes[line.upstream].top and curve[-1][1] == boxes[line.downstream].bottom
        others = [box for k, box in enumerate(boxes) if k not in (line.upstream, line.downstream)]
        for x, y in sampled(curve):
            assert not any(abs(x - b.x) < b.width / 2 - 1 and abs(y - b.y) < b.height / 2 - 1 for b in others)


def sampled(curve, steps=8):
    for start in range(0, len(curve) - 1, 3):
        p = curve[start : start + 4]
        for k in range(steps + 1):
            t = k / steps
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            yield tuple(sum(w * q[axis] for w, q in zip(weights, p, strict=True)) for axis in (0, 1))


def test_nodes_with_positions_stand_in_the_column_of_their_token():
    drawn = shown(aligned())
    on = page(drawn)
    assert [column.label for column in on.columns] == ["<s>", "·boy", "⏎"]
    for mark, box in zip(drawn.marks, on.boxes, strict=True):
        column = on.columns[2 if mark.kind == "output" else Node.parse(mark.name).position or 0]
        assert abs(box.x - column.x) + box.width / 2 <= column.width / 2
    assert drawn.rows == ("embed", "embed", "attn.0", "output")  # three nodes of one token, two in a row
    source = dot(drawn).source
    assert "layout=nop2" in source and "·boy" in source and '"embed/3@1"' in source


def test_long_runs_of_tokens_without_nodes_become_one_column():
    given = circuit([(Node("embed", 1, 0), 1.0)], positions=tuple("abcdefgh"))
    assert [column.label for column in page(shown(given)).columns] == ["a", "… 6 tokens …", "h"]


def test_a_site_with_many_nodes_takes_several_rows():
    given = circuit([(Node("embed", k), 1.0) for k in range(25)])
    drawn = shown(given)
    assert drawn.rows == ("embed", "embed", "embed", "output")
    assert max(sum(mark.row == row for mark in drawn.marks) for row in range(3)) == 9


@needs_graphviz
def test_hostile_text_comes_out_as_it_went_in(tmp_path):
    hostile = 'a "b" <i>&amp;\\N \\G \\\\ {x|y} $z_1^2$\x00\u202e\ud800'
    drawn = draw(
        circuit([(Node("embed", 1), 1.0), (Node("x:y\\n<b>", 2), 1.0)], [(0, 1, 1.0)], task=hostile),
        tmp_path / "hostile.svg",
        annotations={"embed/1": hostile, "x:y\\n<b>/2": "]]> --> '"},
    )
    root = ElementTree.parse(drawn[0]).getroot()
    found = "\n".join("".join(element.itertext()).replace("\xa0", " ") for element in root.iter())
    clean = 'a "b" <i>&amp;\\N \\G \\\\ {x|y} $z_1^2$␀�'
    assert clean in found and "]]> --> '" in found and "x:y\\n<b>/2" in found
    plot(
        circuit([(Node("embed", 1), 1.0)]),
        tmp_path / "plain.svg",
        title=hostile,
        annotations={"embed/1": hostile},
    )


def test_long_text_is_cut_and_tokens_show_their_spaces():
    assert wrapped("word " * 50)[-1].endswith("…") and len(wrapped("word " * 50)) == 3
    assert wrapped("x" * 100) == ["x" * 18, "x" * 18, "x" * 17 + "…"]
    assert wrapped("  \n ") == []
    assert [token(text) for text in ("Ġthe", "▁the", " the", "Ċ", "\n\n", "", "x" * 30)] == [
        "·the", "·the", "·the", "⏎", "⏎⏎", '""', "x" * 13 + "…",
    ]  # fmt: skip
    assert visible("a\u2028b\u200bc\x7f") == "a bc�"


def test_annotations_stand_on_the_nodes(tmp_path):
    said = {Node("attn.0", 7): "verbs", "embed/3": "subjects", "mlp.9/1": "elsewhere", "attn.0/error": "rest"}
    drawn = shown(small(), given=said)
    assert drawn.marks[0].text == ("subjects",) and drawn.marks[0].small == ("embed/3", "\N{MINUS SIGN}1.0")
    assert drawn.marks[1].text == ("verbs",)
    assert drawn.marks[2].note.endswith("rest")
    there = shown(aligned(), given={"embed/3": "everywhere", "embed/3@1": "here"})
    assert [mark.text for mark in there.marks[:2]] == [("everywhere",), ("here",)]


def test_annotations_are_read_from_each_kind_of_file(tmp_path):
    wanted = {"mlp.3/120": "plural subject", "embed/5": "“boys”"}
    object_, lines, published = (tmp_path / name for name in ("a.json", "b.jsonl", "c.jsonl"))
    object_.write_text(json.dumps(wanted, indent=2), encoding="utf-8-sig")
    lines.write_text("".join(json.dumps({"node": n, "text": t}) + "\n\n" for n, t in wanted.items()))
    header = {"Component": "Component", "Name": "Name", "Annotation": "Annotation"}
    records = [
        {"Name": "mlp_3/120", "Annotation": "plural subject"},
        header,
        {"Name": "embed/5", "Annotation": "“boys”"},
    ]
    published.write_text("\n".join(json.dumps({"Notes": "", **record}) for record in records))
    assert texts(object_) == texts(str(lines)) == wanted
    assert {name: text for name, text in texts(published).items() if name in wanted} == wanted
    (tmp_path / "one.json").write_text('{"mlp.3/120": "plural subject", "embed/5": "“boys”", "embed/6": " "}')
    assert texts(tmp_path / "one.json") == wanted


@pytest.mark.parametrize(
    "content, line, problem",
    [
        ('{"node": "mlp.3/1", "text": "a"}\n{"node": "mlp.3/2", "text"\n', 2, "not JSON"),
        ('{\n  "mlp.3/1": "a",\n  "mlp.3/2" "b"\n}', 3, "not JSON"),
        ('{"node": "mlp.3/1"}\n', 1, "'node' without 'text'"),
        ('{"Name": "mlp_3/1"}\n', 1, "'Name' without 'Annotation'"),
        ('{"a/1": "b"}\n\n{"mlp.3/1": 7}', 3, "both should be text"),
        ("[1, 2]", 1, "a list where an object should be"),
    ],
)
def test_a_bad_file_of_annotations_is_named_with_the_line(tmp_path, content, line, problem):
    path = tmp_path / "notes.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"notes.jsonl, line {line}: .*{problem}"):
        texts(path)


def test_a_missing_empty_or_binary_file_of_annotations_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of annotations .*none.json"):
        draw(small(), tmp_path / "a.svg", annotations=tmp_path / "none.json")
    (tmp_path / "empty.json").write_text(" \n")
    with pytest.raises(ValueError, match=r"empty\.json is empty"):
        texts(tmp_path / "empty.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.json is not text"):
        texts(tmp_path / "binary.json")
    with pytest.raises(TypeError, match="annotation of embed/3 is 5"):
        texts({"embed/3": 5})  # pyright: ignore[reportArgumentType]


def test_an_empty_circuit_cannot_be_drawn(tmp_path):
    for function in (draw, plot):
        with pytest.raises(ValueError, match="no nodes to draw"):
            function(circuit([]), tmp_path / "a.svg")
        with pytest.raises(ValueError, match="at most 0 nodes"):
            function(small(), tmp_path / "a.svg", most=0)
    assert not list(tmp_path.iterdir())


@needs_graphviz
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("per_position", [False, True])
def test_what_find_finds_can_be_drawn(tmp_path, per_position):
    from circuits import attribution_patching, find

    model = tiny("gpt2")
    found = find(
        model, task(3), autoencoders(model), node=30, edge=100, method=attribution_patching,
        per_position=per_position, progress=False,
    )  # fmt: skip
    for path in (*draw(found, tmp_path / "found.svg"), plot(found, tmp_path / "found.png")):
        assert path.stat().st_size > 5000
    root = ElementTree.parse(tmp_path / "found.svg").getroot()
    assert sum(element.get("class") == "edge" for element in root.iter()) == found.edges.shape[1]


@pytest.mark.parametrize("suffix, start", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_curves_are_plotted(tmp_path, suffix, start):
    path = plot_curve(
        {"features": curve(), "_$neurons": curve(shift=30.0, active=5000)}, tmp_path / f"c.{suffix}"
    )
    assert path.read_bytes().startswith(start) and path.stat().st_size > 5000


@pytest.mark.filterwarnings("error")
def test_curves_of_one_point_or_with_values_far_off_are_plotted(tmp_path):
    nan = float("nan")
    odd = Curve(
        (1, 2),
        (Score(nan, nan, nan, 1), Score(0.5, -900.0, 900.0, 2)),
        (Score(3.0, 2.0, 4.0, 1),) * 2,
        ((), ()),
        0,
    )
    for k, given in enumerate((curve(n=1), odd, {"a": odd, "b": curve()})):
        assert plot_curve(given, tmp_path / f"{k}.png", title="a $b_{").stat().st_size > 5000
    with pytest.raises(ValueError, match="no curve to plot"):
        plot_curve({}, tmp_path / "none.svg")
