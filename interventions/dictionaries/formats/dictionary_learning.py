"""The library dictionary_learning (Marks, Karvonen and Mueller): folders with ae.pt and config.json.

    AutoEncoder              bias (d)   encoder.weight (F d)   encoder.bias   decoder.weight (d F)
    AutoEncoderNew           encoder.weight, encoder.bias, decoder.weight, decoder.bias
    GatedAutoEncoder         decoder_bias   r_mag   gate_bias   mag_bias   encoder.weight   decoder.weight
    JumpReluAutoEncoder      W_enc (d F)   b_enc   W_dec (F d)   b_dec   threshold (F)
    AutoEncoderTopK, BatchTopKSAE      b_dec   k   threshold ()   encoder.weight, .bias   decoder.weight
    MatryoshkaBatchTopKSAE   W_enc   b_enc   W_dec   b_dec   k   threshold ()   group_sizes

TopK and BatchTopK have the same names: `dict_class` in config.json tells them apart. Where a run normalised
its input, that is folded into the biases before a file is written: features are in units of the site.
Dictionaries for Pythia-70m (Marks et al. 2024, arXiv 2403.19647) are of this format, without saying where
they belong but by their folders: `embed`, `attn_out_layer{N}`, `mlp_out_layer{N}`, `resid_out_layer{N}`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..activations import Activation, BatchTopK, BatchwiseTopK, JumpReLU, ReLU, TopK
from ..coders import SparseCoder
from ..units import Units
from .contents import Contents
from .found import Found
from .source import Source
from .tensors import exact, setting
from .trail import trail

WEIGHTS, CONFIG = "ae.pt", "config.json"
_HOOKS = {
    "resid_post": "hook_resid_post",
    "resid_out": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
}
_LINEAR = {"encoder.weight", "decoder.weight"}
_SPARSE = {"W_enc", "b_enc", "W_dec", "b_dec"}
_MARKS = {  # what only files of the class have, asked in this order
    "MatryoshkaBatchTopKSAE": _SPARSE | {"group_sizes"},
    "JumpReluAutoEncoder": _SPARSE | {"threshold"},
    "GatedAutoEncoder": _LINEAR | {"r_mag"},
    "AutoEncoder": _LINEAR | {"bias"},
    "AutoEncoderNew": _LINEAR | {"decoder.bias"},
}


def find(source: Source) -> list[Found]:
    """The dictionaries in every folder with an ae.pt."""
    return [_found(source.within(folder), folder) for folder in source.folders(WEIGHTS)]


def _found(source: Source, label: str) -> Found:
    trainer, _ = _config(source)
    return Found(label, partial(read, source), _place(source, trainer))


def _config(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    config = source.json(CONFIG) if CONFIG in source.files else {}
    return setting(config, "trainer", dict, {}), setting(config, "buffer", dict, {})


def _place(source: Source, trainer: dict[str, Any]) -> str | None:
    """The hook that the settings or else the folders name; the settings' is free text."""
    names = [trainer.get("submodule_name"), *reversed(trail(source, WEIGHTS))]
    for name in names:
        if not isinstance(name, str):
            continue
        if name == "embed":
            return "hook_embed"
        if match := re.search(r"blocks\.\d+\.(?:\w+\.)?hook_[a-z_]+?(?=__|$)", name):
            return match[0]
        if match := re.search(rf"({'|'.join(_HOOKS)})(?:_layer_?(\d+))?", name):
            layer = match[2] or setting(trainer, "layer", int)
            return None if layer is None else f"blocks.{layer}.{_HOOKS[match[1]]}"
    return None


def read(source: Source) -> SparseCoder:
    """The dictionary in a folder, as the library's own `from_pretrained` gives it.

    Raises ValueError for a class that is not known, or is told neither by the settings nor by the file.
    """
    trainer, buffer = _config(source)
    held = Contents.of(source, WEIGHTS)
    name = setting(trainer, "dict_class", str) or _class(held)
    if name not in _CLASSES:
        raise held.error(f"its dict_class is {name!r}; known are {', '.join(_CLASSES)}")
    told = {
        key: trainer.get(key) for key in ("lm_name", "layer", "submodule_name", "trainer_class", "wandb_name")
    }
    meta = {key: value for key, value in told.items() if value is not None}
    if "ctx_len" in buffer:
        meta["context_size"] = buffer["ctx_len"]
    return _CLASSES[name](held, {"format": "dictionary_learning", "dict_class": name, **meta})


def _class(held: Contents) -> str:
    for name, marks in _MARKS.items():
        if marks <= held.entries.keys():
            return name
    if "k" in held:
        raise held.error(
            "TopK and BatchTopK look the same in it, and there is no config.json that says which it is "
            "(trainer, dict_class). Pass the folder that has both"
        )
    raise held.error(f"its tensors {', '.join(sorted(held.entries))} are those of no class that is known")


def _relu(held: Contents, meta: dict[str, Any]) -> SparseCoder:
    """Decoder rows that are not of unit norm are brought to it, as the library does on loading."""
    bias = held.take("bias")
    coder = held.coder(**_linear(held), b_dec=bias, b_pre=bias, activation=ReLU(), meta=meta)
    norms = exact(coder.W_dec).norm(dim=-1)
    if torch.allclose(norms, torch.ones_like(norms)):
        return coder
    return coder.to(norms.dtype).scale_latents(torch.where(norms > 0, norms, 1.0))


def _new(held: Contents, meta: dict[str, Any]) -> SparseCoder:
    bias = held.take("decoder.bias")
    return held.coder(**_linear(held), b_dec=bias, activation=ReLU(), meta=meta)


def _gated(held: Contents, meta: dict[str, Any]) -> SparseCoder:
    bias = exact(held.take("decoder_bias"))
    return held.coder(  # in single precision: two of the tensors become a threshold
        SparseCoder.gated,
        W_enc=exact(held.take("encoder.weight")).T,
        r_mag=exact(held.take("r_mag")),
        b_gate=exact(held.take("gate_bias")),
        b_mag=exact(held.take("mag_bias")),
        W_dec=exact(held.take("decoder.weight")).T,
        b_dec=bias,
        b_pre=bias,
        meta=meta,
    )


def _jump(held: Contents, meta: dict[str, Any]) -> SparseCoder:
    activation = JumpReLU(held.take("threshold").clamp(min=0))
    units = Units(threshold="stored")
    return held.coder(**_direct(held), activation=activation, units=units, meta=meta)


def _topk(held: Contents, meta: dict[str, Any]) -> SparseCoder:
    """Per token. A threshold that may be stored is for monitoring: the library does not use it by default."""
    held.drop("threshold")
    bias = held.take("b_dec")
    activation = TopK(_k(held))
    return held.coder(**_linear(held), b_dec=bias, b_pre=bias, activation=activation, meta=meta)


def _batch(held: Contents, meta: dict[str, Any]) -> SparseCoder:
    activation, units = _threshold(held)
    bias = held.take("b_dec")
    return held.coder(**_linear(held), b_dec=bias, b_pre=bias, activation=activation, units=units, meta=meta)


def _matryoshka(held: Contents, meta: dict[str, Any]) -> SparseCoder:
    activation, units = _threshold(held)
    widths = held.take("group_sizes").cumsum(0).tolist()
    parts = _direct(held)
    if not widths or widths[-1] != parts["W_enc"].shape[-1]:
        raise held.error(f"its groups end at {widths}, but it has {parts['W_enc'].shape[-1]} features")
    return held.coder(
        **parts, b_pre=parts["b_dec"], activation=activation, prefixes=widths, units=units, meta=meta
    )


def _linear(held: Contents) -> dict[str, Any]:
    encoder, decoder = held.take("encoder.weight"), held.take("decoder.weight")
    return {"W_enc": encoder.T, "b_enc": held.take("encoder.bias"), "W_dec": decoder.T}


def _direct(held: Contents) -> dict[str, Any]:
    return {name: held.take(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}


def _k(held: Contents) -> int:
    k = held.number("k")
    if k is None or not float(k).is_integer():
        raise held.error(f"k, the number of features per token, is {'missing' if k is None else k}")
    return int(k)


def _threshold(held: Contents) -> tuple[Activation, Units]:
    """What BatchTopK does at inference: a stored threshold, or where it was never estimated, the batch's."""
    k, threshold = _k(held), held.number("threshold")
    if threshold is not None and threshold >= 0:
        return BatchTopK(k, threshold), Units(threshold="stored")
    warnings.warn(
        f"{held.file}: no threshold was estimated while this BatchTopK dictionary was trained. It keeps the "
        f"{k} largest features per token of a batch: a token's features depend on the others in the batch.",
        stacklevel=2,
    )
    return BatchwiseTopK(k), Units()


_CLASSES: dict[str, Callable[[Contents, dict[str, Any]], SparseCoder]] = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
