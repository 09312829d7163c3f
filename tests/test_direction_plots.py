from __future__ import annotations

import re

import matplotlib
import pytest
import torch

from circuits.direction_plots import plot_separation, plot_similarity
from interventions.steering import Direction, similarity

SITES = ("resid.0", "resid.1", "mlp_in.$2")


def direction(seed: int, *, stable: bool = True, folds: bool = True) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(3, generator=generator).tolist()
    how: dict = {"method": "drawn"}
    if folds:
        how["separation"] = {
            site: {"auroc": v, "d": 1.0, "ordered": 0.5, "n": 9}
            for site, v in zip(SITES, values, strict=True)
        }
    if stable:
        how["bootstrap"] = {
            site: {"cosine": v, "low": v / 2, "high": 1.0, "n": 9}
            for site, v in zip(SITES, values, strict=True)
        }
    return Direction({site: torch.randn(8, generator=generator) for site in SITES}, None, how)


def every(folder, kind, *names):
    """Each picture once, by name, or some of them."""
    a, b = direction(0), direction(1, stable=False)
    draws = {
        "similarity": lambda p: plot_similarity(a, p, title="one $of them"),
        "many": lambda p: plot_similarity({str(i): torch.randn(4).abs() + i for i in range(60)}, p),
        "given": lambda p: plot_similarity(similarity({"a $x": a["resid.0"], "b": b["resid.0"]}), p),
        "separation": lambda p: plot_separation({"a $x_1$": a, "b": b}, p, title="two of them"),
        "alone": lambda p: plot_separation(b.only("resid.1", "resid.0"), p),
    }
    torch.manual_seed(0)
    return {
        name: draw(folder / f"{name}{kind}") for name, draw in draws.items() if not names or name in names
    }


SOME = ("similarity", "separation")


@pytest.mark.parametrize(
    ("kind", "names"),
    [(".svg", ()), (".png", SOME), (".pdf", SOME)]
    + [pytest.param(kind, (), marks=pytest.mark.slow) for kind in (".png", ".pdf")],
)
def test_every_picture_is_drawn_and_the_same_each_time(tmp_path, kind, names):
    style = dict(matplotlib.rcParams)
    first = {name: path.read_bytes() for name, path in every(tmp_path, kind, *names).items()}
    assert all(len(found) > 2000 for found in first.values())
    assert {name: path.read_bytes() for name, path in every(tmp_path, kind, *names).items()} == first
    assert dict(matplotlib.rcParams) == style


def test_few_cosines_are_written_out_and_many_are_not(tmp_path):
    def texts(vectors):
        return re.findall("<!-- (.*?) -->", plot_similarity(vectors, tmp_path / "p.svg").read_text())

    few = texts({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([3.0, 4.0])})
    assert few.count("0.60") == 2 and few.count("1.00") >= 2
    assert "0.60" not in texts({str(i): torch.tensor([3.0, i]) for i in range(40)})


def test_a_direction_without_held_out_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'a' was found without folds; contrast\(\.\.\., folds=5\)"):
        plot_separation({"a": direction(0, folds=False)}, tmp_path / "p")
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_separation({}, tmp_path / "p")
    with pytest.raises(ValueError, match="no vectors"):
        plot_similarity({}, tmp_path / "p")
    assert not list(tmp_path.glob("p*"))
