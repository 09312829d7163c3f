"""Dictionaries of GPT-2 small by OpenAI (Gao et al. 2024, arXiv 2406.04093), in torch files.

    {location}[_v5_32k|_v5_128k]/autoencoders/{layer}.pt
        pre_bias (d)   latent_bias (F)   encoder.weight (F d)   decoder.weight (d F)   activation   ...

Those with TopK see each token after a layer norm, which is undone behind the decoder; the ReLU ones of the
first release see it as it is. `pre_bias` is subtracted before the encoder and added behind the decoder.
"""

from __future__ import annotations

import re
from functools import partial

from ..activations import Activation, ReLU, TopK
from ..coders import SparseCoder
from ..normalisation import LayerNorm
from .contents import Contents
from .found import Found
from .source import TORCH, Source
from .trail import trail

_HOOKS = {
    "resid_delta_attn": "blocks.{}.hook_attn_out",
    "resid_post_attn": "blocks.{}.hook_resid_mid",
    "resid_delta_mlp": "blocks.{}.hook_mlp_out",
    "resid_post_mlp": "blocks.{}.hook_resid_post",
    "mlp_post_act": "h.{}.mlp.c_proj.input",
}
_LOCATION = re.compile(rf"^({'|'.join(_HOOKS)})(?:_v\d+\w*)?$")
_NAME = re.compile(r"/autoencoders/\d+\.pt$")
_STATISTICS = ("stats_last_nonzero", "latents_*", "activation.k", "activation.postact_fn")


def find(source: Source) -> list[Found]:
    """The dictionaries in torch files called `autoencoders/{layer}.pt`, or in the only file there is."""
    files = [file for file in source.files if _NAME.search("/".join(trail(source, file)))]
    if len(source.files) == 1 and source.files[0].endswith(TORCH):
        files = source.files if "pre_bias" in source.tensors(source.files[0]) else []
    return [_found(source, file) for file in files]


def _found(source: Source, file: str) -> Found:
    parts = trail(source, file)
    location = next((match[1] for part in reversed(parts) if (match := _LOCATION.match(part))), None)
    layer = re.match(r"(\d+)\.", parts[-1])
    writes = _HOOKS[location].format(layer[1]) if location and layer else None
    return Found("" if source.files == [file] else file, partial(_read, source, file), writes)


def _read(source: Source, file: str) -> SparseCoder:
    held = Contents.of(source, file)
    held.drop(*_STATISTICS)
    kind, settings = held.entries.pop("activation", "ReLU"), held.entries.pop("activation_state_dict", {})
    bias = held.take("pre_bias")
    return held.coder(
        W_enc=held.take("encoder.weight").T,
        b_enc=held.take("latent_bias"),
        W_dec=held.take("decoder.weight").T,
        b_dec=bias,
        b_pre=bias,
        activation=_activation(held, kind, settings),
        normalise=LayerNorm() if kind == "TopK" else None,
        meta={"format": "openai"},
    )


def _activation(held: Contents, kind: object, settings: dict[str, object]) -> Activation:
    if kind == "ReLU":
        return ReLU()
    if kind != "TopK":
        raise held.error(f"its activation is {kind!r}; known are TopK and ReLU")
    if (after := settings.get("postact_fn", "ReLU")) != "ReLU":
        raise held.error(f"its TopK is followed by {after!r}, not by a ReLU")
    k = settings.get("k")
    if not isinstance(k, int):
        raise held.error(f"its activation_state_dict says k = {k!r}, which is no number of features")
    return TopK(k)
