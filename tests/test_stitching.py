from __future__ import annotations

import pytest
import torch
from families import VOCAB, tiny

from interventions.dictionaries import BatchTopK, JumpReLU, ReLU, SparseCoder, TopK, quality
from interventions.dictionaries.measures import stitched, stitching
from interventions.dictionaries.normalisation import LayerNorm

TOKENS = torch.randint(3, VOCAB, (6, 12), generator=torch.Generator().manual_seed(0))
D = 32


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dictionary(features, seed, *, activation=None, b_pre=True, **more) -> SparseCoder:
    W_dec = random(features, D, seed=seed) / D**0.5
    return SparseCoder(
        W_enc=W_dec.T.clone(),
        b_enc=0.1 * random(features, seed=seed + 1),
        W_dec=W_dec,
        b_dec=0.1 * random(D, seed=seed + 2),
        b_pre=0.1 * random(D, seed=seed + 3) if b_pre else None,
        activation=activation or JumpReLU(0.2 + 0.1 * random(features, seed=seed + 4).abs()),
        site="resid.1",
        **more,
    )


def read(model):
    return model.read(TOKENS, ["resid.1"])[model.site("resid.1")].flatten(0, 1)


def error(x, predicted):
    return ((x - predicted).square().sum() / (x - x.mean(0)).square().sum()).item()


@pytest.mark.parametrize("activation", [None, TopK(3)], ids=["JumpReLU", "TopK"])
def test_inserting_a_feature_changes_the_error_by_what_it_says(activation):
    model, small = tiny("gpt2"), dictionary(24, 0)
    large = dictionary(40, 10, activation=activation)
    found = stitching(model, small, large, TOKENS, batch_size=4)
    x = read(model)
    f, before = large.encode(x), error(x, small(x))
    for j in range(40):
        after = error(x, small(x) + f[:, j, None] * large.W_dec[j])
        assert found.change[j].item() == pytest.approx(after - before, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(found.density, (f != 0).double().mean(0))
    assert (found.change < 0).any() and (found.change > 0).any()
    if activation is None:
        live = (found.density > 0).nonzero()[:, 0].tolist()
        for j in live[:4]:
            q = quality(model, stitched(small, large, insert=[j]), TOKENS)["resid.1"]
            assert q.fvu - before == pytest.approx(found.change[j].item(), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("thresholds", ["jump", "batch", "relu"])
@pytest.mark.parametrize("pre", [(True, True), (True, False), (False, True), (False, False)])
def test_a_stitched_dictionary_has_the_features_of_both(thresholds, pre):
    kinds = {"jump": (None, None), "batch": (BatchTopK(3, 0.2), ReLU()), "relu": (ReLU(), None)}[thresholds]
    small = dictionary(24, 0, activation=kinds[0], b_pre=pre[0])
    large = dictionary(40, 10, activation=kinds[1], b_pre=pre[1])
    x = random(50, D, seed=7)
    one = stitched(small, large, insert=[5, 2])
    wanted = torch.cat([small.encode(x), large.encode(x)[:, [5, 2]]], 1)
    torch.testing.assert_close(one.encode(x), wanted)
    torch.testing.assert_close(one(x), small(x) + wanted[:, -2:] @ large.W_dec[[5, 2]])
    cosine = (
        torch.nn.functional.normalize(large.W_dec[7], dim=0)
        @ torch.nn.functional.normalize(small.W_dec, dim=-1).T
    )
    rest = [i for i in range(24) if i != int(cosine.argmax())]
    other = stitched(small, large, insert=[5], swap=[7])
    wanted = torch.cat([small.encode(x)[:, rest], large.encode(x)[:, [5, 7]]], 1)
    torch.testing.assert_close(other.encode(x), wanted)
    assert (other.site, other.n_features) == ("resid.1", 25)


def test_normalised_dictionaries_are_stitched_in_the_units_of_the_site():
    small, large = (dictionary(n, seed, normalise=LayerNorm()) for n, seed in ((24, 0), (40, 10)))
    x = random(50, D, seed=7)
    one = stitched(small, large, insert=[5, 2])
    torch.testing.assert_close(one(x), small(x) + large.encode(x)[:, [5, 2]] @ large.W_dec[[5, 2]])
    with pytest.raises(ValueError, match="normalisation is LayerNorm"):
        stitched(small, dictionary(40, 10))


def test_the_curve_goes_from_one_dictionary_to_the_other():
    model, small, large = tiny("gpt2"), dictionary(24, 0), dictionary(40, 10)
    found = stitching(model, small, large, TOKENS, threshold=0.4, points=5, batch_size=4)
    x = read(model)
    assert found.fvu[0] == pytest.approx(error(x, small(x)), rel=1e-9)
    assert found.fvu[-1] == pytest.approx(error(x, large(x)), rel=1e-9)
    assert found.l0[0] == pytest.approx((small.encode(x) != 0).sum(-1).double().mean().item())
    assert found.l0[-1] == pytest.approx((large.encode(x) != 0).sum(-1).double().mean().item())
    assert (found.inserted[0], found.removed[0]) == (0, 0)
    assert (found.inserted[-1], found.removed[-1]) == (40, 24)
    n_novel = int(found.novel.sum())
    assert 5 < n_novel < 35
    order = found.cosine.argsort()
    for inserted, removed, fvu, l0 in zip(
        found.inserted[:-1], found.removed[:-1], found.fvu, found.l0, strict=False
    ):
        if removed == 0:  # the novel ones, least cosine first
            d = stitched(small, large, insert=order[:inserted])
        else:  # groups of the same nearest feature, the one with the least cosine first
            swap = [j for j in range(40) if j not in order[:n_novel].tolist()]
            nearest = {j: int(found.nearest[j]) for j in swap}
            least = {
                i: min(found.cosine[j].item() for j in swap if nearest[j] == i) for i in nearest.values()
            }
            out = sorted(least, key=lambda i: least[i])[:removed]
            d = stitched(small, large, insert=order[:n_novel], swap=[j for j in swap if nearest[j] in out])
            assert d.n_features == 24 - removed + inserted
        assert fvu == pytest.approx(error(x, d(x)), rel=1e-9)
        assert l0 == pytest.approx((d.encode(x) != 0).sum(-1).double().mean().item())


def test_a_dictionary_is_no_news_to_itself():
    model, small = tiny("gpt2"), dictionary(24, 0)
    found = stitching(model, small, small, TOKENS)
    assert found.share_novel == 0 and found.cosine.min() > 0.999
    assert found.nearest.tolist() == list(range(24))
    assert max(found.fvu) == pytest.approx(min(found.fvu))
    assert "0.0% novel" in str(found)


def test_features_that_were_taken_away_are_found_to_be_novel():
    model, x = tiny("gpt2"), read(tiny("gpt2"))
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
    centre = x.mean(0)
    whole = SparseCoder(  # two features to a direction reconstruct everything
        W_enc=torch.cat([directions, -directions]).T,
        b_enc=torch.zeros(2 * D).double(),
        W_dec=torch.cat([directions, -directions]),
        b_dec=centre,
        b_pre=centre,
        activation=ReLU(),
        site="resid.1",
    )
    part = whole.select(torch.arange(2 * D) % D < 20)
    found = stitching(model, part, whole, TOKENS)
    assert found.novel.tolist() == [i % D >= 20 for i in range(2 * D)]
    assert (found.change[found.novel] <= 0).all() and (found.change[~found.novel] >= 0).all()
    assert found.separation == 1
    assert found.fvu[-1] == pytest.approx(0, abs=1e-12)
    assert all(a >= b - 1e-12 for a, b in zip(found.fvu, found.fvu[1:], strict=False))


def test_features_that_compete_are_not_stitched():
    with pytest.raises(ValueError, match=r"features compete.*JumpReLU"):
        stitched(dictionary(24, 0), dictionary(40, 10, activation=TopK(3)), insert=[1])
    with pytest.raises(ValueError, match="named twice"):
        stitched(dictionary(24, 0), dictionary(40, 10), insert=[1], swap=[1])
    for wrong in (-1, 40):
        with pytest.raises(ValueError, match=f"features 0 to 39, and no {wrong}"):
            stitched(dictionary(24, 0), dictionary(40, 10), insert=[wrong, 39])
    transcoder = dictionary(40, 10, reads="mlp_in.1")
    with pytest.raises(ValueError, match=r"site read is resid.1 for the smaller and mlp_in.1"):
        stitched(dictionary(24, 0), transcoder)


def test_text_without_positions_is_refused():
    with pytest.raises(ValueError, match="no position"):
        stitching(tiny("gpt2"), dictionary(24, 0), dictionary(40, 10), TOKENS, ignore=range(VOCAB))
