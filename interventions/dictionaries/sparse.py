"""Features as a list of those that are active."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SparseFeatures(NamedTuple):
    """The active features of a batch: entry i is feature `feature[i]` of token `token[i]`; tokens ascend.

    Tokens count through the flattened batch, whose `shape` is (*batch, feature).
    """

    token: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    value: Float[Tensor, " n"]
    shape: tuple[int, ...]

    def dense(self) -> Float[Tensor, "*batch feature"]:
        """The same as `encode` gives."""
        n_features = self.shape[-1]
        flat = self.value.new_zeros(torch.Size(self.shape).numel())
        flat[self.token * n_features + self.feature] = self.value
        return flat.view(self.shape)
