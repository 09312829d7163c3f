from __future__ import annotations

from itertools import permutations

import pytest
import torch

from interventions.dictionaries import SparseCoder
from interventions.dictionaries.measures import cosines, hungarian, mutual, overlap, shared
from interventions.dictionaries.measures.cosines import nearest, unit

D, F = 16, 40


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dictionary(encoder, decoder) -> SparseCoder:
    return SparseCoder(
        W_enc=encoder.T,
        b_enc=torch.zeros(len(encoder)),
        W_dec=decoder,
        b_dec=torch.zeros(decoder.shape[1]),
        activation=SparseCoder.random(2, 2).activation,
    )


def planted(n_right=F, n_shared=F // 2, noise=0.02):
    """Two dictionaries whose first features are nearly the same, in another order; and which is which."""
    encoder, decoder = random(F, D, seed=1), random(F, D, seed=2)
    others = random(n_right, D, seed=3), random(n_right, D, seed=4)
    order = torch.randperm(n_right, generator=torch.Generator().manual_seed(5))
    right = []
    for rows, other in zip((encoder, decoder), others, strict=True):
        other[:n_shared] = 3 * rows[:n_shared] + noise * random(n_shared, D, seed=6)
        right.append(other[order])
    return dictionary(encoder, decoder), dictionary(*right), order.argsort()[:n_shared]


MATCHERS = pytest.mark.parametrize("matching", [hungarian, mutual], ids=["hungarian", "mutual"])


def test_hungarian_is_the_best_of_all_matchings():
    left, right = random(4, 3), random(6, 3, seed=1)
    cosine = unit(left) @ unit(right).T
    best = max(permutations(range(6), 4), key=lambda p: sum(cosine[i, j].item() for i, j in enumerate(p)))
    found = hungarian(left, right)
    assert found.right.tolist() == list(best) and found.left.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found.cosine, cosine[found.left, found.right])
    other = hungarian(right, left)
    assert sorted(zip(other.right.tolist(), other.left.tolist(), strict=True)) == list(enumerate(best))


def test_mutual_pairs_are_each_others_nearest(monkeypatch):
    left, right = random(30, 5), random(50, 5, seed=1)
    cosine = unit(left) @ unit(right).T
    wanted = [(i, j) for i in range(30) for j in [int(cosine[i].argmax())] if int(cosine[:, j].argmax()) == i]
    for chunk in (2**25, 120):
        monkeypatch.setattr(cosines, "_CHUNK", chunk)
        found = mutual(left, right)
        assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == wanted
        assert 0 < len(wanted) < 30


@MATCHERS
@pytest.mark.parametrize("n_right", [F, 2 * F])
def test_planted_features_are_what_is_shared(matching, n_right):
    left, right, where = planted(n_right)
    found = overlap(left, right, matching=matching)
    pairs = dict(zip(found.shared_pairs.left.tolist(), found.shared_pairs.right.tolist(), strict=True))
    assert pairs == dict(enumerate(where.tolist()))
    assert found.shared == 0.5
    back = overlap(right, left, matching=matching)
    assert (back.shared, back.agreement) == (found.shared, found.agreement)
    assert back.mean_max == pytest.approx(found.mean_max)
    assert back.decoder.mean == pytest.approx(found.decoder.mean)


@MATCHERS
def test_a_feature_that_only_writes_alike_is_not_shared(matching):
    left, right, _ = planted(noise=0)
    other = dictionary(random(F, D, seed=9), right.W_dec)
    assert overlap(left, other, matching=matching).shared == 0
    assert overlap(left, right, matching=matching).shared == 0.5
    assert overlap(left, right, matching=matching, threshold=1.01).shared == 0


@MATCHERS
def test_a_dictionary_shares_all_with_itself_however_scaled(matching):
    left, _, _ = planted()
    found = overlap(left, left.scale_latents(torch.rand(F).double() + 0.5), matching=matching)
    assert (found.shared, found.agreement) == (1, 1)
    assert found.decoder.mean == pytest.approx(1) and found.mean_max == pytest.approx(1)
    assert found.chance < 0.75


def test_random_dictionaries_share_what_chance_gives():
    one, other = SparseCoder.random(64, 256), SparseCoder.random(64, 256, seed=1)
    found = overlap(one, other)
    assert found.shared == 0
    assert found.decoder.mean == pytest.approx(found.chance, abs=0.01)
    assert found.nearest_left.shape == (256,) and (found.nearest_left >= found.decoder.cosine).all()


def test_large_dictionaries_are_matched_without_all_cosines(monkeypatch):
    left, right, _ = planted()
    monkeypatch.setattr(shared, "_EXACT", 10)
    monkeypatch.setattr(shared, "hungarian", None)
    assert overlap(left, right).shared == 0.5


def test_dead_rows_match_nothing_well():
    left, right, _ = planted()
    left.W_dec[3] = 0
    found = overlap(left, right)
    assert found.shared == 0.5 - 1 / F and not found.decoder.cosine.isnan().any()


def test_dictionaries_of_other_widths_are_refused():
    with pytest.raises(ValueError, match="8 -> 8 and 16 -> 16"):
        overlap(SparseCoder.random(8, 16), SparseCoder.random(16, 32))
    with pytest.raises(ValueError, match="k cannot be 5"):
        nearest(torch.eye(4), torch.eye(4), k=5)
