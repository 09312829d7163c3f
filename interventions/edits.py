"""Interventions on the features of a dictionary, or on neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .acts import Acts
from .by_site import BySite, by_name, check_covered
from .intervention import Here, Intervention


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
        check_covered("In `to`", self.to, self.nodes)
        for site, nodes in self.nodes.items():
            if isinstance(nodes, int) or (isinstance(nodes, str) and nodes != "all"):
                raise ValueError(f"{nodes!r} names no nodes at {site}: give a list, a mask, or 'all'.")

    @property
    def sites(self) -> Set[str]:
        return by_name(self.nodes).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        nodes = by_name(self.nodes)[site]
        if isinstance(nodes, str):
            nodes = torch.ones(acts.features.shape[-1] + 1, dtype=torch.bool)
        features, error = (
            _spread(on, on.new_zeros(()).expand_as(x), here)
            for on, x in zip(_mask(nodes, acts), (acts.features, acts.error[..., :1]), strict=True)
        )
        to = acts.map(torch.zeros_like) if self.to is None else by_name(self.to)[site]
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
        for site, nodes in by_name(self.nodes).items():
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
        return by_name(self.values).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        values = by_name(self.values)[site]
        return values.map(lambda new, old: _spread(new, old, here), acts)

    def __repr__(self) -> str:
        return f"Patch({', '.join(by_name(self.values))})"


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
        return by_name(self.values).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        values = by_name(self.values)[site]
        clamped, _ = _mask(list(values), acts)
        to = torch.zeros_like(acts.features[0, 0])
        to[list(values)] = torch.tensor(list(values.values())).to(to)
        return Acts(torch.where(clamped, to, acts.features), acts.error)

    def __repr__(self) -> str:
        values = (f"{s}/{f} = {v:g}" for s, vs in by_name(self.values).items() for f, v in vs.items())
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
        return by_name(self.factors).keys()

    def __call__(self, site: str, acts: Acts, here: Here | None = None) -> Acts:
        factors = by_name(self.factors)[site]
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
        values = by_name(self.factors)
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
        for site, factor in by_name(self.factors).items():
            of = factor.items() if isinstance(factor, Mapping) else [(None, factor)]
            parts += [f"{site}{'' if f is None else f'/{f}'} by {v:g}" for f, v in of]
        return f"Scale({', '.join(parts)})"


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
