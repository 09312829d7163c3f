from __future__ import annotations

import json

import pytest

from circuits import sparse_probing_commands
from circuits.__main__ import main
from circuits.parser import parser
from circuits.question import part
from circuits.sparse_probing_commands import Probing
from circuits.sparse_probing_texts import texts_of
from interventions.sparse_probing import Quiver
from tasks.biographies import biographies
from tasks.labelled import LabelledSet, LabelledText

QUICK = ["--site", "resid.1", "--trees", "0", "--k", "1", "4", "--points", "2"]


def probing(*argv: object) -> int:
    return main(["evaluate-dictionary", "probing", *map(str, argv)])


@pytest.fixture
def mistake(capfd, tmp_path):
    """Runs a command that should fail as a mistake; gives the one line that says so."""

    def run(*argv: object) -> str:
        capfd.readouterr()
        assert probing(*argv, "--out", tmp_path / "out") == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    return run


@pytest.fixture
def small(monkeypatch):
    """The cheapest of the baselines alone."""
    real = sparse_probing_commands.baselines
    monkeypatch.setattr(sparse_probing_commands, "baselines", lambda **_: real(trees=0)[2:4])


def written(path, texts: list[tuple[str, str]]):
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in texts))
    return path


def test_options_are_those_of_the_command():
    options = vars(parser().parse_args(["evaluate-dictionary", "probing"]))
    asked = part(Probing, options)
    assert (asked.regime, tuple(asked.k), asked.model) == (["normal"], Probing().k, "embedded")
    assert {field for field in Probing.__dataclass_fields__ if field not in options} == set()


def test_a_run_writes_table_pictures_and_json_and_goes_on(tmp_path, capfd, small):
    out = tmp_path / "out"
    argv = ["--biographies", 60, *QUICK, "--regime", "normal", "scarcity", "shift", "--out", out]
    assert probing(*argv) == 0
    said = capfd.readouterr().out
    assert "best dense" in said and "resid.1 scarcity" in said and "neighbours" in said and "k=4" in said
    found = Quiver.load(out / "quiver.json")
    assert len(found.trials) == 2 * (1 + 2 + 1)
    names = {path.name for path in out.iterdir()}
    assert names == {
        "quiver.json", "settings.json", "resid.1-normal.svg", "resid.1-scarcity.svg", "resid.1-shift.svg"
    }  # fmt: skip
    assert json.loads((out / "settings.json").read_text())["options"]["k"] == [1, 4]
    assert probing(*argv, "--quiet", "--no-draw") == 0
    assert capfd.readouterr().out == ""
    assert Quiver.load(out / "quiver.json") == found


def test_files_with_columns_of_their_own_and_several_classes(tmp_path, small, capfd):
    words = {"cat": "The cat sleeps", "dog": "A dog barks loudly", "cow": "The old cow eats grass"}
    rows = ["body,animal"] + [f"{words[a]} {i},{a}" for i in range(12) for a in words]
    file = tmp_path / "animals.csv"
    file.write_text("\n".join(rows))
    out = tmp_path / "out"
    argv = ["--train", file, "--text-column", "body", "--label", "animal", *QUICK, "--pool", "last"]
    assert probing(*argv, "--rule", "saebench", "--out", out, "--no-draw") == 0
    found = Quiver.load(out / "quiver.json")
    assert [one.data for one in found.trials] == ["animal cat", "animal cow", "animal dog"]
    assert "l2_logistic" in found.how["methods"][-1]


def test_training_and_test_texts_have_none_in_common():
    found = texts_of(Probing(biographies=80, regime=["shift"]))
    parts = [{found.texts[i] for i in index} for index in (found.train, found.test, *found.kinds.values())]
    assert not parts[0] & parts[1] and not parts[0] & parts[2]
    assert (len(found.train), len(found.test)) == (48, 32)
    assert set(found.labels) == {"profession", "gender"}


def test_mistakes_are_said_in_a_line(tmp_path, mistake):
    one = written(tmp_path / "one.jsonl", [(f"text {i}", "a") for i in range(20)])
    few = written(tmp_path / "few.jsonl", [(f"text {i}", "ab"[i % 10 == 0]) for i in range(20)])
    good = written(tmp_path / "good.jsonl", [(f"The cat {i}", "ab"[i % 2]) for i in range(20)])
    other = written(tmp_path / "other.jsonl", [(f"A dog {i}", "ab"[i % 2]) for i in range(20)])
    assert "All texts to train on have the same 'label', 'a'" in mistake("--train", one)
    assert "whose 'label' is 'b'; 4 are the least" in mistake("--train", few)
    assert "has a text that is in" in mistake("--train", good, "--test", good)
    assert "give --shifted FILE" in mistake("--train", good, "--regime", "shift")
    assert "--shifted is for --regime shift" in mistake("--train", good, "--shifted", other)
    assert "--test and --shifted go with --train" in mistake("--biographies", 50, "--test", good)
    assert "--label and --text-column are for files" in mistake("--biographies", 50, "--label", "x")
    assert "--each is for --bias-in-bios" in mistake("--each", 50)
    assert "no 'topic'; there are text, label" in mistake("--train", good, "--label", "topic")
    assert "--held-out 0 leaves no text" in mistake("--train", good, "--held-out", 0)
    assert "No site matches 'resid.9'" in mistake("--train", good, "--test", other, "--site", "resid.9")
    assert "There is no file" in mistake("--train", tmp_path / "none.csv")


def test_biographies_of_either_split_are_labelled_by_profession_and_gender(tmp_path):
    path = tmp_path / "set.jsonl"
    biographies(40).save(path)
    found = texts_of(Probing(train=str(path)))
    assert list(found.labels) == ["label", "spurious"]
    assert set(found.labels["spurious"]) == {"male", "female"}


def test_a_text_that_is_there_twice_is_on_one_side(tmp_path):
    path = tmp_path / "twice.jsonl"
    LabelledSet("x", [LabelledText(f"text {i % 15}", "ab"[i % 2]) for i in range(30)]).save(path)
    found = texts_of(Probing(train=str(path)))
    texts = [found.texts[i] for i in (*found.train, *found.test)]
    assert len(texts) == len(set(texts)) == 15
