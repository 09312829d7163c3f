from __future__ import annotations

import re

import matplotlib
import pytest
import torch

from circuits import geometry_plots as plots
from interventions.dictionaries import Quality, SparseCoder
from interventions.dictionaries.measures import Stitching, geometry, overlap, principal


def quality(density, l0=4.0, fvu=0.2) -> Quality:
    return Quality("mlp.0", fvu, l0, (density == 0).double().mean().item(), 3, 3.1, 5, 4, density=density)


def random_density(n=64, seed=0):
    density = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 6
    return density.where(torch.arange(n) > 3, 0)


def every(folder, kind, *names):
    """Each picture once, by name, or some of them."""
    one, other = SparseCoder.random(16, 64), SparseCoder.random(16, 64, seed=1)
    narrow = SparseCoder.random(16, 64, 8)
    q, g = quality(random_density()), geometry(one)
    draws = {
        "densities": lambda p: plots.plot_densities({"a $x_1$": q, "b": quality(torch.ones(64))}, p),
        "cosines": lambda p: plots.plot_cosines({"a": g, "b": geometry(narrow)}, p, title="two $of them"),
        "principal": lambda p: plots.plot_principal(
            principal(one.W_dec), p, color=q.density.log10(), label="log10 of density"
        ),
        "plain": lambda p: plots.plot_principal(principal(one.W_dec), p),
        "density-cosine": lambda p: plots.plot_density_cosine(q, g, p),
        "frontier": lambda p: plots.plot_frontier(
            {"a": [quality(q.density, 4, 0.3), quality(q.density, 64, 0.1)], "b": [q]}, p
        ),
        "overlap": lambda p: plots.plot_overlap({"seeds": overlap(one, other)}, p),
        "stitching": lambda p: plots.plot_stitching(stitching(), p),
    }
    return {
        name: draw(folder / f"{name}{kind}") for name, draw in draws.items() if not names or name in names
    }


def stitching(n=64):
    generator = torch.Generator().manual_seed(0)
    return Stitching(
        0.7, torch.rand(n, generator=generator), torch.zeros(n, dtype=torch.long),
        torch.randn(n, generator=generator), random_density(n), (0, 20, 45, 64, 64), (0, 0, 0, 9, 16),
        (0.3, 0.2, 0.15, 0.12, 0.1), (4, 5, 6, 5, 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return {name: path.read_bytes() for name, path in every(tmp_path_factory.mktemp("drawn"), ".svg").items()}


def test_every_picture_is_drawn_and_the_same_each_time(tmp_path, drawn):
    style = dict(matplotlib.rcParams)
    assert all(len(found) > 2000 for found in drawn.values())
    assert {name: path.read_bytes() for name, path in every(tmp_path, ".svg").items()} == drawn
    assert dict(matplotlib.rcParams) == style


@pytest.mark.parametrize("kind", [".png", ".pdf"])
@pytest.mark.parametrize("names", [("densities", "principal"), pytest.param((), marks=pytest.mark.slow)])
def test_pictures_in_other_formats_are_the_same_each_time(tmp_path, names, kind):
    style = dict(matplotlib.rcParams)
    first = {name: path.read_bytes() for name, path in every(tmp_path, kind, *names).items()}
    assert all(len(found) > 2000 for found in first.values())
    assert {name: path.read_bytes() for name, path in every(tmp_path, kind, *names).items()} == first
    assert dict(matplotlib.rcParams) == style


def test_what_is_written_in_the_pictures(drawn):
    found = {name: content.decode() for name, content in drawn.items()}
    assert "a $x_1$, 6.2% dead" in found["densities"] and "two $of them" in found["cosines"]
    assert "own encoder, decoder" in found["cosines"]
    assert re.search(r"seeds, \d+% shared", found["overlap"])
    assert "novel," in found["stitching"]


def test_without_a_suffix_it_is_a_drawing_and_without_data_an_error(tmp_path):
    assert plots.plot_densities({"a": quality(random_density())}, tmp_path / "x").suffix == ".svg"
    for plot in (plots.plot_densities, plots.plot_cosines, plots.plot_frontier, plots.plot_overlap):
        with pytest.raises(ValueError, match="nothing to plot"):
            plot({}, tmp_path / "y")
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.plot_frontier({"a": []}, tmp_path / "y")
    assert not (tmp_path / "y.svg").exists()


def test_dictionaries_without_a_live_feature_are_drawn(tmp_path):
    dead = quality(torch.zeros(8))
    plots.plot_densities({"dead": dead}, tmp_path / "a.svg")
    plots.plot_density_cosine(dead, geometry(SparseCoder.random(4, 8)), tmp_path / "b.svg")
    plots.plot_principal(
        principal(SparseCoder.random(4, 8).W_dec), tmp_path / "c.svg", color=dead.density.log10()
    )
