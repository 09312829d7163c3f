"""What every format asks of the tensors and the settings in its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_CALLED = {bool: "true or false", str: "a name", float: "a number", int: "a whole number", dict: "settings"}


def known(given: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Raises ValueError for a name that no rule here understands, which may change what is computed."""
    if extra := sorted(set(given) - set(allowed)):
        raise ValueError(f"unknown {what} {', '.join(extra)}; nothing is left out that may change the result")


def setting(settings: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """What is set under a name; `default` where it is missing or null. Raises ValueError for another kind.

    >>> setting({"transcode": False}, "transcode", bool), setting({}, "k", int, 32)
    (False, 32)
    """
    value = settings.get(name)
    if value is None:
        return default
    fits = (int, float) if kind is float else kind
    if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {repr(value)[:80]}, which is not {_CALLED[kind]}")
    return value


def needed(tensors: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError for a tensor that is missing."""
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"it lacks {', '.join(missing)}")


def shaped(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError for a tensor that has another shape than the settings beside it say."""
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensors[name].shape)}, but the settings beside it ask for {shape}"
            )


def exact(weight: Tensor) -> Tensor:
    """The same in at least single precision, for folds that half precision would round."""
    if not weight.is_floating_point():
        raise ValueError(f"weights are floating-point tensors, not {weight.dtype}")
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
