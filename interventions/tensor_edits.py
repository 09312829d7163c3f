"""Interventions on a site's tensor: along directions, or by a matrix."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .acts import Acts
from .by_site import BySite, by_name, check_covered
from .intervention import Here, Intervention, TensorEdit


@dataclass(frozen=True)
class Add(TensorEdit):
    """Adds `scale` times a direction of shape `(d_model)` to a site, beside its features.

    >>> acts = Acts(torch.zeros(1, 1, 3), torch.zeros(1, 1, 2))
    >>> Add({"resid.0": torch.tensor([1.0, 0.0])}, scale=3)("resid.0", acts).error
    tensor([[[3., 0.]]])
    """

    directions: BySite[Tensor]
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_vectors(self.directions)

    @property
    def sites(self) -> Set[str]:
        return by_name(self.directions).keys()

    @property
    def fingerprints(self) -> Set[str]:
        return _fingerprints(self.directions)

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        by = self.scale * _fitting(self.directions, site, acts.error)
        return Acts(acts.features, acts.error + by) if here is None else here.moved(acts, by)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        return torch.add(x, _fitting(self.directions, site, x), alpha=self.scale)

    def inverse(self) -> Intervention:
        return Add(self.directions, -self.scale)

    def __repr__(self) -> str:
        norms = (f"{s} norm {abs(self.scale) * float(v.norm()):.3g}" for s, v in self.directions.items())
        return f"Add({', '.join(norms)})" if self.scale >= 0 else f"Add({', '.join(norms)}, reversed)"


@dataclass(frozen=True)
class Project(TensorEdit):
    """Takes a direction, or a subspace, out of a site's tensor.

    `directions` maps a site to a vector (d_model) or to several (k d_model), of any length and not
    necessarily orthogonal. What is left has the component `to` along each of them: 0, or say the mean
    over a text, `{site: tensor}` with a number for each vector, in units of that vector's own length. With
    several vectors, `to` is for an orthonormal set.

    >>> Project({"resid.0": torch.tensor([2.0, 0.0])}).tensor("resid.0", torch.ones(1, 1, 2), Here("resid.0"))
    tensor([[[0., 1.]]])
    """

    directions: BySite[Tensor]
    to: BySite[Any] | None = None
    _bases: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_covered("In `to`", self.to, self.directions)
        for site, given in self.directions.items():
            basis = torch.atleast_2d(given)
            if torch.linalg.matrix_rank(basis.double()) < len(basis):
                raise ValueError(
                    f"The directions at {site} do not span {len(basis)} dimensions: leave out zero vectors "
                    "and those that the others make up."
                )
            gram = basis.double() @ basis.double().T
            if self.to is not None and (gram - gram.diag().diag()).abs().max() > 1e-4 * gram.max():
                raise ValueError(f"The directions at {site} are not orthogonal, so `to` has no meaning.")
            n = 1 if self.to is None else torch.as_tensor(by_name(self.to)[str(site)]).numel()
            if n not in (1, len(basis)):
                raise ValueError(f"`to` has {n} numbers for the {len(basis)} directions at {site}.")

    @property
    def sites(self) -> Set[str]:
        return by_name(self.directions).keys()

    @property
    def fingerprints(self) -> Set[str]:
        return _fingerprints(self.directions)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        rows = torch.atleast_2d(_fitting(self.directions, site, x))
        exact = rows.to(torch.promote_types(x.dtype, torch.float32))
        basis = self._basis(site, exact)
        out = x - (x.to(exact.dtype) @ basis @ basis.T).to(x.dtype)
        if self.to is None:
            return out
        to = torch.as_tensor(by_name(self.to)[site], device=x.device, dtype=x.dtype)
        return out + (to.reshape(-1, 1) * rows / exact.norm(dim=-1, keepdim=True).to(x.dtype)).sum(0)

    def _basis(self, site: str, rows: Float[Tensor, "k d_model"]) -> Float[Tensor, "d_model k"]:
        """An orthonormal basis; kept, since every token asks for it."""
        key = (site, rows.dtype, rows.device)
        if rows.requires_grad or key not in self._bases:
            found = torch.linalg.qr(rows.T).Q if len(rows) > 1 else (rows / rows.norm()).T
            if rows.requires_grad:
                return found
            self._bases[key] = found
        return self._bases[key]

    def __repr__(self) -> str:
        sites = (f"{s}{'' if v.ndim == 1 else f' {len(v)} directions'}" for s, v in self.directions.items())
        return f"Project({', '.join(sites)} {'out' if self.to is None else 'to given values'})"


@dataclass(frozen=True)
class Affine(TensorEdit):
    """Maps a site's tensor `x` to `x @ matrix.T + bias`; `matrices` and `biases` are by site.

    >>> turn = Affine({"resid.0": torch.tensor([[0.0, -1.0], [1.0, 0.0]])})
    >>> turn.tensor("resid.0", torch.tensor([[[1.0, 0.0]]]), Here("resid.0"))
    tensor([[[0., 1.]]])
    """

    matrices: BySite[Float[Tensor, "d_model d_model"]]
    biases: BySite[Float[Tensor, " d_model"]] | None = None

    def __post_init__(self) -> None:
        check_covered("In the biases", self.biases, self.matrices)

    @property
    def sites(self) -> Set[str]:
        return by_name(self.matrices).keys()

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        matrix = _fitting(self.matrices, site, x)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"The matrix at {site} is {tuple(matrix.shape)}, and must be square.")
        bias = None if self.biases is None else _fitting(self.biases, site, x)
        return torch.nn.functional.linear(x, matrix, bias)

    def inverse(self) -> Intervention:
        matrices = {}
        for site, matrix in by_name(self.matrices).items():
            if torch.linalg.matrix_rank(matrix.double()) < len(matrix):
                return super().inverse()
            matrices[site] = torch.linalg.inv(matrix.double()).to(matrix.dtype)
        biases = None if self.biases is None else by_name(self.biases)
        back = None if biases is None else {s: -(matrices[s] @ b) for s, b in biases.items()}
        return Affine(matrices, back)

    def __repr__(self) -> str:
        return f"Affine({', '.join(by_name(self.matrices))})"


def rotation(
    one: Float[Tensor, " d_model"], other: Float[Tensor, " d_model"], angle: float
) -> Float[Tensor, "d_model d_model"]:
    """The matrix that turns the plane of two vectors, from the first towards the second, by so many radians.

    For `Affine`; what is orthogonal to both stays. Raises ValueError where they span no plane.

    >>> x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> (rotation(x, y, torch.pi / 2) @ x).round().abs()
    tensor([0., 1.])
    """
    plane = torch.stack([one, other]).double()
    if torch.linalg.matrix_rank(plane) < 2:
        raise ValueError("The two vectors lie on one line: they span no plane to turn.")
    u = plane[0] / plane[0].norm()
    v = plane[1] - (plane[1] @ u) * u
    v = v / v.norm()
    c, s = torch.cos(torch.tensor(angle).double()), torch.sin(torch.tensor(angle).double())
    eye = torch.eye(len(u), dtype=torch.float64, device=u.device)
    both = torch.outer(u, u) + torch.outer(v, v)
    return (eye + (c - 1) * both + s * (torch.outer(v, u) - torch.outer(u, v))).to(one.dtype)


def _check_vectors(directions: BySite[Tensor]) -> None:
    """Raises TypeError or ValueError for what is no vector."""
    for site, vector in directions.items():
        if not isinstance(vector, Tensor):
            raise TypeError(f"The direction at {site} is no tensor but a {type(vector).__name__}.")
        if vector.ndim != 1:
            raise ValueError(
                f"The direction at {site} has shape {tuple(vector.shape)}, and must be a vector (d_model)."
            )


def _fitting(values: BySite[Tensor], site: str, x: Tensor) -> Tensor:
    """The value for a site, of the dtype and on the device of `x`."""
    value = values[site] if site in values else by_name(values)[site]  # type: ignore[index]
    if value.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"A direction of width {value.shape[-1]} does not fit {site}, whose width is {x.shape[-1]}."
        )
    return value.to(x)


def _fingerprints(directions: Any) -> Set[str]:
    made_with = getattr(directions, "fingerprint", None)
    return frozenset() if made_with is None else frozenset([made_with])
