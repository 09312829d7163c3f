"""Which of two lettered answers a model gives, and how much it says neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import Model
from .likelihood import Ids, grown, log_probabilities, prompt_ids, unknown

Prompting = Callable[[Any], Any]  # the prompt that takes the place of one


@dataclass(frozen=True)
class Matching:
    """A measure: the odds of the answer that matches a behaviour, for items (prompt, match, other).

    `matching` is p(match) / (p(match) + p(other)) and `nonsense` is 1 - (p(match) + p(other)), each per item,
    of the token after the prompt, in one pass (Contrastive Activation Addition, Rimsky et al. 2024). An
    answer is a token id, or a short text such as a letter: its probability is that of the letter with a space
    before it and without, as far as these are single tokens of this tokenizer after this prompt. Brackets
    around a letter are dropped, so a prompt that wants "(A)" ends in "(".

    Raises ValueError for an answer that is no single token, and for two that are the same token.
    """

    items: Sequence[Any]
    batch_size: int = field(default=16, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", _triples(self.items))

    def __call__(self, model: Model) -> dict[str, Float[Tensor, " item"]]:
        rows: list[tuple[Ids, Ids]] = []
        owners: list[tuple[int, int]] = []
        for i, (prompt, match, other) in enumerate(self.items):
            ids = prompt_ids(model, prompt)
            tokens = [letter_tokens(model, prompt, answer) for answer in (match, other)]
            if tokens[0] & tokens[1]:
                raise ValueError(f"{match!r} and {other!r} are the same token after {prompt[-40:]!r}.")
            for which, found in enumerate(tokens):
                rows += [(ids, (token,)) for token in sorted(found)]
                owners += [(i, which)] * len(found)
        odds = torch.zeros(len(self.items), 2, dtype=torch.float64)
        for (i, which), value in zip(
            owners, log_probabilities(model, rows, batch_size=self.batch_size), strict=True
        ):
            odds[i, which] += value.exp().item()
        return {"matching": odds[:, 0] / odds.sum(1), "nonsense": 1 - odds.sum(1)}

    def prompted(self, change: Prompting) -> Matching:
        """The same measure with other prompts, such as with an instruction put before each."""
        return replace(self, items=[(change(p), match, other) for p, match, other in self.items])


def letter_tokens(model: Model, prompt: str | Sequence[int], answer: str | int) -> set[int]:
    """The single tokens that give an answer after a prompt, with a space before it or without."""
    if isinstance(answer, int):
        return {answer}
    letter = answer.strip().strip("()[]").strip()
    if not letter:
        raise ValueError(f"{answer!r} is no answer: give a letter or a short word.")
    ways = [grown(model, prompt, text) for text in (letter, f" {letter}")]
    found = {ids[0] for ids in ways if ids and len(ids) == 1 and not unknown(model, ids)}
    if not found:
        raise ValueError(
            f"{letter!r} is not one token after {str(prompt)[-40:]!r}, with or without a space; "
            "use `Preference`, which takes answers of several tokens."
        )
    return found


def _triples(items: Iterable[Any]) -> tuple[tuple[Any, Any, Any], ...]:
    found = []
    for item in items:
        try:
            prompt, match, other = item
        except (TypeError, ValueError):
            raise TypeError(f"An item is (prompt, match, other), not {item!r}.") from None
        found.append((prompt, match, other))
    if not found:
        raise ValueError("There are no items to measure.")
    return tuple(found)
