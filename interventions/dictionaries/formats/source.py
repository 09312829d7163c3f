"""Where published dictionaries lie: a file, a folder, or a part of a repository on the Hugging Face hub.

Files of numbers are opened in ways that cannot run code: safetensors, npz without objects, and torch's own
files without anything but tensors and plain values. Of a repository only the files asked for are downloaded;
they are cached as everything from the hub is.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

ZIPPED = (".npz",)
TORCH = (".pt", ".pth", ".ckpt")
_MOST = 20_000  # files under one folder; more than any set of dictionaries has


class Place(Protocol):
    """A tree of files, some of which may be elsewhere until they are asked for."""

    @property
    def name(self) -> str: ...

    def listed(self) -> list[str]: ...

    def local(self, file: str) -> Path: ...


@dataclass(frozen=True)
class Disk:
    """A file or a folder on this disk."""

    root: Path

    @property
    def name(self) -> str:
        return str(self.root)

    def listed(self) -> list[str]:
        return self._files

    @cached_property
    def _files(self) -> list[str]:
        if self.root.is_file():
            return [self.root.name]
        found: list[str] = []
        for folder, inner, files in os.walk(self.root):  # which passes over what may not be read
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            paths = (Path(folder, name) for name in files if not name.startswith("."))
            found += [path.relative_to(self.root).as_posix() for path in paths if path.is_file()]
            if len(found) > _MOST:
                raise ValueError(
                    f"{self.name} holds more than {_MOST:,} files: pass the folder in which dictionaries are."
                )
        return sorted(found)

    def local(self, file: str) -> Path:
        return self.root if self.root.is_file() else self.root / file


@dataclass(frozen=True)
class Source:
    """A place, or a folder of it, and the files in there by their paths relative to that.

    Every failure to read a file is a ValueError that names it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "a").mkdir()
    >>> _ = (folder / "a" / "cfg.json").write_text('{"k": 3}')
    >>> source = Source.at(folder)
    >>> source.files
    ['a/cfg.json']
    >>> source.within("a").json("cfg.json")
    {'k': 3}
    """

    place: Place
    folder: str = ""

    @classmethod
    def at(cls, where: str | Path) -> Source:
        """A path on this disk, or `owner/repo`, `owner/repo@revision`, `owner/repo/sub/folder` on the hub.

        Raises FileNotFoundError where there is nothing, and ValueError where a repository cannot be reached.
        """
        if not str(where).strip():
            raise FileNotFoundError(f"There is nothing at {str(where)!r}: pass a path or a repository.")
        path = Path(where).expanduser()
        try:
            if path.exists():
                return cls(Disk(path))
        except OSError as error:
            raise FileNotFoundError(f"There is nothing at {str(where)[:80]!r}: {error.strerror}.") from error
        if isinstance(where, Path) or path.is_absolute() or str(where).startswith((".", "~")):
            raise FileNotFoundError(f"There is nothing at {str(where)!r}.")
        from .hub import repository

        place, folder = repository(str(where))
        return cls(place, folder).settled()

    @property
    def name(self) -> str:
        """For messages: what to pass to come here again."""
        return f"{self.place.name}/{self.folder}" if self.folder else self.place.name

    @cached_property
    def files(self) -> list[str]:
        """Paths of the files, sorted; of a single file its name."""
        listed = self.place.listed()
        if self.folder in listed:
            return [PurePosixPath(self.folder).name]
        prefix = f"{self.folder}/" if self.folder else ""
        return sorted(file.removeprefix(prefix) for file in listed if file.startswith(prefix))

    def settled(self) -> Source:
        """The same, once it is known that there is a file. Raises FileNotFoundError where there is none."""
        if not self.files:
            raise FileNotFoundError(f"There is nothing at {self.name!r}.")
        return self

    def within(self, folder: str) -> Source:
        """The part in a folder of this one."""
        inner = _joined(self.folder, _checked(folder, self.name))
        return Source(self.place, inner)

    def folders(self, file: str) -> list[str]:
        """The folders, this one among them as "", that hold a file of that name."""
        paths = [PurePosixPath(path) for path in self.files]
        return [
            "" if path.parent.name == "" else path.parent.as_posix() for path in paths if path.name == file
        ]

    def path(self, file: str) -> Path:
        """Where a file lies on this disk, downloaded if need be. Raises ValueError where there is none."""
        if _checked(file, self.name) not in self.files:
            raise ValueError(f"{self._file(file)} cannot be read: there is no such file.")
        if self.files == [PurePosixPath(self.folder).name] and self.folder in self.place.listed():
            return self.place.local(self.folder)
        return self.place.local(_joined(self.folder, file))

    def json(self, file: str) -> dict[str, Any]:
        """A JSON object."""
        return self._mapping(file, json.loads)

    def yaml(self, file: str) -> dict[str, Any]:
        """A YAML mapping of plain values."""
        import yaml

        return self._mapping(file, yaml.safe_load)

    def shapes(self, file: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors in a .safetensors file, without reading them."""
        from safetensors import safe_open

        with self._reading(file), safe_open(self.path(file), framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118

    def tensors(self, file: str) -> dict[str, Any]:
        """The tensors of a .safetensors, .npz or torch file, by name.

        A torch file may hold plain values and nested dicts of tensors too. Raises ValueError where a file
        is incomplete, or holds what could run code.
        """
        path, suffix = self.path(file), PurePosixPath(file).suffix
        with self._reading(file):
            if suffix == ".safetensors":
                return _safetensors(path)
            if suffix in ZIPPED:
                return _npz(path)
            if suffix in TORCH:
                return _torch(path)
        raise ValueError(f"{self._file(file)}: no tensors are read from files that end in {suffix!r}.")

    def _mapping(self, file: str, parse: Callable[[str], Any]) -> dict[str, Any]:
        path = self.path(file)
        with self._reading(file):
            content = parse(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{self._file(file)} holds a {type(content).__name__}, not names with values.")
        return content

    def _file(self, file: str) -> str:
        return self.name if self.name.endswith(f"/{file}") else f"{self.name}/{file}"

    def _reading(self, file: str) -> _Reading:
        return _Reading(self._file(file))


@dataclass(frozen=True)
class _Reading:
    """Turns whatever goes wrong in reading a file into one kind of error that names it."""

    file: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if "pickle" in type(error).__module__ or "weights_only" in str(error) or "allow_pickle" in str(error):
            why = "it holds more than tensors and plain values. Objects are not read: they could run code"
        else:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{self.file} cannot be read: {why}.") from error


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _npz(path: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    with np.load(path, allow_pickle=False) as opened:
        return {key: torch.from_numpy(opened[key]) for key in opened.files}


def _torch(path: Path) -> dict[str, Any]:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not tensors with names")
    return content


def _joined(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder and file else folder or file


def _checked(file: str, name: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file:
        raise ValueError(f"{file!r} leads out of {name}; only what lies inside it is read.")
    return "" if file in ("", ".") else path.as_posix()
