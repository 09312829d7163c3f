"""Cross-layer transcoders: features read at one layer that write at it and at every later one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from . import lookup
from .activations import Activation
from .coders import SparseCoder, SparseFeatures

Encoder = tuple[Tensor, Tensor, Activation]  # W_enc (d_in feature), b_enc (feature)


class Outlet(nn.Module):
    """What the features of one layer write at a later one: a linear map, without a bias."""

    def __init__(self, W_dec: Float[Tensor, "feature d_out"]):
        super().__init__()
        self.W_dec = nn.Parameter(W_dec.detach().contiguous(), requires_grad=False)

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        return linear(features.to(self.W_dec), self.W_dec.T).to(features.device)

    def decoder_rows(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_out"]:
        return self.W_dec[index.to(self.W_dec.device)].to(index.device)

    def readout(self, covector: Tensor, index: Tensor) -> Tensor:
        return lookup.readout(covector, self.W_dec, index)

    def projected(self, covector: Tensor, token: Tensor, index: Tensor) -> Tensor:
        return lookup.projected(covector, self.W_dec, token, index)

    def combined(self, token: Tensor, index: Tensor, weight: Tensor, n_tokens: int) -> Tensor:
        return lookup.combined(self.W_dec, token, index, weight, n_tokens)


class CrossLayer(nn.Module):
    """One layer of a cross-layer transcoder: a transcoder (`own`) that also writes at `later` sites.

    It is the dictionary of the site that it writes first; `decode` is what it writes there.
    """

    def __init__(self, own: SparseCoder, later: Mapping[str, Tensor]):
        super().__init__()
        for site, W_dec in later.items():
            if W_dec.ndim != 2 or len(W_dec) != own.n_features or not W_dec.is_floating_point():
                raise ValueError(
                    f"What {own.n_features} features write at {site} is a floating-point matrix (feature, "
                    f"d_out), not {W_dec.dtype} of shape {tuple(W_dec.shape)}."
                )
        self.own = own
        self._later = {site: Outlet(W_dec) for site, W_dec in later.items()}
        self.outlets = nn.ModuleList(self._later.values())

    @property
    def later(self) -> Mapping[str, Outlet]:
        """What is written at later sites, by their names."""
        return self._later

    @property
    def site(self) -> str | None:
        return self.own.site

    @property
    def reads(self) -> str | None:
        return self.own.reads

    @property
    def n_features(self) -> int:
        return self.own.n_features

    @property
    def d_in(self) -> int:
        return self.own.d_in

    @property
    def d_out(self) -> int:
        return self.own.d_out

    @property
    def meta(self) -> dict[str, Any]:
        return self.own.meta

    @property
    def fingerprint(self) -> str:
        """A hash of the equation."""
        digest = hashlib.sha256(self.own.fingerprint.encode())
        for site, outlet in self._later.items():
            digest.update(f"{site} {outlet.W_dec.dtype} {tuple(outlet.W_dec.shape)}".encode())
            digest.update(outlet.W_dec.detach().cpu().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """The features of `x`."""
        return self.own.encode(x)

    def encode_sparse(self, x: Float[Tensor, "*batch d_in"]) -> SparseFeatures:
        """The active features of `x` alone."""
        return self.own.encode_sparse(x)

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """What the features write at the layer's own site, with its bias."""
        return self.own.decode(features)

    def onward(self, site: str, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """What the features write at a later site."""
        return self._later[site].decode(features)

    def skip(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """The skip path at the layer's own site."""
        return self.own.skip(x)

    def encoder_rows(self, x: Tensor, index: Tensor) -> Tensor:
        return self.own.encoder_rows(x, index)

    def decoder_rows(self, index: Tensor) -> Tensor:
        return self.own.decoder_rows(index)

    def readout(self, covector: Tensor, index: Tensor) -> Tensor:
        return self.own.readout(covector, index)

    def projected(self, covector: Tensor, token: Tensor, index: Tensor) -> Tensor:
        return self.own.projected(covector, token, index)

    def combined(self, token: Tensor, index: Tensor, weight: Tensor, n_tokens: int) -> Tensor:
        return self.own.combined(token, index, weight, n_tokens)

    def __repr__(self) -> str:
        later = f", and writes {', '.join(self._later)}" if self._later else ""
        return f"CrossLayer({self.own!r}{later})"


class CrossLayerTranscoder(nn.Module):
    """A set of transcoders whose features write at their own layer and at all later ones.

        f_l = activation(x_l W_enc_l + b_enc_l)
        y_m = sum of f_l W_dec_lm over l <= m, + b_dec_m + x_m W_skip_m

    Lindsey et al. 2024 ("Sparse crosscoders"), Ameisen et al. 2025 ("Circuit tracing"). `decoders[l]` holds
    what layer l writes at itself and at each later layer, (feature, n_layers - l, d_out). `layers()` is what
    runs, quality and circuits take: a dictionary for each site.

    >>> from interventions.dictionaries import ReLU
    >>> encoders = [(torch.randn(4, 8), torch.zeros(8), ReLU()) for _ in range(2)]
    >>> decoders = [torch.randn(8, 2, 4), torch.randn(8, 1, 4)]
    >>> clt = CrossLayerTranscoder(encoders, decoders, torch.zeros(2, 4),
    ...                            reads=["mlp_in.0", "mlp_in.1"], writes=["mlp.0", "mlp.1"])
    >>> list(clt.layers()), list(clt.layers()["mlp.0"].later)
    (['mlp.0', 'mlp.1'], ['mlp.1'])
    >>> len(clt([torch.randn(3, 4), torch.randn(3, 4)]))
    2
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        decoders: Sequence[Float[Tensor, "feature written d_out"]],
        b_dec: Float[Tensor, "layer d_out"],
        W_skip: Float[Tensor, "layer d_in d_out"] | None = None,
        *,
        reads: Sequence[str],
        writes: Sequence[str],
        meta: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        n = len(encoders)
        if not n == len(decoders) == len(b_dec) == len(reads) == len(writes):
            raise ValueError(
                f"{n} encoders, {len(decoders)} decoders, {len(b_dec)} biases, {len(reads)} sites read and "
                f"{len(writes)} written: there must be as many of each."
            )
        if not n or len(set(writes)) < n:
            raise ValueError(f"One layer at least, each writing a site of its own, not {list(writes)}.")
        if b_dec.ndim != 2 or (W_skip is not None and (W_skip.ndim != 3 or len(W_skip) != n)):
            shapes = [None if x is None else tuple(x.shape) for x in (b_dec, W_skip)]
            raise ValueError(f"b_dec and W_skip have a row for each of {n} layers, not shapes {shapes}.")
        layers = []
        for i, (W_enc, b_enc, activation) in enumerate(encoders):
            W_dec = decoders[i]
            if W_dec.ndim != 3 or W_dec.shape[1] != n - i:
                raise ValueError(
                    f"Layer {i} of {n} writes at {n - i} layers; its decoder has shape {tuple(W_dec.shape)}."
                )
            own = SparseCoder(
                W_enc=W_enc, b_enc=b_enc, W_dec=W_dec[:, 0], b_dec=b_dec[i], activation=activation,
                W_skip=None if W_skip is None else W_skip[i], site=writes[i], reads=reads[i], meta=meta,
            )  # fmt: skip
            layers.append(CrossLayer(own, {writes[m]: W_dec[:, m - i] for m in range(i + 1, n)}))
        self._layers = nn.ModuleList(layers)
        self.reads, self.writes = list(reads), list(writes)

    def layers(self) -> dict[str, CrossLayer]:
        """The dictionary of each site written, in the order of the layers."""
        return {str(layer.site): layer for layer in self._layers}  # type: ignore[misc]

    def forward(self, x: Sequence[Float[Tensor, "*batch d_in"]]) -> list[Float[Tensor, "*batch d_out"]]:
        """What is predicted at every site written, from what enters every site read."""
        layers = self.layers()
        if len(x) != len(layers):
            raise ValueError(f"{len(layers)} layers read a tensor each; {len(x)} were given.")
        features = [layer.encode(at) for layer, at in zip(layers.values(), x, strict=True)]
        predicted = []
        for m, (site, layer) in enumerate(layers.items()):
            y = layer.decode(features[m])
            for earlier, f in zip(list(layers.values())[:m], features, strict=False):
                y = y + earlier.onward(site, f)
            skip = layer.skip(x[m])
            predicted.append(y if skip is None else y + skip)
        return predicted

    def __repr__(self) -> str:
        return f"CrossLayerTranscoder({self.reads[0]} ... {self.writes[-1]}, {len(self.writes)} layers)"
