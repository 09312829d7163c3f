"""States on disk: safetensors for the numbers, JSON for the rest."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as loaded
from safetensors.torch import save as saved

from ..writing import write
from .couples import Couple
from .state import State

_FORMAT = 1


def save(state: State, folder: str | Path) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {f"state/{name}": x for name, x in state.items()}
    numbers |= {f"rest/{key}": x for key, x in state.rest.items()}
    write(
        folder / "state.safetensors",
        saved({key: x.detach().cpu().contiguous().clone() for key, x in numbers.items()}),
    )
    said = {
        "format": _FORMAT,
        "fingerprint": state.fingerprint,
        "names": list(state),
        "lengths": list(state.lengths),
        "couples": [asdict(couple) for couple in state.couples],
    }
    write(folder / "state.json", (json.dumps(said, indent=2) + "\n").encode())


def load(folder: str | Path) -> State:
    folder = Path(folder)
    for name in ("state.json", "state.safetensors"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"No state in {str(folder)!r}: there is no {name}.")
    try:
        said = json.loads((folder / "state.json").read_text())
        numbers = loaded((folder / "state.safetensors").read_bytes())
        if said["format"] != _FORMAT:
            raise ValueError(f"its format is {said['format']}, and this version reads {_FORMAT}")
        couples = tuple(Couple(c["scale"], tuple(c["parts"]), c["positive"]) for c in said["couples"])
        state = {name: numbers[f"state/{name}"] for name in said["names"]}
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"The state in {str(folder)!r} cannot be read: {error}.") from error
    rest = {key.removeprefix("rest/"): x for key, x in numbers.items() if key.startswith("rest/")}
    return State(state, said["fingerprint"], tuple(said["lengths"]), couples, rest)
