"""Which features of a larger dictionary say something that a smaller one does not (Leask et al. 2025, arXiv
2502.04878)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...model import Model
from ..activations import JumpReLU
from ..coders import SparseCoder
from ..texts import TextLike
from .cosines import nearest
from .prediction import predictions
from .text import token_rows

Features = Int[Tensor, " n"] | Sequence[int]


def stitched(
    small: SparseCoder, large: SparseCoder, *, insert: Features = (), swap: Features = ()
) -> SparseCoder:
    """The smaller dictionary with some features of the larger one, at its end.

    Those in `insert` are added. Those in `swap` are added too, and the features of the smaller one whose
    decoder rows are nearest to theirs are left out. Biases of the output and the skip path stay those of the
    smaller one; each feature is active as it was.

    Raises:
        ValueError: features that compete with each other (TopK) or that there are not, or dictionaries that
            read or write something else.

    >>> small, large = SparseCoder.random(8, 16), SparseCoder.random(8, 32, seed=1)
    >>> stitched(small, large, insert=[3, 4])
    SparseCoder(SAE 8 -> 18 features, JumpReLU())
    """
    _fit(small, large)
    inserted, swapped = (_index(large, features) for features in (insert, swap))
    added = torch.cat([inserted, swapped])
    if len(added.unique()) < len(added):
        raise ValueError("A feature is inserted or swapped once; some are named twice.")
    stay = torch.ones(small.n_features, dtype=torch.bool, device=small.W_dec.device)
    if len(swapped):
        stay[nearest(large.W_dec[swapped], small.W_dec)[1][:, 0]] = False
    kept = stay.nonzero()[:, 0]
    b_enc = large.b_enc[added]
    if small.b_pre is not None or large.b_pre is not None:
        zero = torch.zeros_like(small.W_enc[:, 0])
        apart = (zero if small.b_pre is None else small.b_pre) - (
            zero if large.b_pre is None else large.b_pre
        )
        b_enc = b_enc + apart @ large.W_enc[:, added]
    return SparseCoder(
        W_enc=torch.cat([small.W_enc[:, kept], large.W_enc[:, added]], 1),
        b_enc=torch.cat([small.b_enc[kept], b_enc]),
        W_dec=torch.cat([small.W_dec[kept], large.W_dec[added]]),
        b_dec=small.b_dec,
        activation=JumpReLU(torch.cat([_cutoffs(small, kept), _cutoffs(large, added)])),
        W_skip=small.W_skip,
        b_pre=small.b_pre,
        normalise=small.normalise,
        site=small.site,
        reads=small.reads,
        units=small.units,
    )


@dataclass(frozen=True)
class Stitching:
    """What the features of a larger dictionary would do in a smaller one.

    For each of them: `cosine`, the largest of its decoder row with any of the smaller one's, and with which
    (`nearest`); `change`, what inserting it alone does to the smaller one's FVU; `density`, the share of
    positions at which it is active. A feature is *novel* if its cosine is not above `threshold`: there is
    nothing like it, and inserting it should lower the error. The others reconstruct what the smaller one has
    already; inserting them counts it twice, so that they must be swapped in.

    The curve goes from the smaller to the larger one: novel features are inserted, least cosine first; then
    the others are swapped in, each group at once that shares a nearest feature; then what is left of the
    smaller one is taken out. Point i has `inserted[i]` features of the larger and lacks `removed[i]` of the
    smaller one.
    """

    threshold: float
    cosine: Float[Tensor, " large"] = field(repr=False, compare=False)
    nearest: Int[Tensor, " large"] = field(repr=False, compare=False)
    change: Float[Tensor, " large"] = field(repr=False, compare=False)
    density: Float[Tensor, " large"] = field(repr=False, compare=False)
    inserted: tuple[int, ...]
    removed: tuple[int, ...]
    fvu: tuple[float, ...]
    l0: tuple[float, ...]

    @property
    def novel(self) -> Bool[Tensor, " large"]:
        return self.cosine <= self.threshold

    @property
    def share_novel(self) -> float:
        """The share of novel features."""
        return self.novel.double().mean().item()

    @property
    def separation(self) -> float:
        """How well the cosine tells which features lower the error: the area under the ROC curve.

        The chance that a feature that lowers it has the smaller cosine of the two, beside one that raises it;
        features that are never active do neither.
        """
        live = self.density > 0
        lower = self.cosine[live & (self.change < 0)]
        raises = self.cosine[live & (self.change >= 0)].sort().values
        if not len(lower) or not len(raises):
            return float("nan")
        below, upto = (torch.searchsorted(raises, lower, right=right) for right in (False, True))
        return 1 - ((below + upto).double() / 2 / len(raises)).mean().item()

    def __str__(self) -> str:
        live = self.density > 0
        lines = [
            f"{len(self.cosine):,} features, {self.share_novel:.1%} novel (cosine to {self.threshold:g})"
        ]
        for name, which in (("novel", self.novel), ("others", ~self.novel)):
            change = self.change[which & live]
            if len(change):
                lines.append(
                    f"  {name:7} {(change < 0).double().mean().item():6.1%} lower the error alone; "
                    f"FVU changes by {change.mean().item():+.2e} in the mean"
                )
        lines.append(f"  the cosine tells them apart at an area of {self.separation:.3f} under the ROC curve")
        lines.append("  inserted  removed     FVU      L0")
        for row in zip(self.inserted, self.removed, self.fvu, self.l0, strict=True):
            lines.append("  {:8,}  {:7,}  {:6.4f}  {:6.2f}".format(*row))
        return "\n".join(lines)


@torch.no_grad()
def stitching(
    model: Model,
    small: SparseCoder,
    large: SparseCoder,
    text: TextLike,
    *,
    site: str | None = None,
    threshold: float = 0.7,
    points: int = 8,
    ignore: Collection[int] | None = None,
    batch_size: int = 16,
) -> Stitching:
    """What each feature of `large` does to the error of `small`, and the way from one to the other.

    With e the error of the smaller dictionary, inserting feature j changes the mean squared error by the mean
    of |e - f_j d_j|^2 - |e|^2, which is worked out from the active features alone. One pass over the text.
    Features of a TopK dictionary are those that it chooses by itself. `points` are those of each stage of
    the curve; positions of the tokens in `ignore` are left out, by default those of special ones
    where text is not given as tokens.
    """
    _fit(small, large, thresholds=False)
    bound = predictions(model, small if site is None else {site: small})[0]
    cosine, near = (found[:, 0] for found in nearest(large.W_dec, small.W_dec))
    when_in, when_out, stages = _stages(cosine, near, small.n_features, threshold, points)
    change = torch.zeros(large.n_features, dtype=torch.float64, device=cosine.device)
    counts = torch.zeros(large.n_features, dtype=torch.long, device=cosine.device)
    errors = torch.zeros(stages + 1, dtype=torch.float64)
    active = torch.zeros(stages + 1, dtype=torch.float64)
    total: Tensor | float = 0.0
    squares, n = 0.0, 0
    tokens, ignored = token_rows(model, text, ignore=ignore)
    for x, y in _activations(model, bound.read, bound.site, tokens, ignored, batch_size):
        x, y = x.to(cosine.device), y.to(cosine.device, small.W_dec.dtype)
        f, g = small.encode_sparse(x), large.encode_sparse(x)
        predicted, skip = small.decode_sparse(f), small.skip(x)
        error = y - (predicted if skip is None else predicted + skip)
        norms = large.W_dec.double().square().sum(-1)
        inner = large.projected(error, g.token, g.feature).double()
        value = g.value.double()
        change.index_add_(0, g.feature, value * (value * norms[g.feature] - 2 * inner))
        counts += torch.bincount(g.feature, minlength=large.n_features)
        total, squares, n = total + y.double().sum(0), squares + y.double().square().sum().item(), n + len(y)
        l0 = float(len(f.feature))
        for stage in range(stages):
            if stage:
                for coder, found, when, sign in ((large, g, when_in, -1), (small, f, when_out, 1)):
                    now = when[found.feature] == stage
                    moved = found.token[now], found.feature[now], found.value[now]
                    error = error + sign * coder.combined(*moved, len(x))
                    l0 -= sign * len(moved[0])
            errors[stage] += error.double().square().sum().item()
            active[stage] += l0
        errors[-1] += (y - large(x)).double().square().sum().item()
        active[-1] += len(g.feature)
    if not n:
        raise ValueError("There is no position left to read.")
    variance = squares - torch.as_tensor(total).square().sum().item() / n
    steps = torch.arange(stages)
    inserted = (when_in.cpu()[:, None] <= steps).sum(0).tolist()
    removed = (when_out.cpu()[:, None] <= steps).sum(0).tolist()
    return Stitching(
        threshold=threshold,
        cosine=cosine.cpu(),
        nearest=near.cpu(),
        change=(change / variance).cpu(),
        density=(counts.double() / n).cpu(),
        inserted=(*inserted, large.n_features),
        removed=(*removed, small.n_features),
        fvu=tuple((errors / variance).tolist()),
        l0=tuple((active / n).tolist()),
    )


def _stages(
    cosine: Tensor, near: Tensor, n_small: int, threshold: float, points: int
) -> tuple[Int[Tensor, " large"], Int[Tensor, " small"], int]:
    """At which stage a feature of the larger dictionary comes in, and one of the smaller goes out.

    Stage 0 is the smaller dictionary as it is; what is left of it goes out at the last stage, which is the
    larger one as it is. Gives the number of stages before that.
    """
    novel = cosine <= threshold
    when_in = torch.zeros_like(near)
    order = cosine.masked_fill(~novel, torch.inf).argsort()[: int(novel.sum())]
    first = min(points, len(order))
    when_in[order] = 1 + torch.arange(len(order), device=near.device) * first // max(1, len(order))
    closest = torch.full((n_small,), torch.inf, device=near.device, dtype=cosine.dtype)
    closest.scatter_reduce_(0, near[~novel], cosine[~novel], "amin")
    groups = closest.argsort()[: int(closest.isfinite().sum())]
    second = min(points, len(groups))
    when_out = torch.full((n_small,), first + second + 1, device=near.device)
    place = torch.arange(len(groups), device=near.device) * second // max(1, len(groups))
    when_out[groups] = first + 1 + place
    when_in[~novel] = when_out[near[~novel]]
    return when_in, when_out, first + second + 1


def _activations(
    model: Model, read: object, site: object, tokens: Tensor, ignore: Sequence[int], batch_size: int
) -> Iterator[tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]]:
    ignored = torch.tensor(sorted(ignore), dtype=torch.long, device=tokens.device)
    for rows in tokens.split(batch_size):
        acts = model.read(rows, [read, site])  # type: ignore[list-item]
        keep = torch.isin(rows, ignored, invert=True)
        x, y = (acts[at][keep.to(acts[at].device)] for at in (read, site))  # type: ignore[index]
        if len(x):
            yield x, y


def _index(large: SparseCoder, features: Features) -> Int[Tensor, " n"]:
    index = torch.as_tensor(features, device=large.W_dec.device)
    index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
    if wrong := [i for i in index.tolist() if not 0 <= i < large.n_features]:
        raise ValueError(
            f"The larger dictionary has features 0 to {large.n_features - 1}, and no {wrong[0]}."
        )
    return index


def _cutoffs(coder: SparseCoder, index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    cutoff = coder.activation.cutoff(index)
    assert cutoff is not None
    dtype = cutoff.dtype if isinstance(cutoff, Tensor) else torch.float32
    return torch.as_tensor(cutoff, dtype=dtype, device=index.device).expand(len(index))


def _fit(small: SparseCoder, large: SparseCoder, *, thresholds: bool = True) -> None:
    for what, one, other in (
        ("width read", small.d_in, large.d_in),
        ("width written", small.d_out, large.d_out),
        ("normalisation", small.normalise, large.normalise),
        ("site read", small.reads or small.site, large.reads or large.site),
        ("site written", small.site, large.site),
    ):
        if one != other and not (what.startswith("site") and None in (one, other)):
            raise ValueError(
                f"Only dictionaries that read and write the same can be stitched: the {what} is {one} for "
                f"the smaller and {other} for the larger."
            )
    for coder in (small, large) if thresholds else ():
        if coder.activation.selects:
            raise ValueError(
                f"Under {coder.activation}, features compete: in another company others would be active. "
                "BatchTopK with a threshold, JumpReLU and ReLU dictionaries can be stitched."
            )
