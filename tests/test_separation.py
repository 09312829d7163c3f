from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from families import VOCAB
from oracles import autoencoders, fresh, mixed, tiny
from scipy import stats
from torch import Tensor

from circuits import embedded
from interventions.acts import Acts
from interventions.dictionaries import SparseCoder
from interventions.features import MadeWith, Separation, densities, separation
from interventions.features.significance import adjusted, welch
from interventions.intervention import Here
from interventions.model import Model
from interventions.steering import Direction, Position

Ids = list[tuple[int, ...]]


def texts(n: int, seed: int, shortest: int = 2, longest: int = 6) -> Ids:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=generator).tolist()
    return [tuple(torch.randint(3, VOCAB, (k,), generator=generator).tolist()) for k in lengths]


def features(model: Model, dictionaries: dict, site: str, text: tuple[int, ...], at: slice) -> Tensor:
    """The features of one text at some tokens, averaged, by a pass of its own."""
    dictionary = dictionaries[site]
    read = getattr(dictionary, "reads", None) or site
    x = model.read(torch.tensor([text]), [read])[model.site(read)][0]
    return dictionary.encode(x[at]).mean(0)


@cache
def gpt2() -> Model:
    return tiny("gpt2")


@cache
def ours() -> tuple[Model, dict[str, SparseCoder]]:
    return embedded.model(), embedded.dictionaries()


def subjects(construction: str, n: int = 60, seed: int = 1) -> tuple[list[str], list[str]]:
    """Texts with a plural subject, and the same with a singular one."""
    sides: tuple[list[str], list[str]] = ([], [])
    for pair in embedded.task(construction, n=n, seed=seed).pairs:
        plural = str(pair.case).startswith("plural")
        sides[not plural].append(str(pair.clean))
        sides[plural].append(str(pair.patch))
    return sides


@cache
def numbers() -> Separation:
    kinds = {c: subjects(c) for c in ("simple", "across_pp", "across_rc")}
    return separation(*ours(), kinds, tokens=Position(2), progress=False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_shares_and_moments_are_those_of_all_texts_held_together(family: str) -> None:
    model = tiny(family)
    dictionaries = mixed(model)
    positives, negatives = texts(7, 1), texts(5, 2)
    found = separation(model, dictionaries, positives, negatives, batch_size=3, progress=False)
    for site in found.sites:
        sides = [
            torch.stack([features(model, dictionaries, site, text, slice(-1, None)) for text in side])
            for side in (positives, negatives)
        ]
        for i, rows in enumerate(sides):
            torch.testing.assert_close(found.active[site][0, i], (rows > 1e-6).double().mean(0))
            torch.testing.assert_close(found.mean[site][0, i], rows.double().mean(0), rtol=1e-5, atol=1e-7)
            variance = found.variance[site][0, i]
            torch.testing.assert_close(variance, rows.double().var(0), rtol=1e-4, atol=1e-7)


def test_the_test_is_that_of_scipy() -> None:
    model = gpt2()
    dictionaries = {"resid.1": autoencoders(model)["resid.1"]}
    positives, negatives = texts(9, 3), texts(6, 4)
    t, p = separation(model, dictionaries, positives, negatives, progress=False).welch("resid.1")
    sides = [
        torch.stack([features(model, dictionaries, "resid.1", text, slice(-1, None)) for text in side])
        for side in (positives, negatives)
    ]
    expected: Any = stats.ttest_ind(
        sides[0].numpy(), sides[1].numpy(), equal_var=False, alternative="greater"
    )
    varies = (sides[0].var(0) + sides[1].var(0)) > 0
    torch.testing.assert_close(t[varies], torch.tensor(expected.statistic)[varies])
    torch.testing.assert_close(p[varies], torch.tensor(expected.pvalue)[varies])
    assert (t[~varies] == 0).all() and (p[~varies] == 1).all()


def test_of_several_tokens_the_mean_activation_counts() -> None:
    model = gpt2()
    dictionaries = {"mlp.1": autoencoders(model)["mlp.1"]}
    sides = texts(4, 5, shortest=4), texts(4, 6, shortest=4)
    found = separation(
        model, dictionaries, *sides, tokens=lambda ids, _tokenizer: slice(1, 3), progress=False
    )
    rows = torch.stack([features(model, dictionaries, "mlp.1", text, slice(1, 3)) for text in sides[0]])
    torch.testing.assert_close(found.mean["mlp.1"][0, 0], rows.mean(0))


def test_over_kinds_the_least_score_counts() -> None:
    model = gpt2()
    dictionaries = {"resid.0": autoencoders(model)["resid.0"]}
    kinds = {"a": (texts(5, 1), texts(6, 2)), "b": (texts(7, 3), texts(4, 4))}
    both = separation(model, dictionaries, kinds, progress=False)
    alone = [separation(model, dictionaries, *sides, progress=False) for sides in kinds.values()]
    scores = torch.stack([one.score("resid.0") for one in alone])
    torch.testing.assert_close(both.score("resid.0"), scores.amin(0))
    ts, ps = zip(*(one.welch("resid.0") for one in alone), strict=True)
    torch.testing.assert_close(both.welch("resid.0")[0], torch.stack(ts).amin(0))
    torch.testing.assert_close(both.welch("resid.0")[1], torch.stack(ps).amax(0))
    assert both.counts.tolist() == [[5, 6], [7, 4]]


def test_exchanging_the_sets_turns_scores_round() -> None:
    model = gpt2()
    dictionaries = {"resid.0": autoencoders(model)["resid.0"]}
    positives, negatives = texts(5, 1), texts(6, 2)
    found = separation(model, dictionaries, positives, negatives, progress=False).reversed()
    other = separation(model, dictionaries, negatives, positives, progress=False)
    torch.testing.assert_close(found.score("resid.0"), other.score("resid.0"))
    assert [str(f) for f in found.best(5)] == [str(f) for f in other.best(5)]


def test_densities_are_shares_of_tokens() -> None:
    model = gpt2()
    dictionaries = autoencoders(model)
    long = texts(3, 7, shortest=10, longest=40)
    found = densities(model, dictionaries, long, progress=False)
    for site in ("resid.0", "mlp.2"):
        acts = torch.cat(
            [
                dictionaries[site].encode(model.read(torch.tensor([text]), [site])[model.site(site)][0])
                for text in long
            ]
        )
        torch.testing.assert_close(found[site], (acts > 1e-6).float().mean(0))


def test_dense_features_are_not_listed_or_drawn() -> None:
    model = gpt2()
    dictionaries = {"resid.0": autoencoders(model)["resid.0"]}
    found = separation(
        model, dictionaries, texts(8, 1), texts(8, 2),
        density_text=texts(3, 7), max_density=0.4, progress=False,
    )  # fmt: skip
    assert found.density is not None
    dense = set((found.density["resid.0"] > 0.4).nonzero()[:, 0].tolist())
    listed = {f.feature for f in found.top("resid.0", 40)}
    assert dense and listed and not dense & listed
    assert not dense & set(found.random("resid.0", 5, min_score=-1))


def test_random_features_are_alive_separate_enough_and_others() -> None:
    found = separation(*ours(), *subjects("simple"), tokens=Position(2), progress=False)
    top = [f.feature for f in found.top("embed", 2)]
    drawn = found.random("embed", 4, without=top)
    assert found.alive("embed")[list(drawn)].all() and (found.score("embed")[list(drawn)] >= 0).all()
    assert not set(drawn) & set(top) and len(set(drawn)) == 4
    assert drawn == found.random("embed", 4, without=top)
    with pytest.raises(ValueError, match=r"that are alive and score 0\.9, not 50"):
        found.random("embed", 50, min_score=0.9)


def test_the_features_of_number_are_found() -> None:
    plural, singular = numbers(), numbers().reversed()
    assert plural.top("resid.1", 1)[0].feature == 131 and singular.top("resid.1", 1)[0].feature == 62
    best = plural.top("resid.1", 1)[0]
    assert best.score > 0.95 and best.q < 1e-6 and best.mean > 0.3
    assert "resid.1/131" in plural.table(40)


def test_the_feature_of_plurals_makes_plural_verbs() -> None:
    model, dictionaries = ours()
    from interventions import Add, Where, applied

    direction = numbers().direction(model, dictionaries, "resid.1")
    assert isinstance(direction, Direction) and direction.fingerprint == model.fingerprint
    torch.testing.assert_close(direction["resid.1"].norm(), torch.tensor(1.0))
    _, singular = subjects("across_rc", seed=5)
    tokens = torch.tensor([model.tokenizer.encode(text) for text in singular])
    verbs = [model.tokenizer.encode(f" {verb}")[-1] for verb in ("are", "is")]

    def plurals() -> Tensor:
        last = model.logits(tokens)[:, -1]
        return last[:, verbs[0]] > last[:, verbs[1]]

    assert not plurals().any()
    at = Where(prompt=2)
    with applied(model, Add(direction, scale=20).at(at)):
        assert plurals().float().mean() > 0.9
    clamp = numbers().clamp("resid.1", times=3)
    assert isinstance(clamp, MadeWith)
    with applied(model, clamp.at(at), dictionaries=dictionaries):
        assert plurals().float().mean() > 0.9


def test_a_clamp_is_at_the_mean_of_the_positives() -> None:
    found = numbers()
    (best,) = found.top("resid.1", 1)
    acts = Acts(torch.zeros(1, 1, 256), torch.zeros(1, 1, 64))
    held = found.clamp("resid.1", times=2)("resid.1", acts, Here("resid.1"))
    assert held.features[0, 0, best.feature] == pytest.approx(2 * best.mean)


def test_another_model_is_refused() -> None:
    _, dictionaries = ours()
    with pytest.raises(ValueError, match="compared in another model"):
        numbers().direction(gpt2(), dictionaries, "resid.1")


def test_separations_are_kept_in_files(tmp_path) -> None:
    found = numbers()
    found.save(tmp_path)
    loaded = Separation.load(tmp_path)
    assert loaded.best(20) == found.best(20) or str(loaded.best(20)) == str(found.best(20))
    assert repr(loaded) == repr(found) and loaded.fingerprint == found.fingerprint
    content = bytearray((tmp_path / "separation.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "separation.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        Separation.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no separation .*separation\.json is missing"):
        Separation.load(tmp_path / "elsewhere")


def test_what_cannot_be_compared_is_said() -> None:
    model = gpt2()
    dictionaries = {"resid.0": autoencoders(model)["resid.0"]}
    with pytest.raises(ValueError, match="negative text: there are no texts"):
        separation(model, dictionaries, texts(2, 1), [], progress=False)
    with pytest.raises(TypeError, match="pass a list of texts, not one string"):
        separation(model, dictionaries, "one", ["two"], progress=False)
    with pytest.raises(TypeError, match=r"tokenizer"):
        separation(model, dictionaries, ["one"], ["two"], progress=False)
    with pytest.raises(ValueError, match=r"positive text 0.*position 9 is out of range"):
        separation(model, dictionaries, [(3, 4)], [(5, 6)], tokens=Position(9), progress=False)
    with pytest.raises(ValueError, match="no dictionaries"):
        separation(model, {}, [(3, 4)], [(5, 6)], progress=False)
    with pytest.raises(TypeError, match="'a' is not"):
        separation(model, dictionaries, {"a": "text"}, progress=False)  # type: ignore[dict-item]
    with pytest.raises(LookupError, match=r"No features of 'mlp\.7'"):
        separation(model, dictionaries, [(3, 4)], [(5, 6)], progress=False).top("mlp.7")


def test_features_that_are_no_numbers_are_not_counted_as_silent() -> None:
    model = fresh("gpt2")
    model.module.transformer.h[0].mlp.c_proj.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"Features at resid\.0 are not finite"):
        separation(
            model, {"resid.0": SparseCoder.random(model.width, 40)}, [(3, 4)], [(5, 6)], progress=False
        )


def test_of_one_observation_nothing_is_significant() -> None:
    t, p = welch(torch.ones(2), torch.zeros(2), 1, torch.zeros(2), torch.zeros(2), 9)
    assert (t == 0).all() and (p == 1).all()


def test_adjusted_significance_is_that_of_scipy() -> None:
    p = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    torch.testing.assert_close(adjusted(p), torch.tensor(stats.false_discovery_control(p.numpy())))
    with_gaps = torch.cat([p, torch.tensor([torch.nan])])
    torch.testing.assert_close(adjusted(with_gaps)[:-1], adjusted(p))
    assert adjusted(with_gaps)[-1].isnan()
