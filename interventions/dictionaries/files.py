"""Dictionaries on disk: a folder with one safetensors file for each, and an index that vouches for them.

    index.json                        format, version, a checksum of itself; for each site: file, sha256,
                                      activation, the site read, meta
    resid.3-1f0c9a41d2b7.safetensors  W_enc, b_enc, W_dec, b_dec; W_skip, b_pre, threshold where they exist

File names carry a part of their checksum. Saving into a folder in use therefore never touches the files that
its index names: the new index takes the place of the old one in a single step, at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..writing import write
from .activations import KINDS, Activation
from .coders import SparseCoder

FORMAT = "interventions.dictionaries"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_WEIGHTS = {"W_enc", "b_enc", "W_dec", "b_dec"}


def save(
    dictionaries: Mapping[str, SparseCoder], folder: str | Path, *, dtype: torch.dtype | None = None
) -> None:
    """Writes dictionaries, keyed by the name of the site that they write, into a folder.

    `dtype` is that of the stored weights (`torch.float16` halves the files; thresholds stay as they are).
    What the folder held before is replaced once everything is written; if writing fails, it is still there.

    Raises:
        ValueError: weights that are not finite in that dtype, a `meta` that is not JSON, or a dictionary
            under another name than its site's.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in folder.glob("*.safetensors")}
    written: list[Path] = []
    entries = {}
    try:
        for name, coder in dictionaries.items():
            if not isinstance(coder, SparseCoder):
                raise TypeError(f"Only a SparseCoder is saved; at {name} there is a {type(coder).__name__}.")
            if coder.site not in (None, str(name)):
                raise ValueError(f"The dictionary under {str(name)!r} belongs to the site {coder.site!r}.")
            path, sha256 = _write(_tensors(coder, dtype, str(name)), folder, str(name))
            if path.name not in before:
                written.append(path)
            entries[str(name)] = {
                "file": path.name,
                "sha256": sha256,
                "activation": {"kind": type(coder.activation).__name__, **coder._settings()},
                "reads": coder.reads,
                "meta": coder.meta,
            }
        index = {"format": FORMAT, "version": VERSION, "dictionaries": entries}
        try:
            text = json.dumps({**index, "sha256": _checksum(index)}, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"meta must be plain JSON without NaN or infinities: {error}") from None
        write(folder / "index.json", text.encode())
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for stale in before - {entry["file"] for entry in entries.values()}:
        if re.search(r"-[0-9a-f]{12}\.safetensors$", stale):  # ours, from an earlier save
            (folder / stale).unlink(missing_ok=True)


def load(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> dict[str, SparseCoder]:
    """The dictionaries in a folder that `save` wrote, keyed by site.

    Weights are cast to `dtype`; None leaves them as stored.

    Raises:
        ValueError: a file that is missing, incomplete, changed since, of another version, or not finite.
    """
    folder = Path(folder)
    index = _index(folder / "index.json")
    return {name: _read(folder, name, entry, device, dtype) for name, entry in index.items()}


def _tensors(coder: SparseCoder, dtype: torch.dtype | None, name: str) -> dict[str, Tensor]:
    tensors = {}
    for key, tensor in coder.state_dict().items():
        threshold = key.startswith("activation.")
        tensor = tensor.detach().to("cpu", None if threshold else dtype).contiguous()
        if not tensor.isfinite().all():
            raise ValueError(f"{key} of the dictionary at {name} is not finite as {tensor.dtype}.")
        tensors[key.removeprefix("activation.")] = tensor
    return tensors


def _write(tensors: dict[str, Tensor], folder: Path, name: str) -> tuple[Path, str]:
    content = safetensors.torch.save(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip("._-") or "site"
    path = folder / f"{stem[:80]}-{sha256[:12]}.safetensors"
    write(path, content)
    return path, sha256


def _checksum(index: Mapping[str, Any]) -> str:
    body = {key: value for key, value in index.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _index(path: Path) -> dict[str, dict[str, Any]]:
    try:
        index = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"No dictionaries: {path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not complete JSON.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of dictionaries written by `save`.")
    if index.get("version") != VERSION:
        raise ValueError(f"{path} has version {index.get('version')!r}; this release reads {VERSION}.")
    try:
        intact = index.get("sha256") == _checksum(index)
    except ValueError:
        intact = False
    if not intact:
        raise ValueError(f"{path} does not match its own checksum: it was changed after it was saved.")
    entries = index.get("dictionaries")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{path} does not list dictionaries by site.")
    return entries


def _read(
    folder: Path,
    name: str,
    entry: Mapping[str, Any],
    device: str | torch.device | None,
    dtype: torch.dtype | None,
) -> SparseCoder:
    file = entry.get("file")
    if not isinstance(file, str) or not _NAME.fullmatch(file):
        raise ValueError(
            f"{folder / 'index.json'}: {file!r} is not the name of a safetensors file beside it."
        )
    path = folder / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}, the dictionary at {name}, cannot be read ({error.strerror}).") from error
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise ValueError(f"{path} does not match its checksum: it is incomplete or was changed.")
    try:
        tensors = safetensors.torch.load(content)
        threshold = {key: tensors.pop(key) for key in ("threshold",) if key in tensors}
        activation = _activation(entry["activation"], threshold)
        if missing := _WEIGHTS - tensors.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        if extra := tensors.keys() - _WEIGHTS - {"W_skip", "b_pre"}:
            raise ValueError(f"it has unknown tensors {', '.join(sorted(extra))}")
        if infinite := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{', '.join(infinite)} is not finite")
        coder = SparseCoder(
            **tensors, activation=activation, site=name, reads=entry.get("reads"), meta=entry.get("meta")
        )
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not hold the dictionary that its index describes: {error}") from error
    return coder.to(device=device, dtype=dtype)


def _activation(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Activation:
    settings = dict(config)
    kind = settings.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown activation {kind!r}; this release knows {', '.join(KINDS)}")
    return KINDS[kind](**settings, **tensors)
