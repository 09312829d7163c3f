"""Dictionaries in the layouts of other libraries, which read them as their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ...writing import write
from ..activations import AbsTopK, Activation, BatchTopK, GroupMax, JumpReLU, ReLU, TopK
from ..coders import SparseCoder
from ..normalisation import LayerNorm, RescaleNorm


def export_saelens(
    dictionaries: Mapping[str, SparseCoder],
    folder: str | Path,
    *,
    model_name: str,
    hooks: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes dictionaries as SAELens 6 does, each in a folder named after its site; gives those folders.

    `hooks` maps our sites to the hooks that are to be named in the files; without it, sites are named as in
    TransformerLens.

    Raises:
        ValueError: a dictionary that this layout cannot say, such as one of GroupMax.

    >>> import tempfile
    >>> sae = SparseCoder.random(8, 32, site="resid.3")
    >>> [path.name for path in export_saelens({"resid.3": sae}, tempfile.mkdtemp(), model_name="gpt2")]
    ['resid.3']
    """
    made = []
    for site, coder in dictionaries.items():
        cfg, tensors = _saelens(_checked(coder, str(site)), str(site))
        write_to, reads = (hooks or {}).get(str(site)) or lens(str(site)), coder.reads
        cfg["metadata"] = {"sae_lens_version": "6.0.0", "model_name": model_name}
        if cfg["architecture"].endswith("transcoder"):
            read_from = (hooks or {}).get(str(reads or site)) or lens(str(reads or site))
            cfg["metadata"] |= {"hook_name": read_from, "hook_name_out": write_to}
        else:
            cfg["metadata"] |= {"hook_name": write_to}
        if cfg["metadata"]["hook_name"].endswith("hook_z"):
            cfg["reshape_activations"] = "hook_z"
        made.append(_folder(Path(folder), str(site), "sae_weights.safetensors", cfg, tensors))
    return made


def export_sparsify(
    dictionaries: Mapping[str, SparseCoder], folder: str | Path, *, hooks: Mapping[str, str] | None = None
) -> list[Path]:
    """Writes dictionaries as sparsify does, each in a folder named after its place; gives those folders.

    `hooks` maps our sites to module paths relative to the base model, such as `layers.3.mlp`; without it, the
    folders are called after our sites.

    Raises:
        ValueError: a dictionary that this layout cannot say. It knows TopK and GroupMax, inputs that are not
            normalised, and one bias that is subtracted from the input and added to the output.
    """
    made = []
    for site, coder in dictionaries.items():
        coder = _checked(coder, str(site))
        activation, transcodes = coder.activation, coder.reads is not None
        if type(activation) not in (TopK, GroupMax):
            raise ValueError(f"{site}: sparsify knows TopK and GroupMax, not {activation}.")
        if coder.normalise is not None:
            raise ValueError(f"{site}: sparsify knows no normalised inputs, as {coder.normalise} gives.")
        if coder.d_in != coder.d_out:
            raise ValueError(
                f"{site}: sparsify reads and writes one width, not {coder.d_in} and {coder.d_out}."
            )
        # what sparsify subtracts itself: the decoder's bias, but for transcoders nothing
        subtracted = (0 if coder.b_pre is None else coder.b_pre) - (0 if transcodes else coder.b_dec)
        b_enc = coder.b_enc - subtracted @ coder.W_enc if isinstance(subtracted, Tensor) else coder.b_enc
        tensors = {
            "encoder.weight": coder.W_enc.T,
            "encoder.bias": b_enc,
            "W_dec": coder.W_dec,
            "b_dec": coder.b_dec,
        }
        if coder.W_skip is not None:
            tensors["W_skip"] = coder.W_skip.T
        cfg = {
            "activation": "groupmax" if isinstance(activation, GroupMax) else "topk",
            "expansion_factor": max(1, coder.n_features // coder.d_in),
            "normalize_decoder": coder.has_unit_decoder,
            "num_latents": coder.n_features,
            "k": activation.k,
            "multi_topk": False,
            "skip_connection": coder.W_skip is not None,
            "transcode": transcodes,
            "d_in": coder.d_in,
        }
        name = (hooks or {}).get(str(site), str(site))
        made.append(_folder(Path(folder), name, "sae.safetensors", cfg, tensors))
    return made


def lens(site: str) -> str:
    """The hook of TransformerLens with a site's tensor. Raises ValueError where there is none by that name.

    >>> lens("mlp.3"), lens("heads.0")
    ('blocks.3.hook_mlp_out', 'blocks.0.attn.hook_z')
    """
    stem, _, block = site.partition(".")
    hooks = {
        "resid": "hook_resid_post",
        "mlp": "hook_mlp_out",
        "attn": "hook_attn_out",
        "heads": "attn.hook_z",
        "mlp_in": "mlp.hook_in",
        "attn_in": "attn.hook_in",
    }
    if site == "embed":
        return "hook_embed"
    if stem not in hooks or not block.isdigit():
        raise ValueError(f"TransformerLens has no hook that is called after {site!r}: name one with hooks=.")
    return f"blocks.{block}.{hooks[stem]}"


def _saelens(coder: SparseCoder, site: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    transcodes = coder.reads is not None or coder.d_in != coder.d_out or coder.W_skip is not None
    activation = coder.activation
    architecture, extra = _architecture(activation, transcodes, coder.W_skip is not None, site)
    b_enc, apply = coder.b_enc, False
    if coder.b_pre is not None:
        apply = not transcodes and torch.equal(coder.b_pre, coder.b_dec)
        b_enc = b_enc if apply else b_enc - coder.b_pre @ coder.W_enc
    kinds = {type(None): "none", LayerNorm: "layer_norm", RescaleNorm: "constant_norm_rescale"}
    how = kinds.get(type(coder.normalise))
    if (
        how is None
        or (transcodes and how != "none")
        or coder.normalise not in (None, LayerNorm(), RescaleNorm())
    ):
        raise ValueError(f"{site}: SAELens has no word for {coder.normalise} here.")
    tensors = {"W_enc": coder.W_enc, "W_dec": coder.W_dec, "b_enc": b_enc, "b_dec": coder.b_dec}
    if coder.W_skip is not None:
        tensors["W_skip"] = coder.W_skip.T
    if isinstance(activation, JumpReLU | BatchTopK):
        tensors["threshold"] = activation.threshold.expand(coder.n_features)
    cfg: dict[str, Any] = {
        "d_in": coder.d_in,
        "d_sae": coder.n_features,
        "dtype": str(coder.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": apply,
        "normalize_activations": how,
        "reshape_activations": "none",
        "architecture": architecture,
        **extra,
    }
    return cfg | ({"d_out": coder.d_out} if transcodes else {}), tensors


def _architecture(
    activation: Activation, transcodes: bool, skips: bool, site: str
) -> tuple[str, dict[str, int]]:
    suffix = ("skip_transcoder" if skips else "transcoder") if transcodes else ""
    if isinstance(activation, JumpReLU | BatchTopK):
        return f"jumprelu_{suffix}".rstrip("_"), {}
    if isinstance(activation, ReLU):
        return suffix or "standard", {}
    if type(activation) in (TopK, AbsTopK) and not transcodes:
        return ("topk" if type(activation) is TopK else "abstopk"), {"k": activation.k}  # type: ignore[attr-defined]
    raise ValueError(
        f"{site}: SAELens has no {'transcoder' if transcodes else 'dictionary'} with {activation}."
    )


def _checked(coder: SparseCoder, site: str) -> SparseCoder:
    if not isinstance(coder, SparseCoder):
        raise ValueError(f"{site}: only a SparseCoder is exported, not a {type(coder).__name__}.")
    return coder


def _folder(root: Path, name: str, weights: str, cfg: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder = root / name
    if folder.resolve() == root.resolve() or not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{name!r} is not the name of a folder inside {root}.")
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    write(folder / weights, safetensors.torch.save(content))
    write(folder / "cfg.json", json.dumps(cfg, indent=2, allow_nan=False).encode())
    return folder
