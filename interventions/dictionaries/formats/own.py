"""Dictionaries that `save` wrote: a folder with an index.json and a safetensors file for each."""

from __future__ import annotations

import re
from functools import partial

from .. import files
from ..coders import SparseCoder
from ..cross_layer import CrossLayer
from .found import Found
from .source import Source

_OURS = re.compile(r"[^/]+-[0-9a-f]{12}\.safetensors")


def find(source: Source) -> list[Found]:
    """The dictionaries in every folder whose index is ours. Raises ValueError for a damaged index."""
    found = []
    indexed = source.folders("index.json")
    for file in source.files:
        folder, _, name = file.rpartition("/")
        if _OURS.fullmatch(name) and folder not in indexed:
            raise ValueError(
                f"{source.within(folder).name}/index.json cannot be read: there is none beside {name}, and "
                "it says what that file holds. Pass the folder that has both."
            )
    for folder in indexed:
        inside = source.within(folder)
        if not _ours(inside):
            continue
        for name, entry in files.index(inside.path("index.json")).items():
            reads = entry.get("reads")
            found.append(Found(folder, partial(_read, inside, name, entry), name, reads))
    return found


def _ours(source: Source) -> bool:
    if any(_OURS.fullmatch(file) for file in source.files):
        return True
    try:
        return source.json("index.json").get("format") == files.FORMAT
    except ValueError:
        return False


def _read(source: Source, name: str, entry: dict) -> SparseCoder | CrossLayer:
    return files.read(source.path(entry["file"]), name, entry)
