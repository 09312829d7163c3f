"""Task files: ours, and two that others have published."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .pair import Pair

_PAIR = ("clean", "patch", "answers", "foils", "case")
_FEATURE_CIRCUITS = ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer")
_AUTO_CIRCUIT = ("clean", "corrupt", "answers", "wrong_answers")


@dataclass(frozen=True)
class Header:
    """What a file says of its task beside the pairs."""

    task: str
    metric: str | None = "logit_difference"
    description: str = ""


def write(path: str | Path, header: Header, pairs: Iterable[Pair]) -> None:
    """Writes JSON lines; whoever reads meanwhile finds the old file or the new one, never a part."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for record in (header, *pairs):
                file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[Header, list[Pair]]:
    """The header and the pairs of a file of ours, of feature-circuits or of auto-circuit."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no task file {path}.")
    records = list(_records(path))
    if not records:
        raise ValueError(f"{path} is empty.")
    header, make = Header(path.stem), _pair
    where, first = records[0]
    if "task" in first:
        header = Header(**{key: first[key] for key in ("task", "metric", "description") if key in first})
        records = records[1:]
    elif "prompts" in first:
        make = _auto_circuit_pair
        prompts = first["prompts"] if isinstance(first["prompts"], list) else [None]
        records = [(f"{path}, prompt {i}", prompt) for i, prompt in enumerate(prompts)]
    elif not first.keys().isdisjoint(_FEATURE_CIRCUITS):
        make = _feature_circuits_pair
    if not records:
        raise ValueError(f"{where}: no pairs follow.")
    return header, [_made(make, where, record) for where, record in records]


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Each JSON value with the place where it stands: one per line, or one in the whole file."""
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text.lstrip().partition("\n")[0])
    except json.JSONDecodeError:
        if text.strip():
            yield f"{path}, line 1", _parsed(path, 1, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", _parsed(path, number, line)


def _parsed(path: Path, number: int, text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {number + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"{place}: not JSON ({error.msg}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: a JSON object is expected, not {type(value).__name__}.")
    return value


def _made(make: Callable[[Mapping[str, Any]], Pair], where: str, record: Any) -> Pair:
    try:
        if not isinstance(record, dict):
            raise TypeError(f"A pair is a JSON object, not {type(record).__name__}.")
        return make(record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: {error.args[0]}") from None


def _pair(record: Mapping[str, Any]) -> Pair:
    _require(record, _PAIR[:3])
    values = {key: record[key] for key in _PAIR if key in record}
    return Pair(**{key: _tuple(value) for key, value in values.items()})


def _feature_circuits_pair(record: Mapping[str, Any]) -> Pair:
    _require(record, _FEATURE_CIRCUITS)
    clean, patch, answer, foil = (record[key] for key in _FEATURE_CIRCUITS)
    return Pair(clean, patch, (answer,), (foil,), str(record.get("case", "")))


def _auto_circuit_pair(record: Mapping[str, Any]) -> Pair:
    _require(record, _AUTO_CIRCUIT)
    return Pair(*(_tuple(record[key]) for key in _AUTO_CIRCUIT))


def _require(record: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if missing := [key for key in keys if key not in record]:
        raise KeyError(f"no {' or '.join(map(repr, missing))}; a pair has {', '.join(keys)}.")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
