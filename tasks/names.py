"""Tasks about who is who: a pronoun for a name, and a name for whom something is given to."""

from __future__ import annotations

import random
from itertools import permutations

from .pair import Pair
from .sampling import choices
from .task import Task
from .words import BOYS, GIFTS, GIRLS, PLACES

_OPENINGS = (
    "{} was happy because", "{} was sad because", "{} was tired because", "{} was proud because",
    "{} was scared because", "{} was angry because", "{} smiled because", "{} cried because",
    "{} laughed because", "{} stopped because", "One day, {} was sad because", "{} was so happy that",
)  # fmt: skip
_GIVING = (
    "When {} and {} went to the {place}, {} gave a {gift} to",
    "After {} and {} came home from the {place}, {} handed the {gift} to",
    "While {} and {} were at the {place}, {} passed a {gift} to",
    "One day {} and {} met at the {place}, and {} lent a {gift} to",
    "Then {} and {} had a long talk at the {place}, and {} brought the {gift} to",
    "Yesterday {} and {} had lunch near the {place}. Later, {} showed a {gift} to",
)


def pronouns(n: int = 100, seed: int = 0) -> Task:
    """A name decides between she and he: "Lily was happy because" she. The patch has a boy for a girl.

    Simple enough for a model of children's stories with a few hundred thousand parameters.

    >>> pronouns(n=1).pairs[0].clean
    '... because'
    """
    drawn = choices(n, seed, GIRLS, BOYS, (0, 1), _OPENINGS)
    pairs = []
    for girl, boy, which, opening in drawn:
        clean, patch = opening.format((girl, boy)[which]), opening.format((boy, girl)[which])
        answer, foil = (" she", " he")[which], (" he", " she")[which]
        pairs.append(Pair(clean, patch, (answer,), (foil,), ("girl", "boy")[which]))
    return Task("pronouns", pairs, description="Pronoun for a name: Lily was happy because she")


def indirect_objects(n: int = 100, seed: int = 0) -> Task:
    """Who was given it is the name said once: "When Mary and John went to the store, John gave a drink to"
    Mary (Wang et al. 2022, arXiv:2211.00593).

    The patch has three other names, so that nobody is named twice. Cases are the two orders, `ABBA` and
    `BABA`, in which the name of the giver stands second or first.

    >>> pair = indirect_objects(n=1).pairs[0]
    >>> pair.clean.count(pair.answers[0].strip()), pair.clean.count(pair.foils[0].strip())
    (1, 2)
    """
    names = GIRLS + BOYS
    rng = random.Random(seed)
    drawn = choices(n, seed, list(permutations(names, 2)), ("ABBA", "BABA"), _GIVING, PLACES, GIFTS)
    pairs = []
    for (receiver, giver), case, template, place, gift in drawn:
        first, second = (receiver, giver) if case == "ABBA" else (giver, receiver)
        others = rng.sample([name for name in names if name not in (receiver, giver)], 3)
        clean = template.format(first, second, giver, place=place, gift=gift)
        patch = template.format(*others, place=place, gift=gift)
        pairs.append(Pair(clean, patch, (f" {receiver}",), (f" {giver}",), case))
    return Task(
        "indirect_objects", pairs, description="Indirect object: Mary and John ..., John gave it to Mary"
    )
