"""What to ablate to: means over a text, activations of other prompts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from .acts import Acts, Identity
from .binding import Dictionaries
from .model import Model
from .splice import run


@torch.no_grad()
def mean_acts(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    sites: Iterable[str],
    dictionaries: Dictionaries | None = None,
    *,
    mask: Int[Tensor, "row pos"] | None = None,
    batch_size: int = 16,
) -> dict[str, Acts]:
    """Mean features and error at some sites over all tokens, (1 1 feature) and (1 1 d_model).

    For `Ablate(nodes, to=mean_acts(...))`, mean ablation. Sites without a dictionary have their neurons.
    """
    given = {model.site(site).name: d for site, d in (dictionaries or {}).items()}
    names = [model.site(site).name for site in sites]
    spliced = {name: given.get(name, Identity()) for name in names}
    total: dict[str, Acts] = {}
    keep = torch.ones_like(tokens) if mask is None else mask
    if not keep.any():
        raise ValueError("There is no token to take a mean over.")
    for rows, real in zip(tokens.split(batch_size), keep.split(batch_size), strict=True):
        found = run(model, rows, spliced, mask=None if mask is None else real).computed
        weight = real.to(model.device)[..., None]
        for name in names:
            summed = found[name].map(lambda x, w=weight: (x.double() * w).sum((0, 1), keepdim=True))
            total[name] = total[name] + summed if name in total else summed
    return {
        name: (acts * (1 / int(keep.sum()))).map(lambda x: x.to(model.dtype)) for name, acts in total.items()
    }


@torch.no_grad()
def acts_of(
    model: Model,
    tokens: Int[Tensor, "row pos"],
    sites: Iterable[str],
    dictionaries: Dictionaries | None = None,
) -> dict[str, Acts]:
    """Features and error at some sites on other prompts of the same length.

    For `Ablate(nodes, to=acts_of(...))`, resample ablation, and for `Patch`.
    """
    given = {model.site(site).name: d for site, d in (dictionaries or {}).items()}
    names = [model.site(site).name for site in sites]
    return run(model, tokens, {name: given.get(name, Identity()) for name in names}).computed
