"""Tokens by the words that the command line has for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from interventions.steering.token_choice import (
    After,
    Choice,
    PairChoice,
    Position,
    Within,
    answer_letter,
    differing,
    every,
    last,
)
from interventions.where import Where, after, at, before, end_of, matching, span, within

CHOICES: dict[str, Choice | PairChoice] = {
    "last": last, "answer-letter": answer_letter, "differing": differing, "every": every,
}  # fmt: skip
_TEXTS: dict[str, Callable[[str], Any]] = {
    "after": after, "before": before, "within": within, "end-of": end_of, "matching": matching,
}  # fmt: skip


def choice(word: str) -> Choice | PairChoice:
    """Which tokens of the texts of pairs are read: `last`, `after:TEXT`, `position:-2`, ...

    Raises:
        ValueError: a word that is none of them.
    """
    if word in CHOICES:
        return CHOICES[word]
    kind, _, rest = word.partition(":")
    if kind == "position" and re.fullmatch(r"-?\d+", rest):
        return Position(int(rest))
    if kind in ("after", "within") and rest:
        return After(rest) if kind == "after" else Within(rest)
    raise ValueError(
        f"--tokens {word!r} is none of {', '.join(CHOICES)}, after:TEXT, within:TEXT, position:N."
    )


def clause(word: str, option: str) -> Any:
    """Which tokens of a prompt, or of what is generated, are changed: `all`, `last`, `after:TEXT`, `0:5`, ...

    Raises:
        ValueError: a word that is none of them; the message names the option.
    """
    known = {"all": "all", "none": None, "last": at([-1])}
    if word in known:
        return known[word]
    kind, _, rest = word.partition(":")
    if kind in _TEXTS and rest:
        return _TEXTS[kind](rest)
    if re.fullmatch(r"-?\d+(,-?\d+)*", word):
        return at([int(i) for i in word.split(",")])
    if found := re.fullmatch(r"(-?\d+)?:(-?\d+)?", word):
        return span(*(None if i is None else int(i) for i in found.groups()))
    raise ValueError(
        f"{option} {word!r} is none of all, none, last, 3, 0,2, 0:5, "
        f"{', '.join(f'{name}:TEXT' for name in _TEXTS)}."
    )


def where(prompt: str, generation: str) -> Where:
    """Which tokens are changed, by a word for those of the prompt and one for those that are generated."""
    return Where(
        prompt=clause(prompt, "--prompt-tokens"), generation=clause(generation, "--generation-tokens")
    )
