"""Records as JSON lines, or as one JSON list, with the place where each stands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines; whoever reads meanwhile finds the old file or the new one, never a part."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The records of a file, each with where it stands, for messages.

    Raises:
        FileNotFoundError: no file there.
        ValueError: an empty one, or what is neither JSON lines nor a JSON list of objects.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8.") from None
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            place = f"{path}, line {error.lineno}, column {error.colno}"
            raise ValueError(f"{place}: not JSON ({error.msg}).") from None
        found = [(f"{path}, item {i}", value) for i, value in enumerate(values)]
    else:
        found = [
            (f"{path}, line {number}", _parsed(path, number, line))
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    for where, value in found:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: a JSON object is expected, not {type(value).__name__}.")
    if not found:
        raise ValueError(f"{path} is empty.")
    return found


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}, column {error.colno}: not JSON ({error.msg}).") from None
