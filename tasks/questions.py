"""Questions about agreement that training on the grammar never showed, and how well a model answers them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .grammar import (
    CONDITIONS,
    NOUN_FORMS,
    NUMBER,
    VERBS,
    VOCABULARY,
    Agreement,
    Sentence,
    held_out,
    sentences,
)

Logits = Callable[[Int[Tensor, "batch pos"]], Float[Tensor, "batch pos vocab"]]


@dataclass(frozen=True)
class Question:
    """The beginning of a sentence, and the two forms of the verb that may follow."""

    prompt: str
    answer: str  # with the space before it
    foil: str
    condition: str
    attractors: int  # nouns in the prompt whose number is not the subject's

    @classmethod
    def of(cls, sentence: Sentence, agreement: Agreement) -> Question:
        words, verb = sentence.words, sentence.words[agreement.verb]
        pair, number = next(pair for pair in VERBS if verb in pair), NUMBER[verb]
        others = [NUMBER[words[i]] for i in _nouns(sentence, agreement)]
        return cls(
            prompt=" ".join(words[: agreement.verb]),
            answer=f" {verb}",
            foil=f" {pair[1 - number]}",
            condition=agreement.condition,
            attractors=sum(other != number for other in others),
        )


def questions(n: int, *, seed: int) -> dict[str, list[Question]]:
    """`n` questions for every condition, with a combination of words that training leaves out.

    Except in "simple" questions, the noun nearest to the verb (other than its subject) misleads.

    >>> questions(1, seed=0)["across_pp"][0].prompt
    'The author beyond the leaders'
    """
    found: dict[str, list[Question]] = {condition: [] for condition in CONDITIONS}
    stream = sentences(seed)
    while any(len(asked) < n for asked in found.values()):
        sentence = next(stream)
        for agreement in sentence.agreements:
            asked = found[agreement.condition]
            unseen = any(held_out(*triple) for triple in sentence.combinations(agreement))
            if len(asked) < n and unseen and _misleads(sentence, agreement):
                asked.append(Question.of(sentence, agreement))
    return found


def margins(logits: Logits, asked: Sequence[Question]) -> Float[Tensor, " question"]:
    """How far the right form of each verb is ahead of the wrong one, in logits.

    `logits` maps token ids of `VOCABULARY` (padded on the right) to logits, as a causal model does.
    """
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    rows = [[ids["<bos>"], *(ids[word] for word in question.prompt.split())] for question in asked]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [ids["<pad>"]] * (width - len(row)) for row in rows])
    last = torch.tensor([len(row) - 1 for row in rows])
    with torch.no_grad():
        here = logits(tokens)[torch.arange(len(rows)), last].cpu()
    pairs = torch.tensor([[ids[q.answer.strip()], ids[q.foil.strip()]] for q in asked])
    right, wrong = here.gather(1, pairs).unbind(1)
    return right - wrong


def accuracy(logits: Logits, n: int, *, seed: int) -> Mapping[str, float]:
    """The share of `n` questions per condition where the right form of the verb is ahead.

    >>> always_the = torch.eye(len(VOCABULARY))[VOCABULARY.index("the")]
    >>> accuracy(lambda tokens: always_the.expand(*tokens.shape, -1), 8, seed=0)["simple"]
    0.0
    """
    asked = questions(n, seed=seed)
    return {name: (margins(logits, group) > 0).double().mean().item() for name, group in asked.items()}


def _nouns(sentence: Sentence, agreement: Agreement) -> list[int]:
    """Positions of the nouns before the verb, its subject not among them."""
    places = range(agreement.verb)
    return [i for i in places if sentence.words[i] in NOUN_FORMS and i != agreement.subject]


def _misleads(sentence: Sentence, agreement: Agreement) -> bool:
    others = _nouns(sentence, agreement)
    if not others:
        return agreement.condition == "simple"
    return NUMBER[sentence.words[others[-1]]] != NUMBER[sentence.words[agreement.verb]]
