"""The hidden state among what a module takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def is_hidden(x: Any, ndim: int = 3) -> bool:
    """Whether this could be a hidden state: a floating-point tensor with that many axes."""
    return isinstance(x, Tensor) and x.ndim == ndim and x.is_floating_point()


def hidden_inputs(args: tuple, kwargs: Mapping[str, Any], ndim: int = 3) -> list[Tensor]:
    """All that may be hidden states among a module's arguments; the first is the one it works on."""
    return [x for x in (*args, *kwargs.values()) if is_hidden(x, ndim)]


def hidden(output: Any, ndim: int = 3) -> Tensor | None:
    """The hidden state in what a module returned: a tensor, or the first in a tuple or the like."""
    if isinstance(output, Tensor):
        return output if is_hidden(output, ndim) else None
    return next((x for x in _members(output) if is_hidden(x, ndim)), None)


def with_hidden(output: Any, new: Tensor, ndim: int = 3) -> Any:
    """A copy of what a module returned, with another hidden state in it."""
    old = hidden(output, ndim)
    if isinstance(output, Tensor):
        return new
    if isinstance(output, Mapping):
        kind: Any = type(output)
        return kind({key: new if x is old else x for key, x in output.items()})
    return _like(output, [new if x is old else x for x in output])


def with_hidden_input(
    args: tuple, kwargs: Mapping[str, Any], new: Tensor, ndim: int = 3
) -> tuple[tuple, dict[str, Any]]:
    """A copy of a module's arguments, with another hidden state in them."""
    old = hidden_inputs(args, kwargs, ndim)[0]
    return (
        tuple(new if x is old else x for x in args),
        {key: new if x is old else x for key, x in kwargs.items()},
    )


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies `fn` to every tensor in tuples, lists and mappings, however deep."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        kind: Any = type(value)
        return kind({key: map_tensors(fn, x) for key, x in value.items()})
    if isinstance(value, tuple | list):
        return _like(value, [map_tensors(fn, x) for x in value])
    return value


def _members(output: Any) -> tuple:
    if isinstance(output, Mapping):
        return tuple(output.values())
    return tuple(output) if isinstance(output, tuple | list) else ()


def _like(sequence: Any, items: list) -> Any:
    return type(sequence)(*items) if hasattr(sequence, "_fields") else type(sequence)(items)
