"""A folder from which an interrupted training goes on.

    training.json                      settings; the step; where the text, the pool and the log are; the files
    training-500-pool.safetensors      the pool's generator, its centres, its order
    training-500-0.safetensors         all that the first dictionary's learner carries; -1 the second's, ...
    training-held-3-0.safetensors      what the pool holds at its first site since it was filled a third time

New files have new names, and are there before the index that names them takes the place of the old one; what
that one named goes after it. What the pool holds is written once for each filling. The index has a sum over
each file and over itself, so that no damaged one is gone on from.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..writing import write
from .pool import Pool
from .trainee import Trainee

FORMAT, VERSION = "interventions.training", 1
_INDEX = "training.json"
_OURS = re.compile(r"training-(\d+|held-\d+)-(\d+|pool)\.safetensors")
_UNDONE = re.compile(rf"\.({_OURS.pattern}|training\.json)\.[0-9a-f]+")  # a process was ended while it wrote


class Checkpoint:
    """What a training has done so far.

    Raises:
        ValueError: the folder holds a training with other settings, which are named, or a damaged one.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._index: dict[str, Any] | None = None
        self._sums: dict[str, int] = {}  # of the files that are written or named
        path = self.folder / _INDEX
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        try:
            index = json.loads(path.read_bytes())
            before = index["settings"]
            current = (index["format"], index["version"]) == (FORMAT, VERSION)
            if current and index.pop("sum") != _sum(index):
                raise ValueError("it has changed since it was written")
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: remove {self.folder} to train anew.") from None
        if not current:
            raise ValueError(f"{path} is not a checkpoint that this release can read.")
        if differ := _differences(before, self.settings):
            raise ValueError(
                f"{self.folder} is the checkpoint of another training, which differs in {'; '.join(differ)}. "
                "Give another folder, or remove this one."
            )
        self._index, self._sums = index, dict(index["sums"])

    @property
    def step(self) -> int:
        """Steps done."""
        return self._index["step"] if self._index else 0

    @property
    def log(self) -> int | None:
        """Bytes of the log when this was saved."""
        return self._index["log"] if self._index else None

    def pool(self) -> dict[str, Any] | None:
        """The state of the pool, if there is one."""
        if self._index is None:
            return None
        files = self._index["files"]
        contents = {site: self._read(name)["held"] for site, name in files["held"].items()}
        return {**self._index["pool"], **self._read(files["pool"]), "contents": contents}

    def restore(self, learners: Mapping[str, Trainee]) -> None:
        """Puts back what the learners carry."""
        for name, file in self._index["files"]["learners"].items() if self._index else ():
            learners[name].restore(self._read(file))

    def save(self, step: int, pool: Pool, learners: Mapping[str, Trainee], *, log: int | None) -> None:
        """Takes the place of what was saved before; if writing fails, that is still there."""
        files: dict[str, Any] = {"learners": {}, "held": {}}
        for i, (name, learner) in enumerate(learners.items()):
            files["learners"][name] = self._write(f"training-{step}-{i}", learner.tensors())
        progress = pool.progress()
        tensors = {key: value for key, value in progress.items() if isinstance(value, Tensor)}
        files["pool"] = self._write(f"training-{step}-pool", tensors)
        for i, site in enumerate(pool.stream.sites):
            name = f"training-held-{pool.stream.fills}-{i}"
            held = self._index["files"]["held"].get(site.name) if self._index else None
            if held != f"{name}.safetensors":
                held = self._write(name, {"held": pool.stream.content(site)})
            files["held"][site.name] = held
        named = {files["pool"], *files["learners"].values(), *files["held"].values()}
        self._sums = {name: self._sums[name] for name in named}
        self._index = {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "step": step,
            "pool": {key: value for key, value in progress.items() if key not in tensors},
            "log": log,
            "files": files,
            "sums": self._sums,
        }
        index = {**self._index, "sum": _sum(self._index)}
        write(self.folder / _INDEX, json.dumps(index, indent=1).encode())
        self._sweep(named)

    def remove(self) -> None:
        """Removes what was saved, and the folder if nothing else is in it."""
        (self.folder / _INDEX).unlink(missing_ok=True)
        self._sweep(set())
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _sweep(self, kept: set[str]) -> None:
        for path in self.folder.iterdir():
            ours = _OURS.fullmatch(path.name) or _UNDONE.fullmatch(path.name)
            if ours and path.name not in kept:
                path.unlink(missing_ok=True)

    def _write(self, stem: str, tensors: Mapping[str, Tensor]) -> str:
        name = f"{stem}.safetensors"
        detached = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        content = safetensors.torch.save(detached)
        self._sums[name] = zlib.crc32(content)
        write(self.folder / name, content)
        return name

    def _read(self, name: str) -> dict[str, Tensor]:
        path = self.folder / name
        try:
            if not _OURS.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of such a file")
            content = path.read_bytes()
            if zlib.crc32(content) != self._sums[name]:
                raise ValueError("it has changed since it was written")
            return safetensors.torch.load(content)
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove {self.folder} to train anew.") from None


def _sum(index: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Names of the settings that differ, each with what it was and what it is."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for key in {**before, **now}
            for found in _differences(before.get(key), now.get(key), f"{name} {key}".strip())
        ]
    return [] if before == now else [f"{name} ({before!r}, not {now!r})"]
