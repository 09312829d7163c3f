"""Which tokens of a text are read: callables from its token ids and the tokenizer to positions.

Any function of the two does that returns a position, a slice, positions, or a mask of booleans. Over several
positions activations are averaged. What hangs on both texts of a pair has a method `of_pair` instead.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..dictionaries.measures.text import pieces

Ids = tuple[int, ...]
Positions: TypeAlias = int | slice | Sequence[int] | Int[Tensor, " n"] | Bool[Tensor, " pos"]
Choice = Callable[[Ids, Any], Positions]

_LETTER = re.compile(r"\(([A-Z])(?![^)\s])")


@runtime_checkable
class PairChoice(Protocol):
    """A choice in one text that hangs on the other one of its pair."""

    def of_pair(self, ids: Ids, other: Ids, tokenizer: Any) -> Positions: ...


def last(ids: Ids, tokenizer: Any = None) -> int:
    """The last token.

    >>> last((5, 6, 7))
    2
    """
    return len(ids) - 1


def every(ids: Ids, tokenizer: Any = None) -> list[int]:
    """All tokens that stand for text: without those that open it, where a tokenizer says which they are.

    >>> every((5, 6, 7))
    [0, 1, 2]
    """
    special = set(getattr(tokenizer, "all_special_ids", ()))
    return [i for i, token in enumerate(ids) if token not in special]


def answer_letter(ids: Ids, tokenizer: Any) -> int:
    """The letter of the last answer in brackets, as `A` in `(A` or `(A)`; without one, the last token of
    text. Where contrastive activation addition reads (Panickssery et al. 2023, arXiv 2312.06681)."""
    text, starts = _text(ids, tokenizer)
    found = list(_LETTER.finditer(text))
    if found:
        return _token(starts, found[-1].start(1))
    plain = every(ids, tokenizer)
    return plain[-1] if plain else len(ids) - 1


@dataclass(frozen=True)
class Position:
    """The token at a place, counted from 0, or from the end where it is negative.

    What opens a text counts: with a token that does, the first word is at 1.

    >>> Position(-2)
    Position(at=-2)
    """

    at: int

    def __call__(self, ids: Ids, tokenizer: Any) -> int:
        return self.at


@dataclass(frozen=True)
class Within:
    """The tokens of a substring, at the last place where it stands."""

    text: str

    def __call__(self, ids: Ids, tokenizer: Any) -> list[int]:
        text, starts = _text(ids, tokenizer)
        first = _found(self.text, text)
        # Of a character of several tokens, those before the last add nothing: they begin where it does.
        begin = min(bisect_left(starts, first), _token(starts, first))
        return list(range(begin, _token(starts, first + len(self.text) - 1) + 1))


@dataclass(frozen=True)
class After:
    """The tokens that begin after a substring, after the last place where it stands."""

    text: str

    def __call__(self, ids: Ids, tokenizer: Any) -> list[int]:
        text, starts = _text(ids, tokenizer)
        end = _found(self.text, text) + len(self.text)
        if end >= len(text):
            raise ValueError(f"there is no token after {self.text!r}")
        return [i for i in range(_token(starts, end), len(ids)) if starts[i] >= end]


@dataclass(frozen=True)
class Differing:
    """The tokens from the first one on in which the texts of a pair differ.

    >>> differing.of_pair((5, 6, 7, 8), (5, 6, 9, 8), None)
    [2, 3]
    """

    def of_pair(self, ids: Ids, other: Ids, tokenizer: Any) -> list[int]:
        same = next(
            (i for i, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b),
            min(len(ids), len(other)),
        )
        if same == len(ids):
            raise ValueError("the other text of the pair begins with all of it, so that it differs nowhere")
        return list(range(same, len(ids)))


differing = Differing()


def chosen(choice: Choice | PairChoice, ids: Ids, other: Ids, tokenizer: Any) -> tuple[int, ...]:
    """Positions in a text, ascending and from 0 on.

    Raises:
        ValueError: none, or one that is outside of the text.
        TypeError: what is neither a position, nor several, nor a slice, nor a mask.
    """
    n = len(ids)
    at = choice.of_pair(ids, other, tokenizer) if isinstance(choice, PairChoice) else choice(ids, tokenizer)
    if isinstance(at, slice):
        found = list(range(n))[at]
    elif isinstance(at, int) and not isinstance(at, bool):
        found = [at]
    else:
        given = torch.as_tensor(at)
        if given.dtype == torch.bool:
            if given.shape != (n,):
                raise ValueError(f"a mask of shape {tuple(given.shape)} does not fit {n} tokens")
            given = given.nonzero()[:, 0]
        if given.numel() and (given.is_floating_point() or given.is_complex()):
            raise TypeError(f"`tokens` gave {given.dtype}, not positions or a mask")
        found = [int(i) for i in given.flatten().tolist()]
    if not found:
        raise ValueError("no token is chosen")
    if outside := [i for i in found if not -n <= i < n]:
        raise ValueError(f"position {outside[0]} is out of range: there are {n} tokens")
    return tuple(sorted({i % n for i in found}))


def label(choice: Choice | PairChoice) -> str:
    """What a choice is called in a direction's history."""
    return getattr(choice, "__name__", None) or repr(choice)


def _text(ids: Ids, tokenizer: Any) -> tuple[str, list[int]]:
    """The text, and where in it each token begins."""
    if tokenizer is None:
        raise ValueError("a choice by text needs a model with a tokenizer")
    parts = pieces(tokenizer, ids)
    return "".join(parts), [0, *accumulate(len(part) for part in parts)][:-1]


def _token(starts: list[int], character: int) -> int:
    """The token that a character belongs to."""
    return bisect_right(starts, character) - 1


def _found(wanted: str, text: str) -> int:
    if not wanted:
        raise ValueError("an empty string is looked for")
    first = text.rfind(wanted)
    if first < 0:
        raise ValueError(f"{wanted!r} is not in it")
    return first
