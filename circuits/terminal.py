"""What is said on a terminal: plain text, and the library's warnings as notes."""

from __future__ import annotations

import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Styled(str):
    """Text made for a terminal: what it is from was made plain already, and its colours are to be kept."""


def say(text: str = "") -> None:
    """Prints a line; characters that a terminal would obey are taken out of all but `Styled` text."""
    text, encoding = text if isinstance(text, Styled) else plain(text), sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def plain(text: str) -> str:
    """Text without characters that a terminal would obey: models and files could hold anything."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in text)


@contextmanager
def notes() -> Iterator[None]:
    """The library's warnings as single lines, each only once, and nobody else's."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"circuits: note: {plain(' '.join(str(message).split()))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"(circuits|interventions|tasks)\b")
        warnings.showwarning = show
        yield
