from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from circuits.__main__ import main
from circuits.concept_commands import PROBES, Evaluating
from circuits.concept_plots import plot_costs, plot_scores
from circuits.parser import parser
from circuits.question import part
from interventions import SparseCoder
from interventions.concepts import Sweep
from interventions.dictionaries import save
from tasks import biographies

SMALL = ["--site", "resid.1", "--biographies", "48", "--sizes", "2,20"]
NOUNS = (("friend", "friends"), ("artist", "artists"))


def evaluate(*argv: object) -> int:
    return main(["evaluate-dictionary", *map(str, argv)])


command = evaluate


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("concepts")
    assert evaluate("scr", *SMALL, "--out", folder, "--seeds", "0,1") == 0
    assert evaluate("tpp", *SMALL, "--out", folder, "-q") == 0
    return folder


def written(
    folder: Path, rows: list[tuple[str, ...]], names: tuple[str, ...], file: str = "texts.csv"
) -> Path:
    with (folder / file).open("w", newline="") as out:
        csv.writer(out).writerows([names, *rows])
    return folder / file


def sentences(n: int = 48) -> list[tuple[str, ...]]:
    """Texts whose label is the number of the subject, and the other label that of the noun between."""
    found = []
    for i in range(n):
        a, b = i % 2, i // 2 % 2
        text = f"The {NOUNS[0][a]} that the {NOUNS[1][b]} like{'' if b else 's'}{' and' * (i // 4)}"
        found.append((text, ("one", "many")[a], ("single", "several")[b]))
    return found


def test_both_scores_are_written_and_drawn_into_one_folder(scored):
    assert {path.name for path in scored.iterdir()} == {
        "scr", "scr.json", "scr.svg", "tpp", "tpp.json", "tpp.svg", "settings.json",
    }  # fmt: skip
    for kind, seeds in (("scr", (0, 1)), ("tpp", (0,))):
        sweep = Sweep.load(scored / kind)
        said = json.loads((scored / f"{kind}.json").read_text())
        assert sweep.seeds == seeds and list(sweep) == ["resid.1"] == list(said["dictionaries"])
        assert said["dictionaries"]["resid.1"]["score"] == sweep["resid.1"].score.tolist()
    settings = json.loads((scored / "settings.json").read_text())
    assert {*settings} == {"evaluate-dictionary scr", "evaluate-dictionary tpp"}
    assert Sweep.load(scored / "scr")["resid.1"].scores[0].keep == ("profession", "gender")


def test_a_run_goes_on_and_options_of_another_want_another_folder(scored, mistake, capfd):
    before = json.loads((scored / "scr.json").read_text())
    assert evaluate("scr", *SMALL, "--out", scored, "--seeds", "0,1", "--no-draw") == 0
    assert json.loads((scored / "scr.json").read_text()) == before  # with the seconds of the first time
    line = mistake("scr", *SMALL, "--out", scored, "--seeds", "0,2")
    assert "holds a sweep of SCR on other texts, or with other options" in line


def test_several_folders_of_dictionaries_are_told_apart_by_name(tmp_path):
    for name, n in (("small", 40), ("large", 90)):
        save({"resid.1": SparseCoder.random(64, n, site="resid.1")}, tmp_path / name)
    file = written(tmp_path, sentences(), ("text", "number", "noun"))
    folders = [tmp_path / "small", tmp_path / "large"]
    options = ["--train", file, "--label", "number", "--sizes", "2,20", "--out", tmp_path / "out"]
    options += ["--spurious", "noun", "--together", "one=several", "many=single", "--probe", "selected"]
    assert evaluate("scr", "--dictionaries", *folders, *options, "-q") == 0
    sweep = Sweep.load(tmp_path / "out" / "scr")
    assert list(sweep) == ["resid.1/small", "resid.1/large"]
    assert sweep["resid.1/small"].scores[0].together == (("many", "single"), ("one", "several"))
    assert (tmp_path / "out" / "scr-l0.svg").is_file()
    for plot in (plot_scores, plot_costs):
        one, other = (plot(sweep, tmp_path / f"{i}.svg").read_bytes() for i in range(2))
        assert one == other and one.startswith(b"<?xml")
    with pytest.raises(LookupError, match="No score at 3 features"):
        plot_costs(sweep, tmp_path / "none.svg", sizes=(3,))


def test_options_have_the_defaults_of_the_library_s_dataclass():
    for command in ("scr", "tpp"):
        given = vars(parser().parse_args(["evaluate-dictionary", command]))
        asked = part(Evaluating, given)
        assert [str(x) for x in asked.sizes] == [str(x) for x in Evaluating().sizes]
        assert (asked.held_out, asked.context, asked.seeds) == (0.3, 128, (0,))
    assert {*PROBES} == {"logistic", "selected", "trained"}


def test_mistakes_are_said_in_one_line(mistake, tmp_path):
    rows = sentences()
    names = ("text", "label", "spurious")
    one = written(tmp_path, [row for row in rows if row[1] == "one"], names, "one.csv")
    assert "All texts are one: give texts of two classes or more" in mistake("tpp", "--train", one)
    none = [row for row in rows if row[1:] != ("many", "several")]
    lacking = written(tmp_path, none, names, "lacking.csv")
    assert "No text to fit on has label 'many' and spurious 'several'" in mistake("scr", "--train", lacking)
    file = written(tmp_path, rows, names)
    assert "a text that is in" in mistake("scr", "--train", file, "--test", file)
    assert "no 'topic'; there are text, label, spurious" in mistake(
        "tpp", "--train", file, "--label", "topic"
    )
    assert "--together takes pairs" in mistake("scr", "--train", file, "--together", "one", "many=single")
    assert "--each is for --bias-in-bios" in mistake("scr", "--each", 3)
    assert "give --train" in mistake("tpp", "--label", "topic")
    assert "different numbers" in mistake("tpp", "--sizes", "2,2")
    wide = tmp_path / "wide"
    save({"resid.1": SparseCoder.random(16, 20, site="resid.1")}, wide)
    assert "width 64" in mistake("scr", "--train", file, "--dictionaries", wide)
    across = tmp_path / "across"
    save({"mlp.1": SparseCoder.random(64, 20, site="mlp.1", reads="mlp_in.1")}, across)
    assert "Give autoencoders" in mistake("tpp", "--train", file, "--dictionaries", across)


def test_sites_at_which_there_is_nothing_to_recover_are_named(tmp_path, capfd):
    assert evaluate("scr", "--biographies", 60, "--site", "embed", "--out", tmp_path) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "At embed a probe of its own tells the label hardly better" in said


def test_biographies_to_test_on_are_of_other_wording():
    from circuits.concept_texts import texts_of

    train, test = texts_of(Evaluating(biographies=60))
    assert len(train) == len(test) == 30 and not {x.text for x in train} & {x.text for x in test}
    assert test.labels == biographies(30, unseen=True, seed=1).labels
