"""Pairs of texts that differ in one respect, from which a direction is found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import lines


@dataclass(frozen=True)
class ContrastSet:
    """Pairs (positive, negative) of texts: the positive ones have what the negative ones lack.

    It is a sequence of its pairs.

    >>> set = ContrastSet("mood", [("Tim is glad.", "Tim is sad."), ("Mia smiles.", "Mia cries.")])
    >>> set
    ContrastSet('mood', 2 pairs)
    >>> set.map(lambda text: f"Once, {text}")[1]
    ('Once, Mia smiles.', 'Once, Mia cries.')

    Raises:
        ValueError: no pairs, an empty text, or a pair of twice the same.
        TypeError: a pair that is not two texts.
    """

    name: str
    pairs: Sequence[tuple[str, str]]
    description: str = ""

    def __post_init__(self) -> None:
        found = tuple(_pair(pair) for pair in self.pairs)
        if not found:
            raise ValueError(f"The contrast set {self.name!r} has no pairs.")
        object.__setattr__(self, "pairs", found)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)

    def __getitem__(self, i: int) -> tuple[str, str]:
        return self.pairs[i]

    def __repr__(self) -> str:
        return f"ContrastSet({self.name!r}, {len(self)} pairs)"

    @property
    def positive(self) -> tuple[str, ...]:
        return tuple(text for text, _ in self.pairs)

    @property
    def negative(self) -> tuple[str, ...]:
        return tuple(text for _, text in self.pairs)

    def map(self, change: Callable[[str], str]) -> ContrastSet:
        """The same with every text changed, such as put into a chat template."""
        return replace(self, pairs=[(change(one), change(other)) for one, other in self.pairs])

    def flipped(self) -> ContrastSet:
        """The same with positive and negative exchanged."""
        return replace(self, pairs=[(other, one) for one, other in self.pairs])

    def split(self, first: int | float, seed: int = 0) -> tuple[ContrastSet, ContrastSet]:
        """Two sets of shuffled pairs, to find on one and to test on the other.

        `first` is the size of the first: a number of pairs, or a fraction of them as a float.
        """
        one, other = halves(self.pairs, first, seed, "pairs")
        return replace(self, pairs=one), replace(self, pairs=other)

    def take(self, n: int) -> ContrastSet:
        """The first `n` pairs, or all where there are fewer."""
        return replace(self, pairs=self.pairs[:n])

    def save(self, path: str | Path) -> None:
        """Writes JSON lines, a header and one line for each pair; a file there is replaced whole."""
        header = {"contrast": self.name, "description": self.description}
        lines.write(path, [header, *({"positive": one, "negative": other} for one, other in self.pairs)])

    @classmethod
    def load(cls, path: str | Path) -> ContrastSet:
        """The set in a file of lines with `positive` and `negative`; ValueError names the line at fault."""
        records = lines.read(path)
        name, description = Path(path).stem, ""
        if "contrast" in records[0][1]:
            header = records.pop(0)[1]
            name, description = str(header["contrast"]), str(header.get("description", ""))
        pairs = []
        for where, record in records:
            if missing := [key for key in ("positive", "negative") if key not in record]:
                raise ValueError(f"{where}: no {missing[0]!r}; a pair has 'positive' and 'negative'.")
            try:
                pairs.append(_pair((record["positive"], record["negative"])))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: {error}") from None
        return cls(name, pairs, description)


def halves(items: Sequence, first: int | float, seed: int, what: str) -> tuple[list, list]:
    """Items in random order, cut after the first so many, or after that fraction of them."""
    size = round(first * len(items)) if isinstance(first, float) else first
    if not 0 < size < len(items):
        raise ValueError(f"Cannot split {len(items)} {what} at {first}: one side would be empty.")
    shuffled = random.Random(seed).sample(list(items), len(items))
    return shuffled[:size], shuffled[size:]


def _pair(pair: object) -> tuple[str, str]:
    found = tuple(pair) if isinstance(pair, tuple | list) else ()
    if len(found) != 2 or not all(isinstance(text, str) for text in found):
        raise TypeError(f"A pair is two texts, (positive, negative), not {pair!r}.")
    if not all(found) or found[0] == found[1]:
        raise ValueError(f"The texts of a pair are not empty, and not the same: {pair!r}.")
    return found
