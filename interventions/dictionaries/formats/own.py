"""Dictionaries that `save` wrote: a folder with an index.json and a safetensors file for each."""

from __future__ import annotations

import re
from functools import partial

from .. import files
from ..coders import SparseCoder
from .found import Found
from .source import Source


def find(source: Source) -> list[Found]:
    """The dictionaries in every folder whose index is ours. Raises ValueError for a damaged index."""
    found = []
    for folder in source.folders("index.json"):
        inside = source.within(folder)
        if not _ours(inside):
            continue
        for name, entry in files.index(inside.path("index.json")).items():
            reads = entry.get("reads")
            found.append(Found(folder, partial(_read, inside, name, entry), name, reads))
    return found


def _ours(source: Source) -> bool:
    if any(re.fullmatch(r"[^/]*-[0-9a-f]{12}\.safetensors", file) for file in source.files):
        return True
    try:
        return source.json("index.json").get("format") == files.FORMAT
    except ValueError:
        return False


def _read(source: Source, name: str, entry: dict) -> SparseCoder:
    return files.read(source.path(entry["file"]), name, entry)
