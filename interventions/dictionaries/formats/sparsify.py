"""EleutherAI's sparsify: a folder with cfg.json and sae.safetensors, in a folder for each place of a run.

    encoder.weight (feature d_in)   encoder.bias   W_dec (feature d_out)   b_dec   W_skip (d_out d_in)

The folder is called after the module whose output is read, `layers.10.mlp`, with the seed below it where
there were several. A transcoder predicts the module's output from its input. Optimizer states are never
opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..activations import AbsTopK, Activation, GroupMax, TopK
from ..coders import SparseCoder
from .found import Found
from .names import OURS
from .source import Source
from .tensors import known, needed, setting, shaped
from .trail import trail

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_SETTINGS = {
    "activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk",
    "skip_connection", "transcode", "d_in", "signed",
}  # fmt: skip
_TENSORS = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"]


def find(source: Source) -> list[Found]:
    """The dictionaries in every folder with both files, at the places that the folders are called after."""
    found = []
    for folder in source.folders(WEIGHTS):
        inside = source.within(folder)
        if CONFIG not in inside.files:
            continue
        writes, reads = _places(trail(inside, WEIGHTS)[:-1])
        transcodes = reads is not None and setting(inside.json(CONFIG), "transcode", bool)
        found.append(Found(folder, partial(_read, inside), writes, reads if transcodes else None))
    return found


def _places(folders: Sequence[str]) -> tuple[str | None, str | None]:
    """What leaves and what enters the module that the innermost folder is called after, or our site.

    None for a name that is no module's.
    """
    last = next((name for name in reversed(folders) if not re.fullmatch(r"seed\d+|best", name)), "")
    if site := re.fullmatch(r"(attn|mlp|mixer)\.(\d+)", last):  # as `export_sparsify` calls it without hooks
        return last, f"{site[1]}_in.{site[2]}"
    if OURS.fullmatch(last):
        return last, None
    module = re.fullmatch(r"(?:[A-Za-z_]\w*\.)*(?:layers?|h|blocks)\.\d+(?:\.\w+)*|embed\w*|wte", last)
    return (f"{last}.output", f"{last}.input") if module else (None, None)


def _read(source: Source) -> SparseCoder:
    cfg = source.json(CONFIG)
    try:
        known(cfg, _SETTINGS, "settings")
        tensors = source.tensors(WEIGHTS)
        names = [*_TENSORS, *(["W_skip"] if setting(cfg, "skip_connection", bool) else [])]
        needed(tensors, names)
        known(tensors, names, "tensors")
        width, d_in = cfg.get("num_latents") or cfg["d_in"] * cfg["expansion_factor"], cfg["d_in"]
        shapes = {"encoder.weight": (width, d_in), "encoder.bias": (width,), "W_dec": (width, d_in)}
        shaped(tensors, shapes | {"b_dec": (d_in,), "W_skip": (d_in, d_in)})
        return SparseCoder(
            W_enc=tensors["encoder.weight"].T,
            b_enc=tensors["encoder.bias"],
            W_dec=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            b_pre=None if setting(cfg, "transcode", bool) else tensors["b_dec"],
            W_skip=tensors["W_skip"].T if "W_skip" in tensors else None,
            activation=_activation(cfg),
            meta={"format": "sparsify"}
            | {key: cfg[key] for key in ("multi_topk", "transcode") if key in cfg},
        )
    except KeyError as error:
        raise ValueError(f"{source.name}/{CONFIG} cannot be read: it lacks {error}.") from error
    except ValueError as error:
        raise ValueError(f"{source.name} cannot be read: {error}") from error


def _activation(cfg: dict[str, Any]) -> Activation:
    kinds: dict[str, type[TopK]] = {"topk": TopK, "groupmax": GroupMax}
    activation = setting(cfg, "activation", str, "topk")
    if activation not in kinds:
        raise ValueError(f"unknown activation {activation!r}; {' and '.join(kinds)} are known")
    if setting(cfg, "signed", bool):  # of early versions: the largest by magnitude, negative ones too
        if activation != "topk":
            raise ValueError(f"activation {activation!r} cannot be signed")
        return AbsTopK(cfg["k"])
    return kinds[activation](cfg["k"])
