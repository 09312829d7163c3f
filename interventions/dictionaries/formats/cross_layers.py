"""Cross-layer transcoders, found as one dictionary for each layer that is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations import Activation
from ..cross_layer import CrossLayerTranscoder
from ..units import Units
from .found import Found
from .names import named


class Layers:
    """What is in the files of a cross-layer transcoder, layer after layer."""

    def __init__(self) -> None:
        self.encoders: list[tuple[Tensor, Tensor, Activation]] = []
        self.decoders: list[Tensor] = []
        self.b_dec: list[Tensor] = []
        self.W_skip: list[Tensor] = []

    def add(
        self,
        *,
        W_enc: Float[Tensor, "d_in feature"],
        b_enc: Float[Tensor, " feature"],
        W_dec: Float[Tensor, "feature onward d_out"],
        b_dec: Float[Tensor, " d_out"],
        activation: Activation,
        W_skip: Float[Tensor, "d_in d_out"] | None,
    ) -> None:
        """The next layer, whose features write to it and to those after it."""
        self.encoders.append((W_enc, b_enc, activation))
        self.decoders.append(W_dec)
        self.b_dec.append(b_dec)
        if W_skip is not None:
            self.W_skip.append(W_skip)


def found(
    read: Callable[[], Layers],
    writes: Sequence[str],
    reads: Sequence[str],
    *,
    kind: str,
    where: str,
    label: str = "",
) -> list[Found]:
    """One dictionary for each written hook. The files are read once, when the first of them is asked for."""

    @cache
    def dictionaries() -> Mapping[str, Any]:
        held = read()
        if len(held.W_skip) not in (0, len(held.decoders)):
            raise ValueError(f"{where} cannot be read: {len(held.W_skip)} of its layers have a skip path.")
        try:
            transcoder = CrossLayerTranscoder(
                encoders=held.encoders,
                decoders=held.decoders,
                b_dec=torch.stack(held.b_dec),
                W_skip=torch.stack(held.W_skip) if held.W_skip else None,
                reads=[named(hook).site for hook in reads],
                writes=[named(hook).site for hook in writes],
                meta={"format": kind},
            )
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
        layers = transcoder.layers()
        for layer in layers.values():
            stored = hasattr(layer.own.activation, "threshold")
            layer.own.units = Units(threshold="stored" if stored else "none")
        return layers

    def one(site: str) -> Any:
        return dictionaries()[site]

    return [
        Found(label, partial(one, named(there).site), there, here)
        for there, here in zip(writes, reads, strict=True)
    ]


def complete(layers: Mapping[int, Any], where: str) -> list[int]:
    """The numbers of the layers in order. Raises ValueError where one of them is missing."""
    if missing := sorted(set(range(max(layers) + 1)) - set(layers)):
        raise ValueError(
            f"{where} cannot be read: a cross-layer transcoder needs every layer up to {max(layers)}, and "
            f"{', '.join(map(str, missing))} is missing."
        )
    return sorted(layers)
