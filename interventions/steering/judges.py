"""Judges of what a steered model writes: is it about the concept, does it do what was asked, is it fluent?

The three marks and their harmonic mean are those of AxBench (Wu et al. 2025), whose judge is a large language
model behind an API. The judges here work offline, and see less: they count words, or ask the unsteered model
how probable a text is. Their marks are for comparing conditions with each other, not with AxBench's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import Model
from .fluency import distinct
from .likelihood import log_probabilities, prompt_ids, text_ids
from .words import occurrences, words


@dataclass(frozen=True)
class Marks:
    """What a judge says of one text: three marks from 0 to 2.

    >>> Marks(concept=2, instruction=1, fluency=2).overall
    1.5
    """

    concept: float
    instruction: float
    fluency: float

    def __post_init__(self) -> None:
        for name, mark in vars(self).items():
            if not 0 <= mark <= 2:
                raise ValueError(f"{name}={mark}: a mark lies between 0 and 2.")

    @property
    def overall(self) -> float:
        """Their harmonic mean; 0 if one of them is."""
        return harmonic_mean(self.concept, self.instruction, self.fluency)


def harmonic_mean(*marks: float) -> float:
    """The harmonic mean of marks; 0 if one of them is 0.

    >>> harmonic_mean(2, 2, 2), harmonic_mean(1, 2, 2), harmonic_mean(2, 2, 0)
    (2.0, 1.5, 0.0)
    """
    if not marks or min(marks) < 0:
        raise ValueError(f"Marks are at least 0, and there is at least one: {marks}.")
    return len(marks) / sum(1 / mark for mark in marks) if all(marks) else 0.0


@runtime_checkable
class Judge(Protocol):
    """Anything that marks a text which answers an instruction: a function will do.

    It returns `Marks` or three numbers from 0 to 2. A judge that is quicker on many at once has a method
    `many(instructions, texts)` beside, which returns a sequence of them.
    """

    def __call__(self, instruction: str, text: str, /) -> Marks | Sequence[float]: ...


@dataclass(frozen=True)
class Judged:
    """A score of texts: the marks `concept`, `instruction`, `fluency` and `overall` by a judge.

    The prompts are the instructions; where a prompt is more than its instruction (a chat template), give
    the instructions.
    """

    judge: Judge
    instructions: Sequence[str] | None = None

    def __call__(
        self, model: Model | None, prompts: Sequence[str], texts: Sequence[str]
    ) -> dict[str, Float[Tensor, " item"]]:
        asked = prompts if self.instructions is None else self.instructions
        if len(asked) != len(texts):
            raise ValueError(f"There are {len(asked)} instructions for {len(texts)} texts.")
        many = getattr(self.judge, "many", None)
        found = many(asked, texts) if many else map(self.judge, asked, texts)
        marks = [mark if isinstance(mark, Marks) else Marks(*_three(mark)) for mark in found]
        return {
            name: torch.tensor([float(getattr(mark, name)) for mark in marks], dtype=torch.float64)
            for name in ("concept", "instruction", "fluency", "overall")
        }


@dataclass(frozen=True)
class KeywordJudge:
    """A judge that counts words.

    *concept*: 0 without any of `keywords` (whole words or phrases; `happ*` is any ending), 1 with one, 2 with
    two or more. *instruction*: how many of the instruction's content words, those of four letters or more,
    the text takes up: 2 from half of them on, 1 from one on, else 0; 2 where the instruction has none.
    *fluency*: the share of different ones among pairs of words: 2 from 0.8 on, 1 from 0.5 on, else 0, and 0
    for fewer than three words.

    >>> KeywordJudge(["sea", "wave*"])("Tell me about your holiday.", "My holiday was all waves and sea.")
    Marks(concept=2, instruction=1, fluency=2)
    """

    keywords: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.keywords, str) or not self.keywords:
            raise ValueError("Give a sequence of keywords, at least one.")

    def __call__(self, instruction: str, text: str) -> Marks:
        said = words(text)
        if not said:
            return Marks(0, 0, 0)
        asked = {word for word in words(instruction) if len(word) > 3}
        share = len(asked & set(said)) / len(asked) if asked else 1.0
        varied = distinct(text) if len(said) > 2 else 0.0
        return Marks(
            min(2, sum(occurrences(text, self.keywords).values())),
            2 if share >= 0.5 else int(share > 0),
            _rated(varied, (0.5, 0.8)),
        )


@dataclass(frozen=True)
class LikelihoodJudge:
    """A judge that asks a model, with nothing of `applied`, how probable a text is.

    All is in nats per token of the text. *concept*: how much more probable the text is after `about` than
    after `neutral`; *instruction*: how much more after the instruction than after `neutral`; each is 1 from
    the first of its `steps` on, 2 from the second. *fluency*: how improbable the text is after the
    instruction: 2 up to the first of `fluent`, 1 up to the second; and no more than 1 where fewer than 0.8 of
    its pairs of words are different, 0 below 0.5, because a model finds repetition probable. A text without
    words has marks 0.

    The steps suit models of a few hundred million parameters and English prose; look at `gains` of a few
    texts that you know before you trust them on others.

    Raises:
        TypeError: a model without tokenizer.
    """

    model: Model
    about: str  # such as "The following is about the sea.\n\n"
    neutral: str = "\n"
    steps: tuple[float, float] = (0.05, 0.3)
    fluent: tuple[float, float] = (3.5, 5.0)
    batch_size: int = 16

    def __call__(self, instruction: str, text: str) -> Marks:
        return self.many([instruction], [text])[0]

    def many(self, instructions: Sequence[str], texts: Sequence[str]) -> list[Marks]:
        """The marks of several texts, in batches."""
        marks = []
        for text, (concept, instruction, nats) in zip(texts, self.gains(instructions, texts), strict=True):
            if not words(text):
                marks.append(Marks(0, 0, 0))
                continue
            varied = distinct(text)
            fluency = 2 if nats <= self.fluent[0] else int(nats <= self.fluent[1])
            fluency = fluency if varied != varied else min(fluency, _rated(varied, (0.5, 0.8)))
            marks.append(Marks(_rated(concept, self.steps), _rated(instruction, self.steps), fluency))
        return marks

    def gains(self, instructions: Sequence[str], texts: Sequence[str]) -> list[tuple[float, float, float]]:
        """What the marks are made from, for every text: what `about` gains, what the instruction gains, and
        the nats per token after the instruction."""
        rows = []
        full = [i for i, text in enumerate(texts) if text_ids(self.model, text)]
        for i in full:
            ids = text_ids(self.model, texts[i])
            for before in (self.neutral, self.about, instructions[i]):
                rows.append((prompt_ids(self.model, before), ids))
        with self.model.apart():
            means = [
                odds.mean().item() for odds in log_probabilities(self.model, rows, batch_size=self.batch_size)
            ]
        found = [(0.0, 0.0, float("inf"))] * len(texts)
        for n, i in enumerate(full):
            neutral, about, asked = means[3 * n : 3 * n + 3]
            found[i] = (about - neutral, asked - neutral, -asked)
        return found


def _rated(value: float, steps: tuple[float, float]) -> int:
    return sum(value >= step for step in steps)


def _three(given: Sequence[float]) -> tuple[float, float, float]:
    try:
        concept, instruction, fluency = given
    except (TypeError, ValueError):
        raise TypeError(f"A judge returns Marks, or three numbers, not {given!r}.") from None
    return concept, instruction, fluency
