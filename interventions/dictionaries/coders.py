"""Sparse autoencoders and transcoders: one equation, one class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import reduce
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from . import lookup
from .activations import Activation, JumpReLU, ReLU
from .forms import Forms
from .normalisation import Normalise
from .sparse import SparseFeatures
from .units import Units

_CHUNK = 2**24  # pre-activations held at a time where only the active ones are wanted


@final
class SparseCoder(Forms, nn.Module):
    """A sparse dictionary: features of what flows at one site, and what they write.

        z = (n(x) - b_pre) W_enc + b_enc     f = s(x) activation(z)
        y = f W_dec + m(x) + s(x) b_dec + x W_skip

    A sparse autoencoder reconstructs the site that it reads. A transcoder reads one site (`reads`) and
    predicts another (`site`), in part by a linear `skip` path if it has one (Dunefsky et al. 2024, arXiv
    2406.11944; Paulo et al. 2025, arXiv 2501.18823). `b_pre` and `W_skip` may be None, which means zero.

    Most dictionaries do without `normalise`: n(x) = x, s = 1, m = 0. With it, n(x) = (x - m(x)) / s(x) token
    by token, and features are multiplied by s(x) at once, so that decoder rows write in the units of the
    site; `normalised` gives the features as published. Gated dictionaries are of the class too (`gated`).

    `prefixes` are the widths at which a Matryoshka dictionary may be cut (`prefix`). Weights are frozen.
    Inputs are cast to their dtype, and moved to their device and back. `units` says how features compare.

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
        normalise: Normalise | None = None,
        site: str | None = None,
        reads: str | None = None,
        prefixes: Sequence[int] = (),
        units: Units | None = None,
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
        if not (self.d_in and self.n_features and self.d_out):
            raise ValueError(
                f"A dictionary has at least one feature and a width; W_enc is {tuple(W_enc.shape)} and W_dec "
                f"{tuple(W_dec.shape)}."
            )
        activation.check(self.n_features)
        if normalise is not None and normalise.mean(W_enc[:, :1].T) is not None and self.d_in != self.d_out:
            raise ValueError(f"{normalise} puts back what it subtracted, so d_in and d_out must be equal.")
        if any(type(width) is not int or not 0 < width <= self.n_features for width in prefixes):
            raise ValueError(f"Prefixes {list(prefixes)} do not fit {self.n_features} features.")
        # in memory, each feature's weights lie side by side in both matrices, for looking up single features
        dtype = _common(W_enc, *weights.values())
        self.W_enc = nn.Parameter(_copied(W_enc.T, dtype).T, requires_grad=False)
        for name, weight in weights.items():
            frozen = None if weight is None else nn.Parameter(_copied(weight, dtype), requires_grad=False)
            self.register_parameter(name, frozen)
        self.activation = activation
        self.normalise = normalise
        self.site = site
        self.reads = reads
        self.prefixes = tuple(prefixes)
        self.units = Units() if units is None else units
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

    @classmethod
    def gated(
        cls,
        *,
        W_enc: Float[Tensor, "d_in feature"],
        r_mag: Float[Tensor, " feature"],
        b_gate: Float[Tensor, " feature"],
        b_mag: Float[Tensor, " feature"],
        **rest: Any,
    ) -> SparseCoder:
        """A gated dictionary, which is a JumpReLU one (Rajamanoharan et al. 2024, arXiv 2404.16014, 3.2).

        With u = x W_enc: where the gate u + b_gate is open, a feature is ReLU(u exp(r_mag) + b_mag). Both ask
        that its pre-activation exceed a threshold, max(0, b_mag - b_gate exp(r_mag)).
        """
        if not r_mag.shape == b_gate.shape == b_mag.shape:
            shapes = ", ".join(str(tuple(x.shape)) for x in (r_mag, b_gate, b_mag))
            raise ValueError(f"r_mag, b_gate and b_mag are of one shape, not {shapes}.")
        stretch = r_mag.exp()
        threshold = (b_mag - b_gate * stretch).clamp(min=0)
        return cls(W_enc=W_enc * stretch, b_enc=b_mag, activation=JumpReLU(threshold), **rest)

    # The equation

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """The features before the activation function, of the normalised input."""
        return self._z(self._home(x)).to(x.device)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """The features of `x`."""
        at = self._home(x)
        features = self.activation(self._z(at))
        return (features if self.normalise is None else features * self.normalise.scale(at)).to(x.device)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "*batch d_in"]) -> SparseFeatures:
        """The active features of `x` alone; nothing of the size (token feature) is held."""
        at = self._home(x).reshape(-1, self.d_in)
        rows = max(1, _CHUNK // self.n_features)
        activation = self.activation.over(lambda: (self._z(part) for part in at.split(rows)), len(at))
        found = []
        for i, part in enumerate(at.split(rows)):
            token, feature, value = activation.sparse(self._z(part))
            if self.normalise is not None:
                value = value * self.normalise.scale(part)[token, 0]
            found.append((token + i * rows, feature, value))
        lists = [torch.cat(part).to(x.device) for part in zip(*found, strict=True)]
        return SparseFeatures(lists[0], lists[1], lists[2], (*x.shape[:-1], self.n_features))

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """What the features write, with the decoder's bias and without the skip path."""
        return linear(features.to(self.W_dec), self.W_dec.T, self.b_dec).to(features.device)

    def decode_sparse(self, features: SparseFeatures) -> Float[Tensor, "*batch d_out"]:
        """What `decode` gives, from the rows of the active features."""
        token, feature, value, shape = features
        n_tokens = torch.Size(shape[:-1]).numel()
        written = self.combined(token, feature, value, n_tokens) + self.b_dec.to(value.device)
        return written.view(*shape[:-1], self.d_out)

    def skip(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """The part of the prediction that does not run through features; None if there is none.

        That is the skip path, and what normalisation puts back.
        """
        if self.W_skip is None and self.normalise is None:
            return None
        at = self._home(x)
        out = 0 if self.W_skip is None else linear(at, self.W_skip.T)
        if self.normalise is not None:
            mean = self.normalise.mean(at)
            out = out + (self.normalise.scale(at) - 1) * self.b_dec + (0 if mean is None else mean)
        assert isinstance(out, Tensor)
        return out.to(x.device)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of `x`, or a transcoder's prediction from it."""
        y = self.decode(self.encode(x))
        skip = self.skip(x)
        return y if skip is None else y + skip

    def normalised(
        self, x: Float[Tensor, "*batch d_in"], features: Float[Tensor, "*batch feature"]
    ) -> Float[Tensor, "*batch feature"]:
        """The features of `x` in the units of the normalised input, as published."""
        return features if self.normalise is None else features / self.normalise.scale(x)

    # Single features

    def encoder_rows(self, x: Float[Tensor, "n d_in"], index: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """Row i is the gradient of feature `index[i]`, which is active at `x[i]`: its encoder row.

        With `normalise`, the gradient of the scale comes in.
        """
        if self.normalise is None:
            return self.W_enc.T[index.to(self.W_enc.device)].to(x.device)
        with torch.enable_grad():
            at = self._home(x).detach().requires_grad_()
            centred = self.normalise(at) - (0 if self.b_pre is None else self.b_pre)
            row = index.to(at.device)
            z = (centred * self.W_enc.T[row]).sum(-1) + self.b_enc[row]
            value = z * self.normalise.scale(at)[:, 0]
            return torch.autograd.grad(value.sum(), at)[0].to(x.device)

    def decoder_rows(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_out"]:
        """What one unit of each of these features writes."""
        return self.W_dec[index.to(self.W_dec.device)].to(index.device)

    def readout(
        self, covector: Float[Tensor, "token slot d_out"], index: Int[Tensor, "token n"]
    ) -> Float[Tensor, "token slot n"]:
        """Each covector times the decoder rows of the features `index` of its token."""
        return lookup.readout(covector, self.W_dec, index)

    def projected(
        self, covector: Float[Tensor, "token d_out"], token: Int[Tensor, " n"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The covector of `token[i]` times the decoder row of feature `index[i]`; tokens ascend."""
        return lookup.projected(covector, self.W_dec, token, index)

    def combined(
        self, token: Int[Tensor, " n"], index: Int[Tensor, " n"], weight: Float[Tensor, " n"], n_tokens: int
    ) -> Float[Tensor, "token d_out"]:
        """For each token, the decoder rows of its features, weighted and summed; tokens ascend."""
        return lookup.combined(self.W_dec, token, index, weight, n_tokens)

    @property
    def fingerprint(self) -> str:
        """A hash of the equation: weights, thresholds and settings of the activation, whatever the site."""
        settings: list[Any] = [type(self.activation).__name__, self._settings()]
        if self.normalise is not None:
            settings += [type(self.normalise).__name__, astuple(self.normalise)]  # type: ignore[call-overload]
        digest = hashlib.sha256(repr(settings).encode())
        for name, tensor in sorted(self.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(repr([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
            digest.update(tensor.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        transcodes = self.reads is not None or self.d_in != self.d_out
        shape = f"{self.d_in} -> {self.n_features} features" + (f" -> {self.d_out}" if transcodes else "")
        parts = [f"{'transcoder' if transcodes else 'SAE'} {shape}", repr(self.activation)]
        parts += [] if self.normalise is None else [repr(self.normalise)]
        place = (
            "" if self.site is None else f"{self.reads} -> {self.site}" if self.reads else f"at {self.site}"
        )
        last = ("with skip, " if place else "with skip") if self.W_skip is not None else ""
        return f"SparseCoder({', '.join(part for part in [*parts, last + place] if part)})"

    def _home(self, x: Tensor) -> Tensor:
        if not x.ndim or x.shape[-1] != self.d_in:
            raise ValueError(f"The dictionary reads width {self.d_in}, not a tensor {tuple(x.shape)}.")
        return x.to(self.W_enc.device, self.W_enc.dtype)

    def _z(self, x: Tensor) -> Tensor:
        x = x if self.normalise is None else self.normalise(x)
        return linear(x if self.b_pre is None else x - self.b_pre, self.W_enc.T, self.b_enc)

    def _settings(self) -> dict[str, int | float]:
        return {name: getattr(self.activation, name) for name in self.activation.settings}


def _common(*weights: Tensor | None) -> torch.dtype:
    """The dtype that can hold all of them exactly."""
    dtypes = {weight.dtype for weight in weights if weight is not None}
    if odd := [dtype for dtype in dtypes if not dtype.is_floating_point]:
        raise ValueError(f"Weights are floating-point tensors, not {odd[0]}.")
    return reduce(torch.promote_types, dtypes)


def _copied(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
