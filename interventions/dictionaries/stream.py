"""A model's activations at several sites, text by text, shuffled in a buffer of bounded size."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..model import Model
from ..sites import Site
from .texts import Text, TextLike, text

_BYTES = 2**30  # what a buffer takes by default


def activations(
    model: Model,
    sites: Sequence[str | Site],
    texts: TextLike,
    *,
    batch_size: int = 4096,
    buffer: int | None = None,
    dtype: torch.dtype = torch.float32,
    ignore: Collection[int] | None = None,
    context: int | None = None,
    column: str | None = None,
    epochs: int | None = 1,
    seed: int = 0,
) -> Activations:
    """Batches of a model's activations at some sites, one pass of the model serving all: an iterator.

    Each batch is a dict from site to activations (token d_model) at the same `batch_size` positions, in
    the units of the model; the last may be shorter. Positions are shuffled in a buffer that is refilled
    when half used. `state()` is what `restore` needs to go on from a batch, in this process or another.

    Args:
        texts: tokens (row pos), strings, a file, a dataset, batches of tokens, what `own_samples` returns:
            see `text`, which `context` and `column` are passed to.
        buffer: positions held, by default what fits into 1 GiB.
        dtype: of what is held and handed out.
        ignore: token ids whose positions are left out; by default the tokenizer's special tokens where the
            text is given as text, none where it is given as tokens.
        epochs: how often the text is read; None for without end.

    Raises:
        LookupError: no such site.
        ValueError: activations that are not finite in that dtype; nothing to read.

    >>> for batch in activations(model, ["resid.0", "mlp.1"], "corpus.txt"):  # doctest: +SKIP
    ...     batch[model.site("mlp.1")]  # (4096 d_model)
    """
    if isinstance(sites, str):
        raise TypeError(f"Pass a list of sites, such as [{sites!r}].")
    found = [model.site(site) for site in sites]
    read = text(model, texts, context=context, column=column, seed=seed)
    if buffer is None:
        buffer = capacity(found, dtype)
    return Activations(
        model,
        read,
        found,
        batch_size=batch_size,
        size=max(buffer, batch_size),
        dtype=dtype,
        ignore=read.special if ignore is None else ignore,
        epochs=epochs,
        seed=seed,
    )


def capacity(sites: Sequence[Site], dtype: torch.dtype = torch.float32) -> int:
    """Positions of these sites that fit into 1 GiB."""
    return max(1, _BYTES // (sum(site.width for site in sites) * dtype.itemsize))


class Activations(Iterator[dict[Site, Float[Tensor, "token d_model"]]]):
    """What `activations` returns. Text that fits into the buffer as a whole is read only once."""

    def __init__(
        self,
        model: Model,
        text: Text,
        sites: Sequence[Site],
        *,
        size: int,
        batch_size: int = 4096,
        dtype: torch.dtype = torch.float32,
        ignore: Collection[int] = (),
        epochs: int | None = 1,
        seed: int = 0,
    ):
        self.text, self.sites, self.batch_size, self.dtype = text, tuple(sites), batch_size, dtype
        self._model, self._size, self._epochs = model, size, epochs
        self._ignore = torch.tensor(sorted(ignore), dtype=torch.long)
        self._generator = torch.Generator().manual_seed(seed)
        self._reading: Iterator[tuple[Tensor, Any]] | None = None
        self._epoch, self._position = 0, None  # in the text
        self._whole = False  # whether the buffer holds all the text there is
        self._shown = 1  # how often it was shuffled anew, where it does
        self._at = self._left = 0  # what is used up, and how much is held
        self._order = torch.zeros(0, dtype=torch.long)  # how what was read last has been shuffled since
        self.fills = 0  # how often the buffer took up something new
        self.held: dict[Site, Float[Tensor, "token d_model"]] = {}

    @property
    def positions(self) -> int:
        """How many positions are held."""
        return self._left

    def __next__(self) -> dict[Site, Float[Tensor, "token d_model"]]:
        return self.batch(self.batch_size)

    def batch(self, n: int) -> dict[Site, Float[Tensor, "token d_model"]]:
        """The next `n` positions; fewer at the end, and StopIteration after it."""
        if not self.fills:
            self.fill()
        used = self._at + n
        if (self._at and used > self._left) if self._whole else used > max(self._left // 2, n):
            self.fill()
        taken = slice(self._at, self._at + n)
        self._at = min(self._at + n, self._left)
        if taken.start >= self._left:
            raise StopIteration
        return {site: held[taken] for site, held in self.held.items()}

    def fill(self) -> None:
        """Reads as much as there is room for, and shuffles it into what is left."""
        if self._whole:
            if self._epochs is None or self._shown < self._epochs:
                self._shown += 1
                self._absorb([])
            return
        fresh: list[dict[Site, Tensor]] = []
        missing = self._size - (self._left - self._at)
        while missing > 0:
            read = self._next()
            if read is None:
                if fresh and not self.fills:
                    self._whole = True
                    break
                if self._epochs is not None and self._epoch + 1 >= self._epochs:
                    break
                if not self.text.again and self.fills:
                    raise ValueError(
                        "The tokens ran out: an iterator can be read once. Pass a tensor, a list of batches, "
                        "or an iterator that lasts."
                    )
                if not fresh and not self.fills:
                    raise ValueError("There are no tokens to read, or `ignore` leaves none of them.")
                self._epoch, self._position, self._reading = self._epoch + 1, None, None
                continue
            fresh.append(read)
            missing -= len(next(iter(read.values())))
        if fresh:
            self._absorb(fresh)
        elif not self.fills:
            raise ValueError("There are no tokens to read, or `ignore` leaves none of them.")

    def _absorb(self, fresh: list[dict[Site, Tensor]]) -> None:
        kept = self._at if fresh else 0
        order = None
        for site in self.sites:
            new = [read.pop(site) for read in fresh]  # let go, so that a site is held twice one at a time
            held = torch.cat([self.held[site][kept:], *new]) if site in self.held else torch.cat(new)
            if order is None:
                self._left = len(held)
                order = torch.randperm(len(held), generator=self._generator)
            self.held[site] = held[order.to(held.device)]
        assert order is not None
        self._order = self._order[order] if not fresh else torch.arange(len(order))
        self._at, self.fills = 0, self.fills + bool(fresh)

    def _next(self) -> dict[Site, Float[Tensor, "token d_model"]] | None:
        """Activations of all sites over the next text; None at the end of an epoch."""
        if self._reading is None:
            self._reading = self.text.batches(self._epoch, self._position)
        for tokens, position in self._reading:
            self._position = position
            keep = torch.isin(tokens.cpu().flatten(), self._ignore, invert=True)
            if not keep.any():
                continue
            read = self._model.read(tokens, self.sites)
            flat = {site: x.flatten(0, 1)[keep.to(x.device)].to(self.dtype) for site, x in read.items()}
            for site, x in flat.items():
                if not x.isfinite().all():
                    raise ValueError(f"The model's activations at {site} are not finite as {self.dtype}.")
            return flat
        return None

    # Going on

    def progress(self) -> dict[str, Any]:
        """Where the stream is, without what it holds: plain JSON, and tensors of one number a position."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "whole": self._whole,
            "shown": self._shown,
            "at": self._at,
            "fills": self.fills,
            "generator": self._generator.get_state(),
            "order": self._order,
        }

    def content(self, site: Site) -> Float[Tensor, "token d_model"]:
        """What is held at a site, in the order it had when `fills` last changed."""
        held, n = self.held[site], len(self._order)
        if torch.equal(self._order, torch.arange(n)):
            return held
        return held[self._order.argsort().to(held.device)]

    def state(self) -> dict[str, Any]:
        """All that `restore` needs: plain values and tensors."""
        return {**self.progress(), "contents": {site.name: self.content(site) for site in self.held}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state of a stream of the same model, sites, text and settings.

        Raises ValueError for one of other sites or of another dtype.
        """
        contents: Mapping[str, Tensor] = state["contents"]
        names = [site.name for site in self.sites]
        if state["fills"] and sorted(contents) != sorted(names):
            raise ValueError(f"This is the state of a stream at {sorted(contents)}, not at {names}.")
        if wrong := [x.dtype for x in contents.values() if x.dtype != self.dtype]:
            raise ValueError(f"This is the state of a stream held as {wrong[0]}, not as {self.dtype}.")
        self._epoch, self._position, self._reading = state["epoch"], state["position"], None
        self._whole, self._shown, self._at = state["whole"], state["shown"], state["at"]
        self.fills, self._order = state["fills"], state["order"]
        self._generator.set_state(state["generator"].cpu())
        self._left = len(self._order)
        device = self._model.device
        self.held = {
            site: contents[site.name].to(device)[self._order.to(device)]
            for site in self.sites
            if site.name in contents
        }
