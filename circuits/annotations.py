"""What people have written about features, and text made fit to be shown in a picture."""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .graph import Node

Annotations = Mapping[Any, str] | str | Path | None  # by node; or a file
_BLANK = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
_BYTE_LEVEL = {"Ġ": "·", "▁": "·", "Ċ": "⏎", "ĉ": "⇥"}


def said_of(known: Mapping[str, str], node: Node) -> str:
    """What is known of a node: at its position, or else of its feature; "" where nothing is.

    >>> said_of({"mlp.3/120": "plural subject"}, Node("mlp.3", 120, position=4))
    'plural subject'
    """
    return known.get(str(node)) or known.get(str(node._replace(position=None))) or ""


def texts(given: Annotations) -> dict[str, str]:
    """Texts by the names of nodes, from a mapping or a file.

    A file is a JSON object, `{"mlp.3/120": "plural subject"}`, or JSON lines with the keys `node` and `text`,
    or with `Name` and `Annotation` as published with feature-circuits, where sites are written `mlp_3`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or another kind of JSON; names the file and the line.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return {node: text for node, text in _read(Path(given)) if text.strip()}
    for key, text in given.items():
        if not isinstance(text, str):
            raise TypeError(f"The annotation of {key} is {text!r}, not text.")
    return {str(key): text for key, text in given.items() if text.strip()}


def _read(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of annotations {path}.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}.") from None
    lines = [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty.")
    try:
        json.loads(lines[0][1])
    except json.JSONDecodeError:
        lines = [(1, content)]  # an object over several lines
    for number, line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number + error.lineno - 1}: not JSON: {error.msg}.") from None
        where = f"{path}, line {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: a {type(record).__name__} where an object should be.")
        for node, text in _entries(record, where):
            if not isinstance(node, str) or not isinstance(text, str):
                raise ValueError(f"{where}: the annotation of {node!r} is {text!r}; both should be text.")
            yield node, text


def _entries(record: dict[str, Any], where: str) -> Iterator[tuple[Any, Any]]:
    if "Name" in record:
        if "Annotation" not in record:
            raise ValueError(f"{where}: 'Name' without 'Annotation'.")
        name = str(record["Name"])
        yield re.sub(r"^([a-z]+)_(\d+)/", r"\1.\2/", name), record["Annotation"]
    elif "node" in record:
        if "text" not in record:
            raise ValueError(f"{where}: 'node' without 'text'.")
        yield record["node"], record["text"]
    else:
        yield from record.items()


def visible(text: str) -> str:
    """Text without characters that would break a line, a file or the direction of writing.

    >>> visible("a\\tb\\x00")
    'a⇥b␀'
    """
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    if character in _BLANK:
        return _BLANK[character]
    if kind == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "�"
    if kind in ("Cs", "Cn", "Co"):
        return "�"
    return "" if kind == "Cf" else " " if kind[0] == "Z" else character


def token(text: str, most: int = 14) -> str:
    """A token so that its spaces are seen.

    >>> token(" boy"), token("Ġboy"), token("\\n"), token("")
    ('·boy', '·boy', '⏎', '""')
    """
    for mark, sign in _BYTE_LEVEL.items():
        text = sign + text.removeprefix(mark) if text.startswith(mark) else text
    shown = visible(text).replace(" ", "·")
    return (shown if len(shown) <= most else shown[: most - 1] + "…") or '""'


def wrapped(text: str, width: int = 18, most: int = 3) -> list[str]:
    """At most so many lines of text, the last of them with an ellipsis if more would follow.

    >>> wrapped("verbs whose subject is plural, and some others besides")
    ['verbs whose', 'subject is plural,', 'and some others…']
    """
    flat = visible(" ".join(text.split()))
    if any(unicodedata.east_asian_width(character) in "WF" for character in flat):
        width //= 2
    lines = textwrap.wrap(flat, width)
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], lines[most - 1][: width - 1].rstrip() + "…"]


def ems(text: str) -> float:
    """About how wide a line of text is, in units of the font size."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.57 for c in text)
