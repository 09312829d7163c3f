"""Several interventions as one: one after the other, or another one for each row."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from .acts import Acts
from .intervention import Here, Intervention, known


@dataclass(frozen=True)
class Chain(Intervention):
    """One intervention, then another."""

    first: Intervention
    then: Intervention

    @property
    def parts(self) -> Sequence[Intervention]:
        return (self.first, self.then)

    @property
    def sites(self) -> Set[str]:
        return self.first.sites | self.then.sites

    @property
    def watches(self) -> Set[str]:
        return self.first.watches | self.then.watches

    @property
    def placed(self) -> bool:
        return self.first.placed or self.then.placed

    @property
    def fingerprints(self) -> Set[str]:
        return self.first.fingerprints | self.then.fingerprints

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        for step in (self.first, self.then):
            acts = step(site, acts, here) if site in step.sites else acts
        return acts

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        for step in (self.first, self.then):
            x = step.tensor(site, x, here) if site in step.sites else x
        return x

    def inverse(self) -> Intervention:
        return Chain(self.then.inverse(), self.first.inverse())

    def __repr__(self) -> str:
        return f"{self.first!r} | {self.then!r}"


@dataclass(frozen=True)
class PerRow(Intervention):
    """A different intervention for each row of a batch, None for rows that are left alone.

    >>> from interventions import Ablate
    >>> PerRow([Ablate({"mlp.0": [3]}), None])
    PerRow(Ablate(mlp.0: 1 feature to zero), None)
    """

    rows: Sequence[Intervention | None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if not self.parts:
            raise ValueError("PerRow needs an intervention for at least one row.")
        if wrong := [row for row in self.parts if not isinstance(row, Intervention)]:
            raise TypeError(f"PerRow takes an intervention or None for each row, not {wrong[0]!r}.")

    @property
    def parts(self) -> Sequence[Intervention]:
        return [row for row in self.rows if row is not None]

    @property
    def sites(self) -> Set[str]:
        return frozenset().union(*(row.sites for row in self.parts))

    @property
    def watches(self) -> Set[str]:
        return frozenset().union(*(row.watches for row in self.parts))

    @property
    def placed(self) -> bool:
        return True

    @property
    def fingerprints(self) -> Set[str]:
        return frozenset().union(*(row.fingerprints for row in self.parts))

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        rows = self._rows(known(here))
        for i, step in enumerate(self.rows):
            if step is not None and site in step.sites:
                acts = step(site, acts, here).map(
                    lambda new, old, i=i: torch.where((rows == i)[:, None, None], new, old), acts
                )
        return acts

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        rows = self._rows(here)
        for i, step in enumerate(self.rows):
            if step is not None and site in step.sites:
                x = torch.where((rows == i)[:, None, None], step.tensor(site, x, here), x)
        return x

    def inverse(self) -> Intervention:
        return PerRow([None if row is None else row.inverse() for row in self.rows])

    def _rows(self, here: Here) -> Tensor:
        assert here.passage is not None
        if here.passage.n_rows % len(self.rows):
            raise ValueError(f"PerRow has {len(self.rows)} rows, but the batch has {here.passage.n_rows}.")
        # a pass over copies of the batch has them one after the other
        return here.passage.rows % len(self.rows)

    def __repr__(self) -> str:
        return f"PerRow({', '.join(map(repr, self.rows))})"
