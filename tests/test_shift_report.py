"""Scores and their intervals, tables, files, means over seeds, pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest
from scipy.stats import t as student

from circuits.shift import Report, Scores
from circuits.shift.scores import over_seeds, scored, share
from circuits.shift_plots import plot_groups, plot_shift
from tasks import LabelledSet, LabelledText

GROUPS = tuple((label, spurious) for label in ("a", "b") for spurious in ("x", "y"))
PAIRS = {"a": "x", "b": "y"}


def _scores(method="biased", said=((9, 1), (8, 2), (7, 3), (0, 10)), **given) -> Scores:
    return Scores(method, "nothing", ("a", "b"), ("x", "y"), GROUPS, (tuple(said),), **given)


def _report(seed: int = 0) -> Report:
    other = _scores("SHIFT", ((9 - seed, 1 + seed), (8, 2), (3, 7), (1, 9)), ablated={"resid.1": 3})
    return Report((_scores(), other), {"spurious": 3, "kept": 7}, {"resid.1": 3}, {"seed": seed})


def _text(label, spurious, i):
    return LabelledText(f"{label} {spurious} {i}", label, spurious)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 10), (10, 10), (451, 1000)])
def test_intervals_are_wilsons(right, n):
    found, slow = share([right], n), binomtest(right, n).proportion_ci(method="wilson")
    assert found.mean == right / n
    assert found.low == pytest.approx(slow.low, abs=1e-12) and found.high == pytest.approx(
        slow.high, abs=1e-12
    )


def test_draws_that_differ_widen_the_interval_and_texts_bound_it():
    same, few, many = share([50, 50], 100), share([40, 60], 100), share([40, 60] * 50, 100)
    assert same == share([50], 100)
    assert few.high - few.low > many.high - many.low > same.high - same.low
    # With ever more draws what is left is the variance by the texts.
    assert many.high - many.low == pytest.approx(same.high - same.low, rel=0.05)


def test_the_interval_of_draws_covers_the_mean_over_draws_and_texts():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(300):
        rates = (0.7 + 0.05 * torch.randn(5, generator=generator)).clamp(0, 1)
        counts = [int((torch.rand(80, generator=generator) < rate).sum()) for rate in rates]
        found = share(counts, 80)
        covered += found.low <= 0.7 <= found.high
    assert covered / 300 > 0.93


def test_shares_are_those_of_the_texts_one_by_one():
    test = LabelledSet("t", [_text(label, s, i) for label, s in GROUPS for i in range(6)])
    logits = torch.randn(24, generator=torch.Generator().manual_seed(0))
    found = scored("m", "", test, logits, classes=("a", "b"), pairs=PAIRS)
    says = ["ab"[int(x > 0)] for x in logits]
    assert found.intended.mean == sum(s == one.label for s, one in zip(says, test, strict=True)) / 24
    assert (
        found.spurious.mean == sum(PAIRS[s] == one.spurious for s, one in zip(says, test, strict=True)) / 24
    )
    for group, estimate in found.by_group.items():
        rows = [s == one.label for s, one in zip(says, test, strict=True) if one.group == group]
        assert estimate.mean == sum(rows) / len(rows) and estimate.n == 6
    assert found.worst.mean == min(each.mean for each in found.by_group.values())
    both = scored("m", "", test, torch.stack([torch.zeros(24), logits], 1), classes=("a", "b"), pairs=PAIRS)
    assert both == found


def test_logits_of_other_texts_are_refused():
    test = LabelledSet("t", [_text(label, s, 0) for label, s in GROUPS])
    with pytest.raises(ValueError, match="logits of 3 texts, and 4 texts"):
        scored("m", "", test, torch.zeros(3), classes=("a", "b"), pairs=PAIRS)


def test_a_report_comes_back_equal(tmp_path):
    report = _report()
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    said = json.loads((tmp_path / "report.json").read_text())
    shares = said["scores"][0]["shares"]  # for those who read the file
    assert shares["intended"][0] == report["biased"].intended.mean
    assert shares["groups"]["b/y"][0] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not complete JSON"), ("{}", "does not hold report"), (None, "no file")],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, said):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        Report.load(path)


def test_a_report_that_lacks_something_is_refused(tmp_path):
    path = _report().save(tmp_path / "report.json")
    said = json.loads(path.read_text())
    del said["scores"][0]["said"]
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="does not describe report: KeyError"):
        Report.load(path)


def test_the_table_is_aligned_and_says_what_is_needed():
    text = str(_report())
    head, first, *_ = text.splitlines()
    assert head.split("  ")[0] == "method" and head.rstrip().endswith("needs")
    assert first.startswith("biased") and "0.750 [0.60, 0.86]" in first and first.endswith("nothing")
    assert head.index("needs") == first.index("nothing")
    assert "Verdicts: 3 spurious, 7 kept." in text and "Ablated: 3 features, 3 at resid.1." in text
    assert "Wilson" in text and "b/y" in text and "b/y" not in _report().table(groups=False)


def test_methods_have_different_names():
    with pytest.raises(ValueError, match="Two methods of a report are called 'biased'"):
        Report((_scores(), _scores()))
    with pytest.raises(ValueError, match="at least one method"):
        Report(())
    with pytest.raises(KeyError, match="there are biased, SHIFT"):
        _report()["oracle"]


def test_means_over_seeds_have_students_interval():
    reports = [_report(seed) for seed in range(4)]
    found = Report.across(reports)["SHIFT"]
    values = torch.tensor([report["SHIFT"].intended.mean for report in reports], dtype=torch.float64)
    wide = student.ppf(0.975, 3) * values.std().item() / 2
    assert found.intended.mean == pytest.approx(values.mean().item())
    assert found.intended.high == pytest.approx(values.mean().item() + wide)
    assert found.intended.n == 4
    worst = [report["SHIFT"].worst.mean for report in reports]
    assert found.worst.mean == pytest.approx(sum(worst) / 4)
    assert "Student's, over 4 seeds" in str(Report.across(reports))


def test_of_one_seed_there_are_no_bounds():
    found = over_seeds([0.5])
    assert found.mean == 0.5 and math.isnan(found.low)
    table = Report.across([_report()]).table()
    assert "nan" not in table and "[" not in table.splitlines()[1]


def test_reports_of_other_methods_have_no_mean():
    with pytest.raises(ValueError, match="Report 1 has other methods than the first: SHIFT"):
        Report.across([_report(), Report((_scores(),))])
    with pytest.raises(ValueError, match="no reports"):
        Report.across([])
    elsewhere = replace(_report(1), config={"seed": 1, "at": "resid.2"})
    with pytest.raises(ValueError, match=r"of another site than the first: 'resid.2' and None"):
        Report.across([_report(), elsewhere])


def test_means_are_written(tmp_path):
    Report.across([_report(0), _report(1)]).save(tmp_path / "means.json")
    said = json.loads((tmp_path / "means.json").read_text())
    assert said["seeds"] == 2 and said["methods"]["SHIFT"]["groups"]["a/x"][0] == pytest.approx(0.85)


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
@pytest.mark.parametrize("plot", [plot_shift, plot_groups])
def test_pictures_are_drawn_of_a_report_and_of_a_mean(tmp_path, suffix, plot):
    first = plot(_report(), tmp_path / f"one.{suffix}", title="One")
    second = plot(Report.across([_report(0), _report(1)]), tmp_path / f"mean.{suffix}")
    assert first.stat().st_size > 1000 and second.stat().st_size > 1000
    if suffix == "svg":
        assert (
            plot(_report(), tmp_path / "again").read_bytes() == plot(_report(), tmp_path / "b").read_bytes()
        )


def test_a_picture_has_the_methods_asked_for(tmp_path):
    path = plot_shift(_report(), tmp_path / "one.svg", methods=["SHIFT"])
    whole = plot_shift(_report(), tmp_path / "two.svg")
    assert "SHIFT" in path.read_text() and "biased" not in path.read_text() and "biased" in whole.read_text()
    with pytest.raises(KeyError, match="No method 'oracle'"):
        plot_shift(_report(), tmp_path / "one.svg", methods=["oracle"])
    with pytest.raises(ValueError, match=r"\.gif"):
        plot_shift(_report(), tmp_path / "one.gif")
