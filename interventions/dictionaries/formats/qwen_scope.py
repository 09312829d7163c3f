"""Qwen Scope: TopK dictionaries of the residual stream of Qwen, in torch files.

    SAE-Res-{model}-W{width}K-L0_{k}/layer{N}.sae.pt    W_enc (F d)   b_enc   W_dec (d F)   b_dec

The number of features per token, k, stands in the name of the repository alone; on disk, in that of a folder.
"""

from __future__ import annotations

import re
from functools import partial

from ..activations import TopK
from ..coders import SparseCoder
from .contents import Contents
from .found import Found
from .source import Source
from .trail import innermost, trail

_NAME = re.compile(r"(?:^|/)layer(\d+)\.sae\.pt$")


def find(source: Source) -> list[Found]:
    """The dictionaries in files called `layer{N}.sae.pt`."""
    return [
        Found(
            "" if source.files == [file] else file,
            partial(_read, source, file),
            f"blocks.{layer[1]}.hook_resid_post",
        )
        for file in source.files
        if (layer := _NAME.search(file))
    ]


def _read(source: Source, file: str) -> SparseCoder:
    held = Contents.of(source, file)
    k = innermost(r"L0_(\d+)", trail(source, file))
    if k is None:
        raise held.error(
            "neither the file nor a folder says how many features a token has. Keep it in a folder that is "
            "called as its repository, …-L0_50 for 50 of them"
        )
    return held.coder(
        W_enc=held.take("W_enc").T,
        b_enc=held.take("b_enc"),
        W_dec=held.take("W_dec").T,
        b_dec=held.take("b_dec"),
        activation=TopK(int(k[1])),
        meta={"format": "qwen scope"},
    )
