"""Results in one JSON file each, that says what it holds and which version wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interventions.writing import write

VERSION = 1


def save(path: str | Path, kind: str, said: Mapping[str, Any]) -> Path:
    """Writes a JSON file, whole or not at all, into a folder that is made where it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"format": f"circuits.shift.{kind}", "version": VERSION, **said}
    write(path, json.dumps(whole, indent=1, allow_nan=False).encode())
    return path


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """What `save` wrote of that kind.

    Raises:
        FileNotFoundError: no file there.
        ValueError: a file that is incomplete, of another kind, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not complete JSON.") from None
    if not isinstance(said, dict) or said.pop("format", None) != f"circuits.shift.{kind}":
        raise ValueError(f"{path} does not hold {kind}.")
    if (version := said.pop("version", None)) != VERSION:
        raise ValueError(f"{path} has version {version!r}; this release reads {VERSION}.")
    return said


@contextmanager
def described(path: str | Path, kind: str) -> Iterator[None]:
    """While open, what `load` gave is taken apart: raises ValueError where anything in it is missing."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe {kind}: {error!r}.") from None


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which of the model, the dictionaries and the task two runs differ, by their fingerprints.

    >>> differing({"model": {"fingerprint": "a"}}, {"model": {"fingerprint": "b"}})
    ['the model']
    """
    found = []
    if _mark(before.get("model")) != _mark(now.get("model")):
        found.append("the model")
    old, new = (
        {site: _mark(d) for site, d in (about.get("dictionaries") or {}).items()} for about in (before, now)
    )
    found += [f"the dictionary at {site}" for site in {**old, **new} if old.get(site) != new.get(site)]
    if before.get("task") != now.get("task"):
        found.append("the texts or the metric")
    return found


def _mark(said: Any) -> Any:
    return said.get("fingerprint") if isinstance(said, Mapping) else None
