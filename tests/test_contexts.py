from __future__ import annotations

import pytest
import torch
from families import VOCAB, fresh, tiny
from torch import nn

from interventions.acts import Identity
from interventions.dictionaries import AbsTopK, SparseCoder, TopK
from interventions.dictionaries.measures import contexts, promoted
from interventions.dictionaries.measures.text import pieces
from interventions.dictionaries.measures.unembedding import effects
from interventions.model import Model

TOKENS = torch.randint(3, VOCAB, (23, 12), generator=torch.Generator().manual_seed(0))


class Letters:
    """Token 3 is a, 4 is b; a token at the start of what is decoded loses its space, as tokens often do."""

    def decode(self, ids):
        return "".join(f" {chr(94 + i)}" for i in ids).lstrip()


class Bytes:
    def decode(self, tokens):
        return bytes(tokens).decode("utf-8", "replace")


class Fallback(Bytes):
    """All bytes in a row are text, or none of them."""

    def decode(self, tokens):
        try:
            return bytes(tokens).decode("utf-8")
        except UnicodeDecodeError:
            return "�" * len(tokens)


def coder(site="resid.1", features=48) -> SparseCoder:
    return SparseCoder.random(32, features, site=site, activation=TopK(5)).double()


@pytest.mark.parametrize("family", ["gpt2", "mamba", "rwkv"])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_contexts_are_the_highest_peaks_of_different_rows(family, batch_size):
    model, d = fresh(family), coder()
    model.tokenizer = Letters()
    found = contexts(model, d, TOKENS, n=5, before=4, after=2, batch_size=batch_size)
    acts = d.encode(model.read(TOKENS, ["resid.1"])[model.site("resid.1")]).float()
    assert list(found) == [("resid.1", i) for i in range(48)]
    for (_, feature), profile in found.items():
        mine = acts[..., feature]
        peaks, places = mine.max(1)
        rows = [r for r in peaks.sort(descending=True, stable=True).indices.tolist()[:5] if peaks[r] > 0]
        assert [c.row for c in profile.contexts] == rows
        assert profile.density == pytest.approx((mine != 0).double().mean().item())
        assert profile.largest == pytest.approx(peaks.max().clamp(min=0).item(), rel=1e-5)
        if profile.density:
            assert profile.mean == pytest.approx(mine[mine != 0].double().mean().item(), rel=1e-4)
        for c in profile.contexts:
            assert c.pos == places[c.row] and c.value == pytest.approx(peaks[c.row].item(), rel=1e-5)
            shown = slice(max(0, c.pos - 4), c.pos + 3)
            torch.testing.assert_close(torch.tensor(c.values), mine[c.row, shown], rtol=1e-4, atol=1e-6)
            letters = [f" {chr(94 + i)}" for i in TOKENS[c.row].tolist()]
            assert list(c.tokens) == letters[shown]
            assert f"[{letters[c.pos]}]" in str(c)


def test_several_sites_are_read_in_one_pass():
    model = fresh("gpt2")
    passes = []
    handle = model.module.register_forward_hook(lambda *_: passes.append(1))
    dictionaries = {"resid.0": coder("resid.0"), "mlp.1": Identity(), "resid.1": coder()}
    found = contexts(model, dictionaries, TOKENS, {"mlp.1": [3, 1], "resid.1": [7]}, batch_size=8)
    handle.remove()
    assert len(passes) == 3
    assert list(found) == [("mlp.1", 3), ("mlp.1", 1), ("resid.1", 7)]
    profile = found["mlp.1", 3]
    assert profile.density == 1 and profile.contexts[0].tokens[0].startswith("<")
    alone = contexts(model, {"mlp.1": Identity()}, TOKENS, [3])["mlp.1", 3]
    assert [c.row for c in alone.contexts] == [c.row for c in profile.contexts]
    assert str(profile).count("\n") == 10


def test_a_transcoder_is_shown_where_it_reads():
    model = tiny("llama")
    d = SparseCoder.random(32, 48, site="mlp.1", reads="mlp_in.1").double()
    found = contexts(model, d, TOKENS, [2], n=1)["mlp.1", 2]
    acts = d.encode(model.read(TOKENS, ["mlp_in.1"])[model.site("mlp_in.1")])[..., 2]
    assert found.largest == pytest.approx(acts.max().item(), rel=1e-5)


def test_ignored_tokens_are_no_peaks_and_do_not_count():
    model, first = tiny("gpt2"), int(TOKENS[0, 0])
    tokens = torch.cat([torch.full((23, 1), first), TOKENS], 1)
    keep = tokens != first
    acts = model.read(tokens, ["resid.1"])[model.site("resid.1")].float()
    found = contexts(model, {"resid.1": Identity()}, tokens, [0, 1], ignore=[first], n=30)
    for feature in (0, 1):
        profile = found["resid.1", feature]
        assert profile.mean == pytest.approx(acts[..., feature][keep].double().mean().item(), rel=1e-4)
        assert all(keep[c.row, c.pos] for c in profile.contexts)


def test_of_equal_peaks_the_first_rows_are_shown():
    tokens = TOKENS[:1].expand(9, -1)
    found = contexts(tiny("gpt2"), {"resid.1": Identity()}, tokens, [0], n=3, batch_size=9)
    assert [c.row for c in found["resid.1", 0].contexts] == [0, 1, 2]


def test_signed_features_have_their_peaks_where_they_are_largest_in_magnitude():
    model, signed = tiny("gpt2"), SparseCoder.random(32, 48, site="resid.1", activation=AbsTopK(5)).double()
    acts = signed.encode(model.read(TOKENS, ["resid.1"])[model.site("resid.1")])
    found = contexts(model, signed, TOKENS, n=1)
    for feature in range(48):
        profile, peak = found["resid.1", feature], acts[..., feature].abs().max().item()
        assert abs(profile.largest) == pytest.approx(peak, rel=1e-4)
    assert min(profile.largest for profile in found.values()) < 0


def test_what_is_not_there_is_named():
    model, d = tiny("gpt2"), coder()
    with pytest.raises(LookupError, match=r"No feature 48 at resid\.1: there are 48, 0 to 47"):
        contexts(model, d, TOKENS, [3, 48])
    with pytest.raises(LookupError, match=r"No dictionary at 'mlp\.0'; there is one at resid\.1"):
        contexts(model, d, TOKENS, {"mlp.0": [1]})
    with pytest.raises(LookupError, match="2 dictionaries"):
        contexts(model, {"resid.1": d, "mlp.0": d}, TOKENS, [1])


def test_promoted_tokens_are_those_the_unembedding_raises():
    model, d = tiny("llama"), coder()
    matrix = model.module.lm_head.weight
    found = promoted(model, d, [3, 9], k=4)
    for one, feature in zip(found, (3, 9), strict=True):
        logits = matrix @ d.W_dec[feature]
        logits = logits - logits.mean()
        assert one.feature == feature
        assert list(one.raised_ids) == logits.topk(4).indices.tolist()
        assert list(one.lowered_ids) == (-logits).topk(4).indices.tolist()
        assert [v for _, v in one.lowered] == pytest.approx((-(-logits).topk(4).values).tolist())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba", "rwkv"])
def test_the_effect_at_a_state_is_the_slope_of_the_unembedding(family):
    model, d = tiny(family), coder()
    last = list(model.sites)[-1]
    state = model.read(TOKENS[:1, :4], [last])[model.site(last)][0]
    rows = d.W_dec[:3]
    found = effects(model, rows, at=state)
    step = 1e-3  # norms of some families compute in float32
    for row, effect in zip(rows, found, strict=True):
        change = ((model.unembed(state + step * row) - model.unembed(state - step * row)) / 2 / step).mean(0)
        torch.testing.assert_close(effect, change - change.mean(), atol=1e-3, rtol=1e-2)


def test_without_a_matrix_states_are_asked_for():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, tokens):
            x = self.embed(tokens)
            for layer in self.layers:
                x = x + layer(x)
            return x @ self.embed.weight.T

    from interventions.sites import Layout

    model = Model.load(Odd(), layout=Layout(blocks="layers", embed="embed"))
    d = SparseCoder.random(8, 16)
    with pytest.raises(ValueError, match="pass `at`"):
        promoted(model, d, [1])
    with pytest.raises(ValueError, match="width 9, and the residual stream has 8"):
        promoted(model, SparseCoder.random(9, 16), [1])


def test_a_character_of_several_tokens_is_shown_once():
    assert pieces(Bytes(), list("aé b".encode())) == ("a", "", "é", " ", "b")
    assert pieces(Bytes(), list("日".encode())) == ("", "", "日")
    assert pieces(Bytes(), list("日".encode())[:1]) == ("�",)


def test_pieces_of_a_long_text_are_together_that_text():
    text = "aé 中文 b😀 cdefghijkl é"
    assert "".join(pieces(Bytes(), list(text.encode()))) == text
    assert "".join(pieces(Fallback(), list("日本語中文".encode()))) == "日本語中文"
    assert pieces(Letters(), [3, 4]) == (" a", " b")
    assert pieces(None, [3, 4]) == ("<3>", "<4>")
