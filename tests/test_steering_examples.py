"""The scripts behind the page on steering, at toy size."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from interventions.model import Model

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture
def stories(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module("steering_stories")


@pytest.fixture
def steering(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return import_module("steering")


@pytest.fixture
def folder(stories):
    found = Path(stories.WEIGHTS) / "stories260K"
    if not found.exists():
        pytest.skip("the weights of the examples are not here")
    return found


def test_words_of_one_list_count_against_those_of_the_other(stories):
    score = stories.More(stories.GIRL, stories.BOY)
    assert score("She saw him. She ran.") == pytest.approx(100 * (2 - 1) / 5)
    assert score("") == 0


def test_a_direction_from_girls_and_boys_turns_he_into_she(stories, folder, tmp_path):
    model, (gender, _) = Model.load(folder), stories.behaviours()
    small = {**vars(gender), "questions": gender.questions[:12], "prompts": gender.prompts[:2]}
    plan = {"sites": ["resid.3", "resid.4"], "sweep": [1], "doses": [-1, 1], "seeds": 2}
    behaviour = stories.Behaviour(**small)
    found = stories.study(
        model, behaviour, ["Once upon a time"], tmp_path, new_tokens=5, options={}, n_random=1, **plan
    )
    assert (found.site, found.multiplier) == ("resid.4", 1)
    for sign in (-1, 1):
        assert sign * found.response.beyond_random("preference", sign).mean > 1
        assert sign * found.response.effect("words", sign).mean >= 0
    stories.draw(behaviour, found, tmp_path, stories.LABELS["gender"])
    assert (tmp_path / "gender-doses.svg").exists() and (tmp_path / "gender-sweep.svg").exists()


def test_questions_to_choose_with_are_not_those_to_report(stories, steering):
    for behaviour in (*stories.behaviours(), steering.opinions(None), steering.agreeing(None)):
        chosen = {getattr(item, "clean", item) for item in behaviour.questions[::2]}
        assert not chosen & {getattr(item, "clean", item) for item in behaviour.questions[1::2]}


def test_pairs_that_directions_are_found_in_are_not_asked_about(steering):
    behaviour = steering.agreeing(None)
    asked = {prompt for prompt, _, _ in behaviour.questions}
    assert not any(text[:-1] in asked for pair in behaviour.pairs for text in pair)


@pytest.mark.slow
def test_the_stories_example_runs_through(stories, folder, tmp_path, capsys):
    sizes = ["--seeds", "1", "--prompts", "2", "--doses", "1"]
    stories.main(["--model", str(folder), "--out", str(tmp_path), *sizes])
    assert "## mood" in capsys.readouterr().out
    assert (tmp_path / "mood-doses.svg").exists()
