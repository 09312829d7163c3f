"""Questions with two lettered answers, one of which matches a behaviour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import caa, lines
from .contrast import ContrastSet, halves

Ask = Callable[[str], str]  # a prompt that a letter is to follow, from a question


def ask_plainly(question: str) -> str:
    """A question, and the start of an answer that a letter is to follow.

    >>> ask_plainly("Tea or coffee? (A) tea (B) coffee")
    'Tea or coffee? (A) tea (B) coffee\\n\\nAnswer: ('
    """
    return f"{question}\n\nAnswer: ("


@dataclass(frozen=True)
class Choice:
    """A question that spells out its choices, the letter that matches a behaviour, and the other one.

    >>> Choice("Is it raining? (A) yes (B) no", matching="(A)", other="(B)").matching
    'A'
    """

    question: str
    matching: str
    other: str

    def __post_init__(self) -> None:
        for name in ("question", "matching", "other"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"`{name}` is a text, not {getattr(self, name)!r}.")
        object.__setattr__(self, "matching", _letter(self.matching))
        object.__setattr__(self, "other", _letter(self.other))
        if self.matching == self.other:
            raise ValueError(f"Both answers are {self.matching!r}.")
        if not self.question.strip():
            raise ValueError("The question is empty.")


@dataclass(frozen=True)
class ChoiceSet:
    """Questions with two lettered answers, as for Contrastive Activation Addition (Rimsky et al. 2024).

    >>> set = ChoiceSet("rain", [Choice("Is it raining? (A) yes (B) no", "A", "B")])
    >>> set.items()
    [('Is it raining? (A) yes (B) no\\n\\nAnswer: (', 'A', 'B')]
    >>> set.contrast().pairs[0][0]
    'Is it raining? (A) yes (B) no\\n\\nAnswer: (A'
    """

    name: str
    choices: Sequence[Choice]
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.choices:
            raise ValueError(f"The choice set {self.name!r} has no questions.")

    def __len__(self) -> int:
        return len(self.choices)

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices)

    def __repr__(self) -> str:
        letters = Counter(choice.matching for choice in self.choices)
        shares = ", ".join(f"{n} {letter}" for letter, n in sorted(letters.items()))
        return f"ChoiceSet({self.name!r}, {len(self)} questions, matching: {shares})"

    def items(self, ask: Ask = ask_plainly) -> list[tuple[str, str, str]]:
        """(prompt, match, other) for each question: what the measure `Matching` takes."""
        return [(ask(choice.question), choice.matching, choice.other) for choice in self.choices]

    def contrast(self, ask: Ask = ask_plainly) -> ContrastSet:
        """The same prompts ended with the one letter and with the other, whose activations differ by it."""
        pairs = [(f"{prompt}{match}", f"{prompt}{other}") for prompt, match, other in self.items(ask)]
        return ContrastSet(self.name, pairs, self.description)

    def split(self, first: int | float, seed: int = 0) -> tuple[ChoiceSet, ChoiceSet]:
        """Two sets of shuffled questions: a number of them in the first, or a fraction as a float."""
        one, other = halves(self.choices, first, seed, "questions")
        return replace(self, choices=one), replace(self, choices=other)

    def take(self, n: int) -> ChoiceSet:
        """The first `n` questions, or all where there are fewer."""
        return replace(self, choices=self.choices[:n])

    def save(self, path: str | Path) -> None:
        """Writes JSON lines with the keys that CAA has; a file there is replaced whole."""
        header = {"choices": self.name, "description": self.description}
        keys = caa.KEYS
        lines.write(
            path, [header, *(dict(zip(keys, (c.question, c.matching, c.other), strict=True)) for c in self)]
        )

    @classmethod
    def load(cls, path: str | Path, *, name: str | None = None) -> ChoiceSet:
        """The set in a file of ours, or in one of the published CAA data.

        That is a JSON list, or lines, of objects with `question`, `answer_matching_behavior` and
        `answer_not_matching_behavior`, as in `generate_dataset.json` and `test_dataset_ab.json`. There all
        files are called alike, so the name is by default that of the folder.

        Raises:
            FileNotFoundError: no file there.
            ValueError: another format, or an item at fault, which is named.
        """
        header, records = caa.read(path)
        choices = []
        for where, record in records:
            try:
                choices.append(Choice(*record))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where}: {error}") from None
        return cls(name or header[0], choices, header[1])


def _letter(answer: str) -> str:
    letter = answer.strip().strip("()[].:").strip()
    if len(letter) != 1 or not letter.isalnum():
        raise ValueError(f"{answer!r} is not a letter: answers are such as 'A' or '(A)'.")
    return letter
