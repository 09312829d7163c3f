"""How a dictionary's features lie to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..coders import SparseCoder
from .cosines import nearest, unit


@dataclass(frozen=True)
class Geometry:
    """For each feature, its largest cosine with another one, of encoder and of decoder rows.

    `aligned` is the cosine of a feature's encoder row with its decoder row; a transcoder between sites of
    different widths has none. `decoder_nearest` names the feature with the nearest decoder row. Means of the
    first three are what SAEBench reports.
    """

    encoder: Float[Tensor, " feature"] = field(compare=False)
    decoder: Float[Tensor, " feature"] = field(compare=False)
    aligned: Float[Tensor, " feature"] | None = field(compare=False)
    decoder_nearest: Int[Tensor, " feature"] = field(compare=False)


@torch.no_grad()
def geometry(dictionary: SparseCoder) -> Geometry:
    """The cosine maxima of a dictionary, without holding all cosines.

    >>> found = geometry(SparseCoder.random(8, 32))
    >>> found.decoder.shape, bool((found.aligned > 0.999).all())
    (torch.Size([32]), True)
    """
    encoder, decoder = dictionary.W_enc.T, dictionary.W_dec
    aligned = None
    if encoder.shape == decoder.shape:
        aligned = (unit(encoder) * unit(decoder)).sum(-1)
    values, index = nearest(decoder)
    return Geometry(nearest(encoder)[0][:, 0], values[:, 0], aligned, index[:, 0])


@dataclass(frozen=True)
class Neighbours:
    """The features whose decoder rows are nearest to some features', nearest first."""

    features: Int[Tensor, " n"] = field(compare=False)
    index: Int[Tensor, "n k"] = field(compare=False)
    cosine: Float[Tensor, "n k"] = field(compare=False)


@torch.no_grad()
def neighbours(dictionary: SparseCoder, features: Int[Tensor, " n"], *, k: int = 10) -> Neighbours:
    """The `k` nearest features of each of these, by the cosine of decoder rows, itself left out.

    >>> coder = SparseCoder.random(8, 32)
    >>> neighbours(coder, torch.tensor([3]), k=2).index.shape
    torch.Size([1, 2])
    """
    features = torch.as_tensor(features, device=dictionary.W_dec.device)
    values, index = nearest(dictionary.W_dec[features], dictionary.W_dec, k=min(k + 1, dictionary.n_features))
    # what is left of k + 1 without the feature itself, which need not come first where a row is doubled
    itself = index == features[:, None]
    order = itself.int().sort(dim=-1, stable=True).indices[:, :k]
    order = order[:, : index.shape[1] - 1]
    return Neighbours(features, index.gather(1, order), values.gather(1, order))


@dataclass(frozen=True)
class Principal:
    """Rows along their first principal directions, and the share of the variance along each."""

    points: Float[Tensor, "row n"] = field(compare=False)
    directions: Float[Tensor, "n width"] = field(compare=False)
    share: Float[Tensor, " n"] = field(compare=False)


@torch.no_grad()
def principal(rows: Float[Tensor, "row width"], *, n: int = 2) -> Principal:
    """The first `n` principal components of unit rows about their mean; largest entries are positive.

    >>> principal(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.8, 0.6], [-0.8, -0.6]])).share.sum().item()
    1.0
    """
    if not 1 <= n <= min(rows.shape):
        raise ValueError(f"Rows {tuple(rows.shape)} have no {n} principal components.")
    rows = unit(rows)
    rows = rows - rows.mean(0)
    variance, directions = torch.linalg.eigh(rows.T @ rows)  # width x width, whatever the number of rows
    directions = directions[:, -n:].flip(-1).T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * largest.sign()
    share = variance.flip(0)[:n].clamp(min=0) / variance.clamp(min=0).sum()
    return Principal(rows @ directions.T, directions, share)
