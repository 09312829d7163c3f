"""What a model writes, as it is written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .generation import generate, opened, said

if TYPE_CHECKING:
    from .model import Model


def stream(model: Model, text: str, *, max_new_tokens: int = 40, **kwargs: Any) -> Iterator[str]:
    """What the model writes after a text, piece by piece as it is written.

    Pieces add up to what `complete` gives. The model writes in a thread of its own, which ends when the
    iterator is closed; interventions that are applied stay so for as long as their `with` block lasts, so
    read the stream inside of it.
    """
    tokens = torch.tensor([opened(model, text)])
    pieces: queue.Queue[Any] = queue.Queue()
    listener = _Listener(model, pieces)

    def write() -> None:
        try:
            generate(model, tokens, max_new_tokens=max_new_tokens, streamer=listener, **kwargs)
        except _Stopped:
            pass
        except BaseException as error:  # raised again where the stream is read
            pieces.put(error)
        pieces.put(None)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        listener.stopped = True
        thread.join()


class _Stopped(Exception):
    """Nobody reads the stream any more."""


class _Listener:
    """Takes tokens as they are generated, and hands on the text that they add."""

    def __init__(self, model: Model, pieces: queue.Queue[Any]):
        self.model, self.pieces, self.stopped = model, pieces, False
        self._ids: list[int] | None = None
        self._said = 0

    def put(self, value: Tensor) -> None:
        if self.stopped:
            raise _Stopped
        if self._ids is None:  # the prompt comes first
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        self._say(said(self.model, self._ids), whole=False)

    def end(self) -> None:
        self._say(said(self.model, self._ids or []), whole=True)

    def _say(self, text: str, *, whole: bool) -> None:
        if whole or not text.endswith("�"):  # part of a character
            if text[self._said :]:
                self.pieces.put(text[self._said :])
            self._said = len(text)
