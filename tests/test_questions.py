from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tasks.grammar import CONDITIONS, LEMMA, NOUN_FORMS, NUMBER, VOCABULARY
from tasks.questions import accuracy, margins, questions

ASKED = questions(40, seed=0)


def test_there_are_as_many_as_asked_for_of_each_condition() -> None:
    assert {condition: len(group) for condition, group in ASKED.items()} == dict.fromkeys(CONDITIONS, 40)
    assert questions(10, seed=0)["stacked"] == ASKED["stacked"][:10]


def test_answer_and_foil_are_the_two_forms_of_one_verb() -> None:
    for group in ASKED.values():
        for question in group:
            answer, foil = question.answer.strip(), question.foil.strip()
            assert answer != foil and LEMMA[answer] == LEMMA[foil]
            assert question.answer == f" {answer}" and question.foil == f" {foil}"


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_nearest_other_noun_misleads(condition: str) -> None:
    """What a model that listens to the nearest noun says is wrong wherever the subject is not the nearest."""
    for question in ASKED[condition]:
        numbers = [NUMBER[word] for word in question.prompt.split() if word in NOUN_FORMS]
        right = NUMBER[question.answer.strip()]
        assert (question.attractors == 0) == (condition == "simple")
        assert sum(number != right for number in numbers) == question.attractors
        if condition.startswith("across"):
            assert numbers[0] == right and numbers[-1] != right


def test_margins_are_read_after_the_last_word_of_each_prompt() -> None:
    group = [*ASKED["simple"], *ASKED["stacked"]]

    def oracle(tokens: Tensor) -> Tensor:
        """Knows the answers by heart."""
        logits = torch.zeros(*tokens.shape, len(VOCABULARY))
        for row, question in enumerate(group):
            at = len(question.prompt.split())
            logits[row, at, VOCABULARY.index(question.answer.strip())] = 2.0
            logits[row, at, VOCABULARY.index(question.foil.strip())] = -1.0
        return logits

    torch.testing.assert_close(margins(oracle, group), torch.full((80,), 3.0))


def test_a_model_of_the_nearest_noun_does_well_only_on_simple_questions() -> None:
    nouns = {VOCABULARY.index(noun) for noun in NOUN_FORMS}
    plural = torch.tensor([NUMBER.get(word, 0) for word in VOCABULARY])
    verbs = torch.tensor([2.0 * NUMBER.get(word, 0) - 1 for word in VOCABULARY])

    def nearest(tokens: Tensor) -> Tensor:
        last = torch.zeros(tokens.shape)
        for pos in range(tokens.shape[1]):
            seen = torch.tensor([int(t) in nouns for t in tokens[:, pos]])
            last[:, pos] = torch.where(seen, 2.0 * plural[tokens[:, pos]] - 1, last[:, pos - 1] if pos else 0)
        return last[..., None] * verbs

    scores = accuracy(nearest, 40, seed=0)
    assert scores["simple"] == 1
    assert max(scores["across_pp"], scores["across_rc"], scores["across_subject_rc"], scores["stacked"]) == 0
