"""A question put to a model, many times over, and the number that says how well it answers."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import files
from .batch import Batch, Tokenizer
from .encoding import Encoded, Encoder, Unfit
from .metrics import METRICS, LogitDifference, Metric
from .pair import Pair


@dataclass(frozen=True)
class Task:
    """Pairs of prompts, and the metric to explain on them.

    >>> task = Task("number", [Pair("The boy", "The boys", (" is",), (" are",), case="singular")])
    >>> len(task), task.metric
    (1, LogitDifference())
    """

    name: str
    pairs: Sequence[Pair]
    metric: Metric = LogitDifference()  # noqa: RUF009, a frozen value
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple(self.pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self)} pairs, {self.metric})"

    def batches(
        self, tokenizer: Tokenizer | None, batch_size: int = 32, device: torch.device | str | None = None
    ) -> list[Batch]:
        """The pairs as tensors, shortest prompts first, otherwise in the order of the task.

        Prompts get the special tokens with which the tokenizer opens a text, and no others. The prompts
        of a batch have the same length. Left out, with one warning that counts them, are pairs whose
        clean and patch differ in length or not at all, whose answers or foils do not continue both
        prompts by exactly one token, or share a token, or which lack a prompt or an answer; ValueError if
        that is all of them. Pairs of token ids need no tokenizer.
        """
        if batch_size < 1:
            raise ValueError(f"A batch has at least 1 example, not {batch_size}.")
        groups: dict[tuple[int, bool], list[Encoded]] = defaultdict(list)
        for _, example in self._encoded(tokenizer):
            groups[len(example.clean), example.patch is None].append(example)
        return [
            _collated(group[start : start + batch_size]).to(device)
            for _, group in sorted(groups.items(), key=lambda item: item[0])
            for start in range(0, len(group), batch_size)
        ]

    def fitting(self, tokenizer: Tokenizer | None) -> Task:
        """The pairs that `batches` would keep, with the same warning that counts the others.

        >>> from tasks import agreement_simple, grammar
        >>> len(agreement_simple(n=20).fitting(grammar.tokenizer()))
        20
        """
        return replace(self, pairs=[pair for pair, _ in self._encoded(tokenizer)])

    def split(self, first: int | float, seed: int = 0) -> tuple[Task, Task]:
        """Two tasks of shuffled pairs, to find on one and to test on the other.

        `first` is the size of the first: a number of pairs, or a fraction of them as a float.

        >>> from tasks import agreement_simple
        >>> train, held_out = agreement_simple(n=50).split(0.8)
        >>> len(train), len(held_out)
        (40, 10)
        """
        size = round(first * len(self)) if isinstance(first, float) else first
        if not 0 < size < len(self):
            raise ValueError(f"Cannot split {len(self)} pairs at {first}: one side would be empty.")
        pairs = random.Random(seed).sample(self.pairs, len(self))
        return replace(self, pairs=pairs[:size]), replace(self, pairs=pairs[size:])

    def take(self, n: int) -> Task:
        """The first `n` pairs, or all where there are fewer."""
        return replace(self, pairs=self.pairs[:n])

    def save(self, path: str | Path) -> None:
        """Writes the task as JSON lines, a header and one line per pair; a file there is replaced whole.

        The metric is written by its name in `METRICS`; one that has none must be given to `load`.
        """
        metric = next((name for name, known in METRICS.items() if known == self.metric), None)
        files.write(path, files.Header(self.name, metric, self.description), self.pairs)

    @classmethod
    def load(cls, path: str | Path, *, metric: Metric | None = None) -> Task:
        """The task in a file, with `metric` if given, else the one that the file names.

        Also reads the JSON lines of feature-circuits (`clean_prefix`, `patch_prefix`, `clean_answer`,
        `patch_answer`, `case`) and the JSON of auto-circuit (`prompts` with `clean`, `corrupt`, `answers`,
        `wrong_answers`), whose metric is the logit difference. ValueError names the line at fault.
        """
        header, pairs = files.read(path)
        if metric is None:
            if header.metric is None or header.metric not in METRICS:
                known = ", ".join(METRICS)
                raise ValueError(
                    f"{path} has the metric {header.metric!r}, which is none of {known}: pass `metric=`."
                )
            metric = METRICS[header.metric]
        return cls(header.task, pairs, metric, header.description)

    def _encoded(self, tokenizer: Tokenizer | None) -> list[tuple[Pair, Encoded]]:
        encoder = Encoder.of(tokenizer, self.pairs)
        examples: list[tuple[Pair, Encoded]] = []
        dropped: dict[str, list[str]] = defaultdict(list)
        for pair in self.pairs:
            try:
                examples.append((pair, encoder.encoded(pair)))
            except Unfit as unfit:
                dropped[unfit.reason].append(unfit.particulars)
        count = len(self) - len(examples)
        reasons = "; ".join(f"{len(these)}: {why}, e.g. {these[0]}" for why, these in dropped.items())
        if not examples:
            raise ValueError(f"No pair of {self.name} fits this tokenizer, of {len(self)}. {reasons}")
        if count:
            message = f"{self.name}: {count} of {len(self)} pairs do not fit this tokenizer. {reasons}"
            warnings.warn(message, stacklevel=3)
        return examples


def _collated(examples: Sequence[Encoded]) -> Batch:
    patches = [e.patch for e in examples if e.patch is not None]
    return Batch(
        clean=torch.tensor([e.clean for e in examples]),
        patch=torch.tensor(patches) if patches else None,
        answers=_filled([e.answers for e in examples]),
        foils=_filled([e.foils for e in examples]),
        cases=tuple(e.case for e in examples),
    )


def _filled(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in rows], dtype=torch.long)
