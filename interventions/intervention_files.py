"""Interventions on disk: what they are as JSON, their tensors as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from . import edits, joined, limited, schedules, tensor_edits, where
from .acts import Acts
from .conditions import Condition
from .intervention import Intervention
from .writing import write

_FORMAT = 1
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError,
            SafetensorError)  # fmt: skip
_PASSING = {"carry", "rest"}  # of a state: what only serves to go on from it
_JSON, _TENSORS = "intervention.json", "tensors.safetensors"


def save(of: Intervention, folder: str | Path) -> None:
    """Writes an intervention to a folder, which is made.

    Raises:
        ValueError: a part that is code, such as a condition of one's own, which a file cannot hold.
    """
    folder, tensors = Path(folder), {}
    described = _described(of, tensors, "")
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / _TENSORS, save_tensors({key: x.detach().cpu().contiguous() for key, x in tensors.items()}))
    content = {"format": _FORMAT, "what": repr(of), "intervention": described}
    write(folder / _JSON, json.dumps(content, indent=1).encode())


def load(folder: str | Path) -> Intervention:
    """The intervention in a folder.

    Raises:
        FileNotFoundError: no intervention there.
        ValueError: files that are damaged, or of a later version.
    """
    folder = Path(folder)
    if not (folder / _JSON).is_file():
        raise FileNotFoundError(f"There is no intervention in {str(folder)!r}: it has no {_JSON}.")
    try:
        content = json.loads((folder / _JSON).read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"it is of format {content['format']}, and {_FORMAT} is known here")
        found = _made(content["intervention"], load_tensors((folder / _TENSORS).read_bytes()))
        if not isinstance(found, Intervention):
            raise ValueError(f"it holds a {type(found).__name__}")
        repr(found)  # which looks into all of its parts
        return found
    except _DAMAGED as error:
        lines = str(error).splitlines() or [type(error).__name__]
        why = f"it lacks {lines[0]}" if isinstance(error, KeyError) else lines[0].rstrip(".:")
        raise ValueError(f"The intervention in {str(folder)!r} cannot be read: {why}.") from None


def _kinds() -> dict[str, type]:
    """The classes that a file may name."""
    from . import features, recurrence, steering
    from .recurrence import couples

    modules = (edits, tensor_edits, joined, limited, schedules, where, features, recurrence, steering)
    known = {name: kind for m in modules for name, kind in vars(m).items() if isinstance(kind, type)}
    wanted = (Intervention, where.Tokens, where.Where, schedules.Linear, schedules.Decay)
    kinds = {name: k for name, k in known.items() if issubclass(k, wanted) and is_dataclass(k)}
    values = (Acts, Condition, where.matching, steering.Direction, recurrence.State, couples.Couple)
    return kinds | {kind.__name__: kind for kind in values}


def _described(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A value as JSON; its tensors go to `tensors`, by where they stand in it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, where.matching):
        return {"kind": "matching", "fields": {"wanted": _described(value.wanted, tensors, path)}}
    if is_dataclass(value) and type(value).__name__ in _kinds():
        parts = {
            f.name: _described(getattr(value, f.name), tensors, f"{path}/{f.name}")
            for f in fields(value)
            if f.init and f.name not in _PASSING
        }
        return {"kind": type(value).__name__, "fields": parts}
    if isinstance(value, Mapping):
        keys, made_with = list(value), getattr(value, "fingerprint", None)
        return {
            "mapping": [
                [k if isinstance(k, int) else str(k), _described(value[k], tensors, f"{path}/{k}")]
                for k in keys
            ]
        } | ({} if made_with is None else {"fingerprint": made_with})
    if isinstance(value, Sequence):
        return [_described(x, tensors, f"{path}/{i}") for i, x in enumerate(value)]
    name = getattr(value, "__name__", type(value).__name__)
    raise ValueError(f"{name} is code, which a file cannot hold: save the intervention without it.")


class _Directions(dict[str, Any]):
    """Directions by site, and the fingerprint of the model that they were made with."""

    fingerprint: str | None = None


def _made(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(described, list):
        return tuple(_made(x, tensors) for x in described)
    if not isinstance(described, dict):
        return described
    if "tensor" in described:
        return tensors[described["tensor"]]
    if "slice" in described:
        return slice(*described["slice"])
    if "mapping" in described:
        found = _Directions((key, _made(x, tensors)) for key, x in described["mapping"])
        found.fingerprint = described.get("fingerprint")
        return found
    kind = _kinds().get(described["kind"])
    if kind is None:
        raise ValueError(f"it names a kind that is not known, {described['kind']!r}")
    parts = {name: _made(x, tensors) for name, x in described["fields"].items()}
    return where.matching(*parts["wanted"]) if kind is where.matching else kind(**parts)
