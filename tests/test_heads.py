"""The concatenated heads of an attention as a site."""

from __future__ import annotations

import pytest
import torch
from families import EVERY_FAMILY, FAMILIES, tiny
from oracles import PlainSAE, batch, tolerance
from test_wiring import everything, metric

from circuits import attribution_patching, edges
from interventions import run

TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


def _attending(family: str):
    model = tiny(family)
    blocks = [name.partition(".")[2] for name in model.sites if name.startswith("attn.")]
    if not blocks:
        pytest.skip("no attention of its own")
    return model, [model.site(f"heads.{i}") for i in blocks]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attention_has_heads_and_they_are_not_listed(family):
    model, heads = _attending(family)
    for site in heads:
        projection = model.module.get_submodule(site.path)
        assert site.side == "in" and site.width in projection.weight.shape
        assert site.name not in model.sites


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_dictionaries_at_heads_change_nothing_and_are_conserved(family):
    model, heads = _attending(family)
    torch.manual_seed(0)
    dictionaries = {
        site.name: PlainSAE(model.site(site).width, 20).to(model.dtype)
        for site in [model.site("embed"), *heads]
    }
    spliced = run(model, TOKENS, dictionaries)
    torch.testing.assert_close(spliced.logits, model.logits(TOKENS), **tolerance(family))
    effects = attribution_patching(model, batch(), metric, dictionaries)
    found = edges(model, batch(), metric, dictionaries, effects, everything(model, dictionaries))
    for up in dictionaries:
        out = sum(matrix.to_dense().sum(0) for (u, _), matrix in found.items() if u == up)
        torch.testing.assert_close(out, effects[up].dense().sum(1).mean(0), **tolerance(family))


def test_a_recurrent_model_has_no_heads():
    with pytest.raises(LookupError, match=r"No site 'heads.0'"):
        tiny("mamba").site("heads.0")
