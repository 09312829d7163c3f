"""Circuits on disk: safetensors for numbers, JSON for the rest; whole or not at all, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.writing import write

from .graph import Circuit, Node

FORMAT = 1
_JSON, _TENSORS = "circuit.json", "circuit.safetensors"


def save_circuit(circuit: Circuit, folder: str | Path) -> Path:
    """Writes `circuit.safetensors` and `circuit.json`, with checksums, into a folder."""
    from safetensors.torch import save

    folder = writable(folder)
    tensors = {
        "effect": circuit.effect, "effect_error": circuit.effect_error, "edges": circuit.edges,
        "weight": circuit.weight, "weight_error": circuit.weight_error,
    }  # fmt: skip
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    text = {
        "format": FORMAT,
        "tensors": _sha256(content),
        "nodes": [str(node) for node in circuit.nodes],
        "features": dict(circuit.features),
        "positions": circuit.positions,
        "about": dict(circuit.about),
    }
    write(folder / _TENSORS, content)
    write(folder / _JSON, json.dumps({**text, "checksum": _checksum(text)}, indent=1).encode())
    return folder


def load_circuit(folder: str | Path) -> Circuit:
    """Reads a circuit; see `Circuit.load`."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    for name in (_JSON, _TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"No circuit in {folder}: {name} is missing.")
    text = read_json(folder / _JSON)
    if text.get("format") != FORMAT:
        raise ValueError(f"{folder / _JSON} has format {text.get('format')!r}; this version reads {FORMAT}.")
    checksum = text.pop("checksum", None)
    content = (folder / _TENSORS).read_bytes()
    if checksum != _checksum(text) or text["tensors"] != _sha256(content):
        raise ValueError(f"The circuit in {folder} is damaged or was changed: its checksums do not fit.")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"{folder / _TENSORS} is not a safetensors file: {error}.") from None
    positions = text["positions"]
    return Circuit(
        nodes=tuple(Node.parse(node) for node in text["nodes"]),
        features=text["features"],
        positions=None if positions is None else tuple(positions),
        about=text["about"],
        **tensors,
    )


def writable(folder: str | Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        PermissionError: it cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f"Cannot write to {folder}: {error.strerror or error}.") from None
    return folder


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all."""
    from safetensors.torch import save

    alone = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    write(path, save(alone, dict(metadata or {})))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file holds something else, or is cut off.
    """
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} where an object should be.")
    return value


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(text: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(text, sort_keys=True).encode())
