"""Llama Scope (He et al. 2024, arXiv 2410.20526) and later dictionaries of OpenMOSS.

    hyperparams.json, checkpoints/final.safetensors    Llama Scope
    config.json, sae_weights.safetensors               later, with log_jumprelu_threshold

    encoder.weight (F d)   encoder.bias   decoder.weight (d F)   decoder.bias      later W_E W_D b_E b_D

Both were trained on `s x` with s = sqrt(d) / (mean norm of x), to write `t y`. Features compete, or pass
their thresholds, as large as what they write, if `sparsity_include_decoder_norm`. In Llama Scope, released
for inference, that is measured in units of the site; later thresholds are in those of the scaled input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from ..activations import Activation, JumpReLU, ReLU, TopK
from ..coders import SparseCoder
from ..normalisation import RescaleNorm
from ..units import Units
from .contents import Contents
from .found import Found
from .source import Source
from .tensors import exact, setting, shaped

_OLD = ("hyperparams.json", "checkpoints/final.safetensors")
_NEW = ("config.json", "sae_weights.safetensors")
_NORM = "dataset_average_activation_norm"


def find(source: Source) -> list[Found]:
    """The dictionaries in every folder with a file of settings that names `hook_point_in`, and weights."""
    found = []
    for config, weights in (_OLD, _NEW):
        for folder in source.folders(config):
            inside = source.within(folder)
            if weights not in inside.files or "hook_point_in" not in (settings := inside.json(config)):
                continue
            reads, writes = settings["hook_point_in"], settings.get("hook_point_out")
            writes = reads if writes is None else writes
            found.append(
                Found(
                    folder,
                    partial(_read, inside, weights, settings, old=config == _OLD[0]),
                    writes,
                    None if reads == writes else reads,
                )
            )
    return found


def _read(source: Source, weights: str, settings: Mapping[str, Any], *, old: bool) -> SparseCoder:
    held = Contents.of(source, weights)
    for name, plain in (("use_glu_encoder", False), ("sae_type", "sae")):
        if settings.get(name, plain) != plain:
            raise held.error(f"{name} is {settings[name]!r}, which is not read")
    s, t, normalise = _scales(held, settings)
    W_enc = held.take("W_E") if "W_E" in held else held.take("encoder.weight").T
    W_dec = held.take("W_D") if "W_D" in held else held.take("decoder.weight").T
    shaped({"W_enc": W_enc}, {"W_enc": (setting(settings, "d_model", int, len(W_enc)), W_enc.shape[-1])})
    biased = setting(settings, "use_decoder_bias", bool, True)
    b_dec = held.take("decoder.bias", "b_D") if biased else W_dec.new_zeros(W_dec.shape[-1])
    activation = _activation(held, settings, W_enc.shape[-1])
    coder = held.coder(
        W_enc=exact(W_enc),
        b_enc=exact(held.take("encoder.bias", "b_E")),
        W_dec=exact(W_dec),
        b_dec=exact(b_dec),
        b_pre=exact(b_dec) if setting(settings, "apply_decoder_bias_to_pre_encoder", bool) else None,
        activation=ReLU(),
        normalise=normalise,
        meta=_meta(settings),
    )
    if old and normalise is None:
        coder = coder.scale_input(s, t).scale_latents(1 / s)
    size = torch.ones(coder.n_features)
    if setting(settings, "sparsity_include_decoder_norm", bool):
        norms = coder.W_dec.norm(dim=-1)
        size = torch.where(norms > 0, norms, 1.0)
    coder = coder.scale_latents(size)._with(activation=activation)
    if not old:
        if not activation.selects:  # the library divides by the size again; where features compete, it stays
            coder = coder.scale_latents(1 / size)
        if normalise is None:
            coder = coder.scale_input(s, t)
    threshold = "stored" if isinstance(activation, JumpReLU) else "none"
    scaled = not old and normalise is None and (s, t) != (1.0, 1.0)
    coder.units = Units("normalised" if scaled else "raw", s if scaled else None, threshold)
    return coder


def _scales(held: Contents, settings: Mapping[str, Any]) -> tuple[float, float, RescaleNorm | None]:
    """What the input and the output were multiplied by in training, or how each token was normalised."""
    reads = settings["hook_point_in"]
    writes = settings.get("hook_point_out") or reads
    kind = settings.get("norm_activation", "inference")
    if kind != "dataset-wise":
        held.drop(f"{_NORM}.*")  # memory that nothing was written to
    stored = {hook: held.number(f"{_NORM}.{hook}") for hook in (reads, writes) if f"{_NORM}.{hook}" in held}
    if kind == "inference":
        return 1.0, 1.0, None
    if kind == "token-wise" and reads == writes:
        return 1.0, 1.0, RescaleNorm()
    if kind != "dataset-wise":
        raise held.error(f"norm_activation is {kind!r}, which is not read")
    told = setting(settings, _NORM, dict, {})
    ends = (("in", reads), ("out", writes))
    norms: list[Any] = [stored.get(hook, told.get(hook, told.get(end))) for end, hook in ends]
    if not all(isinstance(norm, int | float) and 0 < norm < math.inf for norm in norms):
        raise held.error(f"{_NORM}, by which its input was scaled, is {norms} (in, out)")
    if (d_model := setting(settings, "d_model", int)) is None or d_model < 1:
        raise held.error(f"d_model, by which its input was scaled, is {d_model}")
    root = math.sqrt(d_model)
    return root / norms[0], root / norms[1], None


def _activation(held: Contents, settings: Mapping[str, Any], n_features: int) -> Activation:
    kind = str(settings.get("act_fn", "")).lower()
    logarithm = held.maybe("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
    threshold = setting(settings, "jump_relu_threshold", float, 0.0)
    if kind == "jumprelu" or (
        kind == "topk" and threshold > 0
    ):  # of TopK with one, the library makes JumpReLU
        return JumpReLU(
            torch.full((n_features,), float(threshold)) if logarithm is None else exact(logarithm).exp()
        )
    if kind == "topk":
        return TopK(settings["top_k"])
    if kind == "relu":
        return ReLU()
    raise held.error(f"act_fn is {settings.get('act_fn')!r}; known are jumprelu, topk and relu")


def _meta(settings: Mapping[str, Any]) -> dict[str, Any]:
    told = ("act_fn", "top_k", "norm_activation", _NORM, "sparsity_include_decoder_norm")
    return {"format": "openmoss", **{key: settings[key] for key in told if key in settings}}
