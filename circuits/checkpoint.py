"""A folder in which long work is kept, batch by batch, so that it can go on after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.writing import write

from .effects import Effects, SiteEffects
from .files import read_json, writable, write_tensors
from .wiring import Edges


class Checkpoint:
    """What a run of `find` has done so far.

    Raises:
        ValueError: the folder belongs to a run with other settings; those that differ are named.
        PermissionError: it cannot be written to.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = writable(folder)
        settings = json.loads(json.dumps(settings))
        path = self.folder / "settings.json"
        if path.exists():
            before = read_json(path)
            differ = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
            if differ:
                raise ValueError(
                    f"{self.folder} is the checkpoint of another run, which differs in {', '.join(differ)}. "
                    "Give another folder, or remove this one."
                )
        else:
            write(path, json.dumps(settings, indent=1).encode())

    def save_effects(self, number: int, effects: Effects) -> None:
        tensors = {
            f"{site} {name}": tensor
            for site, nodes in effects.items()
            for name, tensor in nodes.tensors().items()
        }
        tensors["clean"] = effects.clean
        if effects.patch is not None:
            tensors["patch"] = effects.patch
        features = {site: str(nodes.n_features) for site, nodes in effects.items()}
        write_tensors(self._effects(number), tensors, features)

    def effects(self, number: int) -> Effects | None:
        """The effects of a batch, if they were saved."""
        path = self._effects(number)
        if not path.exists():
            return None
        tensors, features = _read(path)
        clean, patch = tensors.pop("clean"), tensors.pop("patch", None)
        parts: dict[str, dict[str, Tensor]] = {site: {} for site in features}
        for key, tensor in tensors.items():
            site, name = key.split(" ")
            parts[site][name] = tensor
        sites = {site: SiteEffects(**p, n_features=int(features[site])) for site, p in parts.items()}
        return Effects(sites, clean, patch)

    def save_edges(self, part: int, edges: Edges, *, kept: str, batches: int) -> None:
        about = {"kept": kept, "batches": str(batches), "examples": str(edges.examples)}
        write_tensors(self._edges(part), edges.tensors(), about)

    def restore_edges(self, part: int, edges: Edges, *, kept: str) -> int:
        """Puts back what was summed up of a part; the number of batches that it holds."""
        path = self._edges(part)
        if not path.exists():
            return 0
        tensors, about = _read(path)
        if about["kept"] != kept:
            return 0
        edges.restore(tensors, int(about["examples"]))
        return int(about["batches"])

    def _effects(self, number: int) -> Path:
        return self.folder / f"effects-{number:05d}.safetensors"

    def _edges(self, part: int) -> Path:
        return self.folder / f"edges-{part:05d}.safetensors"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of tensors by name."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it, and it will be made again.") from None
