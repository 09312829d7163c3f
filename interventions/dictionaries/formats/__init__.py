"""Published dictionaries: what lies in their files, and how it is said in the equation of `SparseCoder`.

Each module of a format has `find(source)`: the dictionaries of that format in there, none read yet.
"""

from __future__ import annotations

from collections.abc import Callable

from .found import Found
from .source import Source

Find = Callable[[Source], list[Found]]

FORMATS: list[Find] = []  # in the order in which they are asked; the first that finds anything is right

__all__ = ["FORMATS", "Find", "Found", "Source"]
