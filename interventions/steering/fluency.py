"""How fluent texts are: what the model itself, unsteered, makes of them, and how they repeat themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import Model
from .likelihood import Ids, grown, log_probabilities, prompt_ids, text_ids
from .words import words


def surprise(
    model: Model, prompts: Sequence[str], texts: Sequence[str], *, batch_size: int = 16
) -> Float[Tensor, " item"]:
    """Nats per token of texts, each as the continuation of its prompt, by the unsteered model.

    Whatever `applied` has open is left out. NaN for an empty text. Its exponential is the perplexity.
    """
    rows: list[tuple[Ids, Ids]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        more = grown(model, prompt, text)
        rows.append((prompt_ids(model, prompt), text_ids(model, text) if more is None else more))
    values = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    full = [i for i, (_, more) in enumerate(rows) if more]
    with model.apart():
        found = log_probabilities(model, [rows[i] for i in full], batch_size=batch_size)
    for i, odds in zip(full, found, strict=True):
        values[i] = -odds.mean()
    return values


def perplexity(
    model: Model, prompts: Sequence[str], texts: Sequence[str], *, batch_size: int = 16
) -> Float[Tensor, " item"]:
    """The exponential of `surprise`."""
    return surprise(model, prompts, texts, batch_size=batch_size).exp()


def distinct(text: str, n: int = 2) -> float:
    """The share of different ones among the runs of `n` words of a text (Li et al. 2016); NaN without any.

    >>> distinct("the cat and the cat and the cat")
    0.4...
    """
    if n < 1:
        raise ValueError(f"n={n}: runs have at least 1 word.")
    said = words(text)
    runs = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return len(set(runs)) / len(runs) if runs else float("nan")


Score = Callable[[Model, Sequence[str], Sequence[str]], "Tensor | dict[str, Tensor]"]
"""What scores texts: from the model, the prompts and the texts, a number per text, or several by name."""


@dataclass(frozen=True)
class Each:
    """A score from a function of the text alone: a number or a truth value.

    >>> Each(lambda text: "happy" in text)(None, ["a"], ["so happy"])
    tensor([1.], dtype=torch.float64)
    """

    of: Callable[[str], float | bool]

    def __call__(
        self, model: Model | None, prompts: Sequence[str], texts: Sequence[str]
    ) -> Float[Tensor, " item"]:
        return torch.tensor([float(self.of(text)) for text in texts], dtype=torch.float64)
