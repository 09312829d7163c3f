"""Gemma Scope: JumpReLU dictionaries of Gemma 2, in npz files (Lieberum et al. 2024, arXiv 2408.05147).

    layer_{N}/width_{W}/average_l0_{K}/params.npz    W_enc (d, F), b_enc, W_dec (F, d), b_dec, threshold

The input is not centred: that was folded into `b_enc` before release. What a file reads is said by the name
of its repository alone: `…-res`, `-mlp`, `-att` or `-transcoders`; on disk, by a folder of such a name.
"""

from __future__ import annotations

from functools import partial

import torch

from ..activations import JumpReLU
from ..coders import SparseCoder
from ..units import Units
from .contents import Contents
from .found import Found
from .source import Source
from .tensors import exact
from .trail import innermost, trail

_PLACES = {  # what is written, what is read if that is another place
    "res": ("blocks.{}.hook_resid_post", None),
    "mlp": ("model.layers.{}.post_feedforward_layernorm.output", None),
    "att": ("model.layers.{}.self_attn.o_proj.input", None),
    "transcoders": ("model.layers.{}.post_feedforward_layernorm.output", "blocks.{}.ln2.hook_normalized"),
}


def find(source: Source) -> list[Found]:
    """The dictionaries in all npz files."""
    return [_found(source, file) for file in source.files if file.endswith(".npz")]


def _found(source: Source, file: str) -> Found:
    parts = trail(source, file)
    embedding = "embedding" in parts
    layer = innermost(r"^layer_(\d+)$", parts)
    kind = innermost(r"(?:^|[-_])(res|mlp|att|transcoders)$", parts)
    writes = reads = None
    if embedding:
        writes = "hook_embed"
    elif layer and kind:
        writes, reads = (name and name.format(layer[1]) for name in _PLACES[kind[1]])
    label = "" if source.files == [file] else file.removesuffix("params.npz").rstrip("/")
    return Found(label, partial(read, source, file, embedding=embedding), writes, reads)


def read(source: Source, file: str, *, embedding: bool = False) -> SparseCoder:
    """The dictionary in one file.

    Those of the embedding were trained on rows of the embedding matrix; they are scaled to read these times
    `sqrt(d)`, which is what enters the first block.
    """
    held = Contents.of(source, file)
    threshold = held.take("threshold")
    if (factor := held.maybe("scaling_factor")) is not None and not torch.allclose(
        factor, torch.ones_like(factor)
    ):
        raise held.error("scaling_factor is not 1, and no release of this format has it otherwise")
    meta: dict[str, object] = {"format": "gemma scope"}
    if sparsity := innermost(r"^average_l0_(\d+)$", trail(source, file)):
        meta["average_l0"] = int(sparsity[1])
    coder = held.coder(
        W_enc=held.take("W_enc", "w_enc"),
        b_enc=held.take("b_enc"),
        W_dec=held.take("W_dec", "w_dec"),
        b_dec=held.take("b_dec"),
        activation=JumpReLU(threshold.clamp(min=0)),
        units=Units(threshold="stored"),
        meta=meta,
    )
    return coder.to(exact(coder.W_enc).dtype).scale_input(coder.d_in**-0.5) if embedding else coder
