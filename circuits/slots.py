"""Targets of edges, as covectors packed into the slots of a few backward passes.

A target is a kept node that hangs on what its dictionary reads. In activation space it is a covector: the
gradient of the metric, through that node alone, with respect to what is read. Targets that cannot reach the
same source share a slot: those of different examples, and of different tokens where positions do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.acts import Identity
from interventions.binding import Splice
from interventions.sites import Site

from .effects import Effects, SiteEffects

_SLOT_BUDGET = 2**22  # elements of one batch of cotangents
_ROW_BUDGET = 2**24  # elements of the rows gathered at once


@dataclass(frozen=True)
class Kept:
    """The nodes of one site that take part, each with a row of its own.

    `row` is -1 where a node is left out. It has one line for all positions where these are summed.
    """

    row: Int[Tensor, "pos node"]

    @classmethod
    def of(cls, mask: Bool[Tensor, "*pos node"]) -> Kept:
        lines = mask[None] if mask.ndim == 1 else mask
        row = torch.full(lines.shape, -1, device=mask.device)
        row[lines] = torch.arange(int(lines.sum()), device=mask.device)
        return cls(row)

    def __len__(self) -> int:
        return int(self.row.max()) + 1

    def at(self, pos: Int[Tensor, " n"], node: Int[Tensor, " n"] | int) -> Int[Tensor, " n"]:
        """Rows of nodes, or -1."""
        return self.row[pos if len(self.row) > 1 else torch.zeros_like(pos), node]

    def check(self, site: str, n_pos: int) -> None:
        """Refuses prompts of a length that the kept nodes were not meant for."""
        if len(self.row) not in (1, n_pos):
            raise ValueError(
                f"Nodes of {site} are kept at {len(self.row)} positions, but the prompts have {n_pos} tokens."
            )


@dataclass(frozen=True)
class Targets:
    """The kept nodes of one site that something can reach, in one batch."""

    token: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    covectors: Callable[[Tensor], Float[Tensor, "m d_in"]]  # of some entries

    @classmethod
    def of(
        cls, splice: Splice, read: Tensor, found: Effects, kept: Kept, rows: range, pos: Tensor
    ) -> Targets:
        x, effects = read.detach().flatten(0, 1), found[splice.site.name]
        slope = {site: found[site.name].gradient.flatten(0, 1) for site in (splice.site, *splice.later)}
        listed = effects.only(effects.active)
        row = kept.at(pos[listed.token], listed.feature)
        features = listed.only((row >= rows.start) & (row < rows.stop))
        error_row = kept.at(pos, splice.n_features)
        # The error of a transcoder hangs on nothing that is differentiated, and neurons leave none.
        has_error = not (splice.transcodes or isinstance(splice.dictionary, Identity))
        error_token = ((error_row >= rows.start) & (error_row < rows.stop) & has_error).nonzero()[:, 0]
        error = _error_covectors(splice, x, slope, listed) if len(error_token) else None

        token = torch.cat([features.token, error_token])
        feature = torch.cat([features.feature, torch.full_like(error_token, splice.n_features)])

        def covectors(entries: Tensor) -> Tensor:
            plain, at = entries < len(features.token), token[entries]
            out = x.new_zeros(len(entries), x.shape[-1])
            out[plain] = _covectors(splice, x, slope, at[plain], feature[entries[plain]])
            if error is not None:
                out[~plain] = error[at[~plain]]
            return out

        return cls(token, kept.at(pos[token], feature) - rows.start, covectors)


def _covectors(
    splice: Splice, x: Tensor, slope: Mapping[Site, Tensor], token: Tensor, feature: Tensor
) -> Tensor:
    """How the metric hangs on what is read, through each of these active features."""
    rows = splice.encoder_rows(x[token], feature) * splice.slopes(slope, token, feature)[:, None]
    return rows.to(x.dtype)


def _error_covectors(splice: Splice, x: Tensor, slope: Mapping[Site, Tensor], listed: SiteEffects) -> Tensor:
    """How the metric hangs on what is read through the error: all, less what features and skip carry."""
    error = slope[splice.site].to(x.dtype, copy=True)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        skip = splice.skip(at)
        if skip is not None:
            error -= torch.autograd.grad(skip, at, slope[splice.site].to(skip.dtype))[0]
    for some in torch.arange(len(listed.token), device=x.device).split(max(1, _ROW_BUDGET // x.shape[-1])):
        token = listed.token[some]
        error.index_add_(0, token, -_covectors(splice, x, slope, token, listed.feature[some]))
    return error


def pulled(
    read: Tensor, leaves: Sequence[Tensor], cotangent: Float[Tensor, "slot batch pos d_in"]
) -> Sequence[Float[Tensor, "slot batch pos d_model"] | None]:
    """Gradients of `read` with respect to each leaf, for all slots in one backward pass.

    None where a leaf is not read. Slot by slot where an operation of the model, such as a fused kernel, has
    no rule for batched gradients.
    """
    try:
        return torch.autograd.grad(
            read, leaves, cotangent, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        alone = [
            torch.autograd.grad(read, leaves, one, retain_graph=True, allow_unused=True) for one in cotangent
        ]
        return [None if slots[0] is None else torch.stack(slots) for slots in zip(*alone, strict=True)]


def slots(
    targets: Targets, read: Tensor, leaves: Sequence[Tensor], example: Int[Tensor, " token"]
) -> Iterator[tuple[Float[Tensor, "slot batch pos d_in"], Int[Tensor, "token slot"]]]:
    """Packs targets into cotangents. Yields these, and the target of each slot at each token, or -1."""
    if not len(targets.token) or not leaves:
        return
    local = not _mixes_positions(read, leaves)
    owner = targets.token if local else example[targets.token]
    slot = _rank(owner, targets.row)
    n_tokens, width = len(example), read.shape[-1]
    at_once = max(1, _SLOT_BUDGET // read.numel())
    for start in range(0, int(slot.max()) + 1, at_once):
        some = ((slot >= start) & (slot < start + at_once)).nonzero()[:, 0]
        here = slot[some] - start
        n_slots = int(here.max()) + 1
        cotangent = read.new_zeros(n_slots, n_tokens, width)
        cotangent[here, targets.token[some]] = targets.covectors(some)
        row = torch.full((n_tokens if local else int(example[-1]) + 1, n_slots), -1, device=read.device)
        row[owner[some], here] = targets.row[some]
        yield cotangent.view(n_slots, *read.shape), row if local else row[example]


def _rank(owner: Int[Tensor, " n"], row: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Numbers the distinct rows of each owner from 0."""
    key, inverse = torch.stack([owner, row]).unique(dim=1, return_inverse=True)
    first = torch.searchsorted(key[0].contiguous(), key[0].contiguous())
    return (torch.arange(key.shape[1], device=owner.device) - first)[inverse]


def _mixes_positions(read: Float[Tensor, "batch pos d_in"], leaves: Sequence[Tensor]) -> bool:
    """Whether `read` at one position hangs on a leaf at another.

    Random cotangents at the positions whose number has a given bit set (or not set) must leave no gradient
    elsewhere; any two positions differ in some bit. Each example probes one such set.
    """
    n_batch, n_pos, _ = read.shape
    at = torch.arange(n_pos, device=read.device)
    sets = [(at >> k) & 1 == value for k in range((n_pos - 1).bit_length()) for value in (0, 1)]
    if not sets:
        return False
    n_slots = -(-len(sets) // n_batch)
    inside = torch.stack([sets[i % len(sets)] for i in range(n_slots * n_batch)])
    inside = inside.view(n_slots, n_batch, n_pos, 1)
    noise = torch.randn(read.shape, generator=torch.Generator().manual_seed(0)).to(read)
    return any(bool((g * ~inside).any()) for g in pulled(read, leaves, inside * noise) if g is not None)
