from __future__ import annotations

import math

import matplotlib
import pytest
import torch

from circuits import steering_plots as plots
from interventions.steering.dose_response import DoseResponse
from interventions.steering.outcomes import Outcome
from interventions.steering.sweep import LayerSweep

DOSES = (-2.0, -1.0, 0.0, 1.0, 2.0)


def outcome(seed: float, items: int = 12, **means: float) -> Outcome:
    generator = torch.Generator().manual_seed(int(1000 + 10 * seed))
    noise = torch.randn(items, generator=generator, dtype=torch.float64)
    return Outcome({name: mean + 0.2 * noise for name, mean in means.items()})


def dose(random: int = 2, controls=("shuffled $labels$",), prompted: bool = True, slope: float = 1.0):
    arms = {
        "steered": slope,
        **{f"random {i}": 0.1 * i for i in range(random)},
        **dict.fromkeys(controls, 0.3),
    }
    found = {("steered", 0.0): outcome(0, preference=0.0, KL=0.0)}
    if prompted:
        found["prompted", 0.0] = outcome(9, preference=1.5, KL=0.4)
    for arm, by in arms.items():
        for m in DOSES:
            if m:
                found[arm, m] = outcome(m, preference=by * m, KL=0.05 * m * m)
    return DoseResponse(DOSES, found, random, tuple(controls), prompted, "x")


def sweep(sites=tuple(f"resid.{i}" for i in range(14)), random: int = 1):
    found = {("steered", 0.0): outcome(0, preference=0.0)}
    for i, site in enumerate(sites):
        for m in DOSES:
            if m:
                found[site, m] = outcome(m, preference=m * math.sin(0.2 * i))
                for r in range(random):
                    found[f"{site} random {r}", m] = outcome(m + i, preference=0.0)
    return LayerSweep(sites, DOSES, found, random, "x")


def every(folder, kind, *names):
    """Each picture once, by name, or some of them."""
    labels = {"preference": "log-odds, happy over sad (nats)", "KL": "KL to the unsteered model (nats)"}
    draws = {
        "dose": lambda p: plots.plot_dose_response(dose(), p, labels=labels, title="happy $or sad"),
        "bare": lambda p: plots.plot_dose_response(dose(0, (), False), p, measures=["preference"]),
        "several": lambda p: plots.plot_dose_response(
            {"residual": dose(), "state": dose(slope=0.4), "both": dose(1, slope=1.3)}, p, width=5.5
        ),
        "sweep": lambda p: plots.plot_layer_sweep(sweep(), p, label="change of log-odds (nats)"),
        "few": lambda p: plots.plot_layer_sweep(sweep(("embed", "attn.0", "mlp.0"), 0), p, multipliers=[2]),
        "many": lambda p: plots.plot_layer_sweep(sweep((*(f"mlp.{i}" for i in range(8)), "resid.7")), p),
        "map": lambda p: plots.plot_layer_map(sweep(), p, title="where"),
        "map of few": lambda p: plots.plot_layer_map(sweep(("resid.0", "resid.1"), 0), p),
    }
    return {
        name: draw(folder / f"{name}{kind}") for name, draw in draws.items() if not names or name in names
    }


THREE = ("dose", "sweep", "map of few")


@pytest.mark.parametrize(
    ("kind", "names"),
    [(".svg", THREE), (".png", ("dose",)), (".pdf", ("dose",))]
    + [pytest.param(kind, THREE, marks=pytest.mark.slow) for kind in (".png", ".pdf")],
)
def test_every_picture_is_drawn_and_the_same_each_time(tmp_path, kind, names):
    style = dict(matplotlib.rcParams)
    first = {name: path.read_bytes() for name, path in every(tmp_path, kind, *names).items()}
    assert all(len(found) > 2000 for found in first.values())
    assert {name: path.read_bytes() for name, path in every(tmp_path, kind, *names).items()} == first
    assert dict(matplotlib.rcParams) == style


def test_what_is_written_in_the_pictures(tmp_path):
    found = {name: path.read_text() for name, path in every(tmp_path, ".svg").items()}
    for words in (
        "happy $or sad",
        "2 random directions",
        "shuffled $labels$",
        "prompted",
        "steered",
        "multiplier",
    ):
        assert words in found["dose"]
    assert "log-odds, happy over" in found["dose"] and "KL to the" in found["dose"]
    assert "random" not in found["bare"] and "KL" not in found["bare"]
    assert all(name in found["several"] for name in ("residual", "state", "both", "random directions"))
    for words in ("resid, by layer", "\u22122", "random"):
        assert words in found["sweep"]
    assert "attn.0" in found["few"] and "resid.7" in found["many"]
    assert "preference" in found["map"] and "+2" in found["map"]


def test_bands_are_of_changes_on_the_same_items():
    found = dose(0, (), False)
    items = found.values("preference")
    found.outcomes["steered", 1.0].values["preference"].copy_(items + 1.0)
    change, mean = found.effect("preference", 1), found.estimate("preference", 1)
    assert change.high - change.low < 1e-9 < mean.high - mean.low


def test_without_a_suffix_it_is_a_drawing_and_without_data_an_error(tmp_path):
    assert plots.plot_layer_map(sweep(("resid.0",)), tmp_path / "x").suffix == ".svg"
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.plot_dose_response({}, tmp_path / "y")
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.plot_layer_sweep(sweep(("resid.0",)), tmp_path / "y", multipliers=[0])
    with pytest.raises(ValueError, match=r"\.svg, \.png and \.pdf will do"):
        plots.plot_layer_map(sweep(("resid.0",)), tmp_path / "y.gif")
    with pytest.raises(LookupError, match="No measure 'x'; there are preference, KL"):
        plots.plot_dose_response(dose(), tmp_path / "y", measures=["x"])
    with pytest.raises(LookupError, match="No measure 'x'"):
        plots.plot_layer_map(sweep(("resid.0",)), tmp_path / "y", measure="x")
    assert not (tmp_path / "y.svg").exists()
