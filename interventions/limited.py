"""Interventions at some tokens only, or kept at the norm of what was there."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .acts import Acts
from .intervention import Here, Intervention, known
from .joined import Chain
from .passage import Passage
from .schedules import Schedule
from .where import Where


@dataclass(frozen=True)
class Changed(Intervention):
    """An intervention that does something with what another one does."""

    inner: Intervention

    @property
    def parts(self) -> Sequence[Intervention]:
        return (self.inner,)

    @property
    def sites(self) -> Set[str]:
        return self.inner.sites

    @property
    def watches(self) -> Set[str]:
        return self.inner.watches

    @property
    def placed(self) -> bool:
        return self.inner.placed

    @property
    def fingerprints(self) -> Set[str]:
        return self.inner.fingerprints


@dataclass(frozen=True)
class Placed(Changed):
    """An intervention at some tokens only; `Intervention.at` makes one."""

    where: Where = field(default_factory=Where)
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.where, Where):
            raise TypeError(f"`at` takes a place, such as Where(prompt=-1), not {self.where!r}.")

    @property
    def watches(self) -> Set[str]:
        return self.inner.watches | self.where.watches

    @property
    def placed(self) -> bool:
        return self.inner.placed or self.schedule is not None or not self.where.everywhere

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        if not self.placed:
            return self.inner(site, acts, here)
        here = known(here)
        if self._misses(here):
            return acts
        changed = self.inner(site, acts, here)
        return changed.map(lambda new, old: self._blended(new, old, here, here.tensor(acts)), acts)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        if not self.placed:
            return self.inner.tensor(site, x, here)
        if self._misses(here):
            return x
        return self._blended(self.inner.tensor(site, x, here), x, here, x)

    def inverse(self) -> Intervention:
        if self.schedule is not None or self.where.when is not None:
            return super().inverse()
        return Placed(self.inner.inverse(), self.where)

    def _misses(self, here: Here) -> bool:
        return here.passage is not None and self.where.misses(here.passage)

    def _blended(self, new: Tensor, old: Tensor, here: Here, x: Tensor) -> Tensor:
        assert here.passage is not None
        touched = self.where.touched(here.passage, x, here.seen, here.read)
        if self.schedule is not None:
            weight = self._weight(here.passage).to(x)
            if touched is not None:
                weight = weight * touched
            return old + weight[..., None] * (new - old)
        return new if touched is None else torch.where(touched[..., None], new, old)

    def _weight(self, passage: Passage) -> Float[Tensor, "row pos"]:
        assert self.schedule is not None
        generated = passage.of_this_pass(passage.generated)
        prompt = 0 if passage.prompt is None else passage.prompt[:, None]
        number = (passage.of_this_pass(passage.position) - prompt).clamp(min=0)
        weight = torch.as_tensor(self.schedule(number), dtype=torch.float64, device=number.device)
        return torch.where(generated, weight, 1.0)

    def __repr__(self) -> str:
        where = repr(self.where).removeprefix("Where(").removesuffix(")")
        inner = f"({self.inner!r})" if isinstance(self.inner, Chain) else repr(self.inner)
        return f"{inner} at {where}" + (f", {self.schedule!r}" if self.schedule is not None else "")


@dataclass(frozen=True)
class KeptNorm(Changed):
    """An intervention that turns activations and leaves their norm; `Intervention.keeping_norm` makes one."""

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        return _refined(self, site, acts, here)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        return self.refined(x, self.inner.tensor(site, x, here))

    def refined(self, x: Tensor, y: Tensor) -> Tensor:
        return (y * (_norm(x) / _norm(y).clamp(min=1e-12))).to(x.dtype)

    def __repr__(self) -> str:
        return f"{self.inner!r} keeping the norm"


@dataclass(frozen=True)
class Clipped(Changed):
    """An intervention that moves activations only so far; `Intervention.clipped` makes one."""

    most: float = 1.0

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(f"Clipped at {self.most} times their norm, activations would never move.")

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        return _refined(self, site, acts, here)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        return self.refined(x, self.inner.tensor(site, x, here))

    def refined(self, x: Tensor, y: Tensor) -> Tensor:
        change = y - x
        part = (self.most * _norm(x) / _norm(change).clamp(min=1e-12)).clamp(max=1)
        return x + (change * part).to(x.dtype)

    def __repr__(self) -> str:
        return f"{self.inner!r} clipped at {self.most:g} of the norm"


def _norm(x: Tensor) -> Float[Tensor, "*batch 1"]:
    """Norms in single precision at least: in half precision they overflow, and small numbers are zero."""
    return x.norm(dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def _refined(of: KeptNorm | Clipped, site: str, acts: Acts, here: Here | None) -> Acts:
    here = known(here)
    changed = of.inner(site, acts, here)
    x, y = here.tensor(acts), here.tensor(changed)
    return here.moved(changed, of.refined(x, y) - y)
