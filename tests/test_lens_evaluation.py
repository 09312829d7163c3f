"""Curves of lenses against plain means over all logits."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from families import EVERY_FAMILY, fresh, tiny
from oracles import tolerance
from test_trajectory import Held, shaken
from transformers import GPT2Config, GPT2LMHeadModel

from circuits import embedded
from interventions import Add, Model, applied
from interventions.lenses import LensCurves, LogitLens, evaluate
from interventions.lenses.token_bytes import TokenBytes

ROWS = torch.randint(3, 64, (5, 9), generator=torch.Generator().manual_seed(0))


def plain(lens, rows):
    """Means over the tokens of each row, of every measure (measure site row)."""
    model, nexts = lens.model, rows[:, 1:]
    acts, output = model.read(rows, lens.sites), model.logits(rows)
    final = output.double().log_softmax(-1)[:, :-1]
    found = []
    for site in [*lens.sites, "output"]:
        logits = output if site == "output" else lens.logits(site, acts[model.site(site)])
        log_q = logits.double().log_softmax(-1)[:, :-1]
        q = log_q.exp()
        values = [
            -log_q.gather(-1, nexts[..., None])[..., 0],
            (final.exp() * (final - log_q)).sum(-1),
            -(q * log_q).sum(-1),
            (q.argmax(-1) == final.argmax(-1)).double(),
            (q.argmax(-1) == nexts).double(),
        ]
        found.append(torch.stack(values).mean(-1))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_curves_are_the_means_over_all_logits(family):
    lens = shaken(tiny(family))
    want = plain(lens, ROWS)
    for at_once in (None, 7):
        curves = evaluate(lens, ROWS, at_once=at_once, progress=False)
        assert curves.lenses == ("tuned",) and curves.sites["tuned"] == (*lens.sites, "output")
        for i, measure in enumerate(("cross_entropy", "kl", "entropy", "agreement", "accuracy")):
            curve = curves.mean(measure)
            torch.testing.assert_close(curve.mean, want[i].mean(-1), **tolerance(family))
            error = want[i].std(-1) / len(ROWS) ** 0.5
            torch.testing.assert_close(curve.error, error, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(curves.bits("kl").mean, curves.mean("kl").mean / math.log(2))


def test_several_lenses_share_a_pass_and_are_compared_row_by_row():
    model = tiny("mamba")
    lenses = {"logit": LogitLens(model), "other": shaken(model, ["resid.0", "resid.2"])}
    passes = []
    with model.visiting(["embed"], lambda site, x: passes.append(len(x)) or x):
        curves = evaluate(lenses, [ROWS[:2], ROWS[2:]], progress=False)
    assert passes == [2, 3]
    for name, lens in lenses.items():
        torch.testing.assert_close(curves.mean("kl", name).mean, plain(lens, ROWS)[1].mean(-1), **near)
    gain = curves.gain("kl", "logit", "other")
    assert gain.sites == ("resid.0", "output")
    rows = plain(lenses["logit"], ROWS)[1, 1] - plain(lenses["other"], ROWS)[1, 0]
    torch.testing.assert_close(gain.mean[0], rows.mean(), **near)
    torch.testing.assert_close(gain.error[0], rows.std() / 5**0.5, rtol=1e-3, atol=1e-6)
    assert (gain.mean[1], gain.error[1]) == (0, 0)
    with pytest.raises(LookupError, match="Say which lens: logit, other"):
        curves.mean("kl")


near = {"rtol": 1e-4, "atol": 1e-6}


def test_rows_of_several_lengths_count_by_their_tokens():
    lens = LogitLens(tiny("llama"))
    parts = [ROWS[:2], ROWS[2:, :4], ROWS[:1, :1]]
    curves = evaluate(lens, parts, progress=False)
    assert curves.tokens.tolist() == [8, 8, 3, 3, 3]
    loss = [8 * plain(lens, parts[0])[0], 3 * plain(lens, parts[1])[0]]
    torch.testing.assert_close(
        curves.mean("cross_entropy").mean, torch.cat(loss, dim=-1).sum(-1) / 25, **near
    )
    padded = ROWS[:3].clone()
    padded[1:, 4:] = -1
    masked = evaluate(lens, padded, progress=False)
    assert masked.tokens.sum() == 8 + 3 + 3
    alone = evaluate(lens, [ROWS[:1], ROWS[1:3, :4]], progress=False)
    torch.testing.assert_close(
        masked.mean("cross_entropy").mean, alone.mean("cross_entropy").mean, rtol=1e-6, atol=1e-9
    )


def test_an_open_intervention_is_what_is_evaluated():
    model = tiny("gpt2")
    lens = LogitLens(model)
    clean = evaluate(lens, ROWS, progress=False).mean("entropy").mean
    with applied(model, Add({"resid.1": torch.linspace(-3, 3, model.width)})):
        changed = evaluate(lens, ROWS, progress=False).mean("entropy").mean
    assert torch.equal(clean[:2], changed[:2]) and (clean[2:] - changed[2:]).abs().min() > 1e-3


def test_bits_per_byte_count_the_bytes_of_the_predicted_text():
    model = embedded.model()
    texts = ["The boy near the cars", "The friends that the artist watches are quiet"]
    curves = evaluate(LogitLens(model), texts, context=8, progress=False)
    assert curves.bytes is not None
    ids = [model.tokenizer.encode(text) for text in texts]
    assert curves.tokens.sum() >= 7 and curves.bytes.sum() <= sum(len(text) + 1 for text in texts)
    per_token = (curves.bits("kl").mean / curves.bits_per_byte("kl").mean)[:-1]
    share = curves.bytes.sum() / curves.tokens.sum()
    torch.testing.assert_close(per_token, share.double().expand(len(per_token)))
    count = TokenBytes(model.tokenizer)
    assert count(torch.tensor(ids[0])).sum() == len(" " + texts[0])
    with pytest.raises(ValueError, match="no bytes to count"):
        evaluate(LogitLens(tiny("gpt2")), ROWS, progress=False).bits_per_byte("kl")


def test_parts_of_characters_have_their_own_bytes():
    signs = {0: "a", 1: "ã", 2: "ģ", 3: "Ĥ", 4: "<0xE3>", 5: "</s>"}
    raw = {0: b"a", 1: b"\xe3", 2: b"\x81", 3: b"\x82", 4: b"\xe3", 5: b""}
    tokenizer = SimpleNamespace(
        decode=lambda ids: b"".join(raw[i] for i in ids).decode(errors="replace"),
        convert_ids_to_tokens=signs.__getitem__,
        all_special_ids=[5],
    )
    assert TokenBytes(tokenizer)(torch.arange(6)).tolist() == [1, 1, 1, 1, 1, 0]
    letters = SimpleNamespace(decode=lambda ids: "".join("aé語"[i] for i in ids))
    assert TokenBytes(letters, special=[0])(torch.tensor([[0, 1, 2]])).tolist() == [[0, 2, 3]]
    nameless = SimpleNamespace(decode=lambda ids: bytes(ids).decode(errors="replace"))
    assert TokenBytes(nameless)(torch.tensor([65, 200, 255])).tolist() == [1, 1, 1]


def test_never_are_the_logits_of_all_sites_held():
    vocab, layers = 3001, 12
    config = GPT2Config(vocab_size=vocab, n_embd=8, n_layer=layers, n_head=2, n_positions=64)
    model = Model.load(GPT2LMHeadModel(config).double())
    lens, rows = LogitLens(model), torch.arange(40).reshape(2, 20)
    evaluate(lens, rows, progress=False)
    with Held(vocab) as held:
        evaluate(lens, rows, at_once=2, progress=False)
    assert held.most <= (2 * rows.numel() + 20) * vocab


def test_it_prints_saves_and_comes_back(tmp_path):
    model = embedded.model()
    lenses = {"logit": LogitLens(model), "tuned": shaken(model)}
    rows = torch.randint(4, 60, (6, 8), generator=torch.Generator().manual_seed(0))
    curves = evaluate(lenses, rows, most=20, progress=False)
    assert curves.tokens.sum() == 21
    curves.save(tmp_path)
    back = LensCurves.load(tmp_path)
    assert str(back) == str(curves) and "bits/byte" in str(curves) and "21 tokens in 3 rows" in str(curves)
    assert torch.equal(back.gain("kl", "tuned", "logit").error, curves.gain("kl", "tuned", "logit").error)
    assert str(back.mean("accuracy", "tuned")).splitlines()[-1].startswith("output")
    one_row = evaluate(lenses["logit"], rows[:1], progress=False)
    assert one_row.mean("kl").error.isnan().all()


def test_wrong_inputs_are_named():
    lens, other = LogitLens(tiny("gpt2")), LogitLens(fresh("gpt2"))
    with pytest.raises(ValueError, match="Give lenses of one model, at least one; here are none"):
        evaluate({}, ROWS)
    with pytest.raises(ValueError, match="of 2 models"):
        evaluate({"a": lens, "b": other}, ROWS)
    with pytest.raises(ValueError, match="vocabulary of 64"):
        evaluate(lens, ROWS + 60, progress=False)
    with pytest.raises(ValueError, match="nothing is predicted"):
        evaluate(lens, ROWS[:, :1], progress=False)
    with pytest.raises(ValueError, match="no tokenizer"):
        evaluate(lens, ["some text"])
    curves = evaluate(lens, ROWS, progress=False)
    with pytest.raises(LookupError, match="No measure 'kI'"):
        curves.mean("kI")
    with pytest.raises(LookupError, match="'accuracy' is not in nats"):
        curves.bits("accuracy")
    with pytest.raises(LookupError, match="No lens 'tuned' was evaluated; there are logit"):
        curves.mean("kl", "tuned")
    with pytest.raises(ValueError, match="padding on the left"):
        evaluate(lens, torch.tensor([[-1, 3, 4]]), progress=False)
