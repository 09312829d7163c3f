"""Single keys from a terminal; from elsewhere, the first characters of lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

END = ""  # there is no more input
_ESCAPE = "\x1b"

Read = Callable[[], str]


@contextmanager
def keys(stream: TextIO | None = None) -> Iterator[Read]:
    """While open, gives a function that waits for the next key and returns it, `END` where input ends.

    On a terminal keys come as they are pressed, without being shown; Ctrl-C interrupts as ever, and the
    terminal is put back as it was on leaving, whatever happens. Keys that send several characters, such as
    arrows, come as one escape character. From a file or a pipe, every line that is not blank is a key.
    """
    source = sys.stdin if stream is None else stream
    try:
        import termios
        import tty
    except ImportError:  # no such terminals on this system: whole lines
        yield lambda: _from_line(source)
        return
    if not source.isatty():
        yield lambda: _from_line(source)
        return
    file = source.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file, termios.TCSADRAIN)
        yield lambda: _pressed(file)
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _from_line(stream: TextIO) -> str:
    while line := stream.readline():
        if line.strip():
            return line.strip()[0].lower()
    return END


def _pressed(file: int) -> str:
    first = os.read(file, 1)
    if not first or first == b"\x04":  # Ctrl-D
        return END
    if first == _ESCAPE.encode():
        while _waiting(file) and os.read(file, 1):
            pass
        return _ESCAPE
    more = {0b110: 1, 0b1110: 2, 0b11110: 3}
    count = next((n for lead, n in more.items() if first[0] >> (6 - n) == lead), 0)
    return (first + b"".join(os.read(file, 1) for _ in range(count))).decode("utf-8", "replace").lower()


def _waiting(file: int) -> bool:
    import select

    return bool(select.select([file], [], [], 0.02)[0])
