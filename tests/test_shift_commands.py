"""circuits shift run, judge and report."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from planted import texts, token, words
from transformers import AutoModelForCausalLM

from circuits import embedded
from circuits.__main__ import main
from circuits.shift import Dossier, Ranking, Report, VerdictLog, Verdicts
from circuits.shift_texts import Texts, deletion, generated
from interventions.dictionaries import save
from tasks import LabelledSet

PICTURES = {"report.svg", "groups.svg"}


def shift(*argv: object) -> int:
    return main(["shift", *map(str, argv)])


command = shift


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Texts with a planted spurious word, and a dictionary that has a feature for it."""
    folder = tmp_path_factory.mktemp("data")
    texts(10, ambiguous=True).save(folder / "train.jsonl")
    texts(6, ambiguous=False, seed=1).save(folder / "test.jsonl")
    texts(10, ambiguous=False, seed=2).save(folder / "known.jsonl")
    save(
        {"embed": words(embedded.model()), "resid.2": embedded.dictionaries()["resid.2"]},
        folder / "dictionaries",
    )
    return folder


def files(data: Path, *, known: bool = True) -> list[object]:
    given = ["--train", data / "train.jsonl", "--test", data / "test.jsonl"]
    return [*given, *(["--known", data / "known.jsonl"] if known else [])]


def options(data: Path) -> list[object]:
    return [*files(data), "--dictionaries", data / "dictionaries", "--at", "embed", "--draws", 1, "--no-draw"]


@pytest.fixture(scope="module")
def ran(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ran") / "out"
    assert shift("run", *options(data), "--judge", "later", "--out", folder, "-q") == 0
    return folder


@pytest.fixture
def folder(ran, tmp_path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(ran, tmp_path / "out"))


@pytest.fixture(scope="module")
def planted() -> list[int]:
    return sorted(token(embedded.model(), word) for word in ("old", "young"))


def test_run_finds_what_is_planted_and_takes_it_out(data, tmp_path, said, planted):
    out = tmp_path / "out"
    words = ["--words", "dog", "box", "--delete", tmp_path / "delete.txt"]
    (tmp_path / "delete.txt").write_text("old\nYoung\n")
    text = said("run", *[o for o in options(data) if o != "--no-draw"], "--out", out, *words)
    assert "Dictionaries  dictionaries, at 1 site: embed; the probe reads embed" in text
    assert set(planted) <= set(Verdicts.load(out / "verdicts.jsonl").features["embed"])
    report = Report.load(out / "report.json")
    assert report["biased probe"].spurious.mean == 1 and report["SHIFT, retrained"].spurious.mean == 0.5
    assert report["words deleted"].intended.mean == 1
    assert "concept bottleneck" in report.methods and str(report) in text
    assert {path.name for path in out.glob("*.svg")} == PICTURES
    assert Ranking.load(out / "ranking.json").texts == 20 and not (out / "checkpoint").exists()
    assert (
        LabelledSet.load(out / "texts" / "train.jsonl").texts == LabelledSet.load(data / "train.jsonl").texts
    )


def test_later_leaves_judging_to_another_command(ran):
    assert {path.name for path in ran.iterdir()} == {
        "texts", "probe", "ranking.json", "evidence.json", "settings.json"
    }  # fmt: skip
    assert json.loads((ran / "settings.json").read_text())["shift run"]["options"]["ranked"] is None


def test_a_run_goes_on_from_the_ranking_that_is_there(data, folder, said, monkeypatch):
    from circuits import shift_commands

    monkeypatch.setattr(shift_commands, "ranked", None)
    monkeypatch.setattr(shift_commands, "shown", None)
    before = (folder / "ranking.json").read_bytes()
    text = said("run", *options(data), "--out", folder)
    assert "features, of before" in text and (folder / "report.json").is_file()
    assert (folder / "ranking.json").read_bytes() == before


def test_judge_asks_at_the_terminal_and_report_ablates(folder, said, monkeypatch, planted):
    dossier = Dossier.load(folder / "evidence.json")
    typed = "".join("y\n" if one.feature in planted else "n\n" for one in dossier)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    text = said("judge", folder, "--by", "me")
    assert f"{len(dossier)} of {len(dossier)} features judged, 2 spurious" in text
    assert f"circuits shift report {folder}" in text
    found = Verdicts.load(folder / "verdicts.jsonl")
    assert sorted(found.features["embed"]) == planted and found.given[0].by == "me"
    text = said("report", folder, "--draws", 0)
    assert "random features" not in text and {path.name for path in folder.glob("*.svg")} == PICTURES
    report = Report.load(folder / "report.json")
    assert report["SHIFT, retrained"].spurious.mean == 0.5 and report.ablated == {"embed": 2}


def test_verdicts_of_a_file_count_in_run_and_in_report(data, folder, said, tmp_path, planted):
    rows = "".join(f"embed,{feature},yes\n" for feature in planted)
    (tmp_path / "mine.csv").write_text("site,feature,spurious\n" + rows)
    text = said("run", *options(data), "--judge", tmp_path / "mine.csv", "--out", folder)
    assert "2 spurious" in text and "left, which are kept" in text
    assert Report.load(folder / "report.json").ablated == {"embed": 2}
    out = tmp_path / "other"
    one = tmp_path / "one.csv"
    one.write_text(f"site,feature,spurious\nembed,{planted[0]},yes\n")
    said("report", folder, "--verdicts", one, "--out", out, "--draws", 0, "--no-draw")
    assert Report.load(out / "report.json").ablated == {"embed": 1}
    assert Report.load(folder / "report.json").ablated == {"embed": 2}


def test_report_of_several_folders_is_the_mean(data, folder, said, tmp_path, mistake):
    assert "There is no report in" in mistake("report", folder, folder)
    said("run", *options(data), "--out", folder)
    assert "has the report of another folder" in mistake("report", folder, folder)
    report = json.loads((folder / "report.json").read_text())
    (tmp_path / "seed-1").mkdir()
    shutil.copy(folder / "settings.json", tmp_path / "seed-1")
    report["config"]["seed"] = 1
    (tmp_path / "seed-1" / "report.json").write_text(json.dumps(report))
    text = said("report", folder, tmp_path / "seed-1", "--out", tmp_path / "means")
    assert "over 2 seeds" in text
    assert {path.name for path in (tmp_path / "means").iterdir()} == {"means.json", *PICTURES}


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "Give texts: --train FILE and --test FILE, or --biographies N, or --bias-in-bios."),
        (["--biographies", 4, "--bias-in-bios"], "not several of these"),
        (["--train", "x.csv"], "Files come as --train FILE and --test FILE"),
        (["--train", "x.csv", "--test", "y.csv"], "x.csv"),
        (["--biographies", 4, "--judge", "nobody"], "no judge and no file 'nobody'; there are attribution"),
        (["--biographies", 4, "--delete", "none.txt"], "There is no file none.txt"),
    ],
)
def test_what_shows_without_the_model_is_said_before_it_loads(given, line, mistake, tmp_path, monkeypatch):
    from circuits import shift_folder

    monkeypatch.setattr(shift_folder, "loaded_model", None)
    monkeypatch.chdir(tmp_path)
    assert line in mistake("run", *given, "--out", tmp_path / "out")


def _some(data, tmp_path, keep, name="train"):
    given = LabelledSet.load(data / f"{name}.jsonl").where(keep)
    given.save(tmp_path / f"{name}.jsonl")
    return tmp_path / f"{name}.jsonl"


def test_labels_of_one_class_are_a_mistake(data, tmp_path, mistake):
    train = _some(data, tmp_path, lambda one: one.label == "thing")
    line = mistake("run", *options(data), "--train", train, "--out", tmp_path / "out")
    assert "All 10 texts to train on have the label 'thing'" in line


def test_what_was_refused_leaves_nothing_that_stands_in_the_way(data, tmp_path, mistake, said):
    train = _some(data, tmp_path, lambda one: one.label == "thing")
    given = [*options(data), "--train", train, "--judge", "later", "--out", tmp_path / "out"]
    assert "have the label 'thing'" in mistake("run", *given)
    shutil.copy(data / "train.jsonl", train)
    assert "20 to train on" in said("run", *given)


def test_an_empty_group_is_a_mistake(data, tmp_path, mistake):
    test = _some(data, tmp_path, lambda one: one.group != ("thing", "before"), "test")
    line = mistake("run", *options(data), "--test", test, "--out", tmp_path / "out")
    assert "test: no text is thing/before" in line


def test_a_dictionary_after_the_probe_is_a_mistake_where_it_is_asked_for(data, tmp_path, mistake):
    given = [*options(data), "--sites", "embed", "resid.2", "--out", tmp_path / "out"]
    assert "There is a dictionary at resid.2, which comes after embed, where the probe reads" in mistake(
        "run", *given
    )


def test_a_text_with_nothing_left_is_a_mistake(data, tmp_path, mistake):
    (tmp_path / "train.jsonl").write_text(
        (data / "train.jsonl").read_text() + '{"text": "<bos>", "label": "thing", "spurious": "after"}\n'
    )
    line = mistake("run", *options(data), "--train", tmp_path / "train.jsonl", "--out", tmp_path / "out")
    assert "text 20, '<bos>': no token is chosen" in line


def test_unknown_features_in_verdicts_are_a_mistake(data, folder, tmp_path, mistake):
    (tmp_path / "mine.csv").write_text("site,feature,spurious\nembed,139,yes\nresid.9,1,no\n")
    for command in (
        ("report", folder, "--verdicts", tmp_path / "mine.csv"),
        ("run", *options(data), "--judge", tmp_path / "mine.csv", "--out", folder),
    ):
        line = mistake(*command)
        assert "mine.csv: There are verdicts on embed/139, resid.9/1, which the ranking does not list" in line


def test_a_folder_without_a_run_is_a_mistake(tmp_path, mistake):
    for command in ("judge", "report"):
        line = mistake(command, tmp_path / "nothing")
        assert "There is no SHIFT in" in line and "`circuits shift run` begins one" in line


def test_a_folder_without_verdicts_is_a_mistake(folder, mistake):
    assert f"Nothing is judged in {folder} yet: `circuits shift judge" in mistake("report", folder)


def test_another_model_than_the_folders_is_a_mistake(folder, tmp_path, mistake, planted):
    (tmp_path / "mine.csv").write_text(f"site,feature,spurious\nembed,{planted[0]},yes\n")
    other = tmp_path / "model"
    shutil.copytree(embedded.HERE / "model", other)
    module = AutoModelForCausalLM.from_pretrained(other)
    module.model.embed_tokens.weight.data.add_(1)
    module.save_pretrained(other)
    given = ["report", folder, "--verdicts", tmp_path / "mine.csv"]
    assert "is of another model" in mistake(*given, "--model", other)
    assert "or of another --dtype, than embedded in float64" in mistake(*given, "--dtype", "float64")


def test_other_options_for_the_same_folder_are_a_mistake(data, folder, mistake):
    line = mistake("run", *options(data), "--ranked", 7, "--seed", 3, "--out", folder)
    assert "is of a run with another --seed, --ranked; give --out, or --fresh" in line


def test_fresh_begins_anew(data, folder, said):
    said("run", *options(data), "--ranked", 3, "--judge", "later", "--fresh", "--out", folder)
    assert len(Ranking.load(folder / "ranking.json")) == 3


def test_verdicts_of_another_judge_stand(data, folder, said, mistake):
    said("run", *options(data), "--out", folder)
    line = mistake("run", *options(data), "--judge", "rule", "--out", folder)
    assert "has the verdicts of attribution: `circuits shift report" in line


def test_a_judge_that_knows_asks_for_texts_of_every_pair(data, tmp_path, mistake):
    given = [*files(data, known=False), "--at", "embed", "--out", tmp_path / "out"]
    assert "--judge attribution takes texts in which the two labels do not go together" in mistake(
        "run", *given
    )


# --- texts --------------------------------------------------------------------------------------------------


def test_texts_that_are_tested_on_and_trained_on_are_counted():
    one = texts(3, ambiguous=False)
    assert str(Texts(one, one)).endswith(f"; {len(one)} of those to test on are among those to train on")
    assert "among" not in str(generated(20, seed=0))


def test_generated_texts_are_ambiguous_to_train_and_balanced_to_test():
    found = generated(20, 1)
    assert set(found.train.groups) == {("professor", "male"), ("nurse", "female")}
    assert set(found.test.groups.values()) == {5} and found.known is not None
    assert set(found.known.groups.values()) == {5}
    assert generated(20, 2).train.texts != found.train.texts


def test_generated_biographies_go_through_a_model_that_knows_few_of_their_words(tmp_path, said):
    out = said(
        "run", "--biographies", 16, "--ranked", 5, "--draws", 1, "--out", tmp_path, "--sites", "resid.2", "-q"
    )
    assert out == ""
    methods = [row.method for row in Report.load(tmp_path / "report.json").scores]
    assert "oracle" in methods and "concept bottleneck" not in methods


def test_words_are_deleted_whole_and_in_any_case(tmp_path):
    (tmp_path / "words.txt").write_text("he\nhis\n")
    delete = deletion(str(tmp_path / "words.txt"), gendered=False)
    assert delete is not None and delete(["He ate the bread, his own."]) == ["ate the bread, own."]
    assert deletion(None, gendered=False) is None
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no words"):
        deletion(str(tmp_path / "none.txt"), gendered=True)


def test_words_that_baselines_can_make_nothing_of_are_refused_before_anything_is_done(
    data, tmp_path, mistake, folder
):
    out = tmp_path / "out2"
    given = ["run", *options(data), "--judge", "later", "--out", out]
    assert "'zebra' has no token that counts" in mistake(*given, "--words", "zebra", "dog")
    assert "two different words" in mistake(*given, "--words", "dog")
    everything = tmp_path / "delete.txt"
    everything.write_text("\n".join(word for text in texts(10, ambiguous=True) for word in text.text.split()))
    assert "Nothing is left of 'The" in mistake(*given, "--delete", everything)
    assert not list(out.glob("*"))
    assert "two different words" in mistake("report", folder, "--words", "dog", "--verdicts", _yes(tmp_path))


def _yes(tmp_path: Path) -> Path:
    dossier = Dossier.load(tmp_path / "out" / "evidence.json")
    path = tmp_path / "yes.csv"
    path.write_text(f"site,feature,spurious\n{dossier[0].site},{dossier[0].feature},yes\n")
    return path


def test_a_list_of_words_is_text(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"words\.txt is not text in UTF-8"):
        deletion(str(path), gendered=False)


def test_words_that_end_in_a_stop_are_deleted_whole(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Mr\nMr.\nC++\n", encoding="utf-8-sig")
    delete = deletion(str(path), gendered=False)
    assert delete is not None
    assert delete(["Mr. Smith writes C++ for mr Jones, Mrs. Hall not."]) == [
        "Smith writes for Jones, Mrs. Hall not."
    ]


def test_as_many_texts_as_rounding_leaves_all_of_are_ranked_on(data, tmp_path, said):
    three = [*texts(2, ambiguous=False), *texts(7, ambiguous=True)]
    LabelledSet("three", three).save(tmp_path / "train.jsonl")
    given = [*options(data), "--train", tmp_path / "train.jsonl", "--judge", "later"]
    for n in (len(three) - 1, 1):
        out = tmp_path / str(n)
        said("run", *given, "--ranked-on", n, "--out", out)
        assert Ranking.load(out / "ranking.json").texts == n


def test_a_judge_that_was_interrupted_is_not_followed_by_another(data, tmp_path, mistake, monkeypatch):
    out, add, given = tmp_path / "out", VerdictLog.add, []

    def interrupted(log, verdict):
        if given:
            raise KeyboardInterrupt
        given.append(verdict)
        add(log, verdict)

    monkeypatch.setattr(VerdictLog, "add", interrupted)
    assert shift("run", *options(data), "--out", out, "-q") == 130
    monkeypatch.setattr(VerdictLog, "add", add)
    assert len(Verdicts.load(out / "verdicts.jsonl")) == 1
    assert "has the verdicts of attribution" in mistake(
        "run", *options(data), "--judge", "rule", "--out", out
    )
    assert shift("run", *options(data), "--out", out, "-q") == 0


def test_files_that_have_changed_since_are_not_taken_for_what_they_were(data, tmp_path, mistake, said):
    train = tmp_path / "train.jsonl"
    shutil.copy(data / "train.jsonl", train)
    given = ["run", *options(data), "--train", train, "--judge", "later", "--out", tmp_path / "out"]
    said(*given)
    texts(9, ambiguous=True, seed=5).save(train)
    assert f"{train} has changed since {tmp_path / 'out'} was begun; give --out" in mistake(*given)
    said(*given, "--fresh")
    train.unlink()  # what is in the folder will do
    said(*given)


def test_fresh_takes_nothing_away_before_what_is_asked_can_be_done(data, folder, mistake, said):
    (folder / "verdicts.jsonl").write_text('{"site": "embed", "feature": 1, "spurious": true}\n')
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    given = ["run", *options(data), "--out", folder, "--fresh", "--judge", "later"]
    for wrong in (["--at", "resid.7"], ["--train", "no.csv"], ["--words", "zebra", "x"], ["--model", folder]):
        mistake(*given, *wrong)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    said(*given, "--l2", 2)
    assert not (folder / "verdicts.jsonl").exists()


def test_what_was_left_of_a_ranking_goes_when_it_is_there(data, folder, said):
    (folder / "checkpoint").mkdir()
    said("run", *options(data), "--judge", "later", "--out", folder)
    assert not (folder / "checkpoint").exists()
