"""Sets of transcoders for circuit-tracer (Hanna et al. 2025).

    config.yaml             model_kind, feature_input_hook, feature_output_hook, transcoders (one per layer)
    layer_{N}.safetensors   W_enc (F d)   W_dec (F d)   b_enc   b_dec   W_skip (d_out d_in)
                            activation_function.threshold, without which the activation is ReLU
    W_enc_{N}.safetensors   W_enc_{N} (F d)   b_enc_{N}   b_dec_{N}   threshold_{N}     of a cross-layer
    W_dec_{N}.safetensors   W_dec_{N} (F, layers from N on, d)                          transcoder

Entries of `transcoders` may lie in other repositories, `hf://owner/repo/path?revision=…`, and be of Gemma
Scope. The skip path of a cross-layer transcoder, where there is one, is not transposed: `y += x W_skip`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..activations import Activation, JumpReLU, ReLU, TopK
from ..coders import SparseCoder
from ..units import Units
from . import cross_layers, gemma_scope, gemma_scope_2
from .contents import Contents
from .cross_layers import Layers, complete
from .found import Found
from .source import Source
from .tensors import setting

CONFIG = "config.yaml"
_RUN = ("wandb-config.yaml", "wanb-config.yaml")  # beside these, transcoders read the MLP's input
_LAYER = re.compile(r"layer_(\d+)\.safetensors")
_CROSS = re.compile(r"W_(enc|dec)_(\d+)\.safetensors")
_TENSORS = {"W_enc", "W_dec", "b_enc", "b_dec"}


@dataclass(frozen=True)
class Hooks:
    """What the files of a set say of where its transcoders read and write, and of their activation."""

    reads: str | None = None
    writes: str | None = None
    activation: str | None = None
    k: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Hooks:
        reads, writes = (setting(config, f"feature_{end}_hook", str) for end in ("input", "output"))
        return cls(reads, writes, setting(config, "activation", str), setting(config, "k", int))

    def at(self, layer: int | str) -> tuple[str | None, str | None]:
        """The hooks that a layer writes and reads."""
        both = (self.writes, self.reads)
        return (None, None) if None in both else (f"blocks.{layer}.{both[0]}", f"blocks.{layer}.{both[1]}")


def find(source: Source) -> list[Found]:
    """The transcoders of every set, and those in files without a set around them."""
    found = []
    covered: list[str] = []
    for folder in source.folders(CONFIG):
        inside = source.within(folder)
        config = inside.yaml(CONFIG)
        if "model_kind" in config:
            found += _set(inside, config, folder)
            covered.append(f"{folder}/" if folder else "")
    paths = [PurePosixPath(file) for file in source.files]
    folders = {path.parent for path in paths if _LAYER.fullmatch(path.name) or _CROSS.fullmatch(path.name)}
    for folder in sorted("" if path.name == "" else path.as_posix() for path in folders):
        if not any(f"{folder}/".startswith(top) for top in covered):
            inside = source.within(folder)
            found += _cross_layer(inside, Hooks(), folder) or _loose(inside, folder)
    return found or _alone(source)


def _set(source: Source, config: Mapping[str, Any], label: str) -> list[Found]:
    kind, hooks = config["model_kind"], Hooks.of(config)
    entries = config.get("transcoders")
    if entries is not None and not (isinstance(entries, list) and all(isinstance(e, str) for e in entries)):
        raise ValueError(f"{source.name}/{CONFIG} cannot be read: transcoders is no list of paths.")
    if kind == "cross_layer_transcoder" and entries is not None:
        return gemma_scope_2.cross_layer(source, [_elsewhere(source, entry) for entry in entries], label)
    if kind == "cross_layer_transcoder":
        return _cross_layer(source, hooks, label)
    if kind != "transcoder_set":
        raise ValueError(
            f"{source.name}/{CONFIG} cannot be read: model_kind is {kind!r}; known are transcoder_set and "
            "cross_layer_transcoder."
        )
    if entries is None:
        return _loose(source, label, hooks)
    return [
        Found(_joined(label, entry), partial(_entry, source, entry, hooks), *hooks.at(layer))
        for layer, entry in enumerate(entries)
        if _checked(source, entry)
    ]


def _loose(source: Source, label: str, hooks: Hooks | None = None) -> list[Found]:
    """Transcoders in files of a folder that are called after layers."""
    if hooks is None:
        known = any(file in source.files for file in _RUN)
        hooks = Hooks("mlp.hook_in", "hook_mlp_out") if known else Hooks()
    files = {file: match[1] for file in source.files if (match := _LAYER.fullmatch(file))}
    return [
        Found(_joined(label, file), partial(read, source, file, hooks), *hooks.at(layer))
        for file, layer in files.items()
    ]


def _alone(source: Source) -> list[Found]:
    """The transcoder in the only file there is, which does not say where it belongs."""
    if len(source.files) != 1 or not (file := source.files[0]).endswith(".safetensors"):
        return []
    return [Found("", partial(read, source, file), None)] if source.shapes(file).keys() >= _TENSORS else []


def _entry(source: Source, entry: str, hooks: Hooks) -> SparseCoder:
    place, file = _elsewhere(source, entry)
    if file.endswith(".npz"):
        return gemma_scope.read(place, file)
    if place.path(file) and "w_enc" in place.shapes(file):
        return gemma_scope_2.read(place, file)
    return read(place, file, hooks)


def _checked(source: Source, entry: str) -> bool:
    path = urlsplit(entry).path if entry.startswith("hf://") else entry
    parts = PurePosixPath(path).parts
    if ".." in parts or "\\" in entry or (not entry.startswith("hf://") and path.startswith(("/", "~"))):
        raise ValueError(
            f"{source.name}/{CONFIG} cannot be read: its entry {entry!r} leads out of the set. "
            "Entries are paths inside it, or hf://owner/repo/path."
        )
    return True


def _elsewhere(source: Source, entry: str) -> tuple[Source, str]:
    """The source and the file that an entry of the set stands for."""
    _checked(source, entry)
    if not entry.startswith("hf://"):
        return source, entry
    url = urlsplit(entry)
    repo, _, path = url.path.lstrip("/").partition("/")
    if not (url.netloc and repo and path):
        raise ValueError(f"{source.name}/{CONFIG}: {entry!r} is not of the form hf://owner/repo/path.")
    revision = parse_qs(url.query).get("revision", [""])[0]
    at = f"{url.netloc}/{repo}" + (f"@{revision}" if revision else "")
    return Source.at(f"{at}/{path}"), PurePosixPath(path).name


def read(source: Source, file: str, hooks: Hooks | None = None) -> SparseCoder:
    """The transcoder of one layer."""
    hooks = hooks or Hooks()
    held = Contents.of(source, file)
    skip = held.maybe("W_skip")
    threshold = held.maybe("activation_function.threshold", "threshold")
    jump = None if threshold is None else JumpReLU(threshold.flatten())
    return held.coder(
        W_enc=held.take("W_enc").T,
        b_enc=held.take("b_enc"),
        W_dec=held.take("W_dec"),
        b_dec=held.take("b_dec"),
        W_skip=None if skip is None else skip.T,
        activation=_activation(held, hooks, jump),
        units=Units(threshold="none" if threshold is None else "stored"),
        meta={"format": "circuit-tracer"},
    )


def _activation(held: Contents, hooks: Hooks, jump: JumpReLU | None) -> Activation:
    kind = (hooks.activation or "").lower().replace("_", "")
    if kind not in ("", "relu", "jumprelu", "topk"):
        raise held.error(f"{CONFIG} says activation {hooks.activation!r}; known are relu, jump_relu and topk")
    if kind == "topk":
        if not isinstance(hooks.k, int):
            raise held.error(f"{CONFIG} says activation topk and k {hooks.k!r}")
        return TopK(hooks.k)
    if kind == "jumprelu" and jump is None:
        raise held.error(f"{CONFIG} says activation {hooks.activation!r}, but there is no threshold")
    return jump or ReLU()


def _cross_layer(source: Source, hooks: Hooks, label: str) -> list[Found]:
    """One dictionary for each layer; without a config, places are those that the library assumes."""
    layers = {"enc": set[int](), "dec": set[int]()}
    for file in source.files:
        if match := _CROSS.fullmatch(file):
            layers[match[1]].add(int(match[2]))
    if not layers["enc"]:
        return []
    order = complete(dict.fromkeys(layers["enc"]), source.name)
    if layers["dec"] != layers["enc"]:
        odd = ", ".join(map(str, sorted(layers["enc"] ^ layers["dec"])))
        raise ValueError(f"{source.name} cannot be read: of layers {odd} there is only W_enc or only W_dec.")
    places = [
        f"blocks.{{}}.{hook}" for hook in (hooks.writes or "hook_mlp_out", hooks.reads or "hook_resid_mid")
    ]
    writes, reads = ([place.format(layer) for layer in order] for place in places)
    read = partial(_layers, source, len(order))
    return cross_layers.found(read, writes, reads, kind="circuit-tracer", where=source.name, label=label)


def _layers(source: Source, n_layers: int) -> Layers:
    layers = Layers()
    for i in range(n_layers):
        encoder, decoder = (Contents.of(source, f"W_{part}_{i}.safetensors") for part in ("enc", "dec"))
        threshold = encoder.maybe(f"threshold_{i}")
        layers.add(
            W_enc=encoder.take(f"W_enc_{i}").T,
            b_enc=encoder.take(f"b_enc_{i}"),
            W_dec=decoder.take(f"W_dec_{i}"),
            b_dec=encoder.take(f"b_dec_{i}"),
            activation=ReLU() if threshold is None else JumpReLU(threshold.flatten()),
            W_skip=encoder.maybe(f"W_skip_{i}"),
        )
        encoder.end()
        decoder.end()
    return layers


def _joined(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file
