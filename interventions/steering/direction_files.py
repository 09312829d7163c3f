"""Directions on disk: a folder with one safetensors file and a JSON file that vouches for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..writing import write

FORMAT = "interventions.direction"
VERSION = 1


def save(
    folder: str | Path, vectors: Mapping[str, Tensor], fingerprint: str | None, how: Mapping[str, Any]
) -> None:
    """Writes `direction.json` and the file of vectors that it names.

    The latter carries a part of its checksum in its name, so that what was there before stands until the
    new `direction.json` takes its place.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save(
        {site: vector.detach().cpu().contiguous().clone() for site, vector in vectors.items()}
    )
    digest = hashlib.sha256(content).hexdigest()
    index = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "how": dict(how),
        "sites": list(vectors),
        "file": f"direction-{digest[:12]}.safetensors",
        "sha256": digest,
    }
    write(folder / index["file"], content)
    write(folder / "direction.json", json.dumps(index, indent=2, allow_nan=False).encode())
    for stale in folder.glob("direction-*.safetensors"):
        if stale.name != index["file"]:
            stale.unlink(missing_ok=True)


def load(folder: str | Path) -> tuple[dict[str, Tensor], str | None, dict[str, Any]]:
    """Vectors, fingerprint and history of what `save` wrote; see `Direction.load` for its errors."""
    path = Path(folder) / "direction.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no direction in {folder}: {path.name} is missing.")
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not complete JSON.") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by Direction.save.")
    if index.get("version") != VERSION:
        raise ValueError(f"{path} has version {index.get('version')!r}; this release reads {VERSION}.")
    name = index.get("file")
    if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file():
        raise ValueError(f"{path} names {name!r}, and there is no such file beside it.")
    content = (path.parent / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != index.get("sha256"):
        raise ValueError(f"{path.parent / name} does not match its checksum: it is incomplete or changed.")
    try:
        vectors = safetensors.torch.load(content)
        return {site: vectors[site] for site in index["sites"]}, index["fingerprint"], dict(index["how"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe the vectors beside it: {error}") from None
