from __future__ import annotations

import math

import pytest
import torch
from families import VOCAB, fresh, tiny
from torch.nn.functional import cosine_similarity, cross_entropy

from interventions.acts import Identity
from interventions.dictionaries import JumpReLU, SparseCoder, TopK, quality
from interventions.dictionaries.cross_layer import CrossLayerTranscoder
from interventions.dictionaries.measures import geometry, neighbours, principal
from interventions.dictionaries.measures.text import token_rows

TOKENS = torch.randint(3, VOCAB, (6, 12), generator=torch.Generator().manual_seed(0))


def coder(site="resid.1", reads=None, *, activation=None, features=48, width=32) -> SparseCoder:
    """A dictionary with every part that one can have, in float64."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return SparseCoder(
        W_enc=random(width, features) / 6,
        b_enc=random(features) / 6,
        W_dec=random(features, width) / 6,
        b_dec=random(width) / 6,
        b_pre=random(width) / 6,
        W_skip=random(width, width) / 20 if reads else None,
        activation=activation or JumpReLU(0.1 + random(features).abs() / 6),
        site=site,
        reads=reads,
    )


def by_hand(model, dictionary, read, site, tokens, keep):
    """Every measure of one dictionary by its definition, from activations that are all held at once."""
    acts = model.read(tokens, [read, site])
    x, y = acts[model.site(read)], acts[model.site(site)]
    made, features = dictionary(x), dictionary.encode(x)[keep]
    mean = y[keep].mean(0)
    e, t, p = (y - made)[keep], y[keep], made[keep]
    found = {
        "fvu": e.square().sum() / (t - mean).square().sum(),
        "l0": (features != 0).sum(-1).double().mean(),
        "l1": features.abs().sum(-1).mean(),
        "dead": (features == 0).all(0).double().mean(),
        "cosine": cosine_similarity(t, p).mean(),
        "norm_ratio": (p.norm(dim=-1) / t.norm(dim=-1)).mean(),
        "bias": p.square().sum(-1).mean() / (t * p).sum(-1).mean(),
        "explained_variance_legacy": (1 - e.square().sum(-1) / (t - mean).square().sum(-1)).mean(),
        "explained_variance_saebench": 1
        - e.square().sum(-1).mean() / (t.square().sum(-1).mean() - t.square().mean(0).mean() ** 2),
    }
    clean = model.logits(tokens)[:, :-1][keep[:, 1:]].log_softmax(-1)
    target = tokens[:, 1:][keep[:, 1:]]
    found["loss"] = cross_entropy(clean, target)
    for loss, kl, new in (
        ("spliced", "kl", made),
        ("zeroed", "kl_zeroed", torch.zeros_like(y)),
        ("averaged", "kl_averaged", mean.expand_as(y)),
    ):
        with model.visiting([site], lambda _, x, new=new: torch.where(keep[..., None], new, x)):
            logits = model.logits(tokens)[:, :-1][keep[:, 1:]].log_softmax(-1)
        found[loss] = cross_entropy(logits, target)
        found[kl] = (clean.exp() * (clean - logits)).sum(-1).mean()
    density = (features != 0).double().mean(0)
    return {name: value.item() for name, value in found.items()}, density


@pytest.mark.parametrize(
    ("family", "read", "site", "activation"),
    [
        ("gpt2", "resid.1", "resid.1", None),
        ("llama", "mlp_in.1", "mlp.1", None),
        ("mamba", "resid.0", "resid.0", TopK(5)),
        ("rwkv", "resid.1", "resid.1", None),
    ],
)
def test_every_measure_is_its_definition(family, read, site, activation):
    model = tiny(family)
    d = coder(site, read if read != site else None, activation=activation)
    first = TOKENS.eq(TOKENS[0, 0])
    precision = 1e-5 if family == "mamba" else 1e-9  # its scan computes in float32
    for ignore, keep in (((), torch.ones_like(first)), ((int(TOKENS[0, 0]),), ~first)):
        q = quality(model, d, TOKENS, batch_size=4, ignore=ignore)[site]
        wanted, density = by_hand(model, d, read, site, TOKENS, keep)
        for name, value in wanted.items():
            assert getattr(q, name) == pytest.approx(value, rel=precision, abs=1e-12), name
        torch.testing.assert_close(q.density, density, rtol=1e-12, atol=0)
        assert q.positions == keep.sum()
        assert q.explained_variance == 1 - q.fvu
        assert q.kl_recovered == pytest.approx(1 - wanted["kl"] / wanted["kl_zeroed"])
        assert q.recovered == pytest.approx(
            (wanted["zeroed"] - wanted["spliced"]) / (wanted["zeroed"] - wanted["loss"])
        )
        assert q.dense(0.1) == pytest.approx((density > 0.1).double().mean().item())
        assert q.histogram().sum() == (density > 0).sum()


def test_variance_is_explained_as_sae_lens_has_it_whatever_the_offset():
    calculator = pytest.importorskip("sae_lens.evals").ExplainedVarianceCalculator
    model, d = tiny("gpt2"), coder()
    with model.visiting(["resid.1"], lambda _, x: x + 300):  # a large mean, as real residual streams have
        q = quality(model, d, TOKENS)["resid.1"]
        x = model.read(TOKENS, ["resid.1"])[model.site("resid.1")].flatten(0, 1)
    theirs = calculator()
    for part in x.split(20):
        theirs.add_batch(d(part), part)
    assert q.explained_variance == pytest.approx(theirs.compute(), rel=1e-8)


def test_only_the_centred_explained_variance_is_the_same_at_every_scale():
    model, d = tiny("gpt2"), coder()
    found = []
    for scale in (1.0, 10.0):
        larger = d.scale_input(1 / scale)
        with model.visiting(["resid.1"], lambda _, x, scale=scale: x * scale):
            found.append(quality(model, larger, TOKENS)["resid.1"])
    for name in ("explained_variance", "explained_variance_legacy", "cosine", "norm_ratio", "bias", "l0"):
        assert getattr(found[0], name) == pytest.approx(getattr(found[1], name), rel=1e-9), name
    one, ten = (q.explained_variance_saebench for q in found)
    assert abs(one - ten) > 0.1


def test_neurons_leave_nothing_and_diverge_by_nothing():
    q = quality(tiny("gpt2"), {"mlp.1": Identity()}, TOKENS)["mlp.1"]
    assert (q.fvu, q.kl, q.explained_variance_legacy) == (0, 0, 1)
    assert q.kl_recovered == 1 and q.cosine == pytest.approx(1) and q.bias == pytest.approx(1)


def test_a_cross_layer_transcoder_is_measured_by_what_all_its_layers_write():
    model, generator = tiny("llama"), torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 6

    reads, writes = (["mlp_in.0", "mlp_in.1", "mlp_in.2"], ["mlp.0", "mlp.1", "mlp.2"])
    clt = CrossLayerTranscoder(
        [(random(32, 40), random(40), JumpReLU(random(40).abs())) for _ in range(3)],
        [random(40, 3 - i, 32) for i in range(3)],
        random(3, 32),
        reads=reads,
        writes=writes,
    )
    acts = model.read(TOKENS, [*reads, *writes])
    x = [acts[model.site(name)] for name in reads]
    found = quality(model, clt.layers(), TOKENS, batch_size=4)
    assert list(found) == writes
    for i, (name, made) in enumerate(zip(writes, clt(x), strict=True)):
        y = acts[model.site(name)]
        fvu = (y - made).square().sum() / (y - y.mean((0, 1))).square().sum()
        assert found[name].fvu == pytest.approx(fvu.item(), rel=1e-9)
        own = clt.layers()[name].encode(x[i])
        assert found[name].l0 == pytest.approx((own != 0).sum(-1).double().mean().item())
        with model.visiting([name], lambda _, __, made=made: made):
            logits = model.logits(TOKENS)[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
        assert found[name].spliced == pytest.approx(loss.item(), rel=1e-9)


def test_nothing_is_run_more_often_than_it_says():
    model = fresh("gpt2")
    dictionaries = {site: coder(site) for site in ("resid.0", "resid.1")}
    passes = []
    handle = model.module.register_forward_hook(lambda *_: passes.append(1))
    quality(model, dictionaries, TOKENS, batch_size=3)
    handle.remove()
    assert len(passes) == (2 + 3 * 2) * 2


def test_a_long_account_has_all_the_measures():
    text = str(quality(tiny("gpt2"), coder(), TOKENS)["resid.1"])
    for word in ("FVU", "legacy", "SAEBench 0.6", "norm ratio", "L1", "divergence", "over 10%"):
        assert word in text
    assert "nan" not in text


def test_text_without_a_position_to_count_is_refused():
    with pytest.raises(ValueError, match="no position to count"):
        quality(tiny("gpt2"), coder(), TOKENS, ignore=range(VOCAB))


def test_texts_become_rows_without_padding():
    class Letters:
        def encode(self, text, add_special_tokens=True):
            return [ord(c) - 90 for c in text]

    model = fresh("gpt2")
    with pytest.raises(ValueError, match="no tokenizer"):
        quality(model, coder(), ["abc"])
    model.tokenizer = Letters()
    tokens, ignored = token_rows(model, ["abcd", "efgh"], length=3)
    assert (tokens.tolist(), ignored) == ([[7, 8, 9], [10, 11, 12]], ())
    assert token_rows(model, ["abcd", "efgh"], length=3, most=1)[0].tolist() == [[7, 8, 9]]
    assert token_rows(model, ["ab"], length=3)[0].tolist() == [[7, 8]]
    assert quality(model, coder(), ["abcdefgh"])["resid.1"].positions == 8
    with pytest.raises(ValueError, match="no text"):
        token_rows(model, [""])


def test_what_reads_behind_its_own_site_is_refused():
    late = SparseCoder.random(32, 48, site="attn.0", reads="mlp_in.0")
    with pytest.raises(ValueError, match=r"at attn\.0 reads mlp_in\.0, which the model computes only later"):
        quality(tiny("gpt2"), late, torch.ones(2, 5, dtype=torch.long))


def test_what_opens_a_row_counts_no_more_than_in_training(tmp_path):
    class Letters:
        bos_token_id, all_special_ids = 2, (2,)

        def encode(self, text, add_special_tokens=True):
            return [2] * add_special_tokens + [ord(c) - 90 for c in text]

    model = fresh("gpt2")
    model.tokenizer = Letters()
    (tmp_path / "text.txt").write_text("abcdefgh")
    tokens, ignored = token_rows(model, tmp_path / "text.txt", length=5)
    assert (tokens.tolist(), ignored) == ([[2, 7, 8, 9, 10], [2, 11, 12, 13, 14]], (2,))
    assert quality(model, coder(), str(tmp_path / "text.txt"))["resid.1"].positions == 8
    assert quality(model, coder(), tokens)["resid.1"].positions == 10


def test_cosine_maxima_are_those_of_the_whole_matrix(monkeypatch):
    from interventions.dictionaries.measures import cosines

    d = coder()
    found = []
    for chunk in (2**25, 3 * 48):
        monkeypatch.setattr(cosines, "_CHUNK", chunk)
        found.append(geometry(d))
    for g in found:
        for rows, values in ((d.W_enc.T, g.encoder), (d.W_dec, g.decoder)):
            unit = rows / rows.norm(dim=-1, keepdim=True)
            whole = unit @ unit.T - 3 * torch.eye(48)
            torch.testing.assert_close(values, whole.max(-1).values)
        aligned = cosine_similarity(d.W_enc.T, d.W_dec)
        torch.testing.assert_close(g.aligned, aligned)
        assert (g.decoder_nearest != torch.arange(48)).all()
    assert geometry(SparseCoder.random(8, 16, 4)).aligned is None


def test_neighbours_come_nearest_first_without_the_feature_itself():
    d = coder()
    d.W_dec[7] = 2 * d.W_dec[3]  # a double, which is a neighbour at cosine 1
    found = neighbours(d, torch.tensor([3, 7, 20]), k=4)
    assert found.index[0, 0] == 7 and found.index[1, 0] == 3
    unit = d.W_dec / d.W_dec.norm(dim=-1, keepdim=True)
    for row, feature in enumerate([3, 7, 20]):
        values = unit[feature] @ unit.T
        values[feature] = -2
        torch.testing.assert_close(found.cosine[row], values.topk(4).values)
    assert neighbours(d, torch.tensor([0]), k=100).index.shape == (1, 47)


def test_a_zero_row_has_cosine_zero():
    d = coder()
    d.W_dec[5] = 0
    found = geometry(d)
    assert found.decoder[5] == 0 and not found.decoder.isnan().any()


def test_principal_directions_are_those_of_the_singular_values():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    found = principal(rows, n=3)
    unit = rows / rows.norm(dim=-1, keepdim=True)
    _, s, right = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    torch.testing.assert_close(found.share, s[:3] ** 2 / (s**2).sum())
    torch.testing.assert_close((found.directions * right[:3]).sum(-1).abs(), torch.ones(3).double())
    torch.testing.assert_close(found.points.square().sum(0), s[:3] ** 2)
    with pytest.raises(ValueError, match="no 7 principal"):
        principal(rows, n=7)


def test_a_dictionary_of_zeros_explains_nothing_and_points_nowhere():
    model, d = tiny("gpt2"), coder()
    for weight in (d.W_dec, d.b_dec):
        weight.zero_()
    q = quality(model, d, TOKENS)["resid.1"]
    assert q.cosine == 0 and q.norm_ratio == 0 and math.isnan(q.bias)
    assert q.spliced == pytest.approx(q.zeroed, rel=1e-9)
