"""Gemma Scope 2: JumpReLU dictionaries of Gemma 3, in safetensors files.

    {resid_post|attn_out|mlp_out|transcoder}[_all]/layer_{N}_width_{W}_l0_{size}[_affine]/params.safetensors
        w_enc (d_in F)   w_dec (F d_out)   b_enc   b_dec   threshold   affine_skip_connection (d_in d_out)
    clt/width_{W}_l0_{size}[_affine]/params_layer_{N}.safetensors
        w_dec (F layers d_out), of which a feature of layer N writes to layer N and those after

Beside params.safetensors there may be a config.json that names modules; without it, the folders say the same.
Transcoders read what the norm before the MLP returns, with its gain.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath

from ..activations import JumpReLU
from ..coders import SparseCoder
from ..units import Units
from . import cross_layers
from .contents import Contents
from .cross_layers import Layers, complete
from .found import Found
from .source import Source
from .tensors import setting
from .trail import innermost, trail

WEIGHTS, CONFIG = "params.safetensors", "config.json"
_MLP_IN = "model.layers.{}.pre_feedforward_layernorm.output"
_MLP_OUT = "model.layers.{}.post_feedforward_layernorm.output"
_PLACES = {  # what is written, what is read if that is another place
    "resid_post": ("model.layers.{}.output", None),
    "attn_out": ("model.layers.{}.self_attn.o_proj.input", None),
    "mlp_out": (_MLP_OUT, None),
    "transcoder": (_MLP_OUT, _MLP_IN),
}
_LAYER = re.compile(r"(?:.*/)?params_layer_(\d+)\.safetensors")


def find(source: Source) -> list[Found]:
    """The dictionaries in all folders of the format; a cross-layer transcoder is one for each layer.

    Raises ValueError if there are crosscoders and nothing else: they read several layers at once.
    """
    files = [file for file in source.files if PurePosixPath(file).name == WEIGHTS]
    if not files and len(source.files) == 1 and (file := source.files[0]).endswith(".safetensors"):
        alone = not _LAYER.fullmatch(file) and source.shapes(file).keys() >= {"w_enc", "w_dec"}
        files = [file] if alone else []
    joint = [file for file in files if innermost("^crosscoder", trail(source, file))]
    found = [_found(source, file) for file in files if file not in joint]
    layers: dict[str, dict[int, str]] = defaultdict(dict)
    for file in source.files:
        if match := _LAYER.fullmatch(file):
            layers[str(PurePosixPath(file).parent)][int(match[1])] = file
    for folder, paths in layers.items():
        inside = "" if folder == "." else folder
        order = complete(paths, f"{source.name}/{inside}")
        found += cross_layer(source, [(source, paths[layer]) for layer in order], inside)
    if joint and not found:
        raise ValueError(
            f"{source.name} holds crosscoders, whose features are of several layers at once; "
            "autoencoders, transcoders and cross-layer transcoders are read."
        )
    return found


def _found(source: Source, file: str) -> Found:
    parts = trail(source, file)
    layer = innermost(r"layer_(\d+)", parts)
    kind = innermost(rf"^({'|'.join(_PLACES)})", parts)
    folder = source.within(file.removesuffix(WEIGHTS))
    writes = reads = None
    if layer and kind:
        writes, reads = (name and name.format(layer[1]) for name in _PLACES[kind[1]])
    elif CONFIG in folder.files:
        here, there = (folder.json(CONFIG).get(f"hf_hook_point_{end}") for end in ("in", "out"))
        writes, reads = there or here, here if there not in (None, here) else None
    label = "" if source.files == [file] else folder.name.removeprefix(source.name).strip("/")
    return Found(label, partial(read, source, file), writes, reads)


def read(source: Source, file: str) -> SparseCoder:
    """The autoencoder or transcoder in one file. Raises ValueError for another activation than JumpReLU."""
    held = Contents.of(source, file)
    beside = file.removesuffix(PurePosixPath(file).name) + CONFIG
    config = source.json(beside) if beside in source.files else {}
    if (architecture := config.get("architecture", "jump_relu")) != "jump_relu":
        raise held.error(f"{CONFIG} says {architecture!r}, but the format is of jump_relu dictionaries alone")
    skip = held.maybe("affine_skip_connection")
    if setting(config, "affine_connection", bool) and skip is None:
        raise held.error("it lacks affine_skip_connection, which its config.json promises")
    told = ("model_name", "hf_hook_point_in", "hf_hook_point_out", "width", "l0")
    return held.coder(
        W_enc=held.take("w_enc"),
        b_enc=held.take("b_enc"),
        W_dec=held.take("w_dec"),
        b_dec=held.take("b_dec"),
        W_skip=skip,
        activation=JumpReLU(held.take("threshold").clamp(min=0)),
        units=Units(threshold="stored"),
        meta={"format": "gemma scope 2", **{key: config[key] for key in told if key in config}},
    )


def cross_layer(source: Source, files: Sequence[tuple[Source, str]], label: str = "") -> list[Found]:
    """The cross-layer transcoder in these files, one for each layer in order."""

    def layers() -> Layers:
        held = Layers()
        for layer, (place, file) in enumerate(files):
            _add(held, layer, len(files), Contents.of(place, file))
        return held

    reads, writes = ([name.format(layer) for layer in range(len(files))] for name in (_MLP_IN, _MLP_OUT))
    where = f"{source.name}/{label}".rstrip("/")
    return cross_layers.found(layers, writes, reads, kind="gemma scope 2", where=where, label=label)


def _add(layers: Layers, layer: int, n_layers: int, held: Contents) -> None:
    W_dec = held.take("w_dec")
    if W_dec.ndim != 3 or W_dec.shape[1] != n_layers:
        raise held.error(
            f"w_dec has shape {tuple(W_dec.shape)}; with {n_layers} layers it must be (F, {n_layers}, d_out)"
        )
    layers.add(
        W_enc=held.take("w_enc"),
        b_enc=held.take("b_enc"),
        W_dec=W_dec[:, layer:],
        b_dec=held.take("b_dec"),
        activation=JumpReLU(held.take("threshold").clamp(min=0)),
        W_skip=held.maybe("affine_skip_connection"),
    )
    held.end()
