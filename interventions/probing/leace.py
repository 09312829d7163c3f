"""Linear concept erasure, and the probe that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..tensor_edits import Affine
from .discriminants import normal
from .examples import Labels, finite, numbers, plain, two_classes
from .files import load, save
from .logistic import spread
from .probe import Probe

Concept = Int[Tensor, " example"] | Float[Tensor, "example concept"]
_NOTHING = 1e-8  # of a standard deviation of the concept: correlations below it are rounding


@dataclass(frozen=True, eq=False)
class Eraser:
    """The affine function after which no linear probe tells a concept, and that changes least: `eraser(x)`.

    `x - left @ right @ (x - mean)`: `right` reads what correlates with the concept, `left` is what is taken
    off for it.
    """

    mean: Float[Tensor, " d_model"]
    left: Float[Tensor, "d_model rank"]
    right: Float[Tensor, "rank d_model"]
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "how", plain(self.how))

    @classmethod
    def fit(cls, x: Float[Tensor, "example d_model"], z: Concept) -> Eraser:
        """LEACE: Theorem 4.3 of Belrose et al. 2023 (arXiv 2306.03819), in float64.

        `z` are whole numbers, the class of each example, or (example concept) numbers of any kind. Afterwards
        the covariance of activations and concept is zero on these examples, and of all affine functions with
        this property it is the one of least mean squared change, in every norm.

        >>> x = torch.tensor([[0.0, 1.0], [0.0, 2.0], [4.0, 1.0], [4.0, 2.0]])
        >>> Eraser.fit(x, torch.tensor([0, 0, 1, 1]))(x)
        tensor([[2., 1.],
                [2., 2.],
                [2., 1.],
                [2., 2.]])

        Raises:
            ValueError: no activations, or ones that are not finite; another number of concepts.
        """
        x = finite(x, 2, "(example d_model)")
        concept = _concept(z, len(x))
        # What is erased hangs on no unit of the concept, and what counts as rounding is not to either.
        mean, concept = x.mean(0), (concept - concept.mean(0)) / spread(concept)
        rows = x - mean
        axes, size = principal_axes(rows)
        # In the principal axes, where the square root of the covariance is diagonal.
        cross = axes @ (rows.T @ concept) / len(x)
        u, strength, _ = torch.linalg.svd(cross / size[:, None], full_matrices=False)
        most = concept.square().mean(0).sum().sqrt()
        u = u[:, strength > _NOTHING * most]
        left, right = axes.T @ (size[:, None] * u), (u / size[:, None]).T @ axes
        return cls(mean, left, right, {"examples": len(x)})

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Activations without the concept, of the dtype and on the device of `x`."""
        if x.shape[-1] != len(self.mean):
            raise ValueError(f"x has width {x.shape[-1]}, but the eraser was fitted to {len(self.mean)}.")
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        about = precise - self.mean.to(precise)
        return (precise - about @ self.right.to(precise).T @ self.left.to(precise).T).to(x.dtype)

    def __repr__(self) -> str:
        return f"Eraser({self.rank} of {len(self.mean)} dimensions)"

    @property
    def rank(self) -> int:
        """How many dimensions are erased: of classes, one fewer than there are."""
        return len(self.right)

    @property
    def matrix(self) -> Float[Tensor, "d_model d_model"]:
        """The linear part: identity less `left @ right`."""
        return torch.eye(len(self.mean), dtype=self.left.dtype) - self.left @ self.right

    def at(self, *sites: str) -> Affine:
        """The intervention that erases the concept at these sites, in float32."""
        bias = self.left @ (self.right @ self.mean)
        return Affine({site: self.matrix.float() for site in sites}, {site: bias.float() for site in sites})

    def save(self, folder: str | Path) -> None:
        """Writes `eraser.json` and a safetensors file beside it, which `load` reads back exactly."""
        tensors = {"mean": self.mean, "left": self.left, "right": self.right}
        save(folder, "eraser", tensors, {"how": dict(self.how)})

    @classmethod
    def load(cls, folder: str | Path) -> Eraser:
        """What `save` wrote; see `Probe.load` for errors."""
        tensors, about = load(folder, "eraser")
        return cls(tensors["mean"], tensors["left"], tensors["right"], about["how"])


@dataclass(frozen=True)
class Leace:
    """Along what LEACE reads off activations in order to erase the labels: the direction by which the labels
    are predicted best by least squares, which is that of Fisher's discriminant without shrinkage.

    Where examples are fewer than dimensions, the smallest solution. Length and bias are those of `LDA`.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 2.0], [4.0, 1.0], [5.0, 2.0]])
    >>> direction = Leace().fit(x, [0, 0, 1, 1]).direction
    >>> direction / direction[0]
    tensor([ 1., -1.], dtype=torch.float64)
    """

    def fit(self, x: Float[Tensor, "example d_model"], labels: Labels) -> Probe:
        """A probe of activations and labels 0 and 1."""
        positive, negative = two_classes(x, labels)
        rows = torch.cat([positive, negative])
        eraser = Eraser.fit(rows, torch.arange(len(rows)) < len(positive))
        direction = eraser.right[0] if eraser.rank else torch.zeros_like(rows[0])
        probe = normal(direction, positive, negative)
        return Probe(probe.weights, probe.bias, {"recipe": repr(self), "examples": len(x)})


def _concept(z: Any, n: int) -> Float[Tensor, "example concept"]:
    z = numbers(z, "A concept is a class for each example, counted from 0 on, or numbers of any kind")
    if z.ndim not in (1, 2) or len(z) != n or (z.ndim == 2 and not z.shape[1]):
        raise ValueError(
            f"The concept has a row or a class for each of {n} examples; its shape is {tuple(z.shape)}."
        )
    if z.ndim == 1 and not z.is_floating_point():
        values, which = z.unique(return_inverse=True)
        z = torch.nn.functional.one_hot(which, len(values))
    z = z.double()
    if not z.isfinite().all():
        raise ValueError("The concept is not finite.")
    return z.view(n, -1)


def principal_axes(rows: Float[Tensor, "example d_model"]) -> tuple[Tensor, Float[Tensor, " axis"]]:
    """The principal axes (axis d_model) along which centred rows vary, and the deviation along each."""
    if len(rows) <= rows.shape[1]:
        size, axes = torch.linalg.svd(rows, full_matrices=False)[1:]
    else:
        values, vectors = torch.linalg.eigh(rows.T @ rows)
        size, axes = values.clamp_min(0).sqrt(), vectors.T
    size = size / len(rows) ** 0.5
    kept = size > size.max() * (max(rows.shape) * torch.finfo(rows.dtype).eps) ** 0.5
    return axes[kept], size[kept]
