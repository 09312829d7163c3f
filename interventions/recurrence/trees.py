"""The tensors inside whatever a model keeps between passes: found, copied, replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Path = tuple[Any, ...]  # keys, indices and names of attributes, from the outside in

_ATOMS = (str, bytes, int, float, bool, type(None), type, torch.dtype, torch.device, FunctionType, ModuleType)


def tensors(tree: Any) -> dict[Path, Tensor]:
    """Every tensor in containers and in the attributes of objects, however deep, by where it is."""
    return {path: x for path, x in _walk(tree, (), set()) if isinstance(x, Tensor)}


def copied(tree: Any, change: Callable[[Path, Tensor], Tensor] = lambda _path, x: x.clone()) -> Any:
    """A copy that shares no tensor with `tree`: each is what `change` makes of it, a clone on the same graph.

    `copy.deepcopy` alone refuses tensors that are on an autograd graph.
    """
    memo: dict[int, Any] = {}
    for path, x in _walk(tree, (), set()):
        memo[id(x)] = change(path, x) if isinstance(x, Tensor) else x  # what is no tensor here is shared
    return copy.deepcopy(tree, memo)


def put(tree: Any, path: Path, x: Tensor) -> None:
    """Replaces the tensor at `path`, in place."""
    owner = at(tree, path[:-1])
    if isinstance(owner, tuple):
        items = [x if i == path[-1] else item for i, item in enumerate(owner)]
        put(tree, path[:-1], type(owner)(*items) if hasattr(owner, "_fields") else type(owner)(items))  # type: ignore[arg-type]
    elif isinstance(owner, dict | list):
        owner[path[-1]] = x
    else:
        setattr(owner, path[-1], x)


def at(tree: Any, path: Path) -> Any:
    """What is at `path`."""
    for key in path:
        tree = tree[key] if isinstance(tree, Mapping | list | tuple) else getattr(tree, key)
    return tree


def _walk(tree: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    if isinstance(tree, _ATOMS):
        return
    if isinstance(tree, Tensor) or _shared(tree):
        yield path, tree
        return
    if id(tree) in seen:
        return
    seen.add(id(tree))
    if isinstance(tree, Mapping):
        members: Any = tree.items()
    elif isinstance(tree, list | tuple):
        members = enumerate(tree)
    else:
        members = getattr(tree, "__dict__", {}).items()
    for key, member in members:
        yield from _walk(member, (*path, key), seen)


def _shared(x: Any) -> bool:
    """Whether this says how a model is made rather than what it has read: a module, a config."""
    return isinstance(x, nn.Module) or hasattr(x, "model_type")
