"""ReLU dictionaries kept as two linear layers in a torch file: Goodfire's, and those for DeepSeek-R1-Distill.

    {model}-SAE-l{layer}.pth    encoder_linear.weight (F d), .bias    decoder_linear.weight (d F), .bias

They read the residual stream after the layer, and do not centre it. Some write `encoder.weight` and so on.
"""

from __future__ import annotations

import re
from functools import partial

from ..activations import ReLU
from ..coders import SparseCoder
from .contents import Contents
from .found import Found
from .source import TORCH, Source

_NAME = re.compile(r"(?:^|[-_/])l(\d+)\.(?:pt|pth)$", re.IGNORECASE)
_NAMES = ("encoder_linear", "encoder"), ("decoder_linear", "decoder")


def find(source: Source) -> list[Found]:
    """The dictionaries in torch files that end in the number of a layer, or in the only file there is."""
    files = [file for file in source.files if _NAME.search(file)]
    if not files and len(source.files) == 1 and source.files[0].endswith(TORCH):
        held = source.tensors(source.files[0])
        files = source.files if any(f"{name}.weight" in held for name in _NAMES[0]) else []
    return [_found(source, file) for file in files]


def _found(source: Source, file: str) -> Found:
    layer = _NAME.search(file)
    writes = f"blocks.{layer[1]}.hook_resid_post" if layer else None
    return Found("" if source.files == [file] else file, partial(_read, source, file), writes)


def _read(source: Source, file: str) -> SparseCoder:
    held = Contents.of(source, file)
    (weight, bias), (out, b_dec) = (
        [held.take(*(f"{name}.{part}" for name in names)) for part in ("weight", "bias")] for names in _NAMES
    )
    return held.coder(
        W_enc=weight.T,
        b_enc=bias,
        W_dec=out.T,
        b_dec=b_dec,
        activation=ReLU(),
        meta={"format": "linear layers"},
    )
