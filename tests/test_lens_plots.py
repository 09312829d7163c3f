from __future__ import annotations

import math
import warnings
from xml.sax.saxutils import escape

import matplotlib
import pytest
import torch

from circuits import embedded
from circuits.annotations import token
from circuits.lens_bases import plot_ablations, plot_causal_basis
from circuits.lens_curves import plot_lens_curves, plot_transfer
from circuits.lens_excerpt import cut
from circuits.lens_losses import plot_losses
from circuits.lens_plots import plot_comparison, plot_trajectory
from circuits.lens_statistics import BITS, STATISTICS, ceiling
from circuits.token_map import Scale, TokenMap, _fitted, sheet
from interventions import Add, Model, applied
from interventions.lenses import Fitted, LogitLens, TunedLens
from interventions.lenses.causal_ablation import KINDS, AblationCurves
from interventions.lenses.causal_basis import CausalBasis
from interventions.lenses.comparison import comparison
from interventions.lenses.curves import MEASURES, LensCurves
from interventions.lenses.reading import reading
from interventions.lenses.tracing import trajectory
from interventions.lenses.transfer import TransferMatrix

PROMPT = "The boys that the teacher near the cars loves"


@pytest.fixture(scope="module")
def model() -> Model:
    return embedded.model()


@pytest.fixture(scope="module")
def found(model):
    return trajectory(LogitLens(model), PROMPT)


@pytest.fixture(scope="module")
def compared(model):
    lens = LogitLens(model)
    first = reading(lens, PROMPT)
    with applied(model, Add({"resid.0": 3 * torch.ones(64).cumsum(0)})):
        return comparison(first, reading(lens, PROMPT))


def curves(level: float = 1.0, sites=("embed", "resid.0", "resid.1"), bytes: bool = True) -> LensCurves:
    """Curves of two lenses, one of them at fewer sites, that fall from `level` bits per token."""
    rows, tokens = 6, torch.full((6,), 10)
    generator = torch.Generator().manual_seed(0)

    def sums(names, times):
        falling = torch.linspace(level, 0.3, len(names) + 1, dtype=torch.float64) * times
        noise = torch.rand(len(names) + 1, rows, generator=generator, dtype=torch.float64)
        one = (falling[:, None] + 0.05 * noise) * 10 * math.log(2)
        return {name: one if name in MEASURES[:3] else one / one.max() * 10 for name in MEASURES}

    names = {"tuned lens": sites, "logit $lens$": sites[1:]}
    return LensCurves(
        {name: (*where, "output") for name, where in names.items()},
        {name: sums(where, i + 1) for i, (name, where) in enumerate(names.items())},
        tokens,
        3 * tokens if bytes else None,
        "x",
    )


def matrix(n: int) -> TransferMatrix:
    sites = ("embed", *(f"resid.{i}" for i in range(n - 1)))
    values = (torch.arange(n)[:, None] - torch.arange(n)).abs().double() + 0.5
    return TransferMatrix(sites, values, values, 0.4, 100, 1, "TunedLens", "x")


# --- heat maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [(".svg", "abcd"), (".png", "ad"), (".pdf", "ad")]
    + [pytest.param(kind, "abcd", marks=pytest.mark.slow) for kind in (".png", ".pdf")],
)
def test_every_picture_is_drawn_and_the_same_each_time(tmp_path, found, compared, kind, names):
    style = dict(matplotlib.rcParams)
    draws = {
        "a": lambda path: plot_trajectory(found, path),
        "b": lambda path: plot_comparison(compared, path),
        "c": lambda path: plot_lens_curves(curves(), path),
        "d": lambda path: plot_transfer(matrix(4), path),
    }

    def draw(folder):
        return [draws[name](folder / f"{name}{kind}").read_bytes() for name in names]

    first = draw(tmp_path / "one")
    assert all(len(content) > 2000 for content in first) and draw(tmp_path / "two") == first
    assert dict(matplotlib.rcParams) == style


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_heat_map_has_sites_tokens_predictions_and_a_bar_with_its_unit(tmp_path, found, statistic):
    text = plot_trajectory(found, tmp_path / "x", statistic=statistic, title="Lens $x$").read_text()
    how = STATISTICS[statistic]
    assert f"<!-- {how.label.split()[0]}" in text and (how.unit or how.name.split()[-1]) in text
    for words in (
        "embed",
        "resid.1",
        "output",
        "·teacher",
        "token read",
        "token that comes next",
        "Lens $x$",
    ):
        assert f"<!-- {words}" in text
    assert text.count("<!-- ·that -->") > 2  # read, to come, and predicted
    said = [found.texts[token] for token in found.top_tokens[:, :, 0].flatten().tolist()]
    assert all(f"<!-- {escape(token(word)[:4])}" in text for word in said)


def test_the_embedding_is_at_the_bottom_and_the_output_on_top(tmp_path, found):
    text = plot_trajectory(found, tmp_path / "x.svg").read_text()
    assert text.index("<!-- embed -->") < text.index("<!-- resid.0 -->") < text.index("<!-- output -->")


def test_an_unknown_next_token_leaves_its_cells_without_a_colour(tmp_path, found):
    known = plot_trajectory(found, tmp_path / "a.png", statistic="rank", positions=slice(0, 5)).read_bytes()
    last = plot_trajectory(found, tmp_path / "b.png", statistic="rank", positions=slice(-1, None))
    assert last.read_bytes() != known and found["rank"][:, -1].isnan().all()


def test_of_a_long_prompt_the_last_tokens_are_drawn_and_a_warning_says_which(tmp_path, model):
    long = trajectory(LogitLens(model), " ".join([PROMPT] * 5))
    with pytest.warns(UserWarning, match=r"the last 32 of 46 tokens \(positions=slice\(0, 32\)") as warned:
        text = plot_trajectory(long, tmp_path / "x").read_text()
    assert warned[0].filename == __file__
    assert "<!-- Tokens 14 to 45 of 46, counted from 0. -->" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = plot_trajectory(long, tmp_path / "x", positions=slice(2, 6), sites=["embed", "output"])
    assert "Tokens 2 to 5 of 46" in part.read_text() and "2 of 4 sites" in part.read_text()
    assert "resid.0" not in part.read_text().replace("LogitLens(3 sites, embed to resid.1)", "")


def test_of_many_sites_every_other_one_is_shown_and_the_last_is_among_them():
    names = [f"resid.{i}" for i in range(100)] + ["output"]
    with pytest.warns(UserWarning, match="34 of 101 sites"):
        shown = cut(names, 4, None, None, tokens=9, rows=48)
    assert shown.sites[-1] == "output" and len(shown.sites) == 34


def test_odd_tokens_are_seen_and_long_ones_are_cut():
    assert _fitted(" a\n\u202eb\x07", 2.0)[0] == "·a⏎b␇"
    assert _fitted("", 2.0)[0] == '""'
    shown, points = _fitted(" internationalization", 0.6)
    assert shown.startswith("·intern") and shown.endswith("…") and points >= 4.5
    assert _fitted(" a", 0.6)[1] > points


def test_cells_are_as_wide_as_the_tokens_need():
    def made(word):
        return TokenMap(["a"], [[word] * 4], [[0.0] * 4], None, ["x"] * 4, ["y"] * 4, ("", ""), Scale("z"))

    narrow, wide = sheet(made("a"), 9.0), sheet(made("a" * 9), None)
    assert narrow.width == 9.0 and sheet(made("a"), None).cell <= wide.cell
    with pytest.raises(ValueError, match=r"4 tokens cannot be read in 1\.5 inches.*inches at least"):
        sheet(made("a"), 1.5)


def test_a_few_huge_values_do_not_hide_the_others():
    values = torch.cat([torch.linspace(0, 1, 99), torch.tensor([40.0, torch.nan, torch.inf])])
    assert ceiling(values) < 2 and ceiling(torch.linspace(0, 9, 50)) == 9
    assert ceiling(torch.tensor([torch.nan])) == 1.0
    assert Scale("x", least=0.0).limits([0.0, 0.0]) == (0.0, 1.0)
    assert STATISTICS["entropy"].value(math.log(8)) == "3 bits" and pytest.approx(1.442695) == BITS


def test_a_comparison_leads_from_one_prediction_to_the_other(tmp_path, compared):
    text = plot_comparison(compared, tmp_path / "x", title="added").read_text()
    assert "→" in text and "Jensen-Shannon" in text and "token that comes next" in text
    same, other = compared.at("embed", 2), compared.at("resid.0", 2)
    assert same[0] == same[1] and other[0] != other[1]
    assert f"<!-- {other[0].replace(' ', '·')}→{other[1].replace(' ', '·')} -->" in text
    assert "KL from the" in plot_comparison(compared, tmp_path / "y", statistic="kl").read_text()


def test_two_prompts_stand_below_and_above(tmp_path, model):
    lens = LogitLens(model)
    both = comparison(reading(lens, "The boy near the car"), reading(lens, "The girl near the box"))
    text = plot_comparison(both, tmp_path / "x").read_text()
    assert "token read in the second pass" in text and "<!-- ·girl -->" in text and "<!-- ·boy -->" in text


def test_mistakes_in_heat_maps_are_named(tmp_path, found, compared):
    with pytest.raises(LookupError, match="No statistic 'x'; there are entropy, kl"):
        plot_trajectory(found, tmp_path / "x", statistic="x")
    with pytest.raises(LookupError, match="No statistic 'entropy'; there are js"):
        plot_comparison(compared, tmp_path / "x", statistic="entropy")
    with pytest.raises(LookupError, match=r"No site 'resid\.9' was read"):
        plot_trajectory(found, tmp_path / "x", sites=["resid.9"])
    with pytest.raises(ValueError, match="is left of 10"):
        plot_trajectory(found, tmp_path / "x", positions=slice(40, 50))
    with pytest.raises(ValueError, match=r"\.svg, \.png and \.pdf will do"):
        plot_trajectory(found, tmp_path / "x.gif")
    assert not list(tmp_path.iterdir())


# --- curves and matrices ------------------------------------------------------------------------------------


def test_curves_have_a_line_for_each_lens_and_one_for_the_model(tmp_path):
    text = plot_lens_curves(curves(), tmp_path / "x", title="of $a$ model").read_text()
    for words in ("tuned lens", "logit $lens$", "the model's output", "cross-entropy", "(bits per byte)"):
        assert f"<!-- {words} -->" in text
    assert "KL from the output" in text and "residual stream after layer" in text and "of $a$ model" in text
    one = plot_lens_curves(
        curves(), tmp_path / "x", lenses=["tuned lens"], measures=["accuracy"], per="token"
    )
    assert "logit" not in one.read_text() and "(share of tokens)" in one.read_text()


def test_tens_of_bits_are_on_a_logarithmic_axis(tmp_path):
    few, many = (
        plot_lens_curves(curves(level, ("embed", "mlp.1")), path, measures=["kl"], per="token").read_text()
        for level, path in ((3.0, tmp_path / "few"), (40.0, tmp_path / "many"))
    )
    assert "<!-- 50 -->" in many and "<!-- 20 -->" in many and "<!-- 0" not in many
    assert "<!-- 0" in few


def test_without_bytes_curves_are_per_token(tmp_path):
    assert "(bits per token)" in plot_lens_curves(curves(bytes=False), tmp_path / "x").read_text()
    with pytest.raises(ValueError, match="no tokenizer"):
        plot_lens_curves(curves(bytes=False), tmp_path / "x", per="byte")
    with pytest.raises(ValueError, match="per byte or per token"):
        plot_lens_curves(curves(), tmp_path / "x", per="word")
    with pytest.raises(LookupError, match="No lens 'x'"):
        plot_lens_curves(curves(), tmp_path / "x", lenses=["x"])
    with pytest.raises(LookupError, match="No measure 'x'"):
        plot_lens_curves(curves(), tmp_path / "x", measures=["x"])
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_lens_curves(curves(), tmp_path / "x", lenses=[])


def test_sites_of_several_kinds_go_by_their_names(tmp_path):
    sites = ("embed", "attn.0", "mlp.0", "attn.1")
    text = plot_lens_curves(curves(sites=sites), tmp_path / "x", width=5.0).read_text()
    assert all(f"<!-- {site} -->" in text for site in sites) and "<!-- site -->" in text


def test_a_matrix_of_few_sites_has_its_numbers_written_out(tmp_path):
    few, many = (plot_transfer(matrix(n), tmp_path / "x").read_text() for n in (4, 20))
    assert "<!-- 2.89 -->" in few and "<!-- 2.89 -->" not in many  # two nats
    assert "whose map: after layer" in few and "more cross-entropy (bits per token)" in few
    assert "KL from the output" in plot_transfer(matrix(4), tmp_path / "x", measure="kl").read_text()
    with pytest.raises(ValueError, match="there are penalty, kl, cross_entropy"):
        plot_transfer(matrix(4), tmp_path / "x", measure="x")


# --- fits and causal bases ----------------------------------------------------------------------------------


def test_losses_of_many_sites_have_a_line_each_and_some_names(tmp_path, model):
    def fitted(sites, steps):
        fall = torch.linspace(40, 1, steps, dtype=torch.float64)
        held = {site: torch.tensor([40.0, 2.0]) for site in sites}
        lens = TunedLens.untrained(model)
        return Fitted(
            lens, dict.fromkeys(sites, fall), held, (0, steps), 9, 1.0, 0, {"loss": "cross_entropy"}
        )

    text = plot_losses(fitted([f"resid.{i}" for i in range(40)], 30), tmp_path / "x").read_text()
    assert "<!-- cross-entropy -->" in text and "<!-- resid.0 -->" in text and "<!-- resid.39 -->" in text
    assert "<!-- resid.1 -->" not in text and "<!-- held out -->" in text and "<!-- 50 -->" in text
    with pytest.raises(ValueError, match="no step was taken"):
        plot_losses(fitted(["embed"], 0), tmp_path / "x")


def test_the_energies_of_a_basis_and_what_ablating_it_does_are_drawn(tmp_path):
    basis = CausalBasis(
        "resid.$0", torch.eye(4), torch.tensor([2.0, 1.5, 0.4, 0.3]), torch.zeros(4), torch.eye(4)
    )
    text = plot_causal_basis(basis, tmp_path / "x").read_text()
    assert "direction at resid.$0" in text and "(bits per token)" in text
    several = plot_causal_basis({"one": basis, "other": basis}, tmp_path / "x").read_text()
    assert "<!-- one -->" in several and "<!-- other -->" in several
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_causal_basis({}, tmp_path / "x")
    means = {kind: torch.tensor([1.0, 2.0, 3.0]) / (i + 1) for i, kind in enumerate(KINDS)}
    curves = AblationCurves("resid.0", (1, 2, 4), means, means, means, means, 8)
    text = plot_ablations(curves, tmp_path / "y", title="$t$").read_text()
    for words in (
        "causal basis",
        "greatest variance",
        "random directions",
        "the lens",
        "the model",
        "$t$",
        "4",
    ):
        assert f"<!-- {words} -->" in text
