"""Directions: one vector for each of some sites, with where it is from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import Model
from ..sites import Site
from .direction_files import load, save


@dataclass(frozen=True, eq=False, repr=False)
class Direction(Mapping[str, Tensor]):
    """One vector (d_model) for each of some sites: a mapping that `Add` and its like take as it is.

    `fingerprint` is that of the model it was found in; None fits every model of the same widths. `how` says
    in plain JSON how it was found. Directions of other models, other sites or other widths do not mix.

    >>> d = Direction({"resid.0": torch.tensor([3.0, 4.0])})
    >>> d
    Direction(resid.0; norm 5)
    >>> (2 * d - d / 2)["resid.0"]
    tensor([4.5000, 6.0000])
    >>> d.normalised().cosine(-d)
    {'resid.0': -1.0}

    Raises:
        ValueError: no vector, or one that is not finite or not of shape (d_model).
    """

    vectors: Mapping[str, Float[Tensor, " d_model"]] | Mapping[Site, Float[Tensor, " d_model"]]
    fingerprint: str | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.vectors:
            raise ValueError("A direction has a vector for at least one site.")
        found = {str(site): _vector(str(site), vector) for site, vector in self.vectors.items()}
        object.__setattr__(self, "vectors", MappingProxyType(found))
        object.__setattr__(self, "how", MappingProxyType(_plain(self.how)))

    @classmethod
    def random(cls, like: Mapping[str, Tensor], seed: int = 0) -> Direction:
        """Vectors of the same norms, uniform over all directions: a control.

        >>> like = Direction({"resid.0": torch.tensor([3.0, 4.0])})
        >>> Direction.random(like, seed=1)
        Direction(resid.0; norm 5; random)
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for site, vector in sorted((str(site), vector) for site, vector in like.items()):
            noise = torch.randn(len(vector), generator=generator, dtype=torch.float64)
            drawn[site] = (noise * (vector.double().norm().cpu() / noise.norm())).to(vector.dtype)
        order = {str(site): drawn[str(site)] for site in like}
        return cls(order, getattr(like, "fingerprint", None), {"method": "random", "seed": seed})

    # A mapping

    def __getitem__(self, site: str | Site) -> Float[Tensor, " d_model"]:
        try:
            return self.vectors[str(site)]  # type: ignore[index]
        except KeyError:
            raise KeyError(f"No vector at {str(site)!r}; this direction has {', '.join(self)}.") from None

    def __contains__(self, site: object) -> bool:
        return str(site) in self.vectors

    def __iter__(self) -> Iterator[str]:
        return iter(self.vectors)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.vectors)

    def __eq__(self, other: object) -> bool:
        """Whether all vectors and the model are the same; not how they were found."""
        if not isinstance(other, Direction):
            return NotImplemented
        same = self.keys() == other.keys() and self.fingerprint == other.fingerprint
        return same and all(torch.equal(self[site], other[site]) for site in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        norms = [self.norms[site] for site in self]
        size = f"{norms[0]:.3g}" if len(norms) == 1 else f"{min(norms):.3g} to {max(norms):.3g}"
        sites = (
            ", ".join(self) if len(self) < 5 else f"{len(self)} sites, {next(iter(self))} to {[*self][-1]}"
        )
        found = self.how.get("method")
        return f"Direction({sites}; norm {size}{f'; {found}' if found else ''})"

    # Values

    def __add__(self, other: Direction) -> Direction:
        return self._with(other, torch.add, "plus")

    def __sub__(self, other: Direction) -> Direction:
        return self._with(other, torch.sub, "minus")

    def __mul__(self, factor: float) -> Direction:
        if isinstance(factor, Mapping):
            raise TypeError("Directions are added and subtracted; multiply them by a number.")
        factor = float(factor)
        return self._map(lambda vector: vector * factor, {"times": factor, "of": self.how})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Direction:
        return self * (1 / divisor)

    def __neg__(self) -> Direction:
        return self * -1

    def __or__(self, other: Direction) -> Direction:  # type: ignore[override]
        """The vectors of both, at sites of which each has its own."""
        self._same_model(other)
        if both := [site for site in self if site in other]:
            raise ValueError(f"Both directions have a vector at {', '.join(both)}; add them with `+`.")
        how = {"of": [self.how, other.how]}
        return Direction({**self, **other}, self.fingerprint or other.fingerprint, how)

    def only(self, *sites: str | Site) -> Direction:
        """The vectors at these sites alone."""
        return replace(self, vectors={str(site): self[site] for site in sites})

    @property
    def norms(self) -> dict[str, float]:
        return {site: self[site].double().norm().item() for site in self}

    def normalised(self) -> Direction:
        """The same directions with norm 1. Raises ValueError for a vector of zeros."""
        if still := [site for site, norm in self.norms.items() if norm == 0]:
            raise ValueError(f"The vector at {', '.join(still)} is zero and has no direction.")
        return self._map(lambda vector: _unit(vector).to(vector), {"normalised": self.how})

    def cosine(self, other: Direction) -> dict[str, float]:
        """The cosine with another direction at each site; 0 with a vector of zeros."""
        self._fits(other)
        return {site: float(_unit(self[site]) @ _unit(other[site])) for site in self}

    def coordinate(self, site: str | Site, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """How far `x` lies along the direction at a site, in the units of `x`."""
        vector = self[site]
        if x.shape[-1] != len(vector):
            raise ValueError(f"x has width {x.shape[-1]}, but the direction at {site} has {len(vector)}.")
        return x @ _unit(vector).to(x)

    def project(
        self, site: str | Site, x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The component of `x` along the direction at a site; `x` less this has nothing of it."""
        return self.coordinate(site, x)[..., None] * _unit(self[site]).to(x)

    def to(self, *args: Any) -> Direction:
        """On another device, or of another dtype."""
        return self._map(lambda vector: vector.to(*args), self.how)

    def check(self, model: Model) -> Direction:
        """Itself, where a model has its sites in its widths and is the one that it was found in.

        Raises:
            LookupError: a site that the model does not have.
            ValueError: another width, or another model.
        """
        for name, vector in self.items():
            site = model.site(name)
            if site.width != len(vector):
                raise ValueError(
                    f"The direction at {name} has width {len(vector)}, but {name} of this model has "
                    f"{site.width}."
                )
        if self.fingerprint not in (None, model.fingerprint):
            raise ValueError(
                f"This direction was found in another model ({self.fingerprint[:8]}) than this one "
                f"({model.fingerprint[:8]}); dataclasses.replace(direction, fingerprint=None) fits any."
            )
        return self

    # Files

    def save(self, folder: str | Path) -> None:
        """Writes `direction.json` and a safetensors file beside it, which `load` reads back exactly."""
        save(folder, self, self.fingerprint, self.how)

    @classmethod
    def load(cls, folder: str | Path) -> Direction:
        """What `save` wrote.

        Raises:
            FileNotFoundError: no direction there.
            ValueError: files that are incomplete, changed since, or of another version.
        """
        return cls(*load(folder))

    # Private

    def _map(self, fn: Callable[[Tensor], Tensor], how: Mapping[str, Any]) -> Direction:
        return Direction({site: fn(vector) for site, vector in self.items()}, self.fingerprint, how)

    def _with(self, other: Direction, fn: Callable[[Tensor, Tensor], Tensor], name: str) -> Direction:
        if not isinstance(other, Direction):
            raise TypeError(f"A direction and a {type(other).__name__} do not add up.")
        self._fits(other)
        vectors = {site: fn(self[site], other[site].to(self[site].device)) for site in self}
        return Direction(vectors, self.fingerprint or other.fingerprint, {name: [self.how, other.how]})

    def _fits(self, other: Direction) -> None:
        self._same_model(other)
        if self.keys() != other.keys():
            raise ValueError(
                f"These directions are at other sites: {', '.join(self)} and {', '.join(other)}. "
                "`only` picks sites of one, `|` joins two without a site in common."
            )
        for site in self:
            if len(self[site]) != len(other[site]):
                raise ValueError(
                    f"At {site}, one direction has width {len(self[site])}, the other {len(other[site])}."
                )

    def _same_model(self, other: Direction) -> None:
        if None not in (self.fingerprint, other.fingerprint) and self.fingerprint != other.fingerprint:
            raise ValueError(
                f"These directions are of two models: {self.fingerprint[:8]} and {other.fingerprint[:8]}."  # type: ignore[index]
            )


def _vector(site: str, vector: Any) -> Tensor:
    vector = torch.as_tensor(vector).detach().clone()
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"The vector at {site} has the shape {tuple(vector.shape)}, not (d_model).")
    if not vector.is_floating_point():
        vector = vector.float()
    if not vector.isfinite().all():
        raise ValueError(f"The vector at {site} is not finite.")
    return vector


def _unit(vector: Tensor) -> Tensor:
    vector = vector.detach().cpu().double()
    norm = vector.norm()
    return vector / norm if norm > 0 else vector


def _plain(how: Any) -> Any:
    try:
        return json.loads(json.dumps(how, default=_mapping, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`how` must be plain JSON without NaN or infinities: {error}") from None


def _mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not")
