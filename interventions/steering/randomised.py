"""The same intervention along random directions: the control that every effect is held against."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..intervention import Intervention
from ..tensor_edits import Add


def randomised(intervention: Intervention, seed: int) -> Intervention:
    """The same intervention with every added vector replaced by a random one of the same norm.

    Uniform over all directions, and the same for one seed, site and norm. Steps of a chain and what is
    limited to some tokens are replaced in their place. An intervention of your own takes part by a method
    `randomised(seed)`.

    >>> import torch
    >>> one = randomised(Add({"resid.0": torch.tensor([3.0, 4.0])}, scale=2), seed=0)
    >>> one.directions["resid.0"].norm().item(), one.scale
    (5.0, 2)

    Raises:
        TypeError: there is nothing in it to replace.
    """
    found = _replaced(intervention, seed)
    if found is None:
        raise TypeError(
            f"{type(intervention).__name__} adds no vector that a random one could stand for: pass random=0, "
            "and controls of your own."
        )
    return found


def random_vectors(vectors: Mapping[Any, Tensor], seed: int) -> dict[str, Tensor]:
    """A random tensor of the same shape and norm for each, by the name of its site."""
    drawn = {}
    for site, vector in vectors.items():
        own = int.from_bytes(hashlib.sha256(f"{seed} {site}".encode()).digest()[:4], "little")
        noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(own), dtype=torch.float64)
        norm = vector.detach().double().norm().cpu()
        drawn[str(site)] = (noise * (norm / noise.norm())).to(vector)
    return drawn


def _replaced(intervention: Intervention, seed: int) -> Intervention | None:
    """None where there is nothing to replace."""
    own = getattr(intervention, "randomised", None)
    if own is not None:
        return own(seed)
    if isinstance(intervention, Add):
        return replace(intervention, directions=random_vectors(intervention.directions, seed))
    if not is_dataclass(intervention):
        return None
    inner: dict[str, Intervention] = {}
    for field in fields(intervention):
        value = getattr(intervention, field.name)
        if field.init and isinstance(value, Intervention) and (new := _replaced(value, seed)) is not None:
            inner[field.name] = new
    return replace(intervention, **inner) if inner else None  # type: ignore[type-var]
