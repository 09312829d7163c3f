"""A pool of shuffled activations: what dictionaries are trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import Model
from ..sites import Site
from .stream import Activations
from .texts import Text, text


class Pool:
    """Activations of several sites at the same shuffled positions, refilled from the model when half used.

    Each site is centred on its geometric median and scaled so that the mean square norm about it is the
    site's width; both are measured on the first filling. Text that fits into the pool is read only once.

    Positions whose token is in `ignore` (padding, the first token) are left out. `dtype` is that of what is
    held; batches are in float32.

    Raises:
        ValueError: activations that are not finite; fewer positions than one batch; an iterator that ends
            too early.
    """

    def __init__(
        self,
        model: Model,
        tokens: Text | Int[Tensor, "row pos"] | Iterable[Int[Tensor, "batch pos"]],
        sites: Sequence[Site],
        *,
        size: int,
        ignore: Collection[int] = (),
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        state: Mapping[str, Any] | None = None,
    ):
        self.stream = Activations(
            model,
            text(model, tokens, seed=seed),
            sites,
            size=size,
            dtype=dtype,
            ignore=ignore,
            epochs=None,
            seed=seed,
        )
        self.centre: dict[Site, Float[Tensor, " d_model"]] = {}
        self.scale: dict[Site, float] = {}
        if state is None:
            self.stream.fill()
            for site in sites:
                self._measure(site, self._held[site])
        else:
            self.stream.restore(state)
            for site in sites:
                self.centre[site] = state[f"centre {site.name}"].to(self._held[site].device)
                self.scale[site] = state["scale"][site.name]

    @property
    def positions(self) -> int:
        """How many positions are held."""
        return self.stream.positions

    @property
    def _held(self) -> dict[Site, Float[Tensor, "token d_model"]]:
        return self.stream.held

    def batch(self, n: int) -> dict[Site, Float[Tensor, "token d_model"]]:
        """The next `n` positions, centred and scaled."""
        if n > self.positions:
            raise ValueError(
                f"A batch of {n} positions needs a larger pool: this one holds {self.positions}."
            )
        return {site: self._scaled(site, x) for site, x in self.stream.batch(n).items()}

    def sample(self, site: Site, n: int) -> Float[Tensor, "token d_model"]:
        """Up to `n` of the positions held, centred and scaled."""
        return self._scaled(site, self._held[site][:n])

    def progress(self) -> dict[str, Any]:
        """What `state` is to be for a pool that goes on from here, besides what the stream holds."""
        centres = {f"centre {site.name}": centre for site, centre in self.centre.items()}
        scales = {site.name: scale for site, scale in self.scale.items()}
        return {**self.stream.progress(), **centres, "scale": scales}

    def _scaled(self, site: Site, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        centre = self.centre[site]
        return (x.to(centre.dtype) - centre) * self.scale[site]

    def _measure(self, site: Site, x: Float[Tensor, "token d_model"]) -> None:
        centre = self.centre[site] = geometric_median(x[:8192].float())
        squares = sum((part.float() - centre).square().sum(dtype=torch.float64) for part in x.split(2**13))
        variance = float(squares) / len(x)
        if not variance > 0:
            raise ValueError(f"{site} has the same activation everywhere: there is nothing to train on.")
        self.scale[site] = (x.shape[-1] / variance) ** 0.5


def geometric_median(x: Float[Tensor, "token d_model"], *, rounds: int = 30) -> Float[Tensor, " d_model"]:
    """The point with the least mean distance to the rows (Weiszfeld's algorithm)."""
    median = x.mean(0)
    least = 1e-6 * (x - median).norm(dim=-1).mean().item() or 1.0
    for _ in range(rounds):
        weights = 1 / (x - median).norm(dim=-1, keepdim=True).clamp(min=least)
        median = (x * weights).sum(0) / weights.sum()
    return median
