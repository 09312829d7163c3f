"""A small English whose verbs agree with their subjects, however far away those are.

    sentence   "The" noun modifier* predicate "."
    modifier   preposition "the" noun | "that" "the" noun modifier* verb | "that" predicate
    predicate  verb "the" noun modifier* | auxiliary complement

Modifiers nest, so that nouns of the other number (attractors) come between a subject and its verb. A
relative clause without a subject ("that sees the king") always belongs to the nearest person or animal
before it, and so every verb's number follows from what stands before the verb.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from .words import AUXILIARIES, NOUNS, PREPOSITIONS, THINGS, TRANSITIVES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ADJECTIVES = ("old", "small", "tall", "young", "happy", "quiet")  # a thing can be the first three
ADVERBS = ("often", "never", "always", "still")
PARTICIPLES = (  # in the order of TRANSITIVES
    ("liking", "liked"), ("seeing", "seen"), ("knowing", "known"), ("loving", "loved"), ("helping", "helped"),
    ("hating", "hated"), ("following", "followed"), ("calling", "called"), ("finding", "found"),
    ("watching", "watched"),
)  # fmt: skip
VERBS = AUXILIARIES + TRANSITIVES
SPECIALS = ("<pad>", "<bos>", "<unk>")
VOCABULARY = (*SPECIALS, ".", "The", "the", "that", "not", *PREPOSITIONS, *ADJECTIVES, *ADVERBS,
              *(word for pairs in (NOUNS, THINGS, VERBS, PARTICIPLES) for pair in pairs for word in pair),
              )  # fmt: skip
CONDITIONS = (
    "simple",  # The boy | is
    "across_pp",  # The boy near the cars | is
    "across_rc",  # The boy that the girls like | is
    "across_subject_rc",  # The boy that likes the girls | is
    "within_rc",  # The boy that the girls | like
    "within_subject_rc",  # The boy near the cars that | likes
    "stacked",  # The boy near the cars that the girls like | is
)
NOUN_FORMS = {word for pair in NOUNS + THINGS for word in pair}
LEMMA = {word: pair[0] for pair in NOUNS + THINGS + VERBS for word in pair}
NUMBER = {word: number for pair in NOUNS + THINGS + VERBS for number, word in enumerate(pair)}


@dataclass(frozen=True)
class Agreement:
    """A verb and the subject that it agrees with, as positions in a sentence.

    `others` are the words that meet them in the sentence: the nouns between the two, the noun that an
    inner clause modifies, the subject's adjective.
    """

    condition: str
    subject: int
    verb: int
    others: tuple[int, ...]


@dataclass(frozen=True)
class Sentence:
    """The words of one sentence, full stop included, and its agreements.

    >>> next(sentences(seed=3)).text
    'The cats that do not see the kings call the worker.'
    """

    words: tuple[str, ...]
    agreements: tuple[Agreement, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words).replace(" .", ".")

    def combinations(self, agreement: Agreement) -> list[tuple[str, str, str]]:
        """The (subject, other word, verb) triples of one agreement, each word in its basic form."""
        subject, verb = LEMMA[self.words[agreement.subject]], LEMMA[self.words[agreement.verb]]
        others = (self.words[other] for other in agreement.others)
        return [(subject, LEMMA.get(other, other), verb) for other in others]

    @property
    def held_out(self) -> bool:
        """Whether a combination in this sentence is one that training never shows."""
        return any(held_out(*triple) for a in self.agreements for triple in self.combinations(a))


@cache
def held_out(subject: str, other: str, verb: str) -> bool:
    """Whether this combination of words is kept from training: one in sixteen, by a hash of the three.

    Numbers do not enter: with ("boy", "car", "is") go "The boys near the car are" and all the like.
    """
    return blake2b(f"{subject} {other} {verb}".encode(), digest_size=1).digest()[0] % 16 == 0


def sentences(seed: int) -> Iterator[Sentence]:
    """Sentences without end, the same for the same seed; those held out are among them."""
    rng = random.Random(seed)
    while True:
        writer = _Writer(rng)
        writer.sentence()
        if len(writer.words) <= 24:
            yield Sentence(tuple(writer.words), tuple(writer.agreements))


def texts(seed: int, *, length: int = 48) -> Iterator[Int[Tensor, " pos"]]:
    """Token ids of BOS and `length - 1` words of sentences in a row, without end; the last may be cut.

    Sentences with a held-out combination are left out.
    """
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    seen = (sentence for sentence in sentences(seed) if not sentence.held_out)
    while True:
        row = [ids["<bos>"]]
        while len(row) < length:
            row.extend(ids[word] for word in next(seen).words)
        yield torch.tensor(row[:length])


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word and one for the full stop, BOS in front, nothing behind.

    >>> words = tokenizer()
    >>> words.decode(words.encode("The boy near the cars is old."))
    '<bos> The boy near the cars is old.'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, bos, unknown = SPECIALS
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    fast = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    fast.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    fast.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single=f"{bos} $A", special_tokens=[(bos, ids[bos])]
    )
    fast.decoder = decoders.WordPiece(cleanup=True)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=pad, bos_token=bos, unk_token=unknown, padding_side="right"
    )


@dataclass
class _Head:
    """A noun that a verb may have to agree with, and what has been written since."""

    at: int
    number: int
    animate: bool
    adjective: int | None
    outer: _Head | None
    written: int  # modifiers in the sentence so far
    kinds: tuple[str, ...] = ()  # its own finished modifiers


class _Writer:
    """Writes one sentence word by word and notes which verb agrees with which noun."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.words, self.agreements = rng, [], []
        self.nouns: list[int] = []
        self.nearest: int | None = None  # the last person or animal
        self.written = 0

    def sentence(self) -> None:
        subject = self.noun(animate=self.rng.random() < 0.9)
        self.modify(subject, depth=0)
        self.predicate(subject, depth=0)
        self.words.append(".")

    def noun(self, *, animate: bool, outer: _Head | None = None) -> _Head:
        self.words.append("the" if self.words else "The")
        adjective = None
        if self.rng.random() < 0.15:
            adjective = len(self.words)
            self.words.append(self.adjective(animate))
        at, number = len(self.words), self.rng.randrange(2)
        self.words.append(self.rng.choice(NOUNS if animate else THINGS)[number])
        self.nouns.append(at)
        self.nearest = at if animate else self.nearest
        return _Head(at, number, animate, adjective, outer, self.written)

    def modify(self, head: _Head, *, depth: int) -> None:
        shares = ((0.4, 0.42, 0.18), (0.75, 0.22, 0.03), (1.0, 0.0, 0.0))[min(depth, 2)]
        for _ in range(self.rng.choices((0, 1, 2), shares)[0]):
            kinds = ["across_pp", "across_rc"]
            if head.animate and self.nearest == head.at:
                kinds.append("across_subject_rc")
            kind = self.rng.choice(kinds)
            if kind == "across_pp":
                self.words.append(self.rng.choice(PREPOSITIONS))
                self.noun(animate=self.rng.random() < 0.4, outer=head)
            elif kind == "across_rc":
                self.words.append("that")
                inner = self.noun(animate=True, outer=head)
                self.modify(inner, depth=depth + 1)
                self.gapped(inner)
            else:
                self.words.append("that")
                self.predicate(head, depth=depth + 1)
            self.written += 1
            head.kinds += (kind,)

    def verb(self, head: _Head, pair: Sequence[str], *, relative: bool = False) -> None:
        count = self.written - head.written
        if relative and count <= 1 and head.kinds in ((), ("across_pp",)):
            condition = "within_subject_rc"
        elif count == 0:
            condition = "within_rc" if head.outer else "simple"
        elif count == 1 and len(head.kinds) == 1 and not head.outer:
            condition = head.kinds[0]
        else:
            condition = "stacked"
        others = [at for at in self.nouns if at > head.at]
        others += [head.outer.at] if head.outer else []
        others += [head.adjective] if head.adjective is not None else []
        self.agreements.append(Agreement(condition, head.at, len(self.words), tuple(others)))
        self.words.append(pair[head.number])

    def gapped(self, head: _Head) -> None:
        """The verb of "that the girls like", its object being what the clause belongs to."""
        action = self.rng.randrange(len(TRANSITIVES))
        if self.rng.random() < 0.5:
            return self.verb(head, TRANSITIVES[action])
        auxiliary = self.rng.choice(AUXILIARIES)
        self.verb(head, auxiliary)
        if auxiliary[0] in ("is", "was") and self.rng.random() < 0.5:
            self.words.append(self.rng.choice(PREPOSITIONS))
        else:
            self.words.append(self.form(auxiliary, action))

    def predicate(self, head: _Head, *, depth: int) -> None:
        """A verb of `head` and what belongs to it; inside a relative clause where `depth` is not 0."""
        action = self.rng.randrange(len(TRANSITIVES))
        if head.animate and self.rng.random() < 0.45:
            if self.rng.random() < 0.15:
                self.words.append(self.rng.choice(ADVERBS))
            self.verb(head, TRANSITIVES[action], relative=depth > 0)
            return self.object(head, depth=depth)
        auxiliary = self.rng.choice(AUXILIARIES if head.animate else AUXILIARIES[:2])
        self.verb(head, auxiliary, relative=depth > 0)
        if auxiliary[0] in ("is", "was") and (not head.animate or self.rng.random() < 0.6):
            if self.rng.random() < 0.5:
                self.words.append(self.adjective(head.animate))
            else:
                self.words.append(self.rng.choice(PREPOSITIONS))
                self.noun(animate=self.rng.random() < 0.4, outer=head)
            return
        if auxiliary[0] == "does" and self.rng.random() < 0.3:
            self.words.append("not")
        self.words.append(self.form(auxiliary, action))
        self.object(head, depth=depth)

    def object(self, subject: _Head, *, depth: int) -> None:
        self.modify(self.noun(animate=True, outer=subject), depth=depth + 1)

    def adjective(self, animate: bool) -> str:
        return self.rng.choice(ADJECTIVES if animate else ADJECTIVES[:3])

    @staticmethod
    def form(auxiliary: Sequence[str], action: int) -> str:
        """What follows an auxiliary: "is calling", "has called", "does call"."""
        progressive, perfect = PARTICIPLES[action]
        return {"has": perfect, "does": TRANSITIVES[action][1]}.get(auxiliary[0], progressive)
