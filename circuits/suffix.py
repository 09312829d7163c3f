"""The part of a forward pass after a site."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.model import Model
from interventions.sites import Site
from tasks import Batch

from .effects import Metric, measured


class Suffix:
    """Runs the clean prompts with other values at a site, computing only the blocks from there on.

    `copies` versions of the batch run as one: rows are the whole batch, again and again.
    """

    def __init__(self, model: Model, batch: Batch, *, copies: int):
        self.model = model
        self.copies = copies
        self.batch = batch[torch.arange(len(batch)).repeat(copies)]
        self._record = model.record(batch.clean) if model.resumes else None

    def measured(
        self,
        metric: Metric,
        site: Site,
        values: Float[Tensor, "copies*batch pos d_model"],
        added: Mapping[Site, Float[Tensor, "copies*batch pos d_model"]] | None = None,
    ) -> Float[Tensor, " copies*batch"]:
        """The metric with `values` flowing on from `site`, and more `added` at later sites."""
        added = added or {}

        def visit(at: Site, x: Tensor) -> Tensor:
            return values if at == site else x + added[at]

        resuming = nullcontext()
        if self._record is not None:
            resuming = self.model.resuming(self._record, block=_first(self.model, site), repeat=self.copies)
        with resuming, self.model.visiting([site, *added], visit):
            return measured(self.model, self.batch.clean, metric, self.batch)


def _first(model: Model, site: Site) -> int:
    """The first block whose computation depends on what flows on from a site."""
    block = model.block_of(site)
    if block is None:
        inside = [other for other in model.sites.values() if model.block_of(other) is not None]
        return 0 if not inside or site < min(inside) else len(model.blocks)
    whole = site.path == f"{model.layout.blocks}.{block}"
    return block + 1 if whole and site.side == "out" else block
