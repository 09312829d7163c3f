"""Where the numbers of a training go."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]
LogLike = str | PathLike[str] | Callable[[Line], object] | None


class Log:
    """Lines of JSON appended to a file, or handed to a callable, or to nobody."""

    def __init__(self, path: Path | None = None, call: Callable[[Line], object] | None = None):
        self.path, self.call = path, call

    def __call__(self, line: Line) -> None:
        if self.call is not None:
            self.call(line)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    @property
    def size(self) -> int | None:
        """Bytes that the file has by now."""
        if self.path is None:
            return None
        return self.path.stat().st_size if self.path.exists() else 0


def log_to(given: LogLike, size: int | None, undone: Callable[[Line], bool]) -> Log:
    """A log from what was given for it.

    Of a file that has grown beyond `size` bytes, lines that are `undone` are taken out behind them, and a
    last one that breaks off; others stay, which another training may have written.
    """
    if given is None:
        return Log()
    if not isinstance(given, str | PathLike):
        return Log(call=given)
    path = Path(given)
    path.parent.mkdir(parents=True, exist_ok=True)
    if size is not None and path.exists() and path.stat().st_size > size:
        with open(path, "r+b") as file:
            file.seek(size)
            lines = file.read().splitlines(keepends=True)
            file.seek(size)
            file.writelines(line for line in lines if line.endswith(b"\n") and not _is(line, undone))
            file.truncate()
    return Log(path)


def _is(line: bytes, undone: Callable[[Line], bool]) -> bool:
    try:
        return undone(json.loads(line))
    except (ValueError, KeyError, TypeError):  # no line of a training
        return False
