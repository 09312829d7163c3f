"""Text for dictionaries on the command line: a file, a dataset of the hub, or what a model writes itself."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from interventions.dictionaries.measures.text import token_rows
from interventions.dictionaries.texts import own_samples
from interventions.model import Model

_AT_ONCE = 256  # rows sampled at a time


def rows(
    model: Model, source: str, *, context: int, n: int, seed: int = 0, progress: bool | None = None
) -> Int[Tensor, "row pos"]:
    """At most `n` rows of `context` tokens, each opened as the tokenizer opens a text.

    `source` is the word `own`, a file of text (UTF-8) or the name of a dataset on the Hugging Face hub.

    Raises:
        FileNotFoundError: no such file, nor dataset, or no `datasets` to look for one.
        ValueError: too little text for one row; a model without tokenizer.
    """
    if source == "own":
        return _own(model, context, n, seed, progress)
    try:
        found, _ = token_rows(model, source, length=context, most=n)
    except ImportError as error:  # what a dataset needs, and so a mistyped file
        raise FileNotFoundError(str(error)) from None
    if found.shape[1] < context:
        raise ValueError(f"{source} holds less than one row of {context} tokens; try a smaller --context.")
    return found


def _own(model: Model, context: int, n: int, seed: int, progress: bool | None) -> Tensor:
    parts, off = [], None if progress is None else not progress
    with tqdm(total=n, desc="text", unit="row", disable=off) as bar:
        for first in range(0, n, _AT_ONCE):
            count = min(_AT_ONCE, n - first)
            parts.append(own_samples(model, rows=count, length=context, seed=seed + 1_000_003 * first))
            bar.update(count)
    return torch.cat(parts)


def special(model: Model) -> tuple[int, ...]:
    """The tokens that are not text; those that open a row have activations of their own."""
    return tuple(sorted(getattr(model.tokenizer, "all_special_ids", ())))
