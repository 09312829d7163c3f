"""Activations in the basis of a dictionary: features, and the error that they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Dictionary(Protocol):
    """Anything that rewrites a site's tensor in a feature basis, one position at a time.

    `decode` is affine. A sparse autoencoder, a transcoder, or `Identity` for the neurons themselves.
    """

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]: ...

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]: ...


@runtime_checkable
class Transcoder(Dictionary, Protocol):
    """A dictionary that reads one site and predicts another.

    `reads` names the site that it encodes (`mlp_in.3`); None means the site that it writes. `skip`, where
    it is not None, is the part of the prediction that does not run through features.
    """

    reads: str | None

    def skip(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None: ...


@runtime_checkable
class Decoder(Protocol):
    """Fast access to what single features write."""

    def readout(
        self, covector: Float[Tensor, "token slot d_out"], index: Int[Tensor, "token n"]
    ) -> Float[Tensor, "token slot n"]:
        """Each covector times the decoder rows of the features `index` of its token."""
        ...

    def projected(
        self, covector: Float[Tensor, "token d_out"], token: Int[Tensor, " n"], index: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """The covector of `token[i]` times the decoder row of feature `index[i]`; tokens ascend."""
        ...

    def combined(
        self, token: Int[Tensor, " n"], index: Int[Tensor, " n"], weight: Float[Tensor, " n"], n_tokens: int
    ) -> Float[Tensor, "token d_out"]:
        """For each token, the decoder rows of its features, weighted and summed; tokens ascend."""
        ...


@runtime_checkable
class Rows(Decoder, Protocol):
    """Fast access to single features; what a dictionary lacks of it is worked out by autograd."""

    def encoder_rows(self, x: Float[Tensor, "n d_in"], index: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """Row i is the gradient of feature `index[i]`, which is active, with respect to its input at
        `x[i]`."""
        ...


class Writes(Decoder, Protocol):
    """What features of one site write at a later one."""

    def decode(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """Linear: no bias, which is the later site's own."""
        ...

    def decoder_rows(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_out"]: ...


@runtime_checkable
class CrossLayer(Transcoder, Protocol):
    """A transcoder whose features also write at later sites, each of which has one of the same set.

    `later` maps the names of those sites to what is written there.
    """

    later: Mapping[str, Writes]


class Identity:
    """The neuron basis: every coordinate is its own feature, and no error is left.

    >>> x = torch.tensor([[1.0, -2.0]])
    >>> Identity().decode(Identity().encode(x))
    tensor([[ 1., -2.]])
    """

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, features: Tensor) -> Tensor:
        return features

    def encoder_rows(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(index, x.shape[-1]).to(x)

    def readout(self, covector: Tensor, index: Tensor) -> Tensor:
        return covector.gather(-1, index[:, None].expand(-1, covector.shape[1], -1))

    def projected(self, covector: Tensor, token: Tensor, index: Tensor) -> Tensor:
        return covector[token, index]

    def combined(self, token: Tensor, index: Tensor, weight: Tensor, n_tokens: int) -> Tensor:
        out = weight.new_zeros(n_tokens, int(index.max()) + 1 if len(index) else 0)
        return out.index_put_((token, index), weight)

    def __repr__(self) -> str:
        return "Identity()"


@dataclass(frozen=True)
class Acts:
    """The activations of one site: features, and the error that they leave.

    The two add up: `decode(features) + error` is the site's tensor.
    """

    features: Float[Tensor, "batch pos feature"]
    error: Float[Tensor, "batch pos d_model"]

    def map(self, fn: Callable[..., Tensor], *others: Acts) -> Acts:
        """Applies `fn` to the features and to the error, each with its like in `others`."""
        return Acts(
            fn(self.features, *(other.features for other in others)),
            fn(self.error, *(other.error for other in others)),
        )

    def __add__(self, other: Acts) -> Acts:
        return self.map(torch.add, other)

    def __sub__(self, other: Acts) -> Acts:
        return self.map(torch.sub, other)

    def __mul__(self, scale: float) -> Acts:
        return self.map(lambda t: t * scale)

    __rmul__ = __mul__

    def as_leaves(self) -> Acts:
        """Detached copies that ask for gradients."""
        return self.map(lambda t: t if t.is_leaf and t.requires_grad else t.detach().requires_grad_())

    def nodes(self, other: Acts) -> Float[Tensor, "batch pos node"]:
        """Multiplies elementwise; the error is contracted to one last node."""
        error = (self.error * other.error).sum(-1, keepdim=True)
        return torch.cat([self.features * other.features, error], dim=-1)
