"""How much more probable one answer is than another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import Model
from .choices import Prompting
from .likelihood import Ids, continuation_ids, log_probabilities, prompt_ids

Answers = tuple[str | int, ...]


@dataclass(frozen=True)
class Preference:
    """A measure: the log-odds of answers over foils, in nats, for items (prompt, answers, foils).

    Answers and foils are token ids or texts that continue the prompt, one or several; those of several tokens
    count with the product of their probabilities. Objects with `clean`, `answers` and `foils`, such as the
    pairs of a task, are items too.

    >>> Preference([("Tim felt very", " happy", [" sad", " very sad"])]).items
    (('Tim felt very', (' happy',), (' sad', ' very sad')),)
    """

    items: Sequence[Any]
    batch_size: int = field(default=16, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", _items(self.items))

    def __call__(self, model: Model) -> Float[Tensor, " item"]:
        rows: list[tuple[Ids, Ids]] = []
        for prompt, answers, foils in self.items:
            ids = prompt_ids(model, prompt)
            rows += [(ids, continuation_ids(model, prompt, text)) for text in (*answers, *foils)]
        found = iter(log_probabilities(model, rows, batch_size=self.batch_size))
        values = []
        for _, answers, foils in self.items:
            right, wrong = (
                torch.stack([next(found).sum() for _ in texts]).logsumexp(0) for texts in (answers, foils)
            )
            values.append(right - wrong)
        return torch.stack(values)

    def prompted(self, change: Prompting) -> Preference:
        """The same measure with other prompts, such as with an instruction put before each."""
        return replace(self, items=[(change(prompt), *answers) for prompt, *answers in self.items])


def _items(items: Iterable[Any]) -> tuple[tuple[Any, Answers, Answers], ...]:
    found = []
    for item in items:
        if all(hasattr(item, name) for name in ("clean", "answers", "foils")):
            item = (item.clean, item.answers, item.foils)
        try:
            prompt, answers, foils = item
        except (TypeError, ValueError):
            raise TypeError(f"An item is (prompt, answers, foils), not {item!r}.") from None
        found.append((prompt, *(_answers(prompt, texts) for texts in (answers, foils))))
    if not found:
        raise ValueError("There are no items to measure.")
    return tuple(found)


def _answers(prompt: Any, texts: str | int | Iterable[str | int]) -> Answers:
    found = (texts,) if isinstance(texts, str | int) else tuple(texts)
    if not found or "" in found:
        raise ValueError(f"An item needs at least one answer and one foil, none of them empty: {prompt!r}.")
    return found
