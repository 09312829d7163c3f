"""Contrast sets in the words of children's stories, for models of a few hundred thousand parameters."""

from __future__ import annotations

from .contrast import ContrastSet
from .pair import Pair
from .sampling import choices
from .words import BOYS, GIRLS

_HAPPY = (
    ("{} was very happy.", "{} was very sad."), ("{} felt happy and smiled.", "{} felt sad and cried."),
    ("{} laughed and jumped with joy.", "{} cried and cried."), ("{} had a big smile.", "{} had a sad face."),
    ("{} was so happy to play.", "{} was so sad and alone."), ("{} was glad and had fun.",
     "{} was sad and hurt."),
    ("{} loved it. It was the best day.", "{} hated it. It was a bad day."),
)  # fmt: skip
_OPENINGS = (
    "Once upon a time, there was a little {kind} named {name}.", "One day, {name} went to the park.",
    "{name} was playing with a ball.", "{name} went home with mom.", "It was a new day and {name} woke up.",
    "{name} saw a big dog.", "{name} and a friend were in the garden.",
)  # fmt: skip
_FEELING = ("{name} felt very", "{name} was very", "{name} was so", "Now {name} was", "{name} felt so")
_GIRL_BOY = (
    "Once upon a time, there was a little {kind} named {name}.",
    "One day, a {kind} named {name} went to the park.",
    "{name} was a little {kind}. {name} liked to play.",
    "There was a {kind} who had a red ball. The {kind} was {name}.",
    "{name} was a good {kind} who helped mom.", "A {kind} named {name} had a toy car.",
    "Mom said to the {kind}, \"Hi, {name}!\"",
    "The {kind} was three years old. The {kind} was called {name}.",
)  # fmt: skip
_SOMEONE = (
    "The child", "The friend", "The doctor", "The teacher", "The baby", "The little child", "The big child",
    "The small friend", "The new friend", "The bear", "The bird", "The cat", "The dog", "The little bird",
)  # fmt: skip
_BECAUSE = ("was happy because", "was sad because", "was tired because", "was scared because",
            "smiled because", "cried because")  # fmt: skip


def happy_sad(n: int = 60, seed: int = 0) -> ContrastSet:
    """The beginning of a story whose child is happy, and of the same story with the child sad.

    >>> happy_sad(n=1)[0]
    ('...', '...')
    """
    pairs = []
    for opening, moods, name in choices(n, seed, _OPENINGS, _HAPPY, GIRLS + BOYS):
        start = opening.format(name=name, kind="girl" if name in GIRLS else "boy")
        happy, sad = (f"{start} {mood.format('She' if name in GIRLS else 'He')}" for mood in moods)
        pairs.append((happy, sad))
    return ContrastSet("happy_sad", pairs, "A story whose child is happy, and one whose child is sad")


def feelings(n: int = 40, seed: int = 1) -> tuple[Pair, ...]:
    """Questions for `Preference`: a story leaves open what its child feels, happy or sad.

    >>> feelings(n=1)[0].answers, feelings(n=1)[0].foils
    ((' happy',), (' sad',))
    """
    found = []
    for opening, feeling, name in choices(n, seed, _OPENINGS, _FEELING, GIRLS + BOYS):
        start = opening.format(name=name, kind="girl" if name in GIRLS else "boy")
        pronoun = "she" if name in GIRLS else "he"
        asked = feeling.format(name=pronoun if feeling.startswith("Now") else pronoun.capitalize())
        found.append(Pair(f"{start} {asked}", None, (" happy",), (" sad",)))
    return tuple(found)


def girl_boy(n: int = 60, seed: int = 0) -> ContrastSet:
    """The beginning of a story about a girl, and of the same story about a boy.

    >>> girl_boy(n=1)[0]
    ('...girl...', '...boy...')
    """
    pairs = [
        (opening.format(kind="girl", name=girl), opening.format(kind="boy", name=boy))
        for opening, girl, boy in choices(n, seed, _GIRL_BOY, GIRLS, BOYS)
    ]
    return ContrastSet("girl_boy", pairs, "A story about a girl, and one about a boy")


def who(n: int = 40, seed: int = 1) -> tuple[Pair, ...]:
    """Questions for `Preference`: somebody of no known gender, then she or he.

    >>> who(n=1)[0].answers, who(n=1)[0].foils
    ((' she',), (' he',))
    """
    return tuple(
        Pair(f"{someone} {because}", None, (" she",), (" he",))
        for someone, because in choices(n, seed, _SOMEONE, _BECAUSE)
    )
