"""A pool of shuffled activations: what dictionaries are trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..model import Model
from ..sites import Site

_READ = 2**13  # positions per forward pass where rows can be chosen freely


class Pool:
    """Activations of several sites at the same shuffled positions, refilled from the model when half used.

    Each site is centred on its geometric median and scaled so that the mean square norm about it is the
    site's width; both are measured on the first filling. Text that fits into the pool is read only once.

    Positions whose token is in `ignore` (padding, the first token) are left out.

    Raises:
        ValueError: activations that are not finite; fewer positions than one batch; an iterator that ends
            too early.
    """

    def __init__(
        self,
        model: Model,
        tokens: Int[Tensor, "row pos"] | Iterable[Int[Tensor, "batch pos"]],
        sites: Sequence[Site],
        *,
        size: int,
        ignore: Collection[int] = (),
        seed: int = 0,
    ):
        self._model, self._tokens, self._sites, self._size = model, tokens, sites, size
        self._ignore = torch.tensor(sorted(ignore), dtype=torch.long)
        self._generator = torch.Generator().manual_seed(seed)
        self._reading: Iterator[dict[Site, Tensor]] = iter(())
        self._whole = False  # whether the pool holds all the text there is
        self._at = 0
        self.positions = 0
        self._held: dict[Site, Tensor] = {}
        self.centre: dict[Site, Float[Tensor, " d_model"]] = {}
        self.scale: dict[Site, float] = {}
        self._fill()

    def batch(self, n: int) -> dict[Site, Float[Tensor, "token d_model"]]:
        """The next `n` positions, centred and scaled."""
        if n > self.positions:
            raise ValueError(
                f"A batch of {n} positions needs a larger pool: this one holds {self.positions}."
            )
        used = self._at + n
        if used > self.positions if self._whole else used > max(self.positions // 2, n):
            self._fill()
        self._at += n
        return {site: held[self._at - n : self._at] for site, held in self._held.items()}

    def sample(self, site: Site, n: int) -> Float[Tensor, "token d_model"]:
        """Up to `n` of the positions held, centred and scaled."""
        return self._held[site][:n]

    def _fill(self) -> None:
        fresh: list[dict[Site, Tensor]] = []
        missing = 0 if self._whole else self._size - (self.positions - self._at)
        while missing > 0:
            read = next(self._reading, None)
            if read is None:
                if fresh and not self.scale:
                    self._whole = True
                    break
                self._reading = self._epoch()
                read = next(self._reading, None)
                if read is None:
                    raise ValueError(
                        "The tokens ran out: an iterator can be read once. Pass a tensor, a list of batches, "
                        "or an iterator that lasts."
                        if self.scale
                        else "There are no tokens to read, or `ignore` leaves none of them."
                    )
            fresh.append(read)
            missing -= len(next(iter(read.values())))
        self._absorb(fresh)

    def _absorb(self, fresh: list[dict[Site, Tensor]]) -> None:
        """Shuffles what was just read into what is left."""
        kept = 0 if self._whole else self._at
        order = None
        for site in self._sites:
            new = [read.pop(site) for read in fresh]  # let go, so that a site is held twice one at a time
            if new and site not in self.scale:
                self._measure(site, torch.cat(new))
            new = [(x - self.centre[site]) * self.scale[site] for x in new]
            held = torch.cat([self._held[site][kept:], *new] if site in self._held else new)
            if order is None:
                self.positions = len(held)
                order = torch.randperm(len(held), generator=self._generator).to(held.device)
            self._held[site] = held[order]
        self._at = 0

    def _measure(self, site: Site, x: Float[Tensor, "token d_model"]) -> None:
        self.centre[site] = geometric_median(x[:8192])
        variance = (x - self.centre[site]).square().sum(-1).mean().item()
        if not variance > 0:
            raise ValueError(f"{site} has the same activation everywhere: there is nothing to train on.")
        self.scale[site] = (x.shape[-1] / variance) ** 0.5

    def _epoch(self) -> Iterator[dict[Site, Tensor]]:
        """Activations (position d_model) of all sites, text by text."""
        for tokens in self._texts():
            keep = torch.isin(tokens.cpu().flatten(), self._ignore, invert=True)
            if not keep.any():
                continue
            read = self._model.read(tokens, self._sites)
            flat = {site: x.float().flatten(0, 1)[keep.to(x.device)] for site, x in read.items()}
            for site, x in flat.items():
                if not x.isfinite().all():
                    raise ValueError(f"The model's activations at {site} are not finite.")
            yield flat

    def _texts(self) -> Iterator[Int[Tensor, "batch pos"]]:
        if isinstance(self._tokens, Tensor):
            order = torch.randperm(len(self._tokens), generator=self._generator)
            for rows in order.split(max(1, _READ // self._tokens.shape[-1])):
                yield self._tokens[rows.to(self._tokens.device)]
        else:
            yield from self._tokens


def geometric_median(x: Float[Tensor, "token d_model"], *, rounds: int = 30) -> Float[Tensor, " d_model"]:
    """The point with the least mean distance to the rows (Weiszfeld's algorithm)."""
    median = x.mean(0)
    for _ in range(rounds):
        weights = 1 / (x - median).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        median = (x * weights).sum(0) / weights.sum()
    return median
