"""Which features two dictionaries have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..coders import SparseCoder
from .cosines import cosines, nearest, unit

_EXACT = 2**14  # features to which all cosines are held and the best matching is found


@dataclass(frozen=True)
class Matching:
    """Rows of one matrix, ascending, each with a row of another, and their cosines; no row occurs twice."""

    left: Int[Tensor, " pair"] = field(compare=False)
    right: Int[Tensor, " pair"] = field(compare=False)
    cosine: Float[Tensor, " pair"] = field(compare=False)

    @property
    def mean(self) -> float:
        """The mean cosine of the pairs."""
        return self.cosine.mean().item() if len(self.cosine) else 0.0


Matcher = Callable[[Float[Tensor, "left width"], Float[Tensor, "right width"]], Matching]


def hungarian(left: Float[Tensor, "left width"], right: Float[Tensor, "right width"]) -> Matching:
    """The one-to-one matching with the largest sum of cosines; every row of the smaller matrix has a partner.

    Holds all cosines; time grows with the cube of the number of rows: seconds for 8192, a minute for 16384.

    >>> hungarian(torch.eye(3), torch.eye(3)[[2, 0, 1]]).right
    tensor([1, 2, 0])
    """
    from scipy.optimize import linear_sum_assignment

    found = torch.cat([part.cpu() for part in cosines(left, right)])
    rows, columns = linear_sum_assignment(found.numpy(), maximize=True)
    rows, columns = torch.from_numpy(rows), torch.from_numpy(columns)
    return Matching(rows, columns, found[rows, columns])


def mutual(left: Float[Tensor, "left width"], right: Float[Tensor, "right width"]) -> Matching:
    """The pairs that are each other's nearest rows: of any size, and fast; other rows have no partner.

    >>> mutual(torch.eye(3), torch.eye(3)[[2, 2, 1]]).left
    tensor([1, 2])
    """
    values, there = (found[:, 0].cpu() for found in nearest(left, right))
    back = nearest(right, left)[1][:, 0].cpu()
    rows = (back[there] == torch.arange(len(left))).nonzero()[:, 0]
    return Matching(rows, there[rows], values[rows])


@dataclass(frozen=True)
class Overlap:
    """What two dictionaries share, by the cosines of their decoder and of their encoder rows.

    A feature is *shared* if both matchings give it the same partner, with cosines above `threshold` in both
    (Paulo and Belrose 2025, arXiv 2501.16615). Shares are of the features of the smaller dictionary, so that
    they are the same whichever comes first. `nearest_left` holds for each feature of the first dictionary
    its largest decoder cosine with any of the second, `nearest_right` the other way round.

    `chance` is the mean matched cosine of random directions in the decoders' place.
    """

    n_left: int
    n_right: int
    threshold: float
    decoder: Matching = field(repr=False)
    encoder: Matching = field(repr=False)
    nearest_left: Float[Tensor, " left"] = field(repr=False, compare=False)
    nearest_right: Float[Tensor, " right"] = field(repr=False, compare=False)
    chance: float

    @property
    def pairs(self) -> Matching:
        """The pairs on which both matchings agree, with their decoder cosines."""
        keep = self._agreed()[0]
        return Matching(self.decoder.left[keep], self.decoder.right[keep], self.decoder.cosine[keep])

    @property
    def shared_pairs(self) -> Matching:
        """The pairs of shared features, with their decoder cosines."""
        keep, other = self._agreed()
        keep = keep[(self.decoder.cosine[keep] > self.threshold) & (other > self.threshold)]
        return Matching(self.decoder.left[keep], self.decoder.right[keep], self.decoder.cosine[keep])

    @property
    def shared(self) -> float:
        """The share of shared features."""
        return len(self.shared_pairs.left) / min(self.n_left, self.n_right)

    @property
    def agreement(self) -> float:
        """The share of features with the same partner by encoder and by decoder, whatever the cosines."""
        return len(self.pairs.left) / min(self.n_left, self.n_right)

    @property
    def mean_max(self) -> float:
        """The mean of the largest decoder cosine of each feature with the other dictionary (MCS)."""
        return (self.nearest_left.mean().item() + self.nearest_right.mean().item()) / 2

    def _agreed(self) -> tuple[Int[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Which pairs of the decoder are pairs of the encoder, and their cosines there."""
        partner = torch.full((self.n_left,), -1)
        cosine = torch.zeros(self.n_left, dtype=self.encoder.cosine.dtype)
        partner[self.encoder.left] = self.encoder.right
        cosine[self.encoder.left] = self.encoder.cosine
        keep = (partner[self.decoder.left] == self.decoder.right).nonzero()[:, 0]
        return keep, cosine[self.decoder.left[keep]]

    def __str__(self) -> str:
        return (
            f"{len(self.shared_pairs.left):,} features shared of {self.n_left:,} and {self.n_right:,} "
            f"({self.shared:.1%}; cosine above {self.threshold:g}), same partner {self.agreement:.1%}, "
            f"matched cosine {self.decoder.mean:.3f} (chance {self.chance:.3f}), largest {self.mean_max:.3f}"
        )


@torch.no_grad()
def overlap(
    left: SparseCoder, right: SparseCoder, *, threshold: float = 0.7, matching: Matcher | None = None
) -> Overlap:
    """What two dictionaries of the same site share; of one site's seeds, how far they depend on the seed.

    `matching` is `hungarian`, as in the paper, or `mutual`; by default the first up to 16384 features and the
    second above. Where features are clearly shared or clearly not, both find the same.

    Raises:
        ValueError: dictionaries of different widths.

    >>> one = SparseCoder.random(16, 64)
    >>> print(overlap(one, one))
    64 features shared of 64 and 64 (100.0%; cosine above 0.7), same partner 100.0%, matched cosine 1.000...
    """
    if (left.d_in, left.d_out) != (right.d_in, right.d_out):
        raise ValueError(
            f"These dictionaries read and write widths {left.d_in} -> {left.d_out} and "
            f"{right.d_in} -> {right.d_out}: only features of the same site can be compared."
        )
    exact = max(left.n_features, right.n_features) <= _EXACT
    match = matching or (hungarian if exact else mutual)
    return Overlap(
        left.n_features,
        right.n_features,
        threshold,
        match(left.W_dec, right.W_dec),
        match(left.W_enc.T, right.W_enc.T),
        nearest(left.W_dec, right.W_dec)[0][:, 0].cpu(),
        nearest(right.W_dec, left.W_dec)[0][:, 0].cpu(),
        chance(left.n_features, right.n_features, left.d_out, match),
    )


def chance(n_left: int, n_right: int, width: int, matching: Matcher, *, seed: int = 0) -> float:
    """The mean matched cosine of so many random directions, which is large where they are many.

    >>> 0.3 < chance(512, 512, 64, mutual) < 0.6
    True
    """
    generator = torch.Generator().manual_seed(seed)
    left = unit(torch.randn(n_left, width, generator=generator))
    return matching(left, unit(torch.randn(n_right, width, generator=generator))).mean
