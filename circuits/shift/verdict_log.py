"""A file to which every verdict is written as it is given."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interventions.writing import write

from .saved import differing
from .verdicts import FORMAT, Verdict, Verdicts, header, line, verdict_of


class VerdictLog:
    """Verdicts that are on the disk as soon as they are given, and can be taken back.

    The file is of JSON lines, the first of which says of which model, dictionaries and texts the features
    are; what is taken back stays in it. Without a path, all is in memory.

    Args:
        about: what the ranking says of itself.
        known: the (site, feature) that can be judged.

    Raises:
        ValueError: a file of features of another model, other dictionaries or other texts, or with verdicts
            on features that are not known; what is no file of verdicts.
        IsADirectoryError: a folder.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        known: Iterable[tuple[str, int]] | None = None,
    ):
        self.path = None if path is None else Path(path)
        self.about = dict(about or {})
        self._given: list[Verdict] = []
        if self.path is None:
            return
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder, not a file of verdicts.")
        if self.path.is_file() and self.path.stat().st_size:
            self._begun(self.path, known)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, header(self.about))

    def __repr__(self) -> str:
        return f"VerdictLog({self.verdicts!r}, {'in memory' if self.path is None else self.path})"

    @property
    def verdicts(self) -> Verdicts:
        return Verdicts(tuple(self._given), self.about)

    def add(self, verdict: Verdict) -> None:
        """Takes a verdict, which is on the disk when this returns."""
        self._write(asdict(verdict))
        self._given.append(verdict)

    def undo(self) -> Verdict | None:
        """Takes the last verdict back, and returns it; what was said of the feature before holds again."""
        if not self._given:
            return None
        last = self._given[-1]
        self._write({"undo": {"site": last.site, "feature": last.feature}})
        return self._given.pop()

    def _begun(self, path: Path, known: Iterable[tuple[str, int]] | None) -> None:
        before, self._given, end = _replay(path)
        if before and self.about and (differ := differing(before, self.about)):
            raise ValueError(
                f"{path} has verdicts on features of something else; these differ: {', '.join(differ)}. Give "
                "another file, or go on with what these were given on."
            )
        if known is not None:
            Verdicts(tuple(self._given)).check(known)
        content = path.read_bytes()[:end]
        if end < path.stat().st_size or not content.endswith(b"\n"):  # a torn line, or one without its end
            whole = content if content.endswith(b"\n") else content + b"\n"
            write(path, whole if content else header(self.about))

    def _write(self, record: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("ab") as file:
            file.write(line(record))
            file.flush()
            os.fsync(file.fileno())


def replayed(path: str | Path) -> Verdicts:
    """The verdicts that stand in a file of JSON lines, written by a log or by hand."""
    about, given, _ = _replay(Path(path))
    return Verdicts(tuple(given), about)


def _replay(path: Path) -> tuple[dict[str, Any], list[Verdict], int]:
    """What a file says it is about, its verdicts without those taken back, and where its whole lines end.

    A last line that is torn, as by a power cut, is left out with a warning.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    content, about, given, end, by = path.read_bytes(), {}, [], 0, path.name
    lines = content.splitlines(keepends=True)
    for number, raw in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        torn = number == len(lines) and not raw.endswith(b"\n")
        if raw.strip():
            try:
                record = json.loads(raw.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                if torn:
                    warnings.warn(f"{where}, is incomplete, and is left out.", stacklevel=4)
                    break
                raise ValueError(f"{where}: not JSON; verdicts are JSON lines, or a table in .csv.") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where}: a JSON object is expected, not {type(record).__name__}.")
            if number == 1 and "format" in record:
                about, by = _about(record, path), ""
            elif "undo" in record:
                _undone(given, record["undo"], where)
            else:
                given.append(verdict_of(record, where, by))
        end += len(raw)
    return about, given, end


def _about(record: dict[str, Any], path: Path) -> dict[str, Any]:
    if record.pop("format") != FORMAT:
        raise ValueError(f"{path} does not hold verdicts.")
    if (version := record.pop("version", None)) != 1:
        raise ValueError(f"{path} has version {version!r}; this release reads 1.")
    return record


def _undone(given: list[Verdict], of: Any, where: str) -> None:
    """Takes back the last verdict on a feature; behind it another writer of the same file may have added."""
    for i in reversed(range(len(given))):
        if of == {"site": given[i].site, "feature": given[i].feature}:
            del given[i]
            return
    raise ValueError(f"{where}: takes back a verdict that was not given.")
