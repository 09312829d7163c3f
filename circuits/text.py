"""Text for dictionaries on the command line: a file, a dataset of the hub, or what a model writes itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from interventions.model import Model

from .question import opening

_AT_ONCE = 256  # rows sampled at a time
_PIECE = 2**16  # characters tokenised at a time


def rows(
    model: Model, source: str, *, context: int, n: int, seed: int = 0, progress: bool | None = None
) -> Int[Tensor, "row pos"]:
    """At most `n` rows of `context` tokens, each opened as the tokenizer opens a text.

    `source` is the word `own`, a file of text (UTF-8) or the name of a dataset on the Hugging Face hub.

    Raises:
        FileNotFoundError: no such file, nor dataset.
        ValueError: too little text for one row; a model without tokenizer.
    """
    if source == "own":
        return _own(model, context, n, seed, progress)
    if model.tokenizer is None:
        raise ValueError(
            "The model has no tokenizer beside it, so it can read no text; `--text own` needs none."
        )
    start = list(opening(model.tokenizer))
    pieces = _file(Path(source)) if Path(source).exists() else _dataset(source)
    found = list(islice(_cut(model.tokenizer, pieces, start, context), n))
    if not found:
        raise ValueError(f"{source} holds less than one row of {context} tokens; try a smaller --context.")
    return torch.tensor(found)


def _own(model: Model, context: int, n: int, seed: int, progress: bool | None) -> Tensor:
    """Rows sampled from the model at temperature 1."""
    start = list(opening(model.tokenizer)) if model.tokenizer else []
    config = getattr(model.module, "config", None)
    start = start or [token for token in (getattr(config, "bos_token_id", None),) if token is not None] or [0]
    parts, off = [], None if progress is None else not progress
    with torch.random.fork_rng(), tqdm(total=n, desc="text", unit="row", disable=off) as bar:
        torch.manual_seed(seed)
        for first in range(0, n, _AT_ONCE):
            begin = torch.tensor(start).repeat(min(_AT_ONCE, n - first), 1)
            parts.append(_sampled(model, begin, context).cpu())
            bar.update(len(begin))
    return torch.cat(parts)


def _sampled(model: Model, begin: Tensor, context: int) -> Tensor:
    if hasattr(model.module, "generate"):
        longer = context - begin.shape[1]
        return model.generate(begin, min_new_tokens=longer, max_new_tokens=longer, do_sample=True, top_k=0,
                              top_p=1.0, temperature=1.0, eos_token_id=None)  # fmt: skip
    with torch.no_grad():
        while begin.shape[1] < context:
            odds = model.logits(begin, last=1)[:, -1].float().softmax(-1)
            begin = torch.cat([begin, torch.multinomial(odds, 1).to(begin)], 1)
    return begin


def _file(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            while piece := file.read(_PIECE):
                yield piece + file.readline()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}.") from None


def _dataset(name: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise FileNotFoundError(
            f"There is no file {name!r}. If it is a dataset of the hub: `pip install datasets`."
        ) from None
    try:
        data: Any = load_dataset(name, split="train", streaming=True)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"There is neither a file {name!r} nor such a dataset: {first_line}"
        ) from None
    for row in data:
        yield next(value for value in row.values() if isinstance(value, str))


def _cut(tokenizer: Any, pieces: Iterable[str], start: list[int], context: int) -> Iterator[list[int]]:
    left: list[int] = []
    for piece in pieces:
        left += tokenizer(piece, add_special_tokens=False)["input_ids"]
        while len(left) >= context - len(start):
            yield start + left[: context - len(start)]
            left = left[context - len(start) :]
