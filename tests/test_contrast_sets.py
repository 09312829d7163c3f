from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import tasks
from tasks import CONTRASTS, ChoiceSet, ContrastSet

STORIES = Path(__file__).parents[2] / "shared" / "weights" / "stories260K"
ITEMS = [
    {
        "question": "Shall we go?\n\nChoices:\n (A) Yes\n (B) No",
        "answer_matching_behavior": "(B)",
        "answer_not_matching_behavior": "(A)",
    },
    {
        "question": "Is it late?\n\nChoices:\n (A) No\n (B) Yes",
        "answer_matching_behavior": " (A)",
        "answer_not_matching_behavior": " (B)",
    },
]


@pytest.mark.parametrize("make", CONTRASTS.values(), ids=list(CONTRASTS))
def test_the_pairs_of_every_set_are_different_and_the_same_each_time(make):
    one = make(seed=3)
    assert one == make(seed=3) != make(seed=4)
    assert len(set(one.pairs)) == len(one) >= 24
    assert all(text == text.strip() and text for pair in one for text in pair)
    assert make(n=5).name == make.__name__ and len(make(n=5)) == 5
    with pytest.raises(ValueError, match="different pairs to choose from"):
        make(n=10**7)


def test_the_two_sides_of_a_story_differ_in_what_they_are_about():
    for happy, sad in tasks.happy_sad(n=300):
        assert re.search(r"happy|joy|smile|glad|loved", happy) and not re.search(r"\bsad|cried|hated", happy)
        assert re.search(r"sad|cried|hurt|hated", sad) and not re.search(r"happy|joy|smile|glad", sad)
    for girl, boy in tasks.girl_boy(n=300):
        assert "girl" in girl and "boy" in boy and "girl" not in boy
        assert any(name in girl for name in tasks.words.GIRLS) and any(
            name in boy for name in tasks.words.BOYS
        )


def test_stories_use_the_pronoun_of_their_child():
    for text in (*tasks.happy_sad(n=300).positive, *(pair.clean for pair in tasks.feelings(n=300))):
        girl = any(f"{name} " in text or f"{name}." in text for name in tasks.words.GIRLS)
        assert not re.search(r"\b[Hh]e\b" if girl else r"\b[Ss]he\b", text), text


def test_questions_leave_open_what_is_asked():
    for pair in tasks.feelings(n=300):
        assert pair.answers == (" happy",) and not re.search("happy|sad|smil|cr(y|ied)", pair.clean)
    for pair in tasks.who(n=84):
        assert not re.search(r"\b(she|he|her|his|girl|boy)\b", pair.clean)
    for pair in tasks.opinions(n=80):
        assert not set(pair.answers) & set(pair.foils)


def test_requests_and_languages_come_in_parallel():
    assert len({text for pair in tasks.harmful_harmless() for text in pair}) == 48
    for english, french in tasks.english_french():
        assert english.isascii() and english[0].isupper() and french[0].isupper()


def test_a_set_is_split_flipped_mapped_and_cut(tmp_path):
    one = tasks.sentiment(n=20)
    first, second = one.split(0.75)
    assert len(first) == 15 and not set(first) & set(second) and set(first) | set(second) == set(one)
    assert one.split(15) == (first, second) and one.split(15, seed=1) != (first, second)
    assert one.flipped().positive == one.negative and one.flipped().flipped() == one
    assert one.map(str.upper)[3] == tuple(text.upper() for text in one[3])
    assert one.take(3).pairs == one.pairs[:3] and next(iter(one)) == one.pairs[0]


def test_saved_and_loaded_a_set_is_the_same(tmp_path):
    path = tmp_path / "set.jsonl"
    for one in (tasks.english_french(), ContrastSet("quotes", [('say "é"\nnow', "no")], "about quotes")):
        one.save(path)
        assert ContrastSet.load(path) == one
        assert [p.name for p in tmp_path.iterdir()] == ["set.jsonl"]
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"positive": "a", "negative": "b"}\n')
    assert ContrastSet.load(plain) == ContrastSet("plain", [("a", "b")])


def test_choices_become_items_and_contrasts():
    one = tasks.sycophancy(n=20)
    assert Counter(choice.matching for choice in one) == {"A": 10, "B": 10}
    for choice, (prompt, match, other) in zip(one, one.items(), strict=True):
        agree = re.search(r"\((\w)\) I agree", choice.question)
        assert agree and agree[1] == match == choice.matching and {match, other} == {"A", "B"}
        assert prompt == f"{choice.question}\n\nAnswer: ("
    pairs = one.contrast("Q: {} (".format)
    assert pairs[0] == (f"Q: {one.choices[0].question} (A", f"Q: {one.choices[0].question} (B")
    first, second = one.split(0.5)
    assert len(first) == len(second) == 10 and one.take(2).choices == one.choices[:2]
    assert repr(one) == "ChoiceSet('sycophancy', 20 questions, matching: 10 A, 10 B)"


@pytest.mark.parametrize("name", ["generate_dataset.json", "test_dataset_ab.json"])
def test_the_published_files_of_caa_are_read(tmp_path, name):
    folder = tmp_path / "myopic-reward"
    folder.mkdir()
    (folder / name).write_text(json.dumps(ITEMS, indent=4))
    found = ChoiceSet.load(folder / name)
    assert found.name == "myopic-reward"
    assert [(c.matching, c.other) for c in found] == [("B", "A"), ("A", "B")]
    assert found.choices[0].question == ITEMS[0]["question"]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(item) for item in ITEMS))
    assert ChoiceSet.load(folder / "rows.jsonl", name="mine").choices == found.choices
    found.save(folder / "ours.jsonl")
    assert ChoiceSet.load(folder / "ours.jsonl") == found


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ("[{]", "line 1, column 3: not JSON"),
        ('{"question": "a"\n', "line 1, column"),
        ("[3]", "item 0: a JSON object is expected, not int"),
        ('"a"', "line 1: a JSON object is expected, not str"),
        (json.dumps([ITEMS[0], {"question": "Why?"}]),
         "item 1: a question without answers; this is the open-ended"),
        (json.dumps([{"statement": "x"}]),
         "item 0: no 'question'; an item has question, answer_matching_behavior"),
        (json.dumps([{**ITEMS[0], "answer_matching_behavior": "Yes"}]), "item 0: 'Yes' is not a letter"),
        (json.dumps([{**ITEMS[0], "answer_matching_behavior": "(A)"}]), "item 0: Both answers are 'A'."),
        (json.dumps([{**ITEMS[0], "answer_matching_behavior": ["A"]}]),
         "item 0: `matching` is a text, not ['A']"),
        (json.dumps([{**ITEMS[0], "question": " "}]), "item 0: The question is empty."),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_told_where_it_is_at_fault(tmp_path, text, words):
    path = tmp_path / "test_dataset_ab.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        ChoiceSet.load(path)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda p: ContrastSet("x", []), ValueError, "'x' has no pairs"),
        (lambda p: ContrastSet("x", [("a",)]), TypeError,
         "A pair is two texts, (positive, negative), not ('a',)"),
        (lambda p: ContrastSet("x", ["ab"]), TypeError, "not 'ab'"),
        (lambda p: ContrastSet("x", [("a", "a")]), ValueError, "not the same"),
        (lambda p: ContrastSet("x", [("a", "")]), ValueError, "not empty"),
        (lambda p: tasks.happy_sad(n=4).split(4), ValueError, "Cannot split 4 pairs at 4"),
        (lambda p: ChoiceSet("x", []), ValueError, "'x' has no questions"),
        (lambda p: tasks.sycophancy(n=4).split(0.0), ValueError, "Cannot split 4 questions at 0.0"),
        (lambda p: ContrastSet.load(p), FileNotFoundError, "There is no file"),
        (lambda p: ContrastSet.load(_written(p, '{"positive": "a"}')), ValueError, "line 1: no 'negative'"),
        (lambda p: ContrastSet.load(_written(p, '{"positive": "a", "negative": 1}')), ValueError,
         "line 1: A pair is two texts"),
        (lambda p: ChoiceSet.load(p), FileNotFoundError, "There is no file"),
    ],
)  # fmt: skip
def test_every_error_says_what_was_given(tmp_path, make, error, words):
    with pytest.raises(error, match=re.escape(words)):
        make(tmp_path / "a.jsonl")


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.skipif(not STORIES.exists(), reason="needs shared/weights")
def test_a_small_story_model_finds_each_side_likely_in_its_own_story():
    from interventions import Model
    from interventions.steering.preference import Preference

    model = Model.load(STORIES)
    happy = [(f"{p} The child was", " happy", " sad") for p in tasks.happy_sad(n=20).positive]
    sad = [(f"{n} The child was", " happy", " sad") for n in tasks.happy_sad(n=20).negative]
    assert Preference(happy)(model).mean() > Preference(sad)(model).mean() + 1
    girl = [(f"{p} One day,", " she", " he") for p in tasks.girl_boy(n=20).positive]
    boy = [(f"{n} One day,", " she", " he") for n in tasks.girl_boy(n=20).negative]
    assert Preference(girl)(model).mean() > Preference(boy)(model).mean() + 2


def test_folders_and_files_that_are_no_text_are_named(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        ContrastSet.load(tmp_path)
    (tmp_path / "pairs.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"pairs\.jsonl is not text in UTF-8"):
        ContrastSet.load(tmp_path / "pairs.jsonl")
