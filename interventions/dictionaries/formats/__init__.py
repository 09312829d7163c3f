"""Published dictionaries: what lies in their files, and how it is said in the equation of `SparseCoder`.

Each module of a format has `find(source)`: the dictionaries of that format in there, none read yet.
"""

from __future__ import annotations

from collections.abc import Callable

from . import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    linear_layers,
    open_moss,
    openai,
    own,
    qwen_scope,
    saelens,
    sparsify,
)
from .check import fvu
from .export import export_saelens, export_sparsify
from .found import Found
from .loading import load
from .source import Source

Find = Callable[[Source], list[Found]]

# in the order in which they are asked; the first that finds anything is right
FORMATS: list[Find] = [
    own.find,
    saelens.find,
    sparsify.find,
    circuit_tracer.find,
    gemma_scope.find,
    gemma_scope_2.find,
    open_moss.find,
    dictionary_learning.find,
    openai.find,
    qwen_scope.find,
    linear_layers.find,
]

__all__ = ["FORMATS", "Find", "Found", "Source", "export_saelens", "export_sparsify", "fvu", "load"]
