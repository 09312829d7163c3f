"""Names for the tensors of a recurrent state, and where in what a model carries each of them is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .couples import Couple
from .trees import Path, put, tensors

# A list of five tensors (batch width layer), and tuples of three for each layer.
_SHIFTED = ("channel_shift", "time_shift", "num", "den", "max")
_MATRIX = ("c", "n", "m")
_COUPLES = (("max", ("num", "den")), ("m", ("c", "n")))  # of these, those that a trial bears out


@dataclass(frozen=True)
class Slot:
    """One named tensor of a state: the whole of a carried tensor, or one layer of it."""

    name: str
    path: Path
    batch: int = 0  # axis
    layer: tuple[int, int] | None = None  # axis, and index in it

    def read(self, carried: Mapping[Path, Tensor]) -> Tensor:
        """Batch first."""
        x = carried[self.path]
        return x.movedim(self.batch, 0) if self.layer is None else x.select(*self.layer)


def write(tree: Any, slots: Sequence[Slot], values: Mapping[str, Tensor]) -> None:
    """Puts tensors, batch first, in the places of those in `tree`."""
    carried = tensors(tree)
    for path in dict.fromkeys(slot.path for slot in slots if slot.name in values):
        here = [slot for slot in slots if slot.path == path]
        if here[0].layer is None:
            put(tree, path, values[here[0].name].movedim(0, here[0].batch).contiguous())
        else:
            axis = here[0].layer[0]
            layers = [values[slot.name] if slot.name in values else slot.read(carried) for slot in here]
            widest = max(layers, key=lambda x: x.element_size()).dtype
            put(tree, path, torch.stack([x.to(widest) for x in layers], axis))


def batch_axis(path: Path) -> int:
    """A module of torch keeps (layer, batch, width); all else is batch first."""
    return 1 if path[0] == "rnn" else 0


def named(
    carried: Mapping[Path, Tensor], block_of: Mapping[str, int], n_blocks: int, rnns: Sequence[str]
) -> list[Slot]:
    """A slot for each of these tensors, or for each of their layers."""
    found: list[Slot] = []
    layers = 0
    for path in rnns:
        mine = [p for p in carried if p[:2] == ("rnn", path)]
        deep = max((carried[p].shape[0] for p in mine), default=0)
        for p in mine:
            stem = "hc"[p[2]] if len(p) > 2 else "h"
            found += [Slot(f"{stem}.{layers + i}", p, 1, (0, i)) for i in range(deep)]
        layers += deep
    rest = [path for path in carried if path[0] != "rnn"]
    flat = [path for path in rest if len(path) == 2 and path[0] == "cache"]
    if len(flat) == len(_SHIFTED) == len(rest) and all(carried[p].shape[-1] == n_blocks for p in flat):
        return found + [
            Slot(f"{stem}.{i}", path, 0, (2, i))
            for stem, path in zip(_SHIFTED, flat, strict=True)
            for i in range(n_blocks)
        ]
    several = {p[:-1] for p in rest if isinstance(p[-1], int) and p[-1] > 0}
    for path in rest:
        stems = [_stem(key) for key in path if isinstance(key, str)]
        index = next((key for key in path if isinstance(key, int) and not isinstance(key, bool)), None)
        if path[0] == "left":
            stems, index = [_stem(path[1][1])], block_of.get(path[1][0])
        triple = path[:-1] in several and sum(p[:-1] == path[:-1] for p in rest) == len(_MATRIX)
        if triple and stems[-1] == "rnn":
            name = f"{_MATRIX[path[-1]]}.{index}"
        elif path[:-1] in several:
            name = f"{stems[-1]}.{index}.{path[-1]}"
        else:
            name = f"{stems[-1]}.{index}" if index is not None else stems[-1]
        found.append(Slot(name, path))
    return found


def couples(names: Sequence[str]) -> list[Couple]:
    """Those that may be coupled, going by their names."""
    return [
        Couple(name, tuple(f"{part}.{index}" for part in parts))
        for scale, parts in _COUPLES
        for name in names
        for stem, _, index in [name.partition(".")]
        if stem == scale and all(f"{part}.{index}" in names for part in parts)
    ]


def _stem(attribute: str) -> str:
    """`conv` of `conv_states`, `conv1d_state`."""
    return re.sub(r"(1d)?_states?$", "", attribute)
