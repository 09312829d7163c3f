"""Interventions: values that say how the activations at some sites are changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from .acts import Acts
from .sites import Site

T = TypeVar("T")
BySite: TypeAlias = Mapping[str, T] | Mapping[Site, T]  # sites, or their names


def _by_name(values: BySite[Any]) -> dict[str, Any]:
    return {str(site): value for site, value in values.items()}


class Intervention(ABC):
    """A change to the activations at some sites.

    Interventions are values: they hold no model and no hooks. `a | b` does `a`, then `b`.
    """

    @property
    @abstractmethod
    def sites(self) -> Set[str]:
        """Names of the sites that are changed."""

    @abstractmethod
    def __call__(self, site: str, acts: Acts) -> Acts:
        """What flows on in place of `acts`."""

    def __or__(self, then: Intervention) -> Intervention:
        return _Chain(self, then)


@dataclass(frozen=True)
class _Chain(Intervention):
    first: Intervention
    then: Intervention

    @property
    def sites(self) -> Set[str]:
        return self.first.sites | self.then.sites

    def __call__(self, site: str, acts: Acts) -> Acts:
        for step in (self.first, self.then):
            acts = step(site, acts) if site in step.sites else acts
        return acts


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

    `nodes` maps a site to a list of features, or to a boolean mask of shape `(feature)`, `(node)` or
    `(pos node)` where True is ablated and the last node is the error. The error is kept unless its node
    is ablated.

    >>> acts = Acts(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 1, 2))
    >>> Ablate({"mlp.0": [0, 2]})("mlp.0", acts).features
    tensor([[[0., 2., 0.]]])
    """

    nodes: BySite[Tensor] | BySite[Sequence[int]] | BySite[list[int]]
    to: BySite[Acts] | None = None

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.nodes).keys()

    def __call__(self, site: str, acts: Acts) -> Acts:
        features, error = _mask(_by_name(self.nodes)[site], acts)
        to = acts.map(torch.zeros_like) if self.to is None else _by_name(self.to)[site]
        return Acts(
            torch.where(features, to.features, acts.features), torch.where(error, to.error, acts.error)
        )


@dataclass(frozen=True)
class Patch(Intervention):
    """Replaces what a site computes by other activations, such as those of another prompt."""

    values: BySite[Acts]

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.values).keys()

    def __call__(self, site: str, acts: Acts) -> Acts:
        return _by_name(self.values)[site]


@dataclass(frozen=True)
class Add(Intervention):
    """Adds `scale` times a direction of shape `(d_model)` to a site, beside its features.

    >>> acts = Acts(torch.zeros(1, 1, 3), torch.zeros(1, 1, 2))
    >>> Add({"resid.0": torch.tensor([1.0, 0.0])}, scale=3)("resid.0", acts).error
    tensor([[[3., 0.]]])
    """

    directions: BySite[Tensor]
    scale: float = 1.0

    @property
    def sites(self) -> Set[str]:
        return _by_name(self.directions).keys()

    def __call__(self, site: str, acts: Acts) -> Acts:
        direction = _by_name(self.directions)[site]
        if direction.shape[-1] != acts.error.shape[-1]:
            raise ValueError(
                f"A direction of width {direction.shape[-1]} does not fit {site}, "
                f"whose width is {acts.error.shape[-1]}."
            )
        return Acts(acts.features, acts.error + self.scale * direction.to(acts.error))


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

    def __call__(self, site: str, acts: Acts) -> Acts:
        values = _by_name(self.values)[site]
        clamped, _ = _mask(list(values), acts)
        to = torch.zeros_like(acts.features[0, 0])
        to[list(values)] = torch.tensor(list(values.values())).to(to)
        return Acts(torch.where(clamped, to, acts.features), acts.error)
