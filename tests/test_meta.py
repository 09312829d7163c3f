from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from interventions.dictionaries import SparseCoder
from interventions.dictionaries.measures import meta_dictionary

D, PARTS = 24, 32


def made_of_parts(seed=0):
    """Decoder rows that are sums of two of a few directions, and which."""
    generator = torch.Generator().manual_seed(seed)
    parts = normalize(torch.randn(PARTS, D, generator=generator), dim=-1)
    which = torch.stack([torch.randperm(PARTS, generator=generator)[:2] for _ in range(1024)])
    dictionary = SparseCoder.random(D, 1024)
    dictionary.W_dec.copy_(3 * (parts[which[:, 0]] + parts[which[:, 1]]))
    return dictionary, parts, which


def test_a_meta_dictionary_finds_what_rows_are_made_of():
    dictionary, parts, which = made_of_parts()
    meta = meta_dictionary(dictionary, n_features=PARTS, k=2, steps=1000, batch_size=256, lr=3e-3)
    cosine, found = (parts @ meta.coder.W_dec.T).max(1)
    assert cosine.mean() > 0.9
    assert meta.explained_variance > 0.8
    right = 0
    for feature in range(200):
        named = {index for index, _ in meta.parts(feature)[:2]}
        right += named == set(found[which[feature]].tolist())
    assert right > 150
    feature, value = meta.members(int(found[5]))[0]
    assert 5 in which[feature] and value > 0


def test_explained_variance_is_of_unit_rows_about_their_mean():
    dictionary, _, _ = made_of_parts()
    meta = meta_dictionary(dictionary, steps=20)
    assert meta.coder.n_features == 256
    rows = normalize(dictionary.W_dec, dim=-1)
    error = (rows - meta.coder(rows)).square().sum() / (rows - rows.mean(0)).square().sum()
    assert meta.explained_variance == pytest.approx(1 - error.item(), abs=1e-5)
    torch.testing.assert_close(meta.features, meta.coder.encode(rows))
    assert meta.l0 == pytest.approx((meta.features != 0).sum(-1).float().mean().item())


def test_random_rows_are_made_of_less():
    dictionary, _, _ = made_of_parts()
    rows = torch.randn(1024, D, generator=torch.Generator().manual_seed(1))
    settings = {"n_features": PARTS, "k": 2, "steps": 300, "batch_size": 256, "lr": 3e-3}
    made, random = (meta_dictionary(x, **settings).explained_variance for x in (dictionary, rows))
    assert made > random + 0.2
