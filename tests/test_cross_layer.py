"""Cross-layer transcoders in the path of a model, against plain autograd."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny
from oracles import autoencoders, batch, dense_nodes, slow_edges, tolerance, total_gradients
from test_wiring import assert_same_edges, everything

from circuits import attribution_patching, edges, exact_patching, integrated_gradients
from interventions import Ablate, Clamp, applied, run
from interventions.dictionaries import JumpReLU, ReLU, SparseCoder
from interventions.dictionaries.cross_layer import CrossLayer, CrossLayerTranscoder
from interventions.model import Model

TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


def metric(logits, batch):
    rows = torch.arange(len(logits))
    return logits[rows, -1, batch.answers[:, 0]] - logits[rows, -1, batch.foils[:, 0]]


def transcoder(model: Model, n_features: int = 12, *, skip: bool = True) -> CrossLayerTranscoder:
    torch.manual_seed(5)
    writes = [name for name in model.sites if name.startswith("mlp.")]
    reads = [name.replace("mlp.", "mlp_in.") for name in writes]
    n = len(writes)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    sizes = [(model.site(r).width, model.site(w).width) for r, w in zip(reads, writes, strict=True)]
    encoders = [
        (
            random(d_in, n_features) / d_in**0.5,
            0.1 * random(n_features),
            JumpReLU(torch.full((n_features,), 0.1)),
        )
        for d_in, _ in sizes
    ]
    decoders = [0.4 * random(n_features, n - i, d) / d**0.5 for i, (_, d) in enumerate(sizes)]
    W_skip = 0.3 * random(n, *sizes[0]) / sizes[0][0] ** 0.5 if skip else None
    return CrossLayerTranscoder(
        encoders, decoders, 0.1 * random(n, sizes[0][1]), W_skip, reads=reads, writes=writes
    )


def with_residuals(model: Model, n_features: int = 12) -> dict:
    """The transcoder's layers, and an autoencoder after each block."""
    residuals = {
        name: d for name, d in autoencoders(model, n_features=n_features).items() if name.startswith("resid.")
    }
    return residuals | transcoder(model, n_features).layers()


WITH_MLPS = [
    family
    for family in FAMILIES
    if family in ("gpt2", "gpt_neox", "llama", "gemma2", "olmo2", "opt", "recurrent_gemma", "mixtral")
]


def test_the_layers_add_up_to_the_whole():
    model = tiny("llama")
    clt = transcoder(model)
    x = [torch.randn(2, 4, 32).double() for _ in range(3)]
    layers = list(clt.layers().values())
    features = [
        torch.where((z := at @ layer.own.W_enc + layer.own.b_enc) > 0.1, z, 0.0)
        for at, layer in zip(x, layers, strict=True)
    ]
    for m, y in enumerate(clt(x)):
        expected = x[m] @ layers[m].own.W_skip + layers[m].own.b_dec
        for at in range(m + 1):
            written = layers[at].own.W_dec if at == m else layers[at].later[f"mlp.{m}"].W_dec
            expected = expected + features[at] @ written
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("family", WITH_MLPS)
def test_splicing_in_all_layers_changes_nothing(family):
    model = tiny(family)
    spliced = run(model, TOKENS, with_residuals(model))
    torch.testing.assert_close(spliced.logits, model.logits(TOKENS), **tolerance(family))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_error_is_what_all_layers_together_leave_unexplained(family):
    model = tiny(family)
    clt = transcoder(model)
    read = model.read(TOKENS, [*clt.reads, *clt.writes])
    predicted = clt([read[model.site(name)] for name in clt.reads])
    computed = run(model, TOKENS, clt.layers()).computed
    for name, y in zip(clt.writes, predicted, strict=True):
        torch.testing.assert_close(computed[name].error, read[model.site(name)] - y)


def test_a_feature_writes_at_every_later_layer_when_it_is_changed():
    model = tiny("gpt2")
    clt = transcoder(model)
    layers = clt.layers()
    feature = int(run(model, TOKENS, layers).computed["mlp.0"].features[0, -1].argmax())
    edit = Clamp({"mlp.0": {feature: 3.0}})
    names = ["mlp.0", "mlp.1", "mlp.2"]
    before = run(model, TOKENS, layers).computed
    change = 3.0 - before["mlp.0"].features[..., feature, None]
    seen = {}

    def see(site, x):
        seen[site.name] = x
        return x

    # visits opened later see what the splice hands on
    own = {}
    first = model.visiting(names, lambda site, x: own.setdefault(site.name, x))
    with first, applied(model, edit, dictionaries=layers), model.visiting(names, see):
        logits = model.logits(TOKENS)
    for name in names:
        written = layers["mlp.0"].own.W_dec if name == "mlp.0" else layers["mlp.0"].later[name].W_dec
        torch.testing.assert_close(seen[name] - own[name], change * written[feature])
    torch.testing.assert_close(run(model, TOKENS, layers, [edit]).logits, logits)


def test_generation_under_an_edit_equals_uncached_passes():
    model = tiny("llama")
    layers = transcoder(model).layers()
    with applied(model, Ablate({"mlp.0": list(range(12))}), dictionaries=layers):
        longer = model.generate(TOKENS, max_new_tokens=4, do_sample=False)
        for n in range(5, 9):
            assert model.logits(longer[:, :n])[0, -1].argmax() == longer[0, n]


@pytest.mark.parametrize("family", WITH_MLPS)
def test_effects_are_change_times_gradient_of_a_spliced_run(family):
    model, prompts = tiny(family), batch()
    dictionaries = with_residuals(model)
    effects = attribution_patching(model, prompts, metric, dictionaries)
    gradients, deltas = total_gradients(model, prompts, metric, dictionaries)
    for site, nodes in dense_nodes(effects).items():
        torch.testing.assert_close(nodes, gradients[site].nodes(deltas[site]), **tolerance(family))


@pytest.mark.parametrize("family", WITH_MLPS)
def test_edges_of_every_node_add_up_to_its_effect(family):
    model = tiny(family)
    dictionaries = with_residuals(model)
    effects = attribution_patching(model, batch(), metric, dictionaries)
    found = edges(model, batch(), metric, dictionaries, effects, everything(model, dictionaries))
    for up in dictionaries:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        torch.testing.assert_close(out, effects[up].dense().sum(1).mean(0), **tolerance(family))


@pytest.mark.parametrize("per_position", [False, True])
def test_edges_are_those_of_one_backward_pass_for_each_node(per_position):
    model = tiny("gpt2")
    dictionaries = with_residuals(model, 8)
    prompts = batch(n=2, n_pos=4)
    effects = attribution_patching(model, prompts, metric, dictionaries)
    totals = total_gradients(model, prompts, metric, dictionaries)
    slow = slow_edges(model, prompts, metric, dictionaries, *totals, per_position=per_position)
    kept = everything(model, dictionaries, 4 if per_position else None)
    assert_same_edges(edges(model, prompts, metric, dictionaries, effects, kept), slow, rtol=1e-8, atol=1e-12)


def test_exact_patching_moves_a_feature_at_every_layer_that_it_writes():
    model, prompts = tiny("gpt2"), batch(n=1)
    layers = transcoder(model).layers()
    effects = exact_patching(model, prompts, metric, layers)
    nodes = effects["mlp.0"]
    entry = int(nodes.effect.abs().argmax())
    pos, feature, delta = int(nodes.token[entry]), int(nodes.feature[entry]), nodes.delta[entry]

    def add(site, x):
        written = (
            layers["mlp.0"].own.W_dec if site.name == "mlp.0" else layers["mlp.0"].later[site.name].W_dec
        )
        x = x.clone()
        x[:, pos] += delta * written[feature]
        return x

    with model.visiting(["mlp.0", "mlp.1", "mlp.2"], add):
        moved = metric(model.logits(prompts.clean), prompts)
    torch.testing.assert_close(nodes.effect[entry], (moved - effects.clean)[0])


def test_exact_patching_of_chosen_features_is_that_of_all():
    model, prompts = tiny("gpt2"), batch(n=2)
    layers = transcoder(model).layers()
    every = exact_patching(model, prompts, metric, layers)
    some = exact_patching(model, prompts, metric, layers, features={"mlp.0": [1, 2], "mlp.1": [7]})
    assert list(some) == ["mlp.0", "mlp.1"]
    for name, listed in (("mlp.0", [1, 2]), ("mlp.1", [7])):
        expected = every[name].only(torch.isin(every[name].feature, torch.tensor(listed)))
        assert torch.equal(some[name].feature, expected.feature)
        torch.testing.assert_close(some[name].effect, expected.effect)
        torch.testing.assert_close(some[name].error_effect, expected.error_effect)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dictionaries_in_half_precision_change_nothing_when_spliced_in(dtype):
    model = tiny("gpt2")
    layers = transcoder(model).to(dtype).layers()
    torch.testing.assert_close(run(model, TOKENS, layers).logits, model.logits(TOKENS), rtol=0, atol=1e-12)


def test_integrated_gradients_at_the_last_layer_add_up_to_its_change():
    model, prompts = tiny("gpt2"), batch()
    layers = transcoder(model, skip=False).layers()
    effects = integrated_gradients(model, prompts, metric, layers)
    last = effects["mlp.2"]
    own = last.dense().sum((1, 2))
    earlier = torch.zeros_like(
        own
    )  # what features of the layers before write there, at its own mean gradient
    for name in ("mlp.0", "mlp.1"):
        nodes = effects[name]
        slope = layers[name].later["mlp.2"].projected(last.gradient.flatten(0, 1), nodes.token, nodes.feature)
        earlier.index_add_(0, nodes.token // 5, slope * nodes.delta)
    read = model.read(prompts.patch, ["mlp.2"])[model.site("mlp.2")]
    with model.visiting(["mlp.2"], lambda _site, _x: read):
        moved = metric(model.logits(prompts.clean), prompts)
    torch.testing.assert_close(own + earlier, moved - effects.clean, rtol=2e-2, atol=1e-4)


def test_layers_cannot_be_given_without_those_that_they_write():
    model = tiny("gpt2")
    first = {"mlp.0": transcoder(model).layers()["mlp.0"]}
    with pytest.raises(
        ValueError, match=r"features at mlp.0 also write at mlp.1, mlp.2: pass the dictionaries"
    ):
        run(model, TOKENS, first)


def test_a_layer_of_another_width_is_refused():
    model = tiny("gpt2")
    own = {f"mlp.{i}": SparseCoder.random(32, 8, site=f"mlp.{i}", reads=f"mlp_in.{i}") for i in (0, 1)}
    layers = {
        "mlp.0": CrossLayer(own["mlp.0"], {"mlp.1": torch.randn(8, 16)}),
        "mlp.1": CrossLayer(own["mlp.1"], {}),
    }
    with pytest.raises(ValueError, match=r"features at mlp.0 write width 16 at mlp.1, which has width 32"):
        run(model, TOKENS, layers)


def test_decoders_of_the_wrong_number_of_layers_are_refused():
    encoders = [(torch.randn(4, 8), torch.zeros(8), ReLU()) for _ in range(2)]
    with pytest.raises(
        ValueError, match=r"Layer 0 of 2 writes at 2 layers; its decoder has shape \(8, 1, 4\)"
    ):
        CrossLayerTranscoder(
            encoders, [torch.randn(8, 1, 4), torch.randn(8, 1, 4)], torch.zeros(2, 4),
            reads=["mlp_in.0", "mlp_in.1"], writes=["mlp.0", "mlp.1"],
        )  # fmt: skip


def test_features_that_write_later_are_read_before_their_own_site():
    model = tiny("gpt2")
    clt = _small(reads=["resid.0", "resid.1"], writes=["resid.0", "resid.1"])
    with pytest.raises(ValueError, match=r"they are read before resid\.0, not there"):
        run(model, TOKENS, clt.layers())


def _small(width: int = 32, **changes) -> CrossLayerTranscoder:
    parts = {
        "encoders": [(torch.randn(width, 6), torch.zeros(6), ReLU()) for _ in range(2)],
        "decoders": [torch.randn(6, 2, width), torch.randn(6, 1, width)],
        "b_dec": torch.zeros(2, width),
        "reads": ["mlp_in.0", "mlp_in.1"],
        "writes": ["mlp.0", "mlp.1"],
    }
    return CrossLayerTranscoder(**parts | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"writes": ["mlp.0", "mlp.0"]}, r"each writing a site of its own, not \['mlp.0', 'mlp.0'\]"),
        (
            {"encoders": [], "decoders": [], "b_dec": torch.zeros(0, 4), "reads": [], "writes": []},
            "One",
        ),
        ({"W_skip": torch.zeros(1, 32, 32)}, r"for each of 2 layers, not shapes .*\(1, 32, 32\)"),
        ({"b_dec": torch.zeros(2)}, r"not shapes \[\(2,\), None\]"),
    ],
)
def test_layers_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _small(**change)


def test_as_many_inputs_as_layers_are_asked_for():
    with pytest.raises(ValueError, match="2 layers read a tensor each; 3 were given"):
        _small()([torch.randn(2, 32)] * 3)


def test_what_is_written_later_has_a_row_for_each_feature():
    with pytest.raises(ValueError, match=r"6 features write at mlp\.1 .* of shape \(5, 32\)"):
        CrossLayer(_small().layers()["mlp.0"].own, {"mlp.1": torch.randn(5, 32)})
