"""What directions say: nearest features, promoted tokens, cosines."""

from __future__ import annotations

import pytest
import torch
from families import WIDTH, tiny
from oracles import PlainSAE

from interventions import SparseCoder
from interventions.dictionaries import CrossLayer, ReLU
from interventions.steering import Direction, nearest, promoted, similarity


def drawn(seed: int, sites=("resid.0", "resid.1")) -> Direction:
    g = torch.Generator().manual_seed(seed)
    return Direction({site: torch.randn(WIDTH, generator=g) for site in sites})


def test_nearest_features_are_those_of_the_largest_cosines():
    coder = _coder()
    direction = drawn(0)
    found = nearest(direction, {"resid.1": coder, "mlp.2": coder}, n=5)
    assert list(found) == ["resid.1"]
    cosines = torch.cosine_similarity(coder.W_dec, direction["resid.1"][None], dim=1)
    top = cosines.topk(5)
    assert list(found["resid.1"].features) == top.indices.tolist()
    assert found["resid.1"].decoder == pytest.approx(top.values.tolist(), abs=1e-6)
    read = torch.cosine_similarity(coder.W_enc.T, direction["resid.1"][None], dim=1)[top.indices]
    assert found["resid.1"].encoder == pytest.approx(read.tolist(), abs=1e-6)
    assert (
        list(nearest(-direction, {"resid.1": coder}, n=2)["resid.1"].features)
        == (-cosines).topk(2).indices.tolist()
    )
    assert str(found["resid.1"]).count("(") == 5


def test_what_is_read_elsewhere_has_no_cosine_with_encoder_rows():
    own = SparseCoder.random(WIDTH, 50)
    assert nearest(drawn(0), {"resid.0": _coder("mlp_in.1")})["resid.0"].encoder is None
    crossing = CrossLayer(_coder("mlp_in.1"), {"mlp.2": torch.randn(50, WIDTH)})
    assert nearest(drawn(0), {"resid.0": crossing})["resid.0"].encoder is None
    assert nearest(drawn(0), {"resid.0": own})["resid.0"].encoder is not None


def _coder(reads: str | None = None) -> SparseCoder:
    """With encoder and decoder rows of their own, of many norms."""
    g = torch.Generator().manual_seed(0)
    sizes = 3 * torch.rand(50, 1, generator=g)
    return SparseCoder(
        W_enc=torch.randn(WIDTH, 50, generator=g), b_enc=torch.zeros(50), b_dec=torch.zeros(WIDTH),
        W_dec=sizes * torch.randn(50, WIDTH, generator=g), reads=reads, activation=ReLU(),
    )  # fmt: skip


def test_dictionaries_that_do_not_fit_are_refused():
    with pytest.raises(
        LookupError, match=r"No dictionary at resid\.0, resid\.1; there are dictionaries at: mlp\.0"
    ):
        nearest(drawn(0), {"mlp.0": SparseCoder.random(WIDTH, 40)})
    with pytest.raises(ValueError, match=r"at resid\.0 writes width 8; the direction has 32"):
        nearest(drawn(0), {"resid.0": SparseCoder.random(8, 40)})
    with pytest.raises(TypeError, match=r"has no `decoder_rows`: PlainSAE"):
        nearest(drawn(0), {"resid.0": PlainSAE(WIDTH, 40)})


def test_promoted_tokens_are_those_the_unembedding_raises():
    model, direction = tiny("llama"), drawn(0)
    found = promoted(model, direction, k=4)
    for site, tokens in found.items():
        logits = model.module.lm_head.weight @ direction[site].double()
        logits = logits - logits.mean()
        assert list(tokens.raised_ids) == logits.topk(4).indices.tolist()
        assert list(tokens.lowered_ids) == (-logits).topk(4).indices.tolist()
        assert [v for _, v in tokens.raised] == pytest.approx(logits.topk(4).values.tolist())
        assert [v for _, v in tokens.lowered] == pytest.approx((-(-logits).topk(4).values).tolist())
    assert str(found["resid.0"]).startswith("raised '<")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_at_a_state_the_effect_is_the_slope_through_the_final_norm(family):
    model, direction = tiny(family), drawn(0, ("resid.1",))
    last = list(model.sites)[-1]
    state = model.read(torch.tensor([[3, 1, 4]]), [last])[model.site(last)][0, -1]
    found = promoted(model, direction, k=3, at=state)["resid.1"]
    row, step = direction["resid.1"].double(), 1e-3
    slope = (model.unembed(state + step * row) - model.unembed(state - step * row)) / 2 / step
    slope = slope - slope.mean()
    assert [v for _, v in found.raised] == pytest.approx(
        slope[list(found.raised_ids)].tolist(), rel=1e-2, abs=1e-3
    )
    assert slope[list(found.raised_ids)].min() >= slope.topk(3).values.min() - 2e-3


def test_only_what_is_written_to_the_residual_stream_is_unembedded():
    model = tiny("gpt2")
    both = drawn(0, ("resid.0",))
    assert list(promoted(model, drawn(0, ("attn_in.1", "attn.1", "heads.1")))) == ["attn.1"]
    with pytest.raises(ValueError, match=r"residual stream, of width 32, at mlp_in\.0: take sites such as"):
        promoted(model, drawn(0, ("mlp_in.0",)))
    with pytest.raises(ValueError, match=r"has width 8, but resid\.0"):
        promoted(model, Direction({"resid.0": torch.ones(8)}))
    with pytest.raises(ValueError, match="another model"):
        promoted(model, Direction(dict(both), "f" * 64))


def test_similarities_are_cosines():
    a, b = drawn(0), drawn(1)
    found = similarity(a)
    assert found.names == ("resid.0", "resid.1")
    expected = torch.cosine_similarity(a["resid.0"], a["resid.1"], dim=0).double()
    torch.testing.assert_close(found.cosine[0, 1], expected, atol=1e-6, rtol=1e-6)
    across = similarity({"a": a["resid.0"], "b": b["resid.0"], "-a": -a["resid.0"]})
    assert across.cosine[0, 1].item() == pytest.approx(a.cosine(b)["resid.0"])
    assert across.cosine[0, 2] == -1 and (across.cosine.diagonal() == 1).all()
    with pytest.raises(ValueError, match=r"several widths have no cosines: \{'a': 2, 'b': 3\}"):
        similarity({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match="no vectors"):
        similarity({})
