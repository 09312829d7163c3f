"""Kinds of interventions: on the features of a dictionary, or on a site's tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .acts import Acts
from .intervention import BySite, Here, Intervention, TensorEdit


def _by_name(values: BySite[Any]) -> dict[str, Any]:
    return {str(site): value for site, value in values.items()}


def _check_covered(of: str, values: BySite[Any] | None, sites: BySite[Any]) -> None:
    """Raises ValueError where a site has no value."""
    missing = [] if values is None else sorted(_by_name(sites).keys() - _by_name(values).keys())
    if missing:
        raise ValueError(f"{of} there is nothing for {missing[0]}, which is changed.")


def _check_vectors(directions: BySite[Tensor]) -> None:
    """Raises TypeError or ValueError for what is no vector."""
    for site, vector in directions.items():
        if not isinstance(vector, Tensor):
            raise TypeError(f"The direction at {site} is no tensor but a {type(vector).__name__}.")
        if vector.ndim != 1:
            raise ValueError(
                f"The direction at {site} has shape {tuple(vector.shape)}, and must be a vector (d_model)."
            )


def _mask(
    nodes: Tensor | Sequence[int], acts: Acts
) -> tuple[Bool[Tensor, "*pos feature"], Bool[Tensor, "*pos 1"]]:
    """Which features, and whether the error: from a mask over features or nodes, or from a list."""
    n = acts.features.shape[-1]
    if not isinstance(nodes, Tensor) or nodes.dtype != torch.bool:
        listed = torch.as_tensor(nodes, dtype=torch.long, device=acts.features.device)
        outside = listed[(listed < 0) | (listed >= n)].tolist()
        if outside:
            raise ValueError(
                f"Feature {outside[0]} is out of range: the dictionary has features 0 to {n - 1}. "
                f"For the error pass a mask of {n + 1} entries."
            )
        nodes = torch.zeros(n, dtype=torch.bool, device=acts.features.device)
        nodes[listed] = True
    nodes = nodes.to(acts.features.device)
    if nodes.shape[-1] == n:
        return nodes, torch.zeros_like(nodes[..., :1])
    if nodes.shape[-1] == n + 1:
        return nodes[..., :-1], nodes[..., -1:]
    raise ValueError(
        f"A mask over {nodes.shape[-1]} nodes does not fit a site with {n} features; "
        f"pass {n} entries, or {n + 1} to include the error."
    )


@dataclass(frozen=True)
class Ablate(Intervention):
    """Sets features to zero, or to the values that they take in `to`.

    `nodes` maps a site to a list of features, to a boolean mask of shape `(feature)`, `(node)` or
    `(pos node)` where True is ablated and the last node is the error, or to `"all"`: every feature and the
    error. The error is kept unless its node is ablated. `to` holds the activations of other prompts
    (resample ablation) or, with a single row and position, means (`mean_acts`).

    >>> acts = Acts(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 1, 2))
    >>> Ablate({"mlp.0": [0, 2]})("mlp.0", acts).features
    tensor([[[0., 2., 0.]]])
    """

    nodes: BySite[Any]
    to: BySite[Acts] | None = None

    def __post_init__(self) -> None:
        _check_covered("In `to`", self.to, self.nodes)
        for site, nodes in self.nodes.items():
            if isinstance(nodes, int) or (isinstance(nodes, str) and nodes != "all"):
                raise ValueError(f"{nodes!r} names no nodes at {site}: give a list, a mask, or 'all'.")

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.nodes).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        nodes = _by_name(self.nodes)[site]
        if isinstance(nodes, str):
            nodes = torch.ones(acts.features.shape[-1] + 1, dtype=torch.bool)
        features, error = (
            _spread(on, on.new_zeros(()).expand_as(x), here)
            for on, x in zip(_mask(nodes, acts), (acts.features, acts.error[..., :1]), strict=True)
        )
        to = acts.map(torch.zeros_like) if self.to is None else _by_name(self.to)[site]
        if to.features.shape[-1] != acts.features.shape[-1]:
            raise ValueError(
                f"The values to ablate {site} to have {to.features.shape[-1]} features, "
                f"but {acts.features.shape[-1]} are there."
            )
        return Acts(
            torch.where(features, _spread(to.features, acts.features, here), acts.features),
            torch.where(error, _spread(to.error, acts.error, here), acts.error),
        )

    def __repr__(self) -> str:
        parts = []
        for site, nodes in _by_name(self.nodes).items():
            every = isinstance(nodes, str)
            is_mask = isinstance(nodes, Tensor) and nodes.dtype == torch.bool
            n = 0 if every else int(nodes.sum()) if is_mask else len(nodes)
            parts.append(f"{site}: {'all' if every else f'{n} feature' + 's' * (n != 1)}")
        return f"Ablate({', '.join(parts)} to {'zero' if self.to is None else 'given values'})"


@dataclass(frozen=True)
class Patch(Intervention):
    """Replaces what a site computes by other activations, such as those of another prompt.

    Limited to the prompt (`.at(Where(generation=None))`) it leaves alone what is written after it.
    """

    values: BySite[Acts]

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.values).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        values = _by_name(self.values)[site]
        return values.map(lambda new, old: _spread(new, old, here), acts)

    def __repr__(self) -> str:
        return f"Patch({', '.join(_by_name(self.values))})"


@dataclass(frozen=True)
class Clamp(Intervention):
    """Holds single features at a value: `{site: {feature: value}}`.

    >>> acts = Acts(torch.zeros(1, 1, 3), torch.zeros(1, 1, 2))
    >>> Clamp({"resid.0": {1: 5.0}})("resid.0", acts).features
    tensor([[[0., 5., 0.]]])
    """

    values: BySite[Mapping[int, float]]

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.values).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        values = _by_name(self.values)[site]
        clamped, _ = _mask(list(values), acts)
        to = torch.zeros_like(acts.features[0, 0])
        to[list(values)] = torch.tensor(list(values.values())).to(to)
        return Acts(torch.where(clamped, to, acts.features), acts.error)

    def __repr__(self) -> str:
        values = (f"{s}/{f} = {v:g}" for s, vs in _by_name(self.values).items() for f, v in vs.items())
        return f"Clamp({', '.join(values)})"


@dataclass(frozen=True)
class Scale(Intervention):
    """Multiplies features by a factor, or with no features named the site's whole tensor.

    `{site: factor}` or `{site: {feature: factor}}`.

    >>> acts = Acts(torch.ones(1, 1, 3), torch.zeros(1, 1, 2))
    >>> Scale({"resid.0": {1: 5.0}})("resid.0", acts).features
    tensor([[[1., 5., 1.]]])
    """

    factors: BySite[Any]

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.factors).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        factors = _by_name(self.factors)[site]
        if not isinstance(factors, Mapping):
            if here is None:
                raise ValueError(
                    f"{self!r} changes tensors: it needs to know what the activations stand for."
                )
            return here.moved(acts, (float(factors) - 1) * here.tensor(acts))
        _mask(list(factors), acts)
        by = torch.ones_like(acts.features[0, 0])
        by[list(factors)] = torch.tensor(list(factors.values())).to(by)
        return Acts(acts.features * by, acts.error)

    def inverse(self) -> Intervention:
        values = _by_name(self.factors)
        flat = [f for v in values.values() for f in (v.values() if isinstance(v, Mapping) else [v])]
        if not all(flat):
            return super().inverse()
        return Scale(
            {
                s: {f: 1 / v for f, v in vs.items()} if isinstance(vs, Mapping) else 1 / vs
                for s, vs in values.items()
            }
        )

    def __repr__(self) -> str:
        parts = []
        for site, factor in _by_name(self.factors).items():
            of = factor.items() if isinstance(factor, Mapping) else [(None, factor)]
            parts += [f"{site}{'' if f is None else f'/{f}'} by {v:g}" for f, v in of]
        return f"Scale({', '.join(parts)})"


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
        return _by_name(self.directions).keys()

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
        _check_covered("In `to`", self.to, self.directions)
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
            n = 1 if self.to is None else torch.as_tensor(_by_name(self.to)[str(site)]).numel()
            if n not in (1, len(basis)):
                raise ValueError(f"`to` has {n} numbers for the {len(basis)} directions at {site}.")

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.directions).keys()

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
        to = torch.as_tensor(_by_name(self.to)[site], device=x.device, dtype=x.dtype)
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
        _check_covered("In the biases", self.biases, self.matrices)

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.matrices).keys()

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        matrix = _fitting(self.matrices, site, x)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"The matrix at {site} is {tuple(matrix.shape)}, and must be square.")
        bias = None if self.biases is None else _fitting(self.biases, site, x)
        return torch.nn.functional.linear(x, matrix, bias)

    def inverse(self) -> Intervention:
        matrices = {}
        for site, matrix in _by_name(self.matrices).items():
            if torch.linalg.matrix_rank(matrix.double()) < len(matrix):
                return super().inverse()
            matrices[site] = torch.linalg.inv(matrix.double()).to(matrix.dtype)
        biases = None if self.biases is None else _by_name(self.biases)
        back = None if biases is None else {s: -(matrices[s] @ b) for s, b in biases.items()}
        return Affine(matrices, back)

    def __repr__(self) -> str:
        return f"Affine({', '.join(_by_name(self.matrices))})"


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


def _fitting(values: BySite[Tensor], site: str, x: Tensor) -> Tensor:
    """The value for a site, of the dtype and on the device of `x`."""
    value = values[site] if site in values else _by_name(values)[site]  # type: ignore[index]
    if value.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"A direction of width {value.shape[-1]} does not fit {site}, whose width is {x.shape[-1]}."
        )
    return value.to(x)


def _spread(new: Tensor, old: Tensor, here: Here | None = None) -> Tensor:
    """Values for a pass: those of a batch for each of its copies, a mean for every token, those of a prompt
    with what is there after it."""
    copies = len(old) // max(len(new), 1)
    if new.ndim == old.ndim and copies > 1 and len(new) > 1 and copies * len(new) == len(old):
        new = new.repeat(copies, *[1] * (new.ndim - 1))
    length = new.shape[-2] if new.ndim > 1 else 1
    passage = None if here is None else here.passage
    if length > 1 and passage is not None and not passage.prompted[:, length:].any():
        if passage.start >= length:
            return old
        if passage.start == 0 and length < old.shape[1]:
            new = torch.cat([new.to(old).expand(len(old), length, -1), old[:, length:]], dim=1)
    try:
        return new.to(old).expand(old.shape)
    except RuntimeError:
        raise ValueError(
            f"Activations of shape {tuple(new.shape)} do not fit a pass whose are {tuple(old.shape)}."
        ) from None


def _fingerprints(directions: Any) -> Set[str]:
    made_with = getattr(directions, "fingerprint", None)
    return frozenset() if made_with is None else frozenset([made_with])
