"""Which tokens are read."""

from __future__ import annotations

import pytest
import torch
from families import fresh, tiny

from interventions.steering import (
    After,
    Position,
    Within,
    answer_letter,
    contrast,
    differing,
    every,
    last,
    pair_activations,
)
from interventions.steering.token_choice import chosen, label

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "(",
    ")",
    "A",
    "B",
    "C",
    " (A",
    " yes",
    " no",
    " the",
    " letter",
    "\n",
    " Answer:",
    " D",
    ")(",
    "a",
]


class Words:
    """A tokenizer with a few words, the longest first; it opens a text, and ends one too."""

    all_special_ids = (0, 1, 2)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            ids.append(max((w for w in WORDS if text.startswith(w, at)), key=len))
            at += len(ids[-1])
        found = [WORDS.index(word) for word in ids]
        return [1, *found, 2] if add_special_tokens else found

    def decode(self, ids) -> str:
        return "".join(WORDS[i] for i in ids)


def ids(text: str) -> tuple[int, ...]:
    return (1, *Words().encode(text, add_special_tokens=False))


def words(choice, text: str, other: str = "") -> list[str]:
    return [WORDS[ids(text)[i]] for i in chosen(choice, ids(text), ids(other), Words())]


@pytest.mark.parametrize(
    "choice, text, found",
    [
        (last, " yes no", [" no"]),
        (Position(1), " yes no", [" yes"]),
        (Position(-2), " yes no", [" yes"]),
        (every, " yes no", [" yes", " no"]),
        (answer_letter, "(A) yes\n(B) no\n Answer:(B)", ["B"]),
        (answer_letter, "(A) yes\n(B) no\n Answer:(B", ["B"]),
        (answer_letter, "(B) no\n Answer: (A)", [" (A"]),
        (answer_letter, " the letter(A)", ["A"]),
        (answer_letter, " yes the letter", [" letter"]),
        (answer_letter, "(A yes", ["A"]),
        (Within(" yes no"), " the yes no letter", [" yes", " no"]),
        (Within("yes"), " yes the yes letter", [" yes"]),
        (Within("es n"), " the yes no letter", [" yes", " no"]),
        (After(" yes"), " yes no yes the letter", [" the", " letter"]),
        (After("ye"), " yes no the", [" no", " the"]),
        (lambda ids, tokenizer: slice(1, 3), " yes no the", [" yes", " no"]),
        (lambda ids, tokenizer: [2, -1, 2], " yes no the", [" no", " the"]),
        (lambda ids, tokenizer: [i == 10 for i in ids], " yes no the no", [" no", " no"]),
        (lambda ids, tokenizer: torch.tensor(ids) > 8, " yes( no", [" yes", " no"]),
        (lambda ids, tokenizer: torch.tensor(1), " yes no", [" yes"]),
    ],
)
def test_each_choice_takes_its_tokens(choice, text, found):
    assert words(choice, text) == found


def test_the_last_answer_counts_and_of_repeated_words_the_last():
    assert chosen(answer_letter, ids("(A)(B)(A)"), (), Words()) == (6,)
    assert chosen(Within(" no"), ids(" no yes no"), (), Words()) == (3,)


def test_all_tokens_of_a_character_are_within_it():
    class Bytes:
        all_special_ids = ()

        def decode(self, ids) -> str:
            return bytes(ids).decode(errors="replace")

    text = tuple("a é🙂 b".encode())
    assert chosen(Within("🙂"), text, (), Bytes()) == (4, 5, 6, 7)
    assert chosen(Within("é"), text, (), Bytes()) == (2, 3)
    assert chosen(Within(" é"), text, (), Bytes()) == (1, 2, 3)
    assert chosen(After("🙂"), text, (), Bytes()) == (8, 9)


def test_what_differs_is_from_the_first_difference_on():
    assert words(differing, " the yes no", " the no no") == [" yes", " no"]
    assert words(differing, " the yes no", " the yes") == [" no"]
    with pytest.raises(ValueError, match="begins with all of it"):
        words(differing, " the yes", " the yes no")


@pytest.mark.parametrize(
    "choice, error, why",
    [
        (
            Position(9),
            ValueError,
            r"Pair 1, negative text '<s> yes no': position 9 is out of range: there are 3",
        ),
        (Position(-4), ValueError, r"Pair 1, negative text .* position -4 is out of range"),
        (Within("letter"), ValueError, r"Pair 1, negative text '<s> yes no': 'letter' is not in it"),
        (After("letter"), ValueError, r"Pair 0, positive text '<s> the letter': there is no token after"),
        (Within(""), ValueError, "an empty string is looked for"),
        (lambda ids, tokenizer: [], ValueError, "Pair 0, positive text .* no token is chosen"),
        (lambda ids, tokenizer: [True], ValueError, r"a mask of shape \(1,\) does not fit 3 tokens"),
        (lambda ids, tokenizer: [0.5], TypeError, "gave torch.float32, not positions"),
    ],
)
def test_a_choice_that_finds_nothing_names_the_pair(choice, error, why):
    model = fresh("gpt2")
    model.tokenizer = Words()
    pairs = [(" the letter", " the letter yes"), (" the letter" * 5, " yes no")]
    if isinstance(choice, Position):
        pairs[0] = (" the letter" * 5, " no letter" * 5)
    with pytest.raises(error, match=why):
        contrast(model, pairs, ["resid.1"], tokens=choice)


def test_words_are_looked_for_only_where_there_is_a_tokenizer():
    with pytest.raises(
        ValueError, match=r"Pair 0, positive text \[3, 4\]: a choice by text needs a model with a"
    ):
        contrast(tiny("gpt2"), [((3, 4), (3, 5))], ["resid.1"], tokens=Within("a"))
    found = contrast(tiny("gpt2"), [((3, 4), (3, 5))], ["resid.1"], tokens=every)
    assert found.how["tokens"] == "every"


def test_an_end_that_the_tokenizer_sets_is_not_read():
    model = fresh("gpt2")
    model.tokenizer = Words()
    acts = pair_activations(model, [(" the yes", " the no")], ["resid.1"])
    alone = model.read(torch.tensor([ids(" the yes")]), ["resid.1"])[model.site("resid.1")][0, -1]
    torch.testing.assert_close(acts.positive["resid.1"][0], alone)


def test_choices_say_what_they_are():
    assert [label(choice) for choice in (last, every, differing, Position(-2), After("x"))] == [
        "last", "every", "Differing()", "Position(at=-2)", "After(text='x')",
    ]  # fmt: skip
