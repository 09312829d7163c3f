"""Texts with an intended and a spurious label."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from tasks.biographies import _published, bias_in_bios, biographies, without_gendered_words
from tasks.labelled import LabelledSet, LabelledText

PAIRS = {"professor": "male", "nurse": "female"}


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.5, 1.0])
def test_genders_go_with_professions_as_often_as_asked(correlation):
    groups = biographies(400, correlation=correlation).groups
    agree = sum(groups[pair] for pair in PAIRS.items())
    assert agree / 400 == (1 + correlation) / 2
    assert sum(n for (job, _), n in groups.items() if job == "nurse") == 200


def test_hints_of_tests_are_never_seen_in_training():
    seen, unseen = biographies(300, gendered=0), biographies(300, gendered=0, unseen=True)
    hints = [{one.text.split(". ", 1)[1].split(" ", 1)[1] for one in set} for set in (seen, unseen)]
    assert len(hints[0]) == len(hints[1]) == 10
    assert not hints[0] & hints[1]


def test_biographies_are_the_same_for_a_seed_and_others_for_another():
    assert biographies(50, seed=3) == biographies(50, seed=3) != biographies(50, seed=4)


def test_gender_is_in_no_word_that_is_left():
    words = Counter()
    for gender in ("male", "female"):
        texts = [one.text for one in biographies(400, gendered=8) if one.spurious == gender]
        for word in {w for text in without_gendered_words(texts) for w in text.split()}:
            words[word] += 1
    assert set(words.values()) == {2}


@pytest.mark.parametrize(
    ("options", "said"),
    [({"n": 1}, "n=1"), ({"correlation": 2}, "correlation=2"), ({"hints": 6}, "1 to 5 hints"),
     ({"gendered": 9}, "0 to 8 gendered")],
)  # fmt: skip
def test_numbers_beyond_what_there_is_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        biographies(**options)


def test_a_balanced_set_has_as_many_of_each_group():
    set = biographies(200, correlation=0.5)
    assert set_of(set.balanced().groups.values()) == {25}
    assert set_of(set.balanced(7).groups.values()) == {7}
    with pytest.raises(ValueError, match="There are 25 texts of professor/female; 30 of each are asked for"):
        set.balanced(30)
    with pytest.raises(ValueError, match="No text is nurse/neither"):
        set.aligned({"nurse": "neither"})


def set_of(values):
    return {*values}


def test_a_split_keeps_proportions_and_shares_no_text():
    whole = biographies(400, correlation=0.5)
    one, other = whole.split(0.75, seed=1)
    assert not {t.text for t in one} & {t.text for t in other}
    for group, n in Counter(t.group for t in {*whole}).items():
        assert abs(one.groups[group] - 0.75 * n) <= 1
    for size in (1.0, -2, 0, float("nan")):
        with pytest.raises(ValueError, match="one side would be empty"):
            whole.split(size)


def test_a_text_with_several_labels_is_on_one_side_of_a_split():
    texts = [LabelledText(f"text {i}", "ab"[i % 2]) for i in range(20)]
    whole = LabelledSet(
        "twice", [*texts, *(LabelledText(t.text, "c") for t in texts), LabelledText("?", "c")]
    )
    for seed in range(5):
        one, other = whole.split(0.5, seed=seed)
        assert not {t.text for t in one} & {t.text for t in other} and len(one) + len(other) == 21


def test_sets_survive_files(tmp_path):
    set = biographies(10)
    set.save(tmp_path / "biographies.jsonl")
    assert LabelledSet.load(tmp_path / "biographies.jsonl").texts == set.texts


def test_tables_are_read_by_the_names_of_their_columns(tmp_path):
    (tmp_path / "a.csv").write_text('bio,job,sex\n"Kind, and old",1,f\nTall,0,m\n', encoding="utf-8-sig")
    set = LabelledSet.load(tmp_path / "a.csv", text="bio", label="job", spurious="sex")
    assert set.texts == (LabelledText("Kind, and old", "1", "f"), LabelledText("Tall", "0", "m"))
    with pytest.raises(ValueError, match=r"a.csv, line 2: no 'text'; there are bio, job, sex"):
        LabelledSet.load(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": " ", "label": "x"}))
    with pytest.raises(ValueError, match="line 1: A labelled text is empty"):
        LabelledSet.load(tmp_path / "b.jsonl")
    (tmp_path / "c.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match="has no rows"):
        LabelledSet.load(tmp_path / "c.csv")
    with pytest.raises(FileNotFoundError, match=r"no file .*d\.csv"):
        LabelledSet.load(tmp_path / "d.csv")


def test_published_rows_are_read_until_there_are_enough_of_each_group():
    def rows():
        for i in range(1000):
            yield {"hard_text": f"text {i}", "profession": (21, 13, 2)[i % 3], "gender": i % 2}
        raise AssertionError("read on though there was enough")

    set = _published(rows(), {21: "professor", 13: "nurse"}, 5)
    assert set_of(set.groups.values()) == {5} and set.classes == ("professor", "nurse")
    with pytest.raises(ValueError, match="no text of the professions 7"):
        _published(({"hard_text": "x", "profession": 1, "gender": 0} for _ in range(3)), {7: "7"}, None)
    with pytest.raises(ValueError, match="no column 'hard_text', but text"):
        _published([{"text": "x"}], {7: "7"}, None)


def test_published_biographies_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"breadboard-circuits\[data\]"):
        bias_in_bios()


class Letters:
    """A tokenizer of letters, which opens a text with 1 and ends it with 2."""

    def encode(self, text, *, add_special_tokens=True):
        ids = [ord(c) for c in text]
        return [1, *ids, 2] if add_special_tokens else ids

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_a_task_asks_for_the_place_of_the_label_among_the_classes():
    texts = LabelledSet("jobs", [LabelledText("ab", "nurse", "female"), LabelledText("a", "professor"),
                                 LabelledText("abc", "nurse", "male")])  # fmt: skip
    task = texts.task(Letters())
    assert task.name == "jobs" and [pair.clean for pair in task.pairs] == [
        (1, 97, 98),
        (1, 97),
        (1, 97, 98, 99),
    ]
    assert [(pair.answers, pair.foils, pair.case) for pair in task.pairs] == [
        ((0,), (1,), "nurse/female"), ((1,), (0,), "professor"), ((0,), (1,), "nurse/male"),
    ]  # fmt: skip
    assert all(pair.patch is None for pair in task.pairs)
    wider = texts.task(Letters(), ["doctor", "professor", "nurse"])
    assert [(pair.answers, pair.foils) for pair in wider.pairs] == [
        ((2,), (0, 1)), ((1,), (0, 2)), ((2,), (0, 1)),
    ]  # fmt: skip
    first, *_ = wider.batches(None)
    assert first.clean.tolist() == [[1, 97]] and first.foils.tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("classes", "said"),
    [(["nurse"], "one of two classes or more"), (["nurse", "nurse"], "all different"),
     (["nurse", "doctor"], "'professor' is none of the classes nurse, doctor")],
)  # fmt: skip
def test_classes_that_do_not_fit_the_labels_are_refused(classes, said):
    texts = biographies(20)
    with pytest.raises(ValueError, match=said):
        texts.task(Letters(), classes)
    with pytest.raises(ValueError, match="one of two classes"):
        texts.where(lambda one: one.label == "nurse").task(Letters())


@pytest.mark.parametrize("first", [True, False])
def test_a_text_of_which_nothing_is_left_is_told(first):
    class Quiet(Letters):
        def encode(self, text, *, add_special_tokens=True):
            return super().encode(text.replace("-", ""), add_special_tokens=add_special_tokens)

    texts = [LabelledText("ab", "nurse"), LabelledText("--", "professor")]
    with pytest.raises(ValueError, match="Nothing is left of the text '--' when it is tokenised"):
        LabelledSet("jobs", texts[:: -1 if first else 1]).task(Quiet())
