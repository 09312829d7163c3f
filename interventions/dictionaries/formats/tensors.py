"""What every format asks of the tensors and the settings in its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def known(given: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Raises ValueError for a name that no rule here understands, which may change what is computed."""
    if extra := sorted(set(given) - set(allowed)):
        raise ValueError(f"unknown {what} {', '.join(extra)}; nothing is left out that may change the result")


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
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
