from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from families import tiny
from oracles import headless

from circuits import embedded
from interventions import Add, Clamp, applied
from interventions.steering.digest import digest
from interventions.steering.dose_response import DoseResponse, dose_response
from interventions.steering.generated import Generated
from interventions.steering.preference import Preference
from interventions.steering.randomised import randomised
from interventions.steering.sweep import LayerSweep, layer_sweep
from interventions.where import Where

PROMPTS = [(1, 5, 6), (1, 8, 4, 3), (1, 9), (1, 22, 23, 24, 25), (1, 40, 41)]


@pytest.fixture(scope="module")
def planted():
    """A model whose logits are linear in its last block's output, and the direction from token 9 to 7."""
    model = headless()
    head = model.module.get_output_embeddings().weight.detach()
    direction = {"resid.2": head[7] - head[9]}
    return model, direction, Preference([(prompt, 7, 9) for prompt in PROMPTS])


@pytest.fixture(scope="module")
def found(planted):
    model, direction, measure = planted
    return dose_response(model, lambda m: Add(direction, scale=m), [2, -1, 1, 1], measure, random=4)


def counted(measure):
    """A measure that notes when it is called."""

    class Counted:
        calls = 0

        def __call__(self, model):
            type(self).calls += 1
            return measure(model)

    return Counted()


def test_a_planted_direction_moves_the_measure_by_its_square(planted, found):
    _, direction, _ = planted
    square = direction["resid.2"].square().sum().item()
    assert found.multipliers == (-1, 0, 1, 2)
    for m in found.multipliers:
        assert found.effect("preference", m).mean == pytest.approx(m * square, rel=1e-6, abs=1e-9)
    means = [found.estimate("preference", m).mean for m in found.multipliers]
    assert means == sorted(means)


def test_random_directions_of_the_same_norm_do_not_move_it_so(planted, found):
    _, direction, _ = planted
    full = found.effect("preference", 2)
    random = found.effect("preference", 2, "random")
    assert abs(random.mean) < random.high < full.mean / 3
    assert found.beyond_random("preference", 2).low > full.mean / 2
    assert found.values("preference", 2, "random").shape == (4, len(PROMPTS))
    one = randomised(Add(direction, scale=3), 0)
    assert one.directions["resid.2"].norm().item() == pytest.approx(direction["resid.2"].norm().item())
    assert abs(torch.cosine_similarity(one.directions["resid.2"], direction["resid.2"], dim=0)) < 0.6
    assert torch.equal(randomised(Add(direction), 0).directions["resid.2"], one.directions["resid.2"])
    assert not torch.equal(randomised(Add(direction), 1).directions["resid.2"], one.directions["resid.2"])


def test_every_value_is_that_of_the_measure_with_that_intervention(planted, found):
    model, direction, measure = planted
    assert torch.equal(found.values("preference"), measure(model))
    with applied(model, Add(direction, scale=-1)):
        assert torch.equal(found.values("preference", -1), measure(model))
    with applied(model, randomised(Add(direction, scale=2), 3)):
        assert torch.equal(found.values("preference", 2, "random")[3], measure(model))


def test_a_random_intervention_keeps_its_chain_and_its_places():
    edit = Add({"resid.1": torch.ones(32)}, scale=2).at(Where(prompt=-1)) | Clamp({"resid.0": {1: 1.0}})
    other = randomised(edit, 0)
    assert repr(other) == repr(edit) and digest(other) != digest(edit)

    class Own(Add):
        def randomised(self, seed):
            return f"own {seed}"

    assert randomised(Own({"resid.0": torch.ones(2)}), 5) == "own 5"


def test_each_measure_runs_once_for_each_arm_and_multiplier(planted):
    model, direction, measure = planted
    steer = lambda m: Add(direction, scale=m)  # noqa: E731
    count = counted(measure)
    dose_response(model, steer, [-1, 0, 1], count, random=2, controls={"flipped": lambda m: steer(-m)})
    assert count.calls == 1 + 2 * (1 + 2 + 1)
    count = counted(measure)
    layer_sweep(
        model, lambda s, m: Add({s: direction["resid.2"]}, scale=m), ["resid.0", "mlp.1"], [1, 2], count
    )
    assert count.calls == 1 + 2 * 2 * 2


def test_controls_and_prompting_are_arms(planted):
    model, direction, measure = planted
    found = dose_response(
        model, lambda m: Add(direction, scale=m), [1], [measure], random=0,
        controls={"backwards": lambda m: Add(direction, scale=-m)}, prompting=lambda ids: (1, 7, *ids),
    )  # fmt: skip
    assert found.arms == ("steered", "backwards", "prompted")
    up, down = found.effect("preference", 1), found.effect("preference", 1, "backwards")
    assert up.mean == pytest.approx(-down.mean)
    asked = Preference([((1, 7, *prompt), 7, 9) for prompt in PROMPTS])(model)
    assert torch.equal(found.values("preference", arm="prompted"), asked)
    assert torch.equal(found.values("preference", 0, "backwards"), measure(model))


def test_measures_have_names():
    model = tiny("gpt2")
    several = {"a": lambda m: {"x": torch.ones(2), "y": torch.zeros(3)}, "b": lambda m: torch.ones(1)}
    steer = lambda m: Add({"resid.0": torch.ones(32)}, scale=m)  # noqa: E731
    assert dose_response(model, steer, [1], several).measures == ("a x", "a y", "b")
    assert dose_response(model, steer, [1], several["a"]).measures == ("x", "y")

    def fancy(model):
        return torch.ones(2)

    assert dose_response(model, steer, [1], [fancy, several["a"]]).measures == ("fancy", "x", "y")


def test_texts_are_kept_with_their_scores(tmp_path):
    model = embedded.model()
    direction = {"resid.1": torch.randn(model.width, generator=torch.Generator().manual_seed(0))}
    measure = Generated(["The boy", "The men"], {"length": lambda m, p, t: torch.tensor([len(x) for x in t])})
    found = dose_response(model, lambda m: Add(direction, scale=m), [9], measure, random=1)
    assert found.texts() == tuple(model.complete(["The boy", "The men"], do_sample=False)) != found.texts(9)
    assert found.texts(9, "random") != found.texts(9)
    assert found.values("length").tolist() == [len(text) for text in found.texts()]
    found.save(tmp_path)
    assert DoseResponse.load(tmp_path).texts(9) == found.texts(9)
    with pytest.raises(LookupError, match="No texts 'x'; there are texts"):
        found.texts(name="x")


def test_the_table_has_every_arm_and_multiplier(found):
    lines = found.table().splitlines()
    assert lines[0].split() == ["preference,", "5", "items", "-1", "0", "1", "2"]
    assert [line.split()[0] for line in lines[1:]] == ["steered", "random"]
    assert lines[1].count("[") == 4 and lines[2].count("[") == 3
    assert str(found) == found.table(["preference"])


# In a folder


def same(one: DoseResponse, other: DoseResponse) -> bool:
    return one.table() == other.table() and all(
        torch.equal(outcome.values[name], other.outcomes[key].values[name])
        for key, outcome in one.outcomes.items()
        for name in outcome.values
    )


def test_saved_and_loaded_it_is_the_same(found, planted, tmp_path):
    found.save(tmp_path / "a")
    found.save(tmp_path / "a")
    assert len(list((tmp_path / "a").iterdir())) == 2
    assert same(DoseResponse.load(tmp_path / "a", model=planted[0]), found)


class Ended(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_run_that_was_ended_goes_on_to_the_identical_result(planted, found, tmp_path, after):
    model, direction, measure = planted
    steer = lambda m: Add(direction, scale=m)  # noqa: E731
    calls: list[int] = []
    stop = [after]

    class Slow(Preference):
        def __call__(self, model):
            if len(calls) == stop[0]:
                raise Ended
            calls.append(1)
            return super().__call__(model)

    slow = {"preference": Slow(measure.items)}
    with pytest.raises(Ended):
        dose_response(model, steer, [-1, 1, 2], slow, random=4, folder=tmp_path)
    if after:
        with pytest.raises(ValueError, match=f"not finished: {16 - after} trials are missing"):
            DoseResponse.load(tmp_path)
    stop[0] = 99
    again = dose_response(model, steer, [-1, 1, 2], slow, random=4, folder=tmp_path)
    assert same(again, found) and same(DoseResponse.load(tmp_path), found)
    assert len(calls) == 16
    more = dose_response(model, steer, [-1, 1, 2, 3], slow, random=4, folder=tmp_path)
    assert len(calls) == 16 + 5 and more.multipliers[-1] == 3


def test_a_folder_of_another_run_is_refused(planted, tmp_path):
    model, direction, measure = planted
    steer = lambda m: Add(direction, scale=m)  # noqa: E731
    dose_response(model, steer, [1], measure, random=1, folder=tmp_path)
    with pytest.raises(
        ValueError, match=r"another intervention as 'random 0' times 1|another intervention as 'steered'"
    ):
        dose_response(model, lambda m: Add(direction, scale=2 * m), [1], measure, random=1, folder=tmp_path)
    with pytest.raises(ValueError, match="other measures"):
        dose_response(model, steer, [1], Preference(measure.items[:2]), random=1, folder=tmp_path)
    other = tiny("gpt2")
    with pytest.raises(ValueError, match="another model: give another folder"):
        dose_response(other, steer, [1], measure, random=1, folder=tmp_path)
    with pytest.raises(ValueError, match="another model than the one given"):
        DoseResponse.load(tmp_path, model=other)
    with pytest.raises(ValueError, match="holds a dose response, not a layer sweep"):
        LayerSweep.load(tmp_path)


def test_damage_is_noticed(planted, tmp_path):
    model, direction, measure = planted
    with pytest.raises(FileNotFoundError, match=r"no outcomes in .*: it has no outcomes\.json"):
        DoseResponse.load(tmp_path)
    dose_response(model, lambda m: Add(direction, scale=m), [1], measure, random=0, folder=tmp_path)
    path = tmp_path / "outcomes.json"
    text = path.read_text()
    path.write_text(text.replace('"multiplier": 1.0', '"multiplier": 2.0'))
    with pytest.raises(ValueError, match=r"damaged .it has changed"):
        DoseResponse.load(tmp_path)
    path.write_text(text[:40])
    with pytest.raises(ValueError, match="is damaged: remove it"):
        DoseResponse.load(tmp_path)
    path.write_text(json.dumps(json.loads(text) | {"version": 9}))
    with pytest.raises(ValueError, match="not of a form that this release can read"):
        DoseResponse.load(tmp_path)
    path.write_text(text)
    (file,) = Path(tmp_path).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"damaged .*has changed since"):
        DoseResponse.load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="damaged"):
        DoseResponse.load(tmp_path)


# Sweeps


def test_a_sweep_has_the_effect_at_every_site_and_its_best(planted, tmp_path):
    model, direction, measure = planted
    vector = direction["resid.2"]
    sites = ["resid.0", model.site("resid.1"), "resid.2", "resid.2"]
    steer = lambda site, m: Add({site: vector}, scale=m)  # noqa: E731
    found = layer_sweep(model, steer, sites, [-1, 1], measure, random=2, folder=tmp_path)
    assert found.sites == ("resid.0", "resid.1", "resid.2") and found.multipliers == (-1, 0, 1)
    for site in found.sites:
        with applied(model, steer(site, 1)):
            assert torch.equal(found.values("preference", site, 1), measure(model))
    square = vector.square().sum().item()
    assert found.effect("preference", "resid.2", 1).mean == pytest.approx(square)
    assert found.grid("preference").shape == (3, 3) and found.grid("preference")[2, 1] == 0
    assert found.grid("preference")[2].tolist() == pytest.approx([-square, 0, square])
    assert found.best("preference", allowed=lambda site, m: site == "resid.2") == ("resid.2", 1)
    grid = found.grid("preference")
    site, m = found.best("preference")
    assert grid[found.sites.index(site), found.multipliers.index(m)] == grid.max()
    assert found.values("preference", "resid.0", 1, random=True).shape == (2, len(PROMPTS))
    rows = found.table().splitlines()
    assert len(rows) == 1 + 3 + 3 and rows[0].startswith("change of preference, 5 items")
    assert str(LayerSweep.load(tmp_path, model=model)) == str(found)
    found.save(tmp_path / "again")
    assert str(LayerSweep.load(tmp_path / "again")) == str(found)


def _short(model):
    raise AssertionError("no measure should be run")


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda m, d, p: dose_response(m, d, [], p), ValueError, "at least one multiplier beside 0"),
        (lambda m, d, p: dose_response(m, d, [0.0], p), ValueError, "at least one multiplier beside 0"),
        (lambda m, d, p: dose_response(m, d, [float("nan")], p), ValueError, "finite numbers"),
        (lambda m, d, p: dose_response(m, d, [1], []), ValueError, "at least one measure"),
        (lambda m, d, p: dose_response(m, d, [1], {"a": 3}), TypeError, "'a' is no measure but int"),
        (lambda m, d, p: dose_response(m, d(1), [1], _short), TypeError, "from multipliers to interventions"),
        (lambda m, d, p: dose_response(m, lambda m: 3, [1], _short), TypeError, "no intervention but int"),
        (lambda m, d, p: dose_response(m, lambda m: Clamp({"resid.0": {1: m}}), [1], _short), TypeError,
         "Clamp adds no vector that a random one could stand for: pass random=0"),
        (lambda m, d, p: dose_response(m, d, [1], _short, controls={"random 1": d}), ValueError,
         "cannot have the name 'random 1'"),
        (lambda m, d, p: dose_response(m, d, [1], {"a": _short}, prompting=str), ValueError,
         "'a' cannot be asked with other prompts"),
        (lambda m, d, p: dose_response(m, d, [1], {"a": lambda m: 3}), ValueError,
         "'a' gives int; it must give a tensor (item)"),
        (lambda m, d, p: dose_response(m, d, [1], {"a": lambda m: torch.ones(2, 2)}), ValueError,
         "'a' gives (2, 2)"),
        (lambda m, d, p: dose_response(m, d, [1], [p, p]), ValueError, "Two measures give 'preference'"),
        (lambda m, d, p: layer_sweep(m, d, [], [1], p), ValueError, "at least one"),
        (lambda m, d, p: layer_sweep(m, d, "resid.0", [1], p), ValueError, "sequence of sites"),
        (lambda m, d, p: layer_sweep(m, d, ["resid.9"], [1], p), LookupError, "No site 'resid.9'"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_run(planted, call, error, words):
    model, direction, measure = planted
    with pytest.raises(error, match=re.escape(words)):
        call(model, lambda m: Add(direction, scale=m), measure)


def test_what_was_not_measured_is_named(planted, found):
    for args, words in [
        (("x",), "No measure 'x'; there are preference"),
        (("preference", 5), "No multiplier 5; there are -1, 0, 1, 2"),
        (("preference", 1, "shuffled"), "No arm 'shuffled'; there are steered, random"),
        (("preference", 0, "prompted"), "No arm 'prompted'"),
    ]:
        with pytest.raises(LookupError, match=words):
            found.values(*args)
    model, direction, measure = planted
    alone = dose_response(model, lambda m: Add(direction, scale=m), [1], measure, random=0)
    with pytest.raises(LookupError, match="pass random=3"):
        alone.beyond_random("preference", 1)
    with pytest.raises(LookupError, match="No arm 'random'"):
        alone.values("preference", 1, "random")
    sweep = layer_sweep(model, lambda s, m: Add(direction, scale=m), ["resid.2"], [1], measure, random=0)
    for args, words in [
        (("x", "resid.2", 1), "No measure 'x'"),
        (("preference", "resid.1", 1), "No site 'resid.1'; there are resid.2"),
        (("preference", "resid.2", 3), "No multiplier 3"),
    ]:
        with pytest.raises(LookupError, match=words):
            sweep.values(*args)
    with pytest.raises(LookupError, match="pass random=1"):
        sweep.values("preference", "resid.2", 1, random=True)
    with pytest.raises(ValueError, match="no site and multiplier that is allowed"):
        sweep.best("preference", allowed=lambda site, m: False)
