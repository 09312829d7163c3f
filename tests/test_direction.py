from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from families import WIDTH, tiny

from interventions import Add, applied
from interventions.steering import Direction


def drawn(seed: int, sites=("resid.0", "resid.1"), width=WIDTH, fingerprint=None) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    vectors = {site: torch.randn(width, generator=generator, dtype=torch.float64) for site in sites}
    return Direction(vectors, fingerprint, {"method": "drawn", "seed": seed})


def test_the_algebra_is_that_of_the_vectors():
    a, b = drawn(0), drawn(1)
    found = 2 * a - b / 4 + (-a) * 0.5
    for site in a:
        torch.testing.assert_close(found[site], 1.5 * a[site] - b[site] / 4)
    assert a - a == 0 * a
    assert a != b and a == Direction(dict(a))
    assert a != "a"


def test_normalised_has_norm_one_and_cosine_is_between_unit_vectors():
    a, b = drawn(0), drawn(1)
    assert a.normalised().norms == pytest.approx({"resid.0": 1, "resid.1": 1})
    expected = {site: torch.cosine_similarity(a[site], b[site], dim=0).item() for site in a}
    assert a.cosine(3 * b) == pytest.approx(expected)
    assert a.cosine(0 * b) == {"resid.0": 0, "resid.1": 0}
    with pytest.raises(ValueError, match=r"at resid\.0, resid\.1 is zero"):
        (0 * a).normalised()


def test_a_projection_is_what_is_left_out_of_the_orthogonal_part():
    a = drawn(0)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    part = a.project("resid.1", x)
    assert (a.coordinate("resid.1", x - part)).abs().max() < 1e-12
    torch.testing.assert_close(a.project("resid.1", part), part)
    torch.testing.assert_close(a.coordinate("resid.1", a["resid.1"]), a["resid.1"].norm())
    with pytest.raises(ValueError, match="x has width 3"):
        a.project("resid.1", x[..., :3])


def test_it_is_added_as_it_is():
    model = tiny("gpt2")
    direction = drawn(0, ("resid.0",))
    tokens = torch.tensor([[3, 1, 4]])
    with applied(model, Add(direction, scale=2)):
        moved = model.read(tokens, ["resid.0"])[model.site("resid.0")]
    plain = model.read(tokens, ["resid.0"])[model.site("resid.0")]
    torch.testing.assert_close(moved - plain, 2 * direction["resid.0"].expand_as(plain))
    assert direction[model.site("resid.0")] is direction["resid.0"]
    assert model.site("resid.0") in direction and "resid.9" not in direction
    with pytest.raises(KeyError, match=r"this direction has resid\.0"):
        direction["resid.9"]


def test_sites_are_picked_and_joined():
    a = drawn(0)
    assert list(a.only("resid.1")) == ["resid.1"]
    assert a.only("resid.0") | a.only("resid.1") == a
    with pytest.raises(ValueError, match=r"Both.* at resid\.1"):
        a | a.only("resid.1")


def test_random_vectors_have_the_norms_and_hang_on_the_seed_alone():
    a = drawn(0)
    one = Direction.random(a, seed=3)
    assert one.norms == pytest.approx(a.norms)
    assert one == Direction.random(a, seed=3) != Direction.random(a, seed=4)
    turned = Direction({site: a[site] for site in reversed([*a])})
    assert Direction.random(turned, seed=3) == one
    wide = Direction({"resid.0": torch.ones(4000)})
    cosines = [Direction.random(wide, seed=s).cosine(wide)["resid.0"] for s in range(20)]
    assert max(map(abs, cosines)) < 0.1


def test_directions_that_do_not_fit_are_refused_by_name():
    a = drawn(0, fingerprint="a" * 64)
    with pytest.raises(ValueError, match="two models: aaaaaaaa and bbbbbbbb"):
        a + drawn(1, fingerprint="b" * 64)
    assert (a + drawn(1)).fingerprint == a.fingerprint
    with pytest.raises(ValueError, match=r"other sites: resid\.0, resid\.1 and resid\.0"):
        a.cosine(a.only("resid.0"))
    with pytest.raises(ValueError, match=r"At resid\.0, one direction has width 32, the other 8"):
        a - drawn(1, width=8)
    with pytest.raises(TypeError, match="do not add up"):
        a + {"resid.0": torch.ones(WIDTH)}  # type: ignore[operator]
    with pytest.raises(TypeError, match="multiply them by a number"):
        a * a  # type: ignore[operator]


@pytest.mark.parametrize(
    "vectors, why",
    [
        ({}, "at least one site"),
        ({"resid.0": torch.ones(1, 4)}, r"shape \(1, 4\)"),
        ({"resid.0": torch.tensor([1.0, float("nan")])}, "at resid.0 is not finite"),
    ],
)
def test_what_is_no_direction_is_refused(vectors, why):
    with pytest.raises(ValueError, match=why):
        Direction(vectors)


def test_how_must_be_plain_json():
    with pytest.raises(ValueError, match="plain JSON"):
        Direction({"resid.0": torch.ones(2)}, how={"method": torch.ones(2)})


def test_it_does_not_change_with_the_tensor_it_was_made_from():
    vector = torch.ones(4)
    direction = Direction({"resid.0": vector})
    vector.zero_()
    assert direction.norms == {"resid.0": 2.0}


def test_a_model_is_checked_against_it():
    model = tiny("gpt2")
    fits = drawn(0, fingerprint=model.fingerprint)
    assert fits.check(model) is fits
    with pytest.raises(ValueError, match=r"found in another model \(bbbbbbbb\)"):
        drawn(0, fingerprint="b" * 64).check(model)
    replace(drawn(0, fingerprint="b" * 64), fingerprint=None).check(model)
    with pytest.raises(ValueError, match=r"has width 8, but resid\.0 of this model has 32"):
        drawn(0, width=8).check(model)
    with pytest.raises(LookupError, match=r"No site 'resid\.77'"):
        drawn(0, ("resid.77",)).check(model)


def test_it_is_read_back_as_it_was_saved(tmp_path):
    a = drawn(0, fingerprint="a" * 64)
    a.save(tmp_path / "d")
    found = Direction.load(tmp_path / "d")
    assert found == a and found.how == a.how and list(found) == list(a)
    (2 * a).save(tmp_path / "d")
    assert Direction.load(tmp_path / "d") == 2 * a
    assert len(list((tmp_path / "d").glob("*.safetensors"))) == 1


def test_files_that_were_changed_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no direction in"):
        Direction.load(tmp_path)
    drawn(0).save(tmp_path)
    index = tmp_path / "direction.json"
    whole, (vectors,) = index.read_text(), tmp_path.glob("*.safetensors")
    index.write_text(whole[:-9])
    with pytest.raises(ValueError, match="not complete JSON"):
        Direction.load(tmp_path)
    for key, value, why in [
        ("format", "other", "not written by"),
        ("version", 99, "version 99"),
        ("file", "../x.safetensors", "no such file"),
        ("sites", ["resid.7"], "does not describe"),
    ]:
        index.write_text(json.dumps({**json.loads(whole), key: value}))
        with pytest.raises(ValueError, match=why):
            Direction.load(tmp_path)
    index.write_text(whole)
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not match its checksum"):
        Direction.load(tmp_path)


def test_the_repr_is_one_line():
    assert repr(drawn(0)) == "Direction(resid.0, resid.1; norm 5.78 to 6.84; drawn)"
    many = Direction({f"resid.{i}": torch.ones(4) for i in range(9)})
    assert repr(many) == "Direction(9 sites, resid.0 to resid.8; norm 2 to 2)"
