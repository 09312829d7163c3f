"""Batches of few active features, as pairs of a token and a feature.

Gradients are sums over the active pairs, taken by `embedding_bag`, which makes no temporary of the size
(pair d_model): 3 to 15 times faster on a CPU than `index_add_` over gathered rows, or than dense products.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

_CHUNK = 2**22


class Pairs:
    """Which features are active at which tokens, in the order of the tokens."""

    def __init__(self, kept: Bool[Tensor, "token feature"]):
        self.n_features = kept.shape[-1]
        self.token, self.feature = (index.contiguous() for index in kept.nonzero(as_tuple=True))
        self._starts = starts(self.token, len(kept))

    @property
    def active(self) -> Bool[Tensor, " feature"]:
        """Which features are active at all."""
        none = torch.zeros(self.n_features, dtype=torch.bool, device=self.feature.device)
        return none.index_fill_(0, self.feature, True)

    @cached_property
    def _by_feature(self) -> tuple[Tensor, Tensor, Tensor]:
        feature, order = self.feature.sort()
        return order, self.token[order], starts(feature, self.n_features)

    def picked(
        self,
        z: Float[Tensor, "token feature"],
        x: Float[Tensor, "token d_in"],
        W_enc: Float[Tensor, "feature d_in"],
        bias: Float[Tensor, " feature"],
    ) -> Float[Tensor, " pair"]:
        """The entries of `z = x W_enc^T + bias` at the pairs; gradients reach `W_enc` and `bias`."""
        return _Picked.apply(z.detach(), x, W_enc, bias, self)  # type: ignore[return-value]

    def decoded(
        self, values: Float[Tensor, " pair"], W_dec: Float[Tensor, "feature d_out"]
    ) -> Float[Tensor, "token d_out"]:
        """Features `values` times the decoder."""
        y = embedding_bag(self.feature, W_dec.detach(), self._starts, mode="sum", per_sample_weights=values)
        return _Written.apply(y, W_dec, values.detach(), self)  # type: ignore[return-value]

    def summed(
        self, weights: Float[Tensor, " pair"], rows: Float[Tensor, "token width"]
    ) -> Float[Tensor, "feature width"]:
        """For every feature, the sum of its tokens' rows, weighted: `f^T rows`."""
        order, token, starts = self._by_feature
        return embedding_bag(token, rows, starts, mode="sum", per_sample_weights=weights[order])


def starts(ascending: Int[Tensor, " pair"], n: int) -> Int[Tensor, " n"]:
    """Where the entries of each of n owners begin."""
    return torch.searchsorted(ascending, torch.arange(n, device=ascending.device))


def picked(
    left: Float[Tensor, "token width"],
    right: Float[Tensor, "feature width"],
    token: Int[Tensor, " pair"],
    feature: Int[Tensor, " pair"],
) -> Float[Tensor, " pair"]:
    """Entries of `left right^T` at pairs listed by ascending token, and no others.

    On a CPU by the sampled product of sparse matrices, 15 times faster than by gathered rows.
    """
    if left.device.type == "cpu" and left.dtype in (torch.float32, torch.float64) and len(token):
        ends = torch.searchsorted(token, torch.arange(len(left) + 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "in beta state"
            at = torch.sparse_csr_tensor(ends, feature, left.new_zeros(len(token)), (len(left), len(right)))
            return torch.sparse.sampled_addmm(at, left, right.T, beta=0).values()
    size = max(1, _CHUNK // left.shape[-1])
    parts = zip(token.split(size), feature.split(size), strict=True)
    return torch.cat([(left[t] * right[f]).sum(-1) for t, f in parts]) if len(token) else left.new_zeros(0)


class _Picked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, x: Tensor, W_enc: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pairs = pairs
        return z[pairs.token, pairs.feature]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), pairs = ctx.saved_tensors, ctx.pairs
        bias = x.new_zeros(pairs.n_features).index_add_(0, pairs.feature, grads[0])
        return None, None, pairs.summed(grads[0], x), bias, None


class _Written(torch.autograd.Function):
    """What was decoded, unchanged; sends its gradient on to the decoder as well."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, W_dec: Tensor, values: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(values)
        ctx.pairs = pairs
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (values,) = ctx.saved_tensors
        return grads[0], ctx.pairs.summed(values, grads[0].contiguous()), None, None
