"""Text as rows of tokens, and tokens as they read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...model import Model
from ..texts import TextLike, text

_BEFORE = 8  # tokens that tell what the next one adds: characters may be spread over several
_UNFINISHED = "�"  # what decoders make of the first bytes of a character


def token_rows(
    model: Model,
    given: TextLike,
    *,
    ignore: Collection[int] | None = None,
    length: int | None = None,
    most: int | None = None,
) -> tuple[Int[Tensor, "row pos"], tuple[int, ...]]:
    """Rows of tokens of one length, of all that can be trained on, and the tokens that do not count in them.

    So there is no padding, which not every model can do with. What is left at the end is dropped, unless it
    is all there is.

    Args:
        ignore: the tokens that do not count; by default the tokenizer's special ones where the text is not
            given as tokens, as in training.
        length: of the rows that strings, files and datasets are cut into; by default 128, or as many as the
            model takes.
        most: rows at most; without it, a dataset is read to its end.

    Raises:
        ValueError: strings for a model without a tokenizer, or no text.
    """
    if isinstance(given, Tensor):
        return given[:most], tuple(ignore or ())
    source = text(model, given, context=length)
    found: list[Tensor] = []
    for batch, _ in source.batches(0):
        if found and batch.shape[1] != found[0].shape[1]:
            break
        found.append(batch)
        if most is not None and sum(map(len, found)) >= most:
            break
    if not found:
        raise ValueError(f"There is no text{f' in {given}' if isinstance(given, str | PathLike) else ''}.")
    return torch.cat(found)[:most], tuple(source.special if ignore is None else ignore)


def pieces(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, ...]:
    """What each token adds to the text, so that together they read as it does; numbers as `<7>` without a
    tokenizer.

    Decoded alone, many tokens lose the space before them. A character of several tokens stands at the last of
    them, and those before add nothing.
    """
    if tokenizer is None:
        return tuple(f"<{token}>" for token in tokens)
    tokens, found, done = list(tokens), [], 0
    partial = [_UNFINISHED in tokenizer.decode([token]) for token in tokens]
    for i, token in enumerate(tokens):
        if i == 0 and not partial[0]:
            found.append(tokenizer.decode([token, token])[len(tokenizer.decode([token])) :])
            done = 1
            continue
        first = max(0, min(i - _BEFORE, done - 1))
        while first and partial[first]:  # some decoders read all bytes in a row, or none of them
            first -= 1
        text = tokenizer.decode(tokens[first : i + 1])
        if text.endswith(_UNFINISHED) and i + 1 < len(tokens):
            found.append("")
            continue
        found.append(text[len(tokenizer.decode(tokens[first:done])) if done > first else 0 :])
        done = i + 1
    return tuple(found)
