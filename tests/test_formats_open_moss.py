"""Llama Scope and later dictionaries of OpenMOSS, against the library's own steps, one after the other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from interventions.dictionaries import JumpReLU, SparseCoder, TopK, load
from interventions.dictionaries.normalisation import RescaleNorm

D, F = 6, 20
OLD = {
    "hook_point_in": "blocks.3.hook_resid_post",
    "hook_point_out": "blocks.3.hook_resid_post",
    "d_model": D,
    "d_sae": F,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.6,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 4.5, "out": 4.5},
    "sparsity_include_decoder_norm": True,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "top_k": 3,
}
TRANSCODER = {
    "hook_point_in": "blocks.3.ln2.hook_normalized",
    "hook_point_out": "blocks.3.hook_mlp_out",
    "dataset_average_activation_norm": {"in": 2.4, "out": 3.5},
}


def _tensors(f: int = F, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    tensors = {
        "encoder.weight": torch.randn(f, D),
        "encoder.bias": torch.randn(f) / 2,
        "decoder.weight": torch.randn(D, f) / 3,
        "decoder.bias": torch.randn(D),
    }
    return {name: t.to(dtype) for name, t in tensors.items()}


def _old(folder: Path, settings: dict, tensors: dict[str, Tensor]) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(settings))
    safetensors.torch.save_file(tensors, folder / "checkpoints/final.safetensors")
    return folder


def _new(folder: Path, settings: dict, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    safetensors.torch.save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def _released(settings: dict, t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """`standardize_parameters_of_dataset_norm`, `transform_to_unit_decoder_norm`, then the forward pass."""
    t = {name: tensor.float() for name, tensor in t.items()}
    norm = settings["dataset_average_activation_norm"]
    into, out = (math.sqrt(settings["d_model"]) / norm[end] for end in ("in", "out"))
    b_enc, b_dec = t["encoder.bias"] / into, t["decoder.bias"] / out
    W_enc, W_dec = t["encoder.weight"], t["decoder.weight"] * into / out
    if settings["sparsity_include_decoder_norm"]:
        norms = W_dec.norm(dim=0)
        W_dec, W_enc, b_enc = W_dec / norms, W_enc * norms[:, None], b_enc * norms
    if settings["apply_decoder_bias_to_pre_encoder"]:
        x = x - b_dec
    z = x @ W_enc.T + b_enc
    f = z.where(z > settings["jump_relu_threshold"], torch.tensor(0.0))
    return f, f @ W_dec.T + b_dec


def _one(path: Path) -> SparseCoder:
    ((_, coder),) = load(path).items()
    return coder


@pytest.mark.parametrize("width", [F, D], ids=["wide", "square"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sparsity_include_decoder_norm": False},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"act_fn": "topk"},
        TRANSCODER,
        TRANSCODER | {"sparsity_include_decoder_norm": False},
    ],
    ids=["plain", "sizes left out", "centred", "topk with a threshold", "transcoder", "transcoder, left out"],
)
def test_llama_scope_is_folded_as_the_library_folds_it(tmp_path, change, width):
    settings, tensors, x = OLD | change, _tensors(width), torch.randn(3, 7, D)
    coder = _one(_old(tmp_path, settings, tensors))
    f, y = _released(settings, tensors, x)
    assert 0 < (f != 0).float().mean() < 1
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
    assert isinstance(coder.activation, JumpReLU) and coder.activation.threshold.dtype == torch.float32
    assert (coder.units.latents, coder.units.threshold) == ("raw", "stored")
    assert coder.has_unit_decoder == settings["sparsity_include_decoder_norm"]


def test_half_precision_files_are_folded_in_full_precision(tmp_path):
    tensors, x = _tensors(dtype=torch.bfloat16), torch.randn(7, D)
    coder = _one(_old(tmp_path, OLD, tensors))
    f, y = _released(OLD, tensors, x)
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5


def test_places_are_those_of_the_settings(tmp_path):
    _old(tmp_path / "Llama3_1-8B-Base-L3R-8x", OLD, _tensors())
    _old(tmp_path / "Llama3_1-8B-Base-L3TC-8x", OLD | TRANSCODER, _tensors())
    dictionaries = load(tmp_path)
    assert set(dictionaries) == {"resid.3", "mlp.3"}
    assert dictionaries["resid.3"].reads is None
    assert dictionaries["mlp.3"].reads == "mlp_in.3" and dictionaries["mlp.3"].meta["before_gain"]


def test_topk_without_a_threshold_selects_features_by_what_they_write(tmp_path):
    settings, t, x = OLD | {"act_fn": "topk", "jump_relu_threshold": 0}, _tensors(), torch.randn(9, D)
    coder = _one(_old(tmp_path, settings, t))
    s = math.sqrt(D) / 4.5
    z = (x * s) @ t["encoder.weight"].T + t["encoder.bias"]
    norms = t["decoder.weight"].norm(dim=0)
    best = (z.relu() * norms).topk(3, dim=-1).indices
    f = torch.zeros_like(z).scatter(-1, best, z.relu().gather(-1, best))
    y = (f @ t["decoder.weight"].T + t["decoder.bias"]) / s
    assert isinstance(coder.activation, TopK)
    assert (coder(x) - y).abs().max() < 1e-5
    assert (coder.encode(x) - f * norms / s).abs().max() < 1e-5


LATER = {
    "sae_type": "sae",
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
    "d_model": D,
    "expansion_factor": 4,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "top_k": 3,
}


def _later(f: int = F, hook: str = LATER["hook_point_in"]) -> dict[str, Tensor]:
    return _tensors(f) | {
        "log_jumprelu_threshold": torch.rand(f) - 1.5,
        f"dataset_average_activation_norm.{hook}": torch.tensor(4.5),
    }


def _trained(t: dict[str, Tensor], x: Tensor, into: float, out: float, sized: bool) -> tuple[Tensor, Tensor]:
    """`encode` and `decode` of the library on the scaled input, and the output scaled back."""
    norms = t["decoder.weight"].norm(dim=0) if sized else 1.0
    z = ((x * into) @ t["encoder.weight"].T + t["encoder.bias"]) * norms
    f = z * (z > t["log_jumprelu_threshold"].exp()) / norms
    return f, (f @ t["decoder.weight"].T + t["decoder.bias"]) / out


@pytest.mark.parametrize("width", [F, D], ids=["wide", "square"])
@pytest.mark.parametrize("sized", [True, False])
def test_later_thresholds_are_of_the_scaled_input(tmp_path, sized, width):
    tensors, x, s = _later(width), torch.randn(3, 7, D), math.sqrt(D) / 4.5
    coder = _one(_new(tmp_path, LATER | {"sparsity_include_decoder_norm": sized}, tensors))
    f, y = _trained(tensors, x, s, s, sized)
    assert 0 < (f != 0).float().mean() < 1
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
    assert (coder.units.latents, coder.units.input_scale) == ("normalised", pytest.approx(s))
    assert coder.site == "resid.15" and coder.activation.threshold.dtype == torch.float32


def test_the_newest_names_are_of_matrices_that_are_not_transposed(tmp_path):
    later, x, s = _later(D), torch.randn(7, D), math.sqrt(D) / 4.5
    names = {"encoder.bias": "b_E", "decoder.bias": "b_D"}
    tensors = {names.get(name, name): t for name, t in later.items() if "weight" not in name}
    tensors |= {
        "W_E": later["encoder.weight"].T.contiguous(),
        "W_D": later["decoder.weight"].T.contiguous(),
        "activation_function.log_jumprelu_threshold": tensors.pop("log_jumprelu_threshold"),
    }
    f, y = _trained(later, x, s, s, True)
    coder = _one(_new(tmp_path, LATER, tensors))
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5


def test_later_transcoders_have_two_scales(tmp_path):
    hooks = {"hook_point_in": "blocks.15.hook_resid_mid", "hook_point_out": "blocks.15.hook_mlp_out"}
    tensors = _later(hook=hooks["hook_point_in"])
    tensors[f"dataset_average_activation_norm.{hooks['hook_point_out']}"] = torch.tensor(9.0)
    x, into, out = torch.randn(7, D), math.sqrt(D) / 4.5, math.sqrt(D) / 9.0
    coder = _one(_new(tmp_path, LATER | hooks, tensors))
    f, y = _trained(tensors, x, into, out, True)
    assert (coder.encode(x) - f).abs().max() < 1e-5 and (coder(x) - y).abs().max() < 1e-5
    assert coder.site == "mlp.15"


def test_dictionaries_that_normalise_each_token_do_so_here(tmp_path):
    tensors, x = _later(), torch.randn(7, D)
    tensors[f"dataset_average_activation_norm.{LATER['hook_point_in']}"].fill_(torch.nan)
    coder = _one(_new(tmp_path, LATER | {"norm_activation": "token-wise"}, tensors))
    scale = math.sqrt(D) / x.norm(dim=-1, keepdim=True)
    f, y = _trained(tensors, x * scale, 1.0, 1.0, True)
    assert isinstance(coder.normalise, RescaleNorm)
    assert (coder.normalised(x, coder.encode(x)) - f).abs().max() < 1e-5
    assert (coder(x) - y / scale).abs().max() < 1e-5


def test_what_is_not_understood_is_refused(tmp_path):
    def refused(match: str, settings: dict, tensors: dict[str, Tensor] | None = None) -> None:
        with pytest.raises(ValueError, match=match):
            load(_new(tmp_path / "x", LATER | settings, _later() if tensors is None else tensors))

    refused("sae_type is 'lorsa', which is not read", {"sae_type": "lorsa"})
    refused("use_glu_encoder is True", {"use_glu_encoder": True})
    refused("norm_activation is 'batch-wise'", {"norm_activation": "batch-wise"})
    refused("act_fn is 'batchtopk'; known are jumprelu, topk and relu", {"act_fn": "batchtopk"})
    short = {name: t for name, t in _later().items() if "average" not in name}
    refused(r"dataset_average_activation_norm, by which its input was scaled, is \[None, None\]", {}, short)
    refused("lacks encoder.bias or b_E", {}, {n: t for n, t in _later().items() if n != "encoder.bias"})
    refused("it has head, which is none of", {}, _later() | {"head": torch.zeros(2)})
    refused("not finite", {}, _later() | {"decoder.bias": torch.full((D,), torch.inf)})
    refused("the settings beside it ask for", {"d_model": D + 1})
    refused("d_model is '6', which is not a whole number", {"d_model": "6"})
    refused("jump_relu_threshold is '3', which is not a number", {"jump_relu_threshold": "3"})
    refused("use_decoder_bias is 'no', which is not true or false", {"use_decoder_bias": "no"})
    refused("b_enc has shape", {}, _later() | {"encoder.bias": torch.zeros(F - 1)})


def test_a_truncated_file_is_named(tmp_path):
    file = _old(tmp_path, OLD, _tensors()) / "checkpoints/final.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"final\.safetensors cannot be read"):
        load(tmp_path)


@pytest.mark.oracle
def test_llama_scope_agrees_with_sae_lens_where_decoder_rows_are_of_unit_norm(tmp_path, monkeypatch):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens.saes.sae import SAE

    tensors = _tensors()
    tensors["decoder.weight"] = tensors["decoder.weight"] / tensors["decoder.weight"].norm(dim=0)
    folder = _old(tmp_path / "Llama3_1-8B-Base-L3R-8x", OLD, tensors)
    where = {"final.safetensors": folder / "checkpoints/final.safetensors"}
    monkeypatch.setattr(
        loaders,
        "hf_hub_download",
        lambda *args, **settings: str(where.get(settings.get("filename"), folder / "hyperparams.json")),
    )
    config, state, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/repo", folder.name, "cpu", cfg_overrides={"dtype": "float32"}
    )
    config = loaders.handle_config_defaulting(loaders.handle_pre_6_0_config(config))
    theirs = SAE.get_sae_class_for_architecture(config["architecture"]).from_dict(config)
    theirs.load_state_dict(state)
    s = math.sqrt(D) / 4.5
    theirs.fold_activation_norm_scaling_factor(s)
    ours, x = load(folder)["resid.3"], torch.randn(9, D)
    assert (ours.encode(x) * s - theirs.encode(x)).abs().max() < 1e-5  # theirs keeps the units of s x
    assert (ours(x) - theirs(x)).abs().max() < 1e-5
