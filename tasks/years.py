"""A span of years ends after it begins."""

from __future__ import annotations

from .metrics import ProbabilityDifference
from .pair import Pair
from .sampling import choices
from .task import Task
from .words import SPANS

_CENTURIES = tuple(range(11, 20))


def greater_than(n: int = 100, seed: int = 0) -> Task:
    """The next digit is a later decade: "The war lasted from the year 1749 to the year 17" 5, 6, 7, 8 or 9.

    The task of Hanna et al. 2023 (arXiv:2305.00586) for tokenizers that cut numbers into digits. Their
    patch begins in the year 01; ours in the year 09, which every decade but the first can follow. Each span
    begins in the last year of a decade, so that a repeated digit is always wrong.

    >>> pair = greater_than(n=1).pairs[0]
    >>> [*pair.foils, *pair.answers]
    ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']
    """
    pairs = []
    for span, century, decade in choices(n, seed, SPANS, _CENTURIES, range(1, 9)):
        prompt = f"The {span} lasted from the year {century}{{}}9 to the year {century}"
        digits = tuple("0123456789")
        answers, foils = digits[decade + 1 :], digits[: decade + 1]
        pairs.append(Pair(prompt.format(decade), prompt.format(0), answers, foils, f"decade {decade}"))
    return Task(
        "greater_than",
        pairs,
        ProbabilityDifference(),
        "Greater than, digit by digit: from the year 1749 to the year 17 5, 6, 7, 8, 9",
    )
