"""Causal bases: the directions at a site that a lens' predictions hang on most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import vouched
from ..intervention import Here, TensorEdit
from ..steering.columns import aligned
from ..tensor_edits import Project

_FORMAT, _VERSION = "interventions.causal-basis", 1

# What is held, orthonormal rows to take out of it, its mean: what is left.
Ablation = Callable[
    [Float[Tensor, "*batch width"], Float[Tensor, "k width"], Float[Tensor, " width"]],
    Float[Tensor, "*batch width"],
]


def to_mean(x: Tensor, vectors: Tensor, mean: Tensor) -> Tensor:
    """Within the subspace every tensor becomes the mean.

    >>> x = torch.tensor([[1.0, 5.0], [3.0, 6.0]])
    >>> to_mean(x, torch.tensor([[1.0, 0.0]]), x.mean(0))
    tensor([[2., 5.],
            [2., 6.]])
    """
    return x + (mean - x) @ vectors.mT @ vectors


def to_zero(x: Tensor, vectors: Tensor, mean: Tensor) -> Tensor:
    """Within the subspace nothing is left."""
    return x - x @ vectors.mT @ vectors


def resampled(x: Tensor, vectors: Tensor, mean: Tensor) -> Tensor:
    """Within the subspace every tensor becomes that of another token, by a fixed shuffle that moves all.

    Raises:
        ValueError: one token alone.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) < 2:
        raise ValueError("There is no other token to resample from: give several.")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows))).to(x.device)
    other = torch.empty_like(rows)
    other[order] = rows[order.roll(1)]
    return x + (other.view_as(x) - x) @ vectors.mT @ vectors


@dataclass(frozen=True, eq=False)
class CausalBasis:
    """Orthonormal directions at a site, in the order of how much a lens' predictions change without them.

    Each comes with its energy: the mean KL divergence in nats from the lens' predictions to what they are
    once it alone is ablated (Belrose et al. 2023, section 4.1). `mean` is of what the site held, and
    `principal` has as many directions of greatest variance, for comparison. `how` says in plain JSON how it
    was found.

    >>> x = torch.eye(3)
    >>> basis = CausalBasis("resid.0", x[:2], torch.tensor([2.0, 1.0]), torch.zeros(3), x[1:])
    >>> print(basis)
    resid.0    energy  share of the variance
    1          2 nats                      -
    2          1 nats                      -
    >>> basis.ablating(1)
    Project(resid.0 1 directions to given values)
    """

    site: str
    vectors: Float[Tensor, "k width"]
    energies: Float[Tensor, " k"]
    mean: Float[Tensor, " width"]
    principal: Float[Tensor, "k width"]
    fingerprint: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)

    def __str__(self) -> str:
        shares = self.how.get("variance", ["-"] * len(self))
        rows = [
            [str(i + 1), f"{energy:.4g} nats", s if isinstance(s, str) else f"{s:.2%}"]
            for i, (energy, s) in enumerate(zip(self.energies.tolist(), shares, strict=True))
        ]
        return aligned([[self.site, "energy", "share of the variance"], *rows])

    def ablating(self, k: int) -> Project:
        """The intervention that sets the first `k` directions to the mean, for `applied` and the like."""
        vectors = self._first(k)
        return Project({self.site: vectors}, to={self.site: vectors @ self.mean})

    def removing(self, k: int) -> Project:
        """The intervention that takes the first `k` directions out."""
        return Project({self.site: self._first(k)})

    def save(self, folder: str | Path) -> Path:
        """Writes the basis into a folder; `load` reads it back exactly."""
        said = {"site": self.site, "fingerprint": self.fingerprint, "how": dict(self.how)}
        return vouched.save(folder, "basis", said, self._tensors(), format=_FORMAT, version=_VERSION)

    @classmethod
    def load(cls, folder: str | Path) -> CausalBasis:
        """What `save` wrote.

        Raises:
            FileNotFoundError: no basis there.
            ValueError: files that are incomplete, changed since, or of another version.
        """
        said, tensors = vouched.load(folder, "basis", format=_FORMAT, version=_VERSION)
        try:
            return cls(**tensors, **said)
        except TypeError as error:
            raise ValueError(f"The files in {folder} do not describe a causal basis: {error}.") from None

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("vectors", "energies", "mean", "principal")}

    def _first(self, k: int) -> Tensor:
        if not 1 <= k <= len(self):
            raise ValueError(f"The basis has {len(self)} directions; there are no first {k}.")
        return self.vectors[:k]


@dataclass(frozen=True, eq=False)
class AblateSubspace(TensorEdit):
    """Ablates a subspace of what a site holds, in any way; for the mean and for zero, as `Project` does."""

    site: str
    vectors: Float[Tensor, "k width"]
    mean: Float[Tensor, " width"]
    ablation: Ablation = to_mean

    @property
    def sites(self) -> Set[str]:
        return frozenset({self.site})

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        exact = x.to(self.vectors.dtype)
        return self.ablation(exact, self.vectors.to(x.device), self.mean.to(x.device)).to(x.dtype)
