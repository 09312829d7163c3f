"""Interventions that are only for the model that they were found in."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from torch import Tensor

from ..acts import Acts
from ..intervention import Here, Intervention
from ..limited import Changed


@dataclass(frozen=True)
class MadeWith(Changed):
    """An intervention that `applied` and `run` refuse in any other model than the one with this fingerprint.

    Numbers of features carry no mark of their model; this puts it on.

    >>> from interventions import Ablate
    >>> MadeWith(Ablate({"mlp.0": [3]}), "0123456789abcdef")
    Ablate(mlp.0: 1 feature to zero) of model 01234567
    """

    fingerprint: str = ""

    @property
    def fingerprints(self) -> Set[str]:
        return self.inner.fingerprints | {self.fingerprint}

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        return self.inner(site, acts, here)

    def tensor(self, site: str, x: Tensor, here: Here) -> Tensor:
        return self.inner.tensor(site, x, here)

    def inverse(self) -> Intervention:
        return MadeWith(self.inner.inverse(), self.fingerprint)

    def __repr__(self) -> str:
        return f"{self.inner!r} of model {self.fingerprint[:8]}"
