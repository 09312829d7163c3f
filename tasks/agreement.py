"""Subject and verb agree in number, with nothing or something between them.

The four constructions of Finlayson et al. 2021 (arXiv:2106.06087), which Marks et al. 2024
(arXiv:2403.19647) explain with features, in words of our own. The patch changes the number of the noun that
the verb agrees with and nothing else; the noun that could mislead keeps its number. Cases read
`singular_plural`, the subject's number first.
"""

from __future__ import annotations

from itertools import permutations

from .pair import Pair
from .sampling import choices
from .task import Task
from .words import AUXILIARIES, NOUNS, PREPOSITIONS, THINGS, TRANSITIVES

_NUMBERS = ("singular", "plural")  # as the word lists have them
_TWO_NOUNS = tuple(permutations(NOUNS, 2))


def agreement_simple(n: int = 100, seed: int = 0) -> Task:
    """Next to its subject: "The boy" is, "The boys" are.

    >>> agreement_simple(n=1).pairs[0]
    Pair(clean='The ...', patch='The ...', answers=...)
    """
    pairs = [
        _pair("The {}", noun, number, verb, _NUMBERS[number])
        for noun, number, verb in choices(n, seed, NOUNS, (0, 1), AUXILIARIES)
    ]
    return Task("agreement_simple", pairs, description="Verb after its subject: The boy is")


def agreement_across_pp(n: int = 100, seed: int = 0) -> Task:
    """Across a prepositional phrase: "The boy near the cars" is.

    >>> len(agreement_across_pp(n=20))
    20
    """
    drawn = choices(n, seed, NOUNS, (0, 1), PREPOSITIONS, THINGS, (0, 1), AUXILIARIES)
    pairs = [
        _pair(f"The {{}} {preposition} the {thing[other]}", noun, number, verb, _case(number, other))
        for noun, number, preposition, thing, other, verb in drawn
    ]
    return Task("agreement_across_pp", pairs, description="Verb across a phrase: The boy near the cars is")


def agreement_across_rc(n: int = 100, seed: int = 0) -> Task:
    """Across a relative clause: "The boy that the girls like" is.

    >>> len(agreement_across_rc(n=20))
    20
    """
    drawn = choices(n, seed, _TWO_NOUNS, (0, 1), (0, 1), TRANSITIVES, AUXILIARIES)
    pairs = [
        _pair(f"The {{}} that the {inner[other]} {does[other]}", noun, number, verb, _case(number, other))
        for (noun, inner), number, other, does, verb in drawn
    ]
    return Task(
        "agreement_across_rc", pairs, description="Verb across a clause: The boy that the girls like is"
    )


def agreement_within_rc(n: int = 100, seed: int = 0) -> Task:
    """Within a relative clause: "The boys that the girl" is (following). The patch changes the girl.

    >>> len(agreement_within_rc(n=20))
    20
    """
    drawn = choices(n, seed, _TWO_NOUNS, (0, 1), (0, 1), AUXILIARIES)
    pairs = [
        _pair(f"The {outer[other]} that the {{}}", noun, number, verb, _case(number, other))
        for (noun, outer), number, other, verb in drawn
    ]
    return Task("agreement_within_rc", pairs, description="Verb in a clause: The boys that the girl is")


def _pair(prompt: str, noun: tuple[str, str], number: int, verb: tuple[str, str], case: str) -> Pair:
    answer, foil = f" {verb[number]}", f" {verb[1 - number]}"
    return Pair(prompt.format(noun[number]), prompt.format(noun[1 - number]), (answer,), (foil,), case)


def _case(number: int, other: int) -> str:
    return f"{_NUMBERS[number]}_{_NUMBERS[other]}"
