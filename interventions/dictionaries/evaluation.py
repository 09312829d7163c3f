"""How good dictionaries are: what they reconstruct, and what the model makes of the reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..acts import Dictionary
from ..model import Model
from ..sites import Site
from .coders import SparseCoder
from .measures.prediction import Prediction, predictions
from .measures.reconstruction import Reconstruction
from .measures.text import token_rows
from .texts import TextLike

_NAN = float("nan")
_CHUNK = 2**25  # logits compared at a time


@dataclass(frozen=True)
class Quality:
    """How well one dictionary does on some text.

    `fvu` is the fraction of variance unexplained: the squared error over the squared deviation from the mean,
    both summed over all positions and coordinates. `dead` is the share of features that were never active on
    this text, so it falls with the text's length. Losses are mean cross-entropies of the next token, in nats;
    divergences are KL(model || model with the site replaced), means over positions, in nats.

    Two explained variances are here for comparison with published numbers only. `explained_variance_legacy`
    is the mean over positions of 1 - |error|^2 / |x - mean|^2 (sae-lens; SAEBench's paper).
    `explained_variance_saebench` is what SAEBench 0.6 computes, 1 - E|error|^2 / (E|x|^2 - (E x_i^2)^2), its
    last mean over positions and coordinates; it changes with the scale of x.
    """

    site: str
    fvu: float
    l0: float  # active features per position
    dead: float
    loss: float  # of the model as it is
    spliced: float  # with the site's tensor replaced by the reconstruction
    zeroed: float  # with the site's tensor replaced by zero
    averaged: float  # with the site's tensor replaced by its mean
    kl: float = _NAN  # from the model to the one with the reconstruction
    kl_zeroed: float = _NAN
    kl_averaged: float = _NAN
    l1: float = _NAN  # sum of the features' magnitudes per position
    cosine: float = _NAN  # of x and its reconstruction, mean over positions
    norm_ratio: float = _NAN  # E[|reconstruction| / |x|]; below 1 where it shrinks
    bias: float = _NAN  # relative reconstruction bias E|reconstruction|^2 / E[x . reconstruction]; 1 is none
    explained_variance_legacy: float = _NAN
    explained_variance_saebench: float = _NAN
    positions: int = 0  # that were measured
    density: Float[Tensor, " feature"] = field(
        default_factory=lambda: torch.zeros(0), repr=False, compare=False
    )  # share of positions at which each feature is active

    @property
    def explained_variance(self) -> float:
        """Share of the variance about the mean that is explained: 1 - FVU."""
        return 1 - self.fvu

    @property
    def recovered(self) -> float:
        """Share of the loss lost by zeroing the site that the reconstruction recovers: 1 is perfect."""
        return _share(self.zeroed, self.spliced, self.loss)

    @property
    def recovered_from_mean(self) -> float:
        """The same for replacing the site by its mean, which is the stricter measure."""
        return _share(self.averaged, self.spliced, self.loss)

    @property
    def kl_recovered(self) -> float:
        """Share of the divergence from zeroing the site that the reconstruction avoids."""
        return _share(self.kl_zeroed, self.kl, 0.0)

    @property
    def kl_recovered_from_mean(self) -> float:
        """The same for replacing the site by its mean."""
        return _share(self.kl_averaged, self.kl, 0.0)

    def dense(self, above: float = 0.01) -> float:
        """The share of features that are active at more than this share of positions."""
        return (self.density > above).double().mean().item()

    def histogram(self, edges: Float[Tensor, " edge"] | None = None) -> Int[Tensor, " bin"]:
        """How many features have a density between neighbouring edges; by default 1e-6 to 1, four a decade.

        Features that were never active are in no bin.
        """
        edges = torch.logspace(-6, 0, 25, dtype=torch.float64) if edges is None else edges.double()
        return torch.histogram(self.density[self.density > 0].double().cpu(), edges).hist.long()

    def __str__(self) -> str:
        """All of it, a line for each kind."""
        return (
            f"{self.site}, {self.positions:,} positions\n"
            f"  reconstruction  FVU {self.fvu:.4f}, explained variance {self.explained_variance:.4f} "
            f"(legacy {self.explained_variance_legacy:.4f}, "
            f"SAEBench 0.6 {self.explained_variance_saebench:.4f}), "
            f"cosine {self.cosine:.4f}, norm ratio {self.norm_ratio:.4f}, bias {self.bias:.4f}\n"
            f"  sparsity        L0 {self.l0:.2f}, L1 {self.l1:.3g}, dead {self.dead:.1%}, "
            f"active at over 1% of positions {self.dense(0.01):.1%}, at over 10% {self.dense(0.1):.1%}\n"
            f"  loss            {self.loss:.4f}, spliced {self.spliced:.4f}, zeroed {self.zeroed:.4f}, "
            f"averaged {self.averaged:.4f}; recovered {self.recovered:.1%}, "
            f"from mean {self.recovered_from_mean:.1%}\n"
            f"  divergence      spliced {self.kl:.4f}, zeroed {self.kl_zeroed:.4f}, "
            f"averaged {self.kl_averaged:.4f}; recovered {self.kl_recovered:.1%}, "
            f"from mean {self.kl_recovered_from_mean:.1%}"
        )


def _share(ablated: float, spliced: float, clean: float) -> float:
    return (ablated - spliced) / (ablated - clean) if ablated != clean else _NAN


@torch.no_grad()
def quality(
    model: Model,
    dictionaries: SparseCoder | Mapping[str, Dictionary],
    text: TextLike,
    *,
    mask: Int[Tensor, "row pos"] | None = None,
    ignore: Collection[int] | None = None,
    batch_size: int = 16,
) -> dict[str, Quality]:
    """The quality of each dictionary by itself, keyed by site.

    Runs `2 + 3 * len(dictionaries)` passes over the text, `batch_size` rows at a time: one for the sites'
    means, one of the model as it is, and three with each site replaced by its reconstruction, by zero and by
    its mean. Text is whatever can be trained on.

    Where `mask` is 0 (padding on the right), and at tokens in `ignore` (such as the first of a text, whose
    activations are often enormous; by default the special ones, where text is not given as tokens),
    positions count neither for the reconstruction nor for the loss, and the model keeps there what it
    computed.

    A site of a cross-layer transcoder is predicted by the features of the layers before as well, if they are
    among the dictionaries; `l0` counts its own.
    """
    tokens, ignored = token_rows(model, text, ignore=ignore)
    found = predictions(model, dictionaries)
    counted = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    padded = counted
    if ignored:
        counted = counted & torch.isin(
            tokens, torch.tensor(sorted(ignored), device=tokens.device), invert=True
        )
    if not counted[:, 1:].any():
        raise ValueError("There is no position to count: `mask` and `ignore` leave none after the first.")
    batches = list(
        zip(tokens.split(batch_size), padded.split(batch_size), counted.split(batch_size), strict=True)
    )
    sums: dict[Site, Tensor] = {}
    for rows, here, keep in batches:
        for site, x in model.read(rows, [p.site for p in found], _mask(here)).items():
            sums[site] = sums.get(site, 0) + x[keep.to(x.device)].double().sum(0)
    tallies = {p.site: Reconstruction(sums[p.site] / int(counted.sum())) for p in found}

    losses: dict[tuple[Site, int] | None, tuple[float, float]] = {}
    for rows, here, keep in batches:
        clean = model.logits(rows, _mask(here))
        _add(losses, None, _compared(clean, clean, rows, keep))
        for p in found:
            for way, replace in enumerate((_reconstructed, _zeroed, _averaged)):
                seen: dict[Site, Tensor] = {}
                visit = partial(_replaced, p, tallies[p.site], keep, replace, seen)
                with model.visiting(sorted({p.site, *p.reads}), visit):
                    logits = model.logits(rows, _mask(here))
                _add(losses, (p.site, way), _compared(logits, clean, rows, keep))

    n = int(counted[:, 1:].sum())
    return {
        p.site.name: Quality(
            site=p.site.name,
            loss=losses[None][0] / n,
            **{
                name: losses[p.site, way][kind] / n
                for kind, names in enumerate((("spliced", "zeroed", "averaged"), _DIVERGENCES))
                for way, name in enumerate(names)
            },
            **tallies[p.site].results(),
        )
        for p in found
    }


_DIVERGENCES = ("kl", "kl_zeroed", "kl_averaged")


def table(qualities: Mapping[str, Quality]) -> str:
    """The qualities of several dictionaries, one line each.

    >>> print(table({"mlp.0": Quality("mlp.0", 0.1, 16.0, 0.02, 3.0, 3.1, 5.0, 4.0)}))
    site     FVU     L0   dead    loss  spliced  zeroed  averaged  recovered  from mean
    mlp.0  0.100   16.0   2.0%   3.000    3.100   5.000     4.000      95.0%      90.0%
    """
    width = max([4, *(len(name) for name in qualities)])
    lines = [
        f"{'site':<{width}}     FVU     L0   dead    loss  spliced  zeroed  averaged  recovered  from mean"
    ]
    for name, q in qualities.items():
        lines.append(
            f"{name:<{width}}  {q.fvu:6.3f}  {q.l0:5.1f}  {q.dead:5.1%}  {q.loss:6.3f}   {q.spliced:6.3f}  "
            f"{q.zeroed:6.3f}    {q.averaged:6.3f}    {q.recovered:7.1%}    {q.recovered_from_mean:7.1%}"
        )
    return "\n".join(lines)


def _mask(here: Tensor) -> Tensor | None:
    return None if here.all() else here


def _add(
    sums: dict[tuple[Site, int] | None, tuple[float, float]],
    key: tuple[Site, int] | None,
    more: tuple[float, float],
) -> None:
    before = sums.get(key, (0.0, 0.0))
    sums[key] = before[0] + more[0], before[1] + more[1]


def _replaced(
    p: Prediction,
    tally: Reconstruction,
    keep: Tensor,
    replace: Replace,
    seen: dict[Site, Tensor],
    site: Site,
    x: Tensor,
) -> Tensor:
    """A site's tensor with its counted positions replaced, as a visit does it."""
    at = keep.to(x.device)
    if site in p.reads:
        seen[site] = x[at]
    if site != p.site:
        return x
    out = x.clone()
    out[at] = replace(p, tally, seen, x[at]).to(x)
    return out


Replace = Callable[[Prediction, Reconstruction, Mapping[Site, Tensor], Tensor], Tensor]


def _reconstructed(p: Prediction, tally: Reconstruction, seen: Mapping[Site, Tensor], y: Tensor) -> Tensor:
    predicted, features = p.of(seen)
    tally.add(y, predicted, features)
    return predicted


def _zeroed(p: Prediction, tally: Reconstruction, seen: Mapping[Site, Tensor], y: Tensor) -> Tensor:
    return torch.zeros_like(y)


def _averaged(p: Prediction, tally: Reconstruction, seen: Mapping[Site, Tensor], y: Tensor) -> Tensor:
    return tally.mean.expand_as(y)


def _compared(logits: Tensor, clean: Tensor, rows: Tensor, keep: Tensor) -> tuple[float, float]:
    """Summed cross-entropy of the counted tokens after the first, and divergence from the clean logits."""
    row, pos = keep[:, 1:].to(logits.device).nonzero(as_tuple=True)
    targets = rows[:, 1:].to(logits.device)[row, pos]
    loss = divergence = torch.zeros((), dtype=torch.float64, device=logits.device)
    size = max(1, _CHUNK // logits.shape[-1])
    for r, p, target in zip(row.split(size), pos.split(size), targets.split(size), strict=True):
        new = _log_softmax(logits[r, p])
        loss = loss - new.gather(1, target[:, None]).double().sum()
        if logits is not clean:
            old = _log_softmax(clean[r, p])
            chance = old.exp()
            divergence = divergence + (chance * (old - new)).where(chance > 0, 0).double().sum()
    return loss.item(), divergence.item()


def _log_softmax(logits: Tensor) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1)
