from __future__ import annotations

from itertools import islice

import pytest

from tasks.grammar import (
    CONDITIONS,
    LEMMA,
    NOUN_FORMS,
    NUMBER,
    VERBS,
    VOCABULARY,
    held_out,
    sentences,
    texts,
    tokenizer,
)
from tasks.words import AUXILIARIES, NOUNS, PREPOSITIONS, THINGS, TRANSITIVES

SAMPLE = list(islice(sentences(seed=0), 4000))


def test_the_same_seed_gives_the_same_sentences() -> None:
    again = list(islice(sentences(seed=0), 200))
    assert again == SAMPLE[:200]
    assert list(islice(sentences(seed=1), 200)) != again


def test_every_verb_agrees_with_its_subject() -> None:
    for sentence in SAMPLE:
        for agreement in sentence.agreements:
            subject, verb = sentence.words[agreement.subject], sentence.words[agreement.verb]
            assert agreement.subject < agreement.verb
            assert subject in NOUN_FORMS and verb in LEMMA
            assert NUMBER[subject] == NUMBER[verb]


def test_every_inflected_verb_is_accounted_for() -> None:
    inflected = {form for pair in VERBS for form in pair} - {plural for _, plural in TRANSITIVES}
    for sentence in SAMPLE:
        verbs = {agreement.verb for agreement in sentence.agreements}
        assert {i for i, word in enumerate(sentence.words) if word in inflected} <= verbs


def test_a_clause_without_a_subject_belongs_to_the_nearest_animate_noun() -> None:
    animate = {form for pair in NOUNS for form in pair}
    for sentence in SAMPLE:
        for agreement in sentence.agreements:
            before = sentence.words[agreement.verb - 1]
            if before == "that":
                nearest = max(i for i in range(agreement.verb) if sentence.words[i] in animate)
                assert agreement.subject == nearest


def test_every_word_of_the_lists_occurs() -> None:
    seen = {word for sentence in SAMPLE for word in sentence.words}
    assert seen == set(VOCABULARY) - {"<pad>", "<bos>", "<unk>"}
    assert set(PREPOSITIONS) | {form for pair in NOUNS + THINGS + AUXILIARIES for form in pair} <= seen


def test_every_condition_is_common() -> None:
    conditions = [agreement.condition for sentence in SAMPLE for agreement in sentence.agreements]
    assert set(conditions) == set(CONDITIONS)
    assert min(map(conditions.count, CONDITIONS)) > 200


@pytest.mark.parametrize(
    "prompt",
    ["The boy", "The boy near the cars", "The boy that the girls like", "The boy that the girls"],
)
@pytest.mark.parametrize("auxiliary", ["is", "was", "has", "does"])
def test_the_kinds_of_prompts_of_the_agreement_tasks_occur(prompt: str, auxiliary: str) -> None:
    """Up to the words themselves, every kind of prompt is followed by every auxiliary."""
    kind = _kinds(prompt.split())
    followed = {
        LEMMA[s.words[a.verb]] for s in SAMPLE for a in s.agreements if _kinds(s.words[: a.verb]) == kind
    }
    assert auxiliary in followed and "likes" in followed


def test_texts_leave_out_what_is_held_out_and_start_with_bos() -> None:
    words = tokenizer()
    kept = " ".join(" ".join(s.words) for s in SAMPLE[:400] if not s.held_out).split()
    tokens = [i for row in islice(texts(seed=0), 5) for i in row.tolist()]
    first = tokens[:48]
    assert first[0] == words.bos_token_id
    assert [VOCABULARY[i] for i in first[1:]] == kept[:47]
    assert tokens.count(words.bos_token_id) == 5


def test_about_a_sixteenth_of_all_combinations_is_held_out() -> None:
    verbs, subjects = [LEMMA[v] for v, _ in VERBS], [noun for noun, _ in NOUNS]
    rule = [held_out(subject, other, verb) for subject in subjects for other in subjects for verb in verbs]
    assert 1 / 20 < sum(rule) / len(rule) < 1 / 12
    assert any(sentence.held_out for sentence in SAMPLE)


def test_an_answer_adds_one_token_to_its_prompt() -> None:
    words = tokenizer()
    prompt = "The boy that the girls like"
    ids = words.encode(prompt)
    assert ids[0] == words.bos_token_id and len(ids) == 1 + len(prompt.split())
    for pair in VERBS:
        for form in pair:
            assert words.encode(f"{prompt} {form}") == [
                *ids,
                *words.encode(f" {form}", add_special_tokens=False),
            ]
            assert len(words.encode(f" {form}", add_special_tokens=False)) == 1


def test_text_survives_the_tokenizer() -> None:
    words = tokenizer()
    for sentence in SAMPLE[:100]:
        ids = words.encode(sentence.text)
        assert words.decode(ids, skip_special_tokens=True) == sentence.text
        assert [VOCABULARY[i] for i in ids[1:]] == list(sentence.words)


def test_the_tokenizer_pads_on_the_right() -> None:
    rows = tokenizer()(["The boy", "The boy near the cars"], padding=True)
    assert rows["attention_mask"] == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


def _kinds(words: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """A prompt with every noun, transitive verb and preposition replaced by its kind."""
    kinds = {form: "verb" for pair in TRANSITIVES for form in pair}
    kinds |= {form: "noun" for form in NOUN_FORMS} | {word: "preposition" for word in PREPOSITIONS}
    return tuple(kinds.get(word, word) for word in words)
