"""Dictionaries on disk: a folder with one safetensors file for each, and an index that vouches for them.

    index.json                        format, version, a checksum of itself; for each site: file, sha256,
                                      activation, normalise, the site read, prefixes, units, meta, and the
                                      later sites written
    resid.3-1f0c9a41d2b7.safetensors  W_enc, b_enc, W_dec, b_dec; W_skip, b_pre, threshold where they exist;
                                      later.0, later.1, ... of a cross-layer transcoder

File names carry a part of their checksum. Saving into a folder in use therefore never touches the files that
its index names: the new index takes the place of the old one in a single step, at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..writing import write
from . import activations, normalisation
from .coders import SparseCoder
from .cross_layer import CrossLayer
from .units import Units

FORMAT = "interventions.dictionaries"
VERSION = 2
READ = (1, 2)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_WEIGHTS = {"W_enc", "b_enc", "W_dec", "b_dec"}


def save(dictionaries: Mapping[str, Any], folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes dictionaries, keyed by the name of the site that they write, into a folder.

    `dtype` is that of the stored weights (`torch.float16` halves the files; thresholds stay as they are).
    What the folder held before is replaced once everything is written; if writing fails, it is still there.

    Raises:
        ValueError: weights that are not finite in that dtype, a `meta` that is not JSON, or a dictionary
            under another name than its site's.
    """
    if not isinstance(dictionaries, Mapping):
        raise TypeError(f"Pass dictionaries as {{site: dictionary}}, not as {type(dictionaries).__name__}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in folder.glob("*.safetensors")}
    written: list[Path] = []
    entries = {}
    try:
        for name, given in dictionaries.items():
            later = dict(given.later) if isinstance(given, CrossLayer) else {}
            coder = given.own if isinstance(given, CrossLayer) else given
            if not isinstance(coder, SparseCoder):
                raise TypeError(f"Only a SparseCoder is saved; at {name} there is a {type(coder).__name__}.")
            if coder.site not in (None, str(name)):
                raise ValueError(f"The dictionary under {str(name)!r} belongs to the site {coder.site!r}.")
            tensors = _tensors(coder, dtype, str(name)) | {
                f"later.{i}": _finite(f"later.{i}", outlet.W_dec, dtype, str(name))
                for i, outlet in enumerate(later.values())
            }
            path, sha256 = _write(tensors, folder, str(name))
            if path.name not in before:
                written.append(path)
            entries[str(name)] = {
                "file": path.name,
                "sha256": sha256,
                "activation": {"kind": type(coder.activation).__name__, **coder._settings()},
                "normalise": _normalise(coder),
                "reads": coder.reads,
                "prefixes": list(coder.prefixes),
                "units": asdict(coder.units),
                "meta": coder.meta,
                **({"later": list(later)} if isinstance(given, CrossLayer) else {}),
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


def _tensors(coder: SparseCoder, dtype: torch.dtype | None, name: str) -> dict[str, Tensor]:
    tensors = {}
    for key, tensor in coder.state_dict().items():
        kept = None if key.startswith("activation.") else dtype  # thresholds are not rounded
        tensors[key.removeprefix("activation.")] = _finite(key, tensor, kept, name)
    return tensors


def _finite(key: str, tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    tensor = tensor.detach().to("cpu", dtype).contiguous()
    if not tensor.isfinite().all():
        raise ValueError(f"{key} of the dictionary at {name} is not finite as {tensor.dtype}.")
    return tensor


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


def index(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of an index that `save` wrote, by site.

    Raises ValueError for one that is incomplete, changed since, or of another version.
    """
    try:
        index = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"No dictionaries: {path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not complete JSON.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of dictionaries written by `save`.")
    if index.get("version") not in READ:
        raise ValueError(
            f"{path} has version {index.get('version')!r}; this release reads {' and '.join(map(str, READ))}."
        )
    try:
        intact = index.get("sha256") == _checksum(index)
    except ValueError:
        intact = False
    if not intact:
        raise ValueError(f"{path} does not match its own checksum: it was changed after it was saved.")
    entries = index.get("dictionaries")
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise ValueError(f"{path} does not list dictionaries by site.")
    for entry in entries.values():
        if not isinstance(entry.get("file"), str) or not _NAME.fullmatch(entry["file"]):
            raise ValueError(
                f"{path}: {entry.get('file')!r} is not the name of a safetensors file beside it."
            )
    return entries


def read(path: Path, name: str, entry: Mapping[str, Any]) -> SparseCoder | CrossLayer:
    """The dictionary in one file, as its entry describes it.

    Raises ValueError for a file that is missing, incomplete, changed since, or not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}, the dictionary at {name}, cannot be read ({error.strerror}).") from error
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise ValueError(f"{path} does not match its checksum: it is incomplete or was changed.")
    try:
        tensors = safetensors.torch.load(content)
        threshold = {key: tensors.pop(key) for key in ("threshold",) if key in tensors}
        activation = _made(entry["activation"], activations.KINDS, "activation", threshold)
        later = {site: tensors.pop(f"later.{i}") for i, site in enumerate(entry.get("later", ()))}
        if missing := _WEIGHTS - tensors.keys():
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        if extra := tensors.keys() - _WEIGHTS - {"W_skip", "b_pre"}:
            raise ValueError(f"it has unknown tensors {', '.join(sorted(extra))}")
        stored = tensors | {f"later.{i}": tensor for i, tensor in enumerate(later.values())}
        if infinite := [key for key, tensor in stored.items() if not tensor.isfinite().all()]:
            raise ValueError(f"{', '.join(infinite)} is not finite")
        normalise = entry.get("normalise")
        coder = SparseCoder(
            **tensors,
            activation=activation,
            normalise=normalise and _made(normalise, normalisation.KINDS, "normalisation", {}),
            site=name,
            reads=entry.get("reads"),
            prefixes=entry.get("prefixes", ()),
            units=Units(**entry.get("units", {})),
            meta=entry.get("meta"),
        )
        return CrossLayer(coder, later) if "later" in entry else coder
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not hold the dictionary that its index describes: {error}") from error


def _normalise(coder: SparseCoder) -> dict[str, Any] | None:
    how = coder.normalise
    return None if how is None else {"kind": type(how).__name__, **asdict(how)}  # type: ignore[call-overload]


def _made(
    config: Mapping[str, Any], kinds: Mapping[str, type], what: str, tensors: Mapping[str, Tensor]
) -> Any:
    settings = dict(config)
    kind = settings.pop("kind")
    if kind not in kinds:
        raise ValueError(f"unknown {what} {kind!r}; this release knows {', '.join(kinds)}")
    return kinds[kind](**settings, **tensors)
