"""Sparse autoencoders and transcoders: one equation, one class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, linear

from .activations import Activation, ReLU
from .pairs import picked, starts

_CHUNK = 2**25  # numbers held at a time where single features are looked up


@final
class SparseCoder(nn.Module):
    """A sparse dictionary: features of what flows at one site, and what they write.

        z = (x - b_pre) W_enc + b_enc        f = activation(z)        y = f W_dec + b_dec + x W_skip

    A sparse autoencoder reconstructs the site that it reads. A transcoder reads one site (`reads`) and
    predicts another (`site`), in part by a linear `skip` path if it has one (Dunefsky et al. 2024, arXiv
    2406.11944; Paulo et al. 2025, arXiv 2501.18823). `b_pre` and `W_skip` may be None, which means zero.

    Weights are frozen. Inputs are cast to their dtype. Features have the units of the site written if decoder
    rows have unit norm, as those from `train` do.

    Raises:
        ValueError: shapes that do not fit each other.

    >>> sae = SparseCoder.random(64, 512, site="resid.3")
    >>> sae
    SparseCoder(SAE 64 -> 512 features, ReLU(), at resid.3)
    >>> sae.encode(torch.zeros(2, 5, 64)).shape
    torch.Size([2, 5, 512])
    """

    W_enc: Float[Tensor, "d_in feature"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_in d_out"] | None
    b_pre: Float[Tensor, " d_in"] | None

    def __init__(
        self,
        *,
        W_enc: Float[Tensor, "d_in feature"],
        b_enc: Float[Tensor, " feature"],
        W_dec: Float[Tensor, "feature d_out"],
        b_dec: Float[Tensor, " d_out"],
        activation: Activation,
        W_skip: Float[Tensor, "d_in d_out"] | None = None,
        b_pre: Float[Tensor, " d_in"] | None = None,
        site: str | None = None,
        reads: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if W_enc.ndim != 2 or W_dec.ndim != 2:
            raise ValueError(
                f"W_enc (d_in, feature) and W_dec (feature, d_out) are matrices; "
                f"these have shapes {tuple(W_enc.shape)} and {tuple(W_dec.shape)}."
            )
        self.d_in, self.n_features = W_enc.shape
        self.d_out = W_dec.shape[1]
        weights = {"b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "W_skip": W_skip, "b_pre": b_pre}
        for name, shape in self._shapes().items():
            weight = weights[name]
            if weight is not None and tuple(weight.shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(weight.shape)}; beside W_enc {tuple(W_enc.shape)} and "
                    f"W_dec {tuple(W_dec.shape)} it must have shape {shape}."
                )
        threshold = getattr(activation, "threshold", None)
        if threshold is not None and threshold.numel() not in (1, self.n_features):
            raise ValueError(f"{threshold.numel()} thresholds do not fit {self.n_features} features.")
        if getattr(activation, "k", 0) >= self.n_features:
            raise ValueError(f"{activation} does not fit {self.n_features} features: k must be smaller.")
        # in memory, each feature's weights lie side by side in both matrices, for looking up single features
        self.W_enc = nn.Parameter(_copied(W_enc.T).T, requires_grad=False)
        for name, weight in weights.items():
            frozen = None if weight is None else nn.Parameter(_copied(weight), requires_grad=False)
            self.register_parameter(name, frozen)
        self.activation = activation
        self.site = site
        self.reads = reads
        self.meta = dict(meta or {})

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "b_enc": (self.n_features,),
            "W_dec": (self.n_features, self.d_out),
            "b_dec": (self.d_out,),
            "W_skip": (self.d_in, self.d_out),
            "b_pre": (self.d_in,),
        }

    @classmethod
    def random(
        cls,
        d_in: int,
        n_features: int,
        d_out: int | None = None,
        *,
        activation: Activation | None = None,
        seed: int = 0,
        site: str | None = None,
        reads: str | None = None,
    ) -> SparseCoder:
        """An untrained dictionary: unit decoder rows; the encoder of an SAE is their transpose."""
        generator = torch.Generator().manual_seed(seed)
        d_out = d_in if d_out is None else d_out
        W_dec = nn.functional.normalize(torch.randn(n_features, d_out, generator=generator), dim=-1)
        W_enc = W_dec
        if reads is not None or d_in != d_out:
            W_enc = nn.functional.normalize(torch.randn(n_features, d_in, generator=generator), dim=-1)
        return cls(
            W_enc=W_enc.T,
            b_enc=torch.zeros(n_features),
            W_dec=W_dec,
            b_dec=torch.zeros(d_out),
            activation=ReLU() if activation is None else activation,
            site=site,
            reads=reads,
        )

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """The features before the activation function."""
        return linear(self._centred(x), self.W_enc.T, self.b_enc)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """The features of `x`."""
        return self.activation(self.pre_activations(x))

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """What the features write, with the decoder's bias and without the skip path."""
        return linear(features.to(self.W_dec.dtype), self.W_dec.T, self.b_dec)

    def skip(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """The part of the prediction that does not run through features; None if there is none."""
        return None if self.W_skip is None else linear(x.to(self.W_skip.dtype), self.W_skip.T)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of `x`, or a transcoder's prediction from it."""
        y = self.decode(self.encode(x))
        skip = self.skip(x)
        return y if skip is None else y + skip

    def encoder_rows(self, x: Float[Tensor, "n d_in"], index: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """Row i is the gradient of feature `index[i]`, which is active at `x[i]`: its encoder row."""
        return self.W_enc.T[index]

    def decoder_rows(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_out"]:
        """What one unit of each of these features writes."""
        return self.W_dec[index]

    def readout(
        self, covector: Float[Tensor, "token slot d_out"], index: Int[Tensor, "token n"]
    ) -> Float[Tensor, "token slot n"]:
        """Each covector times the decoder rows of the features `index` of its token."""
        tokens = max(1, _CHUNK // max(1, index.shape[-1] * self.d_out))
        parts = zip(covector.split(tokens), index.split(tokens), strict=True)
        return torch.cat([c.to(self.W_dec.dtype) @ self.decoder_rows(i).mT for c, i in parts])

    def projected(
        self, covector: Float[Tensor, "token d_out"], token: Int[Tensor, " n"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The covector of `token[i]` times the decoder row of feature `index[i]`; tokens ascend."""
        return picked(covector.to(self.W_dec.dtype), self.W_dec, token, index)

    def combined(
        self, token: Int[Tensor, " n"], index: Int[Tensor, " n"], weight: Float[Tensor, " n"], n_tokens: int
    ) -> Float[Tensor, "token d_out"]:
        """For each token, the decoder rows of its features, weighted and summed; tokens ascend."""
        weight = weight.to(self.W_dec.dtype)
        return embedding_bag(
            index, self.W_dec, starts(token, n_tokens), mode="sum", per_sample_weights=weight
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the equation: weights, thresholds and settings of the activation, whatever the site."""
        digest = hashlib.sha256(repr([type(self.activation).__name__, self._settings()]).encode())
        for name, tensor in sorted(self.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(repr([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
            digest.update(tensor.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        transcodes = self.reads is not None or self.d_in != self.d_out
        shape = f"{self.d_in} -> {self.n_features} features" + (f" -> {self.d_out}" if transcodes else "")
        site = (
            ""
            if self.site is None
            else f", {self.reads} -> {self.site}"
            if self.reads
            else f", at {self.site}"
        )
        skip = "" if self.W_skip is None else ", with skip"
        return f"SparseCoder({'transcoder' if transcodes else 'SAE'} {shape}, {self.activation}{skip}{site})"

    def _centred(self, x: Tensor) -> Tensor:
        x = x.to(self.W_enc.dtype)
        return x if self.b_pre is None else x - self.b_pre

    def _settings(self) -> dict[str, int | float]:
        return {name: getattr(self.activation, name) for name in self.activation.settings}


def _copied(weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise ValueError(f"Weights are floating-point tensors, not {weight.dtype}.")
    return weight.detach().clone(memory_format=torch.contiguous_format)
