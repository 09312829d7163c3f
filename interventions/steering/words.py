"""Words in texts, told apart from parts of words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u201b\u2032\u00b4\u0060\uff07", "'"))
_WORD = re.compile(r"\w+(?:'\w+)*")


def plain(text: str) -> str:
    """A text as it is compared: composed, folded to one case, with one kind of apostrophe.

    >>> plain("I CAN’T")
    "i can't"
    """
    return unicodedata.normalize("NFC", text).translate(_APOSTROPHES).casefold()


def words(text: str) -> list[str]:
    """The words of a text, as they are compared.

    >>> words("Don’t stop: Café-life!")
    ["don't", 'stop', 'café', 'life']
    """
    return _WORD.findall(plain(text))


def occurrences(text: str, wanted: Iterable[str]) -> dict[str, int]:
    """How often each of some words or phrases stands in a text as whole words.

    A star at the end of a word stands for any ending.

    >>> occurrences("The happy cat was the happiest of cats.", ["happ*", "cat", "the happy"])
    {'happ*': 2, 'cat': 1, 'the happy': 1}
    """
    said = words(text)
    found = {}
    for phrase in wanted:
        pattern = [(part[:-1], True) if part.endswith("*") else (part, False) for part in _parts(phrase)]
        if not pattern:
            raise ValueError(f"{phrase!r} has no word in it.")
        n = len(pattern)
        found[phrase] = sum(
            all(_is(word, *part) for word, part in zip(said[i : i + n], pattern, strict=True))
            for i in range(len(said) - n + 1)
        )
    return found


def _parts(phrase: str) -> Sequence[str]:
    return re.findall(r"\w+(?:'\w+)*\*?", plain(phrase))


def _is(word: str, part: str, begins: bool) -> bool:
    return word.startswith(part) if begins else word == part
