"""Strings, files and datasets, cut into rows of tokens as they are read."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from .texts import _READ, Text

_PIECE = 2**16  # bytes of a file tokenised at a time


class Source(ABC):
    """Pieces of text, each to be found again by where it begins."""

    documents = True  # whether each piece is a text of its own

    @abstractmethod
    def pieces(self, at: int) -> Iterator[tuple[str, int]]:
        """The pieces from `at` on, each with where the next one begins."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this source from others, as plain JSON."""


class Strings(Source):
    def __init__(self, strings: Sequence[str]):
        self.strings = strings

    def pieces(self, at: int) -> Iterator[tuple[str, int]]:
        for i in range(at, len(self.strings)):
            yield self.strings[i], i + 1

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for string in self.strings:
            digest.update(f"{len(string)} {string}".encode())
        return {"strings": len(self.strings), "sha256": digest.hexdigest()[:16]}


class File(Source):
    """A file of text in UTF-8; a piece is some of its lines."""

    documents = False

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
        self.path = path

    def pieces(self, at: int) -> Iterator[tuple[str, int]]:
        with open(self.path, "rb") as file:
            file.seek(at)
            while piece := file.read(_PIECE):
                piece += file.readline(_PIECE)
                while (more := file.peek(1)[:1]) and 0x80 <= more[0] < 0xC0:  # within a character
                    piece += file.read(1)
                try:
                    lines = piece.decode("utf-8" if at else "utf-8-sig").replace("\r\n", "\n")
                except UnicodeDecodeError as error:
                    raise ValueError(f"{self.path} is not text in UTF-8: {error}.") from None
                at = file.tell()
                yield lines, at

    def identity(self) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            digest = hashlib.sha256(file.read(2**20)).hexdigest()
        return {"bytes": self.path.stat().st_size, "sha256 of the first MiB": digest[:16]}


class Dataset(Source):
    """A dataset of the Hugging Face hub or a folder, streamed."""

    def __init__(self, name: str, column: str | None):
        self.name, self.column = name, column
        if any(sign.isspace() for sign in name) and not os.path.exists(name):
            raise FileNotFoundError(
                f"There is no file {name[:200]!r}, and no dataset has a name like that. "
                "A text itself is passed in a list."
            )
        try:
            from datasets import load_dataset  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImportError(
                f"There is no file {name[:200]!r}, and a dataset needs `datasets`: "
                "`pip install breadboard-circuits[data]`."
            ) from None
        path, _, config = name.partition(":")
        try:
            self.data: Any = load_dataset(path, config or None, split="train", streaming=True)
            first = next(iter(self.data), {})
        except Exception as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FileNotFoundError(
                f"There is neither a file {name[:200]!r} nor a dataset of that name with a split `train` "
                f"({why[:500]}). A text itself is passed in a list."
            ) from None
        held = [key for key, value in first.items() if isinstance(value, str)]
        wanted = column or ("text" if "text" in held else held[0] if len(held) == 1 else None)
        if wanted not in held:
            raise ValueError(
                f"{name} holds strings in {', '.join(held) or 'no column'}: give one of these as `column`"
                + (f", not {column!r}." if column else ".")
            )
        self._wanted = wanted

    def pieces(self, at: int) -> Iterator[tuple[str, int]]:
        for i, row in enumerate(self.data.skip(at) if at else self.data, start=at):
            yield row[self._wanted], i + 1

    def identity(self) -> dict[str, Any]:
        return {"dataset": self.name, "column": self._wanted}


class Prose(Text):
    """Rows of `context` tokens cut from a source in its order; only the last one may be shorter."""

    def __init__(self, source: Source, tokenizer: Any, context: int):
        self.source, self.tokenizer, self.context = source, tokenizer, context
        ends = getattr(tokenizer, "eos_token_id", None)
        self._start, self._end = _opening(tokenizer), [] if ends is None else [ends]
        if context <= len(self._start):
            raise ValueError(f"A row of {context} tokens has no room for text beside what opens it.")
        self.special = getattr(tokenizer, "all_special_ids", ())

    def batches(
        self, epoch: int, position: Any = None
    ) -> Iterator[tuple[Int[Tensor, "batch pos"], dict[str, Any]]]:
        # A position says where a piece begins, which tokens stood before it, and how many rows of both are
        # behind us.
        at, left, done = (position[key] for key in ("at", "left", "done")) if position else (0, [], 0)
        step, n = self.context - len(self._start), max(1, _READ // self.context)
        rows: list[list[int]] = []
        for piece, following in self.source.pieces(at):
            tokens = left + self._tokens(piece)
            for done in range(done, len(tokens) // step):  # noqa: B020
                rows.append(self._start + tokens[done * step : (done + 1) * step])
                if len(rows) == n:
                    yield torch.tensor(rows), {"at": at, "left": left, "done": done + 1}
                    rows = []
            at, left, done = following, tokens[len(tokens) // step * step :], 0
        if rows:
            yield torch.tensor(rows), {"at": at, "left": left, "done": 0}
        if left and left != self._end:
            yield torch.tensor([self._start + left]), {"at": at, "left": [], "done": 0}

    def _tokens(self, piece: str) -> list[int]:
        tokens = list(self.tokenizer.encode(piece, add_special_tokens=False)) if piece else []
        return tokens + self._end if self.source.documents and tokens else tokens

    def identity(self) -> dict[str, Any]:
        some = self._tokens("The quick brown fox, 12 + 34; naïve!\n")
        return {**self.source.identity(), "context": self.context, "opening": self._start, "tokens": some}


def _opening(tokenizer: Any) -> list[int]:
    """What every row begins with."""
    if (begins := getattr(tokenizer, "bos_token_id", None)) is not None:
        return [begins]
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    opened = list(tokenizer.encode("a"))
    return opened[: len(opened) - len(bare)] if opened[-len(bare) :] == bare else []
