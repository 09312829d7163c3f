"""Text that can be read again, and from any point on; and what a model writes by itself."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..model import Model
from ..observation import sample

_READ = 2**13  # positions per forward pass where rows can be chosen freely
_AT_ONCE = 256  # rows sampled at a time


class Text(ABC):
    """Batches of tokens that are the same each time they are read."""

    again = True  # whether it can be read a second time
    special: Collection[int] = ()  # tokens that stand for no text: what opens a row, padding

    @abstractmethod
    def batches(self, epoch: int, position: Any = None) -> Iterator[tuple[Int[Tensor, "batch pos"], Any]]:
        """The batches of an epoch that come after a position (None: all), each with the position after it.

        Positions are plain JSON.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this text from others, as plain JSON."""


class Rows(Text):
    """Rows of tokens of one length, in another order in every epoch."""

    def __init__(self, tokens: Int[Tensor, "row pos"], *, seed: int = 0):
        if tokens.ndim != 2:
            raise ValueError(f"Tokens have the shape (row pos), not {tuple(tokens.shape)}.")
        self.tokens, self.seed = tokens, seed

    def batches(self, epoch: int, position: Any = None) -> Iterator[tuple[Tensor, Any]]:
        generator = torch.Generator().manual_seed((self.seed + 1_000_003 * epoch) % 2**31)
        order, done = torch.randperm(len(self.tokens), generator=generator), position or 0
        for rows in order[done:].split(max(1, _READ // max(1, self.tokens.shape[-1]))):
            done += len(rows)
            if len(rows):
                yield self.tokens[rows.to(self.tokens.device)], done

    def identity(self) -> dict[str, Any]:
        return {"tokens": list(self.tokens.shape), "sha256": _digest([self.tokens]), "seed": self.seed}


class Batches(Text):
    """Batches of tokens in the order in which they come, from a list or an iterator.

    An iterator is read once. To go on from a position, it is to be one that begins at the beginning.
    """

    def __init__(self, batches: Iterable[Int[Tensor, "batch pos"]]):
        self.given = batches
        self.again = iter(batches) is not batches

    def batches(self, epoch: int, position: Any = None) -> Iterator[tuple[Tensor, Any]]:
        for i, tokens in enumerate(islice(self.given, position or 0, None), start=position or 0):
            if not isinstance(tokens, Tensor):
                raise TypeError(
                    f"An iterable is to hold batches of tokens (batch pos), not {type(tokens).__name__}; "
                    "texts are passed as a list of strings."
                )
            yield tokens, i + 1

    def identity(self) -> dict[str, Any]:
        return {"batches": _digest(self.given)} if self.again else {"batches": "an iterator"}


TextLike = (
    Text | Int[Tensor, "row pos"] | str | PathLike[str] | Iterable[str] | Iterable[Int[Tensor, "batch pos"]]
)


def text(
    model: Model, given: TextLike, *, context: int | None = None, column: str | None = None, seed: int = 0
) -> Text:
    """Anything that text can be given as, made something that can be read from any point on.

    Args:
        given: tokens (row pos), read in another order in every epoch; a list of strings; the path of a file
            in UTF-8, read as it is needed; the name of a dataset on the Hugging Face hub, streamed
            ("owner/name", or "owner/name:config"; its split `train`); a list or iterator of batches of
            tokens, read in their order; or a Text.
        context: tokens in a row that strings, files and datasets are cut into, by default 128 or as many as
            the model takes. They are packed: what is left
            of one string stands before the next in a row, with the tokenizer's end of text between. A row
            begins with the tokenizer's beginning of text, if it has one.
        column: of a dataset; by default `text`, or the only one that holds strings.

    Raises:
        FileNotFoundError: neither a file nor a dataset.
        ImportError: a dataset, and `datasets` is not installed.
        ValueError: strings for a model without a tokenizer; more context than the model takes.
    """
    from . import prose

    if isinstance(given, Text):
        return given
    if isinstance(given, Tensor):
        return Rows(given, seed=seed)
    if isinstance(given, str | PathLike):
        path = Path(given)
        try:
            file = path.is_file() or not (isinstance(given, str) or path.exists())
        except OSError:  # too long for a name
            file = False
        source: prose.Source = prose.File(path) if file else prose.Dataset(str(given), column)
    elif iter(given) is not given and isinstance(next(iter(given), None), str):
        source = prose.Strings(given if isinstance(given, Sequence) else list(given))  # type: ignore
    else:
        return Batches(given)  # type: ignore[arg-type]
    if model.tokenizer is None:
        raise ValueError("This model has no tokenizer: pass tokens (row pos), or its `own_samples`.")
    return prose.Prose(source, model.tokenizer, row_length(model, context))


def row_length(model: Model, context: int | None, usual: int = 128) -> int:
    """The tokens of a row: `context`; without it the usual number, or as many as the model takes.

    Raises:
        ValueError: more than the model takes.
    """
    most = getattr(getattr(model.module, "config", None), "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:
        return usual if context is None else context
    if context is not None and context > most:
        raise ValueError(
            f"This model reads {most} tokens at a time: give a context up to that, not {context}."
        )
    return min(usual, most) if context is None else context


@torch.no_grad()
def own_samples(
    model: Model,
    *,
    rows: int,
    length: int,
    temperature: float = 1.0,
    begin: Int[Tensor, "row pos"] | None = None,
    seed: int = 0,
) -> Int[Tensor, "row pos"]:
    """What the model writes by itself: rows of `length` tokens, sampled at a temperature, without end.

    They go on from `begin`; by default from the tokenizer's or the model's beginning of text, or from a
    random token where there is none. Models whose own `generate` has the odds of their logits sample by it;
    in others, every token takes a pass over all before it.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=2)
    >>> model = Model.load(GPT2LMHeadModel(config))
    >>> own_samples(model, rows=4, length=10).shape
    torch.Size([4, 10])
    """
    if temperature <= 0:
        raise ValueError(f"The temperature is above 0, not {temperature}.")
    devices = [model.device] if model.device.type == "cuda" else []
    parts, alone = [], _generates(model)
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        first = _begun(model, rows) if begin is None else begin.expand(rows, -1)
        for start in first.split(_AT_ONCE):
            parts.append(_continued(model, start.to(model.device), length, temperature, alone).cpu())
    return torch.cat(parts)


def _begun(model: Model, rows: int) -> Int[Tensor, "row 1"]:
    token = getattr(model.tokenizer, "bos_token_id", None)
    if token is None:
        token = getattr(getattr(model.module, "config", None), "bos_token_id", None)
    words = model.logits(torch.zeros(1, 1, dtype=torch.long), last=1).shape[-1]
    if token is not None and token < words:
        return torch.full((rows, 1), token)
    return torch.randint(words, (rows, 1))


def _generates(model: Model) -> bool:
    """Whether the module's own `generate` draws from what its logits say; a cache may change those."""
    if not hasattr(model.module, "generate"):
        return False
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        try:
            out: Any = _generated(
                model, sample(model.module, 2, 3), 5, output_scores=True, return_dict_in_generate=True
            )
        except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError):
            return False  # it cannot continue a text at all
    scores = torch.stack(out.scores, 1).float().log_softmax(-1)
    expected = model.logits(out.sequences)[:, 2:-1].float().log_softmax(-1)
    return scores.shape == expected.shape and torch.allclose(scores, expected, rtol=1e-2, atol=1e-2)


def _generated(model: Model, tokens: Tensor, new: int, *, temperature: float = 1.0, **options: Any) -> Any:
    # some modules keep the state of their last text until a pass without a cache
    model.logits(tokens[:1, :1])
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=True,
        temperature=float(temperature),
        top_k=0,
        top_p=1.0,
        eos_token_id=None,
        **options,
    )


def _continued(
    model: Model, tokens: Tensor, length: int, temperature: float, alone: bool
) -> Int[Tensor, "row pos"]:
    new = length - tokens.shape[1]
    if new > 0 and alone:
        return _generated(model, tokens, new, temperature=temperature)
    for _ in range(new):
        odds = (model.logits(tokens, last=1)[:, -1].float() / temperature).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(odds, 1)], dim=1)
    return tokens[:, :length]


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tokens in tensors:
        digest.update(f"{tuple(tokens.shape)}".encode() + tokens.cpu().long().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
