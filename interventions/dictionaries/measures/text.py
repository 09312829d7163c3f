"""Text as rows of tokens."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from ...model import Model


def token_rows(
    model: Model, text: Int[Tensor, "row pos"] | str | Iterable[str], *, length: int = 128
) -> Int[Tensor, "row pos"]:
    """Token rows as they are; of texts, the tokens of one after the other, cut into rows of `length`.

    So there is no padding, which not every model can do with. What is left at the end is dropped, unless it
    is all there is.

    Raises:
        ValueError: texts for a model without a tokenizer, or no text.
    """
    if isinstance(text, Tensor):
        return text
    if model.tokenizer is None:
        raise ValueError("This model has no tokenizer: pass tokens (row pos), not texts.")
    ids = [i for one in ([text] if isinstance(text, str) else text) for i in model.tokenizer.encode(one)]
    if not ids:
        raise ValueError("There is no text.")
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length) if rows else torch.tensor([ids])
