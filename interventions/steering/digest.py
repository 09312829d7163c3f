"""A short hash of a value by its content, the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from ..fingerprint import fingerprint
from ..model import Model


def digest(value: Any) -> str:
    """A hash of numbers, texts, tensors, models and functions, however they are nested.

    Of other objects it takes the class and the attributes.

    >>> digest({"a": 1.0, "b": [2]}) == digest({"b": [2], "a": 1.0}) != digest({"a": 1.0, "b": [3]})
    True
    """
    sha256 = hashlib.sha256()
    for piece in _pieces(value, ()):
        sha256.update(len(piece).to_bytes(8, "little") + piece)
    return sha256.hexdigest()[:16]


def _pieces(value: Any, within: tuple[int, ...]) -> Iterator[bytes]:
    """What a value is made of; `within` are the objects that it is an attribute of."""
    if value is None or isinstance(value, str | bytes | bool | int | float | complex):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if id(value) in within:
        return
    within = (*within, id(value))
    if isinstance(value, Tensor):
        x = value.detach().cpu().contiguous()
        yield f"{x.dtype} {tuple(x.shape)}".encode()
        yield (x.float() if x.dtype.itemsize == 2 else x).numpy().tobytes()
    elif isinstance(value, Model):
        yield value.fingerprint.encode()
    elif isinstance(value, nn.Module):
        yield fingerprint(value).encode()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _pieces(value[key], within)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield field.name.encode()
            yield from _pieces(getattr(value, field.name), within)
    elif isinstance(value, Set):
        for item in sorted(value, key=repr):
            yield from _pieces(item, within)
    elif isinstance(value, Sequence):
        yield str(len(value)).encode()
        for item in value:
            yield from _pieces(item, within)
    elif isinstance(value, FunctionType):
        yield from _pieces(value.__code__, within)
        yield from _pieces((value.__defaults__, value.__kwdefaults__), within)
        for cell in value.__closure__ or ():
            yield from _pieces(cell.cell_contents, within)
    elif isinstance(value, MethodType):
        yield from _pieces((value.__func__, value.__self__), within)
    elif isinstance(value, partial):
        yield from _pieces((value.func, value.args, value.keywords), within)
    elif isinstance(value, CodeType):
        yield value.co_code
        yield from _pieces((value.co_names, value.co_consts), within)
    elif isinstance(value, type) or not hasattr(value, "__dict__"):
        yield getattr(value, "__qualname__", "").encode()
    else:
        yield from _pieces(vars(value), within)
