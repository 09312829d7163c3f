"""A dictionary in other forms: gated, normalised, scaled, cut, sparse. All in float64."""

from __future__ import annotations

import pytest
import torch
from families import tiny
from oracles import batch
from test_wiring import everything, metric

from circuits import attribution_patching, edges
from interventions.dictionaries import BatchTopK, JumpReLU, ReLU, SparseCoder, TopK
from interventions.dictionaries.activations import AbsTopK, Activation, BatchwiseTopK, GroupMax
from interventions.dictionaries.normalisation import LayerNorm, Normalise, RescaleNorm
from interventions.dictionaries.units import Units

D, F = 6, 20
KINDS: list[Activation] = [
    ReLU(), JumpReLU(torch.linspace(0, 1, F)), TopK(4), BatchTopK(4, 0.5), BatchwiseTopK(4),
    AbsTopK(4), GroupMax(4),
]  # fmt: skip
ACTIVATIONS = pytest.mark.parametrize("activation", KINDS, ids=lambda a: type(a).__name__)
NORMS = pytest.mark.parametrize("norm", [RescaleNorm(), LayerNorm()], ids=lambda n: type(n).__name__)


def _coder(activation: Activation, **options) -> SparseCoder:
    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    return SparseCoder(
        W_enc=random(D, F), b_enc=random(F) / 4, W_dec=random(F, D), b_dec=random(D), b_pre=random(D),
        activation=activation, **options,
    )  # fmt: skip


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@ACTIVATIONS
def test_sparse_features_are_the_dense_ones(activation, monkeypatch):
    coder, x = _coder(activation), _x(3, 7)
    dense = coder.encode(x)
    monkeypatch.setattr("interventions.dictionaries.coders._CHUNK", 4 * F)  # four tokens at a time
    sparse = coder.encode_sparse(x)
    assert torch.equal(sparse.token, sparse.token.sort().values)
    assert (sparse.value != 0).all() and len(sparse.value) == (dense != 0).sum()
    torch.testing.assert_close(sparse.dense(), dense)
    torch.testing.assert_close(coder.decode_sparse(sparse), coder.decode(dense))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_sparse_features_of_single_and_of_no_tokens(shape):
    coder, x = _coder(TopK(4)), _x(*shape)
    torch.testing.assert_close(coder.encode_sparse(x).dense(), coder.encode(x))
    torch.testing.assert_close(coder.decode_sparse(coder.encode_sparse(x)), coder.decode(coder.encode(x)))


def test_features_chosen_over_a_batch_depend_on_it():
    coder, x = _coder(BatchwiseTopK(4)), _x(50)
    features = coder.encode(x)
    z = coder.pre_activations(x)
    assert (features != 0).sum() == 4 * 50
    assert torch.equal(features, torch.where(z >= z.flatten().sort().values[-200], z, 0.0))
    assert not torch.equal(coder.encode(x[:5]), features[:5])


def test_features_chosen_by_magnitude_keep_their_signs():
    coder, x = _coder(AbsTopK(4)), _x(50)
    features, z = coder.encode(x), coder.pre_activations(x)
    assert ((features != 0).sum(-1) == 4).all() and (features < 0).any()
    assert torch.equal(features[features != 0], z[features != 0])
    assert torch.equal(features.abs().sum(-1), z.abs().sort(-1).values[:, -4:].sum(-1)) or torch.allclose(
        features.abs().sum(-1), z.abs().sort(-1).values[:, -4:].sum(-1)
    )


def test_groups_must_divide_the_features():
    with pytest.raises(ValueError, match="20 features do not fall into 3 groups of equal size"):
        _coder(GroupMax(3)).encode(_x(2))


def test_a_gated_dictionary_is_gate_times_magnitude():
    torch.manual_seed(0)
    W_enc, W_dec = torch.randn(D, F).double(), torch.randn(F, D).double()
    r_mag, b_gate, b_mag = (torch.randn(F).double() for _ in range(3))
    b_dec = torch.randn(D).double()
    coder = SparseCoder.gated(
        W_enc=W_enc, r_mag=r_mag, b_gate=b_gate, b_mag=b_mag, W_dec=W_dec, b_dec=b_dec, b_pre=b_dec
    )
    x = _x(400)
    u = (x - b_dec) @ W_enc
    expected = (u + b_gate > 0) * (u * r_mag.exp() + b_mag).relu()
    assert 0 < (expected != 0).sum() < expected.numel()
    torch.testing.assert_close(coder.encode(x), expected)


def test_the_two_parts_of_a_gate_are_of_one_shape():
    with pytest.raises(ValueError, match=r"are of one shape, not \(20,\), \(1,\), \(20,\)"):
        SparseCoder.gated(
            W_enc=torch.randn(D, F), r_mag=torch.zeros(F), b_gate=torch.zeros(1), b_mag=torch.zeros(F),
            W_dec=torch.randn(F, D), b_dec=torch.zeros(D),
        )  # fmt: skip


@NORMS
@pytest.mark.parametrize("activation", [JumpReLU(torch.full((F,), 0.3)), TopK(4)], ids=["JumpReLU", "TopK"])
def test_a_normalised_dictionary_reconstructs_as_published(norm: Normalise, activation):
    coder, x = _coder(activation, normalise=norm), _x(50)
    if isinstance(norm, LayerNorm):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        normed = (x - mean) / (std + 1e-5)
    else:
        mean, std = 0.0, x.norm(dim=-1, keepdim=True) / D**0.5
        normed = x / std
    features = activation((normed - coder.b_pre) @ coder.W_enc + coder.b_enc)
    torch.testing.assert_close(coder.normalised(x, coder.encode(x)), features)
    torch.testing.assert_close(coder(x), (features @ coder.W_dec + coder.b_dec) * std + mean)


@NORMS
def test_encoder_rows_of_a_normalised_dictionary_are_gradients(norm):
    coder, index = _coder(ReLU(), normalise=norm), torch.arange(50) % F
    x = _x(50).requires_grad_()
    values = coder.encode(x).gather(1, index[:, None])
    (gradient,) = torch.autograd.grad(values.sum(), x)
    active = values != 0
    assert 0 < active.sum() < len(active)
    torch.testing.assert_close(coder.encoder_rows(x, index) * active, gradient)


@NORMS
@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_edges_of_normalised_dictionaries_add_up_to_effects(norm, family):
    model = tiny(family)
    dictionaries = {}
    for i, name in enumerate(["embed", "resid.0", "resid.1"]):
        torch.manual_seed(i)
        W = torch.randn(2, 32, 40).double() / 6
        dictionaries[name] = SparseCoder(
            W_enc=W[0], b_enc=0.1 * torch.randn(40).double(), W_dec=W[1].T, b_dec=torch.randn(32).double(),
            b_pre=0.1 * torch.randn(32).double(), activation=TopK(8), normalise=norm,
        )  # fmt: skip
    effects = attribution_patching(model, batch(), metric, dictionaries)
    found = edges(model, batch(), metric, dictionaries, effects, everything(model, dictionaries))
    for up in dictionaries:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        torch.testing.assert_close(out, effects[up].dense().sum(1).mean(0), rtol=1e-8, atol=1e-12)


@ACTIVATIONS
def test_an_input_scale_is_folded_exactly(activation):
    coder, x = _coder(activation), _x(50)
    folded = coder.scale_input(3.0)
    torch.testing.assert_close(folded.encode(x), coder.encode(3 * x))
    torch.testing.assert_close(folded(x), coder(3 * x) / 3)
    assert folded.units == Units("normalised", input_scale=3.0)


def test_a_transcoder_has_scales_for_what_it_reads_and_writes():
    coder, x = _coder(ReLU(), W_skip=torch.randn(D, D).double(), reads="mlp_in.0"), _x(50)
    folded = coder.scale_input(3.0, out=0.5)
    torch.testing.assert_close(folded(x), coder(3 * x) / 0.5)


@ACTIVATIONS
def test_latents_are_scaled_exactly_by_one_number(activation):
    coder, x = _coder(activation), _x(50)
    scaled = coder.scale_latents(2.5)
    torch.testing.assert_close(scaled.encode(x), 2.5 * coder.encode(x))
    torch.testing.assert_close(scaled(x), coder(x))


@ACTIVATIONS
def test_decoder_rows_become_unit_where_that_changes_no_choice(activation):
    coder, x = _coder(activation), _x(50)
    if activation.selects:
        with pytest.raises(ValueError, match="features compete by size"):
            coder.unit_decoder()
        return
    unit = coder.unit_decoder()
    torch.testing.assert_close(unit.W_dec.norm(dim=-1), torch.ones(F).double())
    assert unit.has_unit_decoder and not coder.has_unit_decoder
    torch.testing.assert_close(unit(x), coder(x))
    torch.testing.assert_close(unit.encode(x), coder.encode(x) * coder.W_dec.norm(dim=-1))


def test_competing_features_of_equal_norms_can_be_made_unit():
    coder, x = _coder(TopK(4)), _x(50)
    equal = SparseCoder(
        W_enc=coder.W_enc, b_enc=coder.b_enc, b_dec=coder.b_dec, activation=TopK(4),
        W_dec=3 * torch.nn.functional.normalize(coder.W_dec, dim=-1),
    )  # fmt: skip
    torch.testing.assert_close(equal.unit_decoder()(x), equal(x))


def test_a_decoder_row_of_zero_cannot_be_made_unit():
    coder = _coder(ReLU())
    coder.W_dec[3] = 0
    with pytest.raises(ValueError, match="a decoder row is zero"):
        coder.unit_decoder()


def test_an_input_scale_is_refused_where_every_token_is_normalised():
    with pytest.raises(ValueError, match="there is none to fold in"):
        _coder(ReLU(), normalise=RescaleNorm()).scale_input(2.0)


@pytest.mark.parametrize("activation", KINDS[:2] + KINDS[3:4], ids=lambda a: type(a).__name__)
def test_some_features_make_a_dictionary_of_their_own(activation):
    coder, x = _coder(activation), _x(50)
    some = coder.select([3, 17, 5])
    torch.testing.assert_close(some.encode(x), coder.encode(x)[:, [3, 17, 5]])
    torch.testing.assert_close(coder.select(slice(2, 9)).encode(x), coder.encode(x)[:, 2:9])


def test_some_of_competing_features_are_refused():
    with pytest.raises(ValueError, match="features compete with each other"):
        _coder(TopK(4)).select([1, 2])


def test_a_matryoshka_dictionary_is_cut_at_its_prefixes():
    coder, x = _coder(BatchTopK(4, 0.5), prefixes=(5, 10, F)), _x(50)
    small = coder.prefix(10)
    torch.testing.assert_close(small.encode(x), coder.encode(x)[:, :10])
    assert small.prefixes == (5, 10)
    with pytest.raises(ValueError, match=r"7 is none of the prefixes \[5, 10, 20\]"):
        coder.prefix(7)
    with pytest.raises(ValueError, match=r"Prefixes \[30\] do not fit 20 features"):
        _coder(ReLU(), prefixes=(30,))


def test_features_and_reconstructions_come_back_in_the_place_of_the_input():
    coder = SparseCoder.random(D, F).to("meta")
    x = torch.empty(2, D, device="meta")
    assert coder.encode(x).device.type == coder(x).device.type == "meta"


# What does not fit


def test_a_batch_whose_largest_features_lie_together_is_cut_as_a_whole(monkeypatch):
    coder, x = _coder(BatchwiseTopK(4)), _x(12)
    x[:3] *= 20  # the first part holds more of the winners than its tokens' share
    monkeypatch.setattr("interventions.dictionaries.coders._CHUNK", 3 * F)
    torch.testing.assert_close(coder.encode_sparse(x).dense(), coder.encode(x))


@NORMS
def test_a_token_of_zeros_has_finite_features(norm):
    coder, x = _coder(ReLU(), normalise=norm), torch.zeros(2, D, dtype=torch.float64)
    assert coder.encode(x).isfinite().all() and coder(x).isfinite().all()
    assert coder.encoder_rows(x, torch.tensor([0, 1])).isfinite().all()


def test_weights_of_several_dtypes_are_held_in_the_one_that_holds_them_all():
    coder = _coder(ReLU())
    mixed = coder._with(W_enc=coder.W_enc.float(), b_enc=coder.b_enc.bfloat16())
    assert {weight.dtype for weight in mixed.parameters()} == {torch.float64}
    assert torch.equal(mixed.W_enc, coder.W_enc.float().double())
    assert mixed(_x(3)).shape == (3, D)


@pytest.mark.parametrize("shape", [(3, D + 1), (D, 2), ()])
def test_an_input_of_another_width_is_named(shape):
    coder = _coder(ReLU())
    for use in (coder.encode, coder.encode_sparse, coder):
        with pytest.raises(ValueError, match=f"reads width {D}, not a tensor"):
            use(torch.zeros(shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c.scale_input(1.0, 0.0), "Scales are positive, finite numbers, not 0.0"),
        (lambda c: c.scale_latents(torch.ones(F - 1)), r"\(19,\) factors do not fit 20 features"),
        (lambda c: c.select([]), "at least one feature"),
        (lambda c: c._with(activation=JumpReLU(torch.ones(1))), "1 thresholds do not fit 20 features"),
        (
            lambda c: JumpReLU(torch.ones(F, dtype=torch.complex64)),
            "Thresholds are numbers, not torch.complex64",
        ),
        (lambda c: c._with(W_enc=c.W_enc[:0], b_pre=None), "at least one feature and a width"),
        (lambda c: c._with(activation=GroupMax(3)), "20 features do not fall into 3 groups"),
        (lambda c: c._with(activation=GroupMax(4), prefixes=[8]).prefix(8), "a part has other groups"),
        (lambda c: c._with(prefixes=[2.5]), r"Prefixes \[2.5\] do not fit"),
        (lambda c: c._with(prefixes=["5"]), r"Prefixes \['5'\] do not fit"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make(_coder(ReLU()))
