"""SAELens: a folder with cfg.json and sae_weights.safetensors (Bloom et al., versions 3 to 6).

    W_enc (d_in feature)   W_dec (feature d_out)   b_enc   b_dec   threshold, or log_threshold
    b_gate b_mag r_mag     of gated dictionaries, which have no b_enc
    W_skip (d_out d_in)    topk_threshold ()       of checkpoints of BatchTopK that is still being trained

Before version 6 the settings lie side by side in cfg.json, from then on those of the model under `metadata`.
What a run leaves unfolded, the scale of the input and decoder norms that features are compared by, is folded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..activations import AbsTopK, Activation, JumpReLU, ReLU, TopK
from ..coders import SparseCoder
from ..normalisation import LayerNorm, Normalise, RescaleNorm
from ..units import Units
from .found import Found
from .source import Source
from .tensors import exact, known, needed, setting, shaped

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
TRANSCODERS = {"transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"}
ARCHITECTURES = {
    "standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "matryoshka_batchtopk", *TRANSCODERS,
}  # fmt: skip
_SETTINGS = {
    "d_in", "d_sae", "d_out", "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
    "reshape_activations", "metadata", "architecture", "k", "rescale_acts_by_decoder_norm",
}  # fmt: skip
_TRAINING = {  # what checkpoints of a run tell of the run
    "decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps", "use_sparse_activations",
    "aux_loss_coefficient", "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode",
    "l0_coefficient", "l0_warm_up_steps", "pre_act_loss_coefficient", "jumprelu_tanh_scale",
    "jumprelu_ste_to_input", "target_l0", "topk_threshold_lr", "matryoshka_widths", "use_matryoshka_aux_loss",
}  # fmt: skip
_TOLD = (
    "model_name", "hook_name", "hook_name_out", "prepend_bos", "context_size", "dataset_path",
    "neuronpedia_id", "sae_lens_version", "seqpos_slice", "exclude_special_tokens",
    "model_from_pretrained_kwargs", "training_architecture",
)  # fmt: skip
_ABOUT = {*_TOLD, "sae_lens_training_version", "model_class_name", "hook_head_index", "hook_layer",
          "dataset_trust_remote_code"}  # fmt: skip


def find(source: Source) -> list[Found]:
    """The dictionaries in every folder with both files."""
    found = []
    for folder in source.folders(WEIGHTS):
        inside = source.within(folder)
        if CONFIG not in inside.files or "hook_point_in" in inside.json(CONFIG):
            continue
        cfg = _settings(inside)
        told = cfg["metadata"]
        here, there = (told.get(f"hf_{name}") or told.get(name) for name in ("hook_name", "hook_name_out"))
        if cfg["architecture"] in TRANSCODERS:
            found.append(Found(folder, partial(_read, inside), there, here))
        else:
            found.append(Found(folder, partial(_read, inside), here))
    return found


def _settings(source: Source) -> dict[str, Any]:
    try:
        return settings(source.json(CONFIG))
    except KeyError as error:
        raise ValueError(f"{source.name}/{CONFIG} cannot be read: it lacks {error}.") from error


def settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as version 6 has them. Raises KeyError where one is missing."""
    if "metadata" in raw:
        told = {key: value for key, value in raw.items() if key in _ABOUT}
        kept = {key: value for key, value in raw.items() if key not in _ABOUT}
        return kept | {
            "architecture": raw["architecture"],
            "metadata": told | setting(raw, "metadata", dict, {}),
        }
    named = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index",
             "activation_fn_str": "activation_fn"}  # fmt: skip
    cfg = {named.get(key, key): value for key, value in raw.items()}
    kwargs = setting(cfg, "activation_fn_kwargs", dict, {})
    if cfg.get("activation_fn") == "topk" or cfg.get("architecture") == "topk":
        cfg["architecture"], cfg["k"] = "topk", kwargs.get("k", cfg.get("k"))
    cfg["architecture"] = cfg.get("architecture") or "standard"
    norm = cfg.get("normalize_activations") or "none"
    cfg["normalize_activations"] = "expected_average_only_in" if norm is True else norm
    if cfg.get("expansion_factor"):
        cfg.setdefault("d_sae", cfg["d_in"] * cfg["expansion_factor"])
    if "hook_z" in str(cfg.get("hook_name")):
        cfg.setdefault("reshape_activations", "hook_z")
    kept = {key: value for key, value in cfg.items() if key in _SETTINGS}
    return kept | {"metadata": {key: value for key, value in cfg.items() if key not in _SETTINGS}}


def _read(source: Source) -> SparseCoder:
    cfg = _settings(source)
    architecture, told = cfg["architecture"], cfg["metadata"]
    try:
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture {architecture!r} is not one linear encoder and one decoder with an activation "
                f"between; known are {', '.join(sorted(ARCHITECTURES))}"
            )
        if told.get("hook_head_index") is not None:
            raise ValueError(
                f"it reads one head (hook_head_index {told['hook_head_index']}), and dictionaries read all "
                "that flows at a site"
            )
        if (activation := told.get("activation_fn") or "relu") not in ("relu", "topk"):
            raise ValueError(f"unknown activation {activation!r}; relu and topk are known")
        known(cfg, _SETTINGS | _TRAINING, "settings")
        return _coder(cfg, source.tensors(WEIGHTS), source)
    except KeyError as error:
        raise ValueError(f"{source.name}/{CONFIG} cannot be read: it lacks {error}.") from error
    except ValueError as error:
        raise ValueError(f"{source.name} cannot be read: {error}") from error


def _coder(cfg: dict[str, Any], tensors: dict[str, Tensor], source: Source) -> SparseCoder:
    architecture, told = cfg["architecture"], cfg["metadata"]
    d_in, width = cfg["d_in"], cfg.get("d_sae")
    d_out = cfg.get("d_out", d_in) if architecture in TRANSCODERS else d_in
    if setting(told, "model_from_pretrained_kwargs", dict, {}).get("center_writing_weights"):
        warnings.warn(
            f"{source.name} was trained on a model whose residual stream has its mean subtracted "
            "(center_writing_weights). Models are read here as they are: it sees a mean it was never shown.",
            stacklevel=2,
        )
    scaling = tensors.pop("scaling_factor", None)
    names = _names(architecture, tensors)
    needed(tensors, names)
    known(tensors, names, "tensors")
    width = tensors["W_enc"].shape[-1] if width is None else width
    vectors = dict.fromkeys(("b_enc", "b_gate", "b_mag", "r_mag", "threshold", "log_threshold"), (width,))
    shapes = {"W_enc": (d_in, width), "W_dec": (width, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    shaped(tensors, shapes | vectors)
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        if not setting(told, "finetuning_scaling_factor", bool):
            raise ValueError("it has a scaling_factor, and its settings do not say what that is for")
        tensors["W_dec"] = exact(tensors["W_dec"]) * exact(scaling)[:, None]
    normalise = _normalise(cfg, architecture)
    W_skip = tensors.pop("W_skip", None)
    if setting(cfg, "rescale_acts_by_decoder_norm", bool):
        _fold_norms(tensors)
    W_dec, b_dec = tensors.pop("W_dec"), tensors.pop("b_dec")
    before = architecture not in TRANSCODERS and setting(cfg, "apply_b_dec_to_input", bool, True)
    widths = cfg.get("matryoshka_widths") or setting(told, "training_architecture_details", dict, {}).get(
        "matryoshka_widths", ()
    )
    rest: dict[str, Any] = {
        "W_dec": W_dec,
        "b_dec": b_dec,
        "b_pre": b_dec if before else None,
        "W_skip": None if W_skip is None else W_skip.T,
        "normalise": normalise,
        "prefixes": [w for w in widths if w <= width],
        "meta": {"format": "saelens", "architecture": architecture}
        | {key: told[key] for key in _TOLD if told.get(key) is not None},
    }
    if architecture == "gated":
        gates = {name: exact(tensors[name]) for name in ("W_enc", "r_mag", "b_gate", "b_mag")}
        return _scaled(SparseCoder.gated(**gates, **rest, units=Units()), cfg, source)
    activation = _activation(architecture, cfg, tensors)
    units = Units(threshold="stored" if isinstance(activation, JumpReLU) else "none")
    coder = SparseCoder(
        W_enc=tensors["W_enc"], b_enc=tensors["b_enc"], activation=activation, units=units, **rest
    )
    return _scaled(coder, cfg, source)


def _names(architecture: str, tensors: Mapping[str, Tensor]) -> list[str]:
    names = ["W_enc", "W_dec", "b_dec"]
    names += ["b_gate", "b_mag", "r_mag"] if architecture == "gated" else ["b_enc"]
    if architecture.startswith("jumprelu"):
        names += ["log_threshold" if "log_threshold" in tensors else "threshold"]
    if architecture.endswith("batchtopk"):
        names += ["topk_threshold"]
    if architecture.endswith("skip_transcoder"):
        names += ["W_skip"]
    return names


def _activation(architecture: str, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Activation:
    if architecture == "topk":
        return TopK(cfg["k"])
    if architecture == "abstopk":
        return AbsTopK(cfg["k"])
    if "log_threshold" in tensors:
        return JumpReLU(exact(tensors["log_threshold"]).exp())
    if "threshold" in tensors:
        return JumpReLU(exact(tensors["threshold"]).clamp(min=0))  # a ReLU comes first
    if "topk_threshold" in tensors:
        return JumpReLU(tensors["topk_threshold"].float().clamp(min=0).expand(tensors["W_enc"].shape[-1]))
    return ReLU()


def _normalise(cfg: Mapping[str, Any], architecture: str) -> Normalise | None:
    how = setting(cfg, "normalize_activations", str, "none")
    if how in ("none", "expected_average_only_in"):
        return None
    kinds = {"layer_norm": LayerNorm, "constant_norm_rescale": RescaleNorm}
    if how not in kinds:
        raise ValueError(
            f"unknown normalize_activations {how!r}; none, expected_average_only_in, layer_norm and "
            "constant_norm_rescale are known"
        )
    if architecture in TRANSCODERS:
        raise ValueError(
            f"a transcoder with normalize_activations {how!r} predicts an output of no known scale"
        )
    return kinds[how]()


def _fold_norms(tensors: dict[str, Tensor]) -> None:
    """Features that are compared times their decoder norms, by unit rows."""
    rows = exact(tensors["W_dec"])
    norms = rows.norm(dim=-1)
    norms = torch.where(norms > 0, norms, 1.0)
    tensors |= {
        "W_enc": exact(tensors["W_enc"]) * norms,
        "b_enc": exact(tensors["b_enc"]) * norms,
        "W_dec": rows / norms[:, None],
        "b_dec": exact(tensors["b_dec"]),
    }


def _scaled(coder: SparseCoder, cfg: Mapping[str, Any], source: Source) -> SparseCoder:
    """The scale that a run multiplies its activations by, folded in where the weights do not have it yet."""
    if cfg.get("normalize_activations") != "expected_average_only_in":
        return coder
    scale = setting(source.json(SCALER), "scaling_factor", float) if SCALER in source.files else None
    if scale is not None:
        return coder.scale_input(float(scale))
    warnings.warn(
        f"{source.name} was trained on activations times a number s that brings their mean norm to "
        "sqrt(d_in), and its files do not say which. It reads s * x as it is; `scale_input(s)` folds s in.",
        stacklevel=2,
    )
    return coder
