"""Separations on disk: a folder with one safetensors file and a JSON file that vouches for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ..writing import write
from .separated import Separation

FORMAT, VERSION = "interventions.separation", 1
_JSON, _TENSORS = "separation.json", "separation.safetensors"
_PARTS = ("active", "mean", "variance", "density")


def save(of: Separation, folder: str | Path) -> None:
    """Writes a separation to a folder, which is made."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}/{site}": x.contiguous() for part in _PARTS for site, x in (getattr(of, part) or {}).items()
    }
    content = safetensors.torch.save(tensors)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": of.fingerprint,
        "kinds": list(of.kinds),
        "counts": of.counts.tolist(),
        "max_density": of.max_density,
        "sites": list(of.sites),
        "how": dict(of.how),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write(folder / _TENSORS, content)
    write(folder / _JSON, json.dumps(index, indent=1, allow_nan=False).encode())


def load(folder: str | Path) -> Separation:
    """The separation in a folder; see `Separation.load` for its errors."""
    folder = Path(folder)
    for name in (_JSON, _TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"There is no separation in {str(folder)!r}: {name} is missing.")
    try:
        index = json.loads((folder / _JSON).read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{folder / _JSON} is not complete JSON.") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{folder / _JSON} was not written by Separation.save.")
    if index.get("version") != VERSION:
        raise ValueError(
            f"{folder / _JSON} has version {index.get('version')!r}; this release reads {VERSION}."
        )
    content = (folder / _TENSORS).read_bytes()
    if hashlib.sha256(content).hexdigest() != index.get("sha256"):
        raise ValueError(f"{folder / _TENSORS} does not match its checksum: it is incomplete or changed.")
    try:
        tensors = safetensors.torch.load(content)
        parts: dict[str, Any] = {
            part: {site: tensors[f"{part}/{site}"] for site in index["sites"] if f"{part}/{site}" in tensors}
            for part in _PARTS
        }
        parts["density"] = parts["density"] or None
        counts = torch.tensor(index["counts"])
        return Separation(
            tuple(index["kinds"]),
            counts,
            **parts,
            max_density=index["max_density"],
            fingerprint=index["fingerprint"],
            how=index["how"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / _JSON} does not describe the tensors beside it: {error}") from None
