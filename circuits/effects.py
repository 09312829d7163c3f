"""What moves between clean and patch, and how much it moves the metric.

Decoders are affine, so nothing here differentiates through a dictionary of a plain site: the gradient `G`
of the metric with respect to the site's tensor says it all. The effect of a feature is its change times `G`
times its decoder row, and only features that change have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interventions.acts import Acts
from interventions.binding import Splice
from interventions.model import Model
from interventions.sites import Site
from interventions.splice import splicing
from tasks import Batch

Metric = Callable[[Tensor, Batch], Tensor]  # (batch pos vocab), batch -> (batch)


@dataclass(frozen=True)
class SiteEffects:
    """The nodes of one site in one batch. Features are listed where they are active, or differ from the
    patch."""

    gradient: Float[Tensor, "batch pos d_model"]  # of the metric, with respect to the site's tensor
    token: Int[Tensor, " n"]  # batch * n_pos + pos, ascending
    feature: Int[Tensor, " n"]
    active: Bool[Tensor, " n"]  # whether it hangs on what the dictionary reads
    delta: Float[Tensor, " n"]  # patch - clean
    effect: Float[Tensor, " n"]
    error_delta: Float[Tensor, "batch pos d_model"]
    error_effect: Float[Tensor, "batch pos"]
    n_features: int

    def dense(self) -> Float[Tensor, "batch pos node"]:
        """Every node's effect; the last node is the error. Meant for small dictionaries."""
        batch, pos = self.error_effect.shape
        effects = self.effect.new_zeros(batch * pos, self.n_features + 1)
        effects[self.token, self.feature] = self.effect
        effects[:, -1] = self.error_effect.reshape(-1)
        return effects.view(batch, pos, -1)

    def only(self, chosen: Tensor) -> SiteEffects:
        """The listed features for which the mask `chosen` holds."""
        listed = ("token", "feature", "active", "delta", "effect")
        return replace(self, **{name: getattr(self, name)[chosen] for name in listed})

    def tensors(self) -> dict[str, Tensor]:
        """All but the number of features, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> SiteEffects:
        return replace(self, **{name: value.to(device) for name, value in self.tensors().items()})


@dataclass(frozen=True)
class Effects(Mapping[str, SiteEffects]):
    """The effects of all nodes of one batch, by site name, and the metric at both ends."""

    sites: dict[str, SiteEffects]
    clean: Float[Tensor, " batch"]
    patch: Float[Tensor, " batch"] | None

    def __getitem__(self, site: str) -> SiteEffects:
        return self.sites[str(site)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def to(self, device: torch.device | str) -> Effects:
        sites = {name: site.to(device) for name, site in self.sites.items()}
        return Effects(sites, self.clean.to(device), None if self.patch is None else self.patch.to(device))


@dataclass(frozen=True)
class Change:
    """How the nodes of one site move from clean to patch."""

    left: Float[Tensor, "batch pos d_model"]  # what flows on at the clean point; part of its autograd graph
    token: Int[Tensor, " n"]
    feature: Int[Tensor, " n"]
    active: Bool[Tensor, " n"]
    delta: Float[Tensor, " n"]
    error_delta: Float[Tensor, "batch pos d_model"]
    total: Float[Tensor, "batch pos d_model"]  # of the whole site: decoded features and error

    def effects(
        self, splice: Splice, gradients: Mapping[Site, Float[Tensor, "batch pos d_model"]]
    ) -> SiteEffects:
        """The effects of the site's nodes, given the gradients of the metric at the sites that they write."""
        gradient = gradients[splice.site]
        written = {site: gradients[site].flatten(0, 1) for site in (splice.site, *splice.later)}
        slope = splice.slopes(written, self.token, self.feature)
        return SiteEffects(
            gradient, self.token, self.feature, self.active, self.delta, self.delta * slope,
            self.error_delta, (gradient * self.error_delta).sum(-1), splice.n_features,
        )  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """The clean pass against the patched one. Gradients can be taken of `clean` with respect to `left`."""

    sites: dict[Site, Change]
    clean: Float[Tensor, " batch"]
    patch: Float[Tensor, " batch"] | None

    def gradients(self) -> dict[Site, Tensor]:
        """The total gradient of the metric at every site, by one backward pass."""
        return _gradients(self.clean, {site: change.left for site, change in self.sites.items()})

    def effects(self, bound: Mapping[Site, Splice], gradients: Mapping[Site, Tensor]) -> Effects:
        """The effects of all nodes, given the gradients of the metric at their sites.

        Raises:
            ValueError: gradients that are not finite; the first site is named.
        """
        check_finite("gradient of the metric", gradients)
        with torch.no_grad():
            sites = {s.name: change.effects(bound[s], gradients) for s, change in self.sites.items()}
        patch = None if self.patch is None else self.patch.detach()
        return Effects(sites, self.clean.detach(), patch)


def measured(
    model: Model, tokens: Int[Tensor, "batch pos"], metric: Metric, batch: Batch
) -> Float[Tensor, " batch"]:
    """The metric of a batch in a pass over some tokens, with no more logits than it reads."""
    last = 1 if getattr(metric, "last_only", False) else 0
    value = metric(model.logits(tokens, last=last), batch)
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if shape != (len(batch),):
        raise ValueError(f"A metric gives one number per example, {(len(batch),)}; {metric} gave {shape}.")
    return value


def changes(
    model: Model,
    batch: Batch,
    metric: Metric,
    bound: Mapping[Site, Splice],
    reference: Mapping[str, Acts] | None = None,
) -> Changes:
    """What moves between the clean and the patched pass, by two forward passes.

    Unpaired batches move to `reference`, or to zero. Under `torch.enable_grad` the clean metric keeps its
    graph: gradients pass straight through plain sites, and cross a transcoder through its prediction alone.

    Raises:
        ValueError: activations or a metric that are not finite; the first site is named.
    """
    patch = None
    if batch.patch is None:
        shape = batch.clean.shape
        targets = {site: _fixed_target(model, splice, reference, shape) for site, splice in bound.items()}
    else:
        targets, patch = _patched_targets(model, batch, batch.patch, metric, bound)
    found: dict[Site, Change] = {}
    features: dict[Site, Tensor] = {}

    def rewrite(splice: Splice, entered: Tensor, left: Tensor) -> Tensor:
        left = _differentiable(splice, entered, left, features)
        with torch.no_grad():
            found[splice.site] = targets[splice.site].change(splice, entered, left, found)
        return left.clone()  # a model that works in place must not touch what we differentiate by

    with splicing(model, bound, rewrite):
        clean = measured(model, batch.clean, metric, batch)
    check_finite("activation", {site: change.left for site, change in found.items()})
    check_finite("metric", {"the output": clean})
    return Changes(found, clean, patch)


def gradients(
    model: Model, batch: Batch, metric: Metric, bound: Mapping[Site, Splice]
) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
    """The total gradient of the metric at every site on the clean prompts: one pass forward, one back."""
    left: dict[Site, Tensor] = {}
    features: dict[Site, Tensor] = {}

    def rewrite(splice: Splice, entered: Tensor, x: Tensor) -> Tensor:
        left[splice.site] = _differentiable(splice, entered, x, features)
        return left[splice.site].clone()

    with splicing(model, bound, rewrite):
        return _gradients(measured(model, batch.clean, metric, batch), left)


def _gradients(metric: Tensor, left: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
    found = torch.autograd.grad(metric.sum(), list(left.values()), materialize_grads=True)
    return dict(zip(left, found, strict=True))


def _differentiable(splice: Splice, entered: Tensor, left: Tensor, features: dict[Site, Tensor]) -> Tensor:
    """What the model computed, with the gradient that the splice gives it.

    Transcoders leave their features in `features`, for the later sites that these write.
    """
    if splice.transcodes:
        features[splice.site] = splice.dictionary.encode(entered)
        through = splice.prediction(features[splice.site], entered) + splice.received(features)
        left = left.detach() + (through - through.detach())
    if splice.site.side == "in":
        left = left.view_as(left)  # what enters one module may enter others too, which is none of ours
    if torch.is_grad_enabled() and not left.requires_grad:
        left = left.detach().requires_grad_()
    return left


@dataclass(frozen=True)
class _Target:
    """Where the nodes of a site move to. Features are listed as by `Splice.listed`."""

    key: Int[Tensor, " n"]
    value: Float[Tensor, " n"]
    flow: Float[Tensor, "batch pos d_model"]  # decoded features plus error

    @classmethod
    def of(cls, splice: Splice, entered: Tensor, left: Tensor) -> _Target:
        skip = splice.skip(entered)
        listed = splice.listed(splice.dictionary.encode(entered).flatten(0, 1))
        return cls(*listed, left.clone() if skip is None else left - skip)

    def change(self, splice: Splice, entered: Tensor, left: Tensor, before: Mapping[Site, Change]) -> Change:
        """How far the nodes are from here, which is clean; `before` are the changes of earlier sites.

        What the error moves by is what the site moves by, less what features move it by: no dense decoding.
        """
        clean = _Target.of(splice, entered, left)
        key, active, delta = _difference(clean, self)
        token, feature = key // splice.n_features, key % splice.n_features
        total = self.flow - clean.flow
        n_tokens = total.shape[:-1].numel()
        decoded = splice.combined(token, feature, delta, n_tokens)
        for up in splice.earlier:
            c = before[up.site]
            decoded = decoded + up.later[splice.site].combined(c.token, c.feature, c.delta, n_tokens)
        return Change(left, token, feature, active, delta, total - decoded.view_as(total), total)


def _difference(clean: _Target, patch: _Target) -> tuple[Tensor, Tensor, Tensor]:
    """Keys of either, whether they are of `clean`, and how much larger `patch` is."""
    if torch.equal(clean.key, patch.key):
        return clean.key, torch.ones_like(clean.key, dtype=torch.bool), patch.value - clean.value
    key, place = torch.cat([clean.key, patch.key]).unique(return_inverse=True)
    delta = clean.value.new_zeros(len(key))
    delta.index_add_(0, place, torch.cat([-clean.value, patch.value]))
    active = torch.zeros_like(key, dtype=torch.bool)
    active[place[: len(clean.key)]] = True
    return key, active, delta


@torch.no_grad()
def _fixed_target(
    model: Model, splice: Splice, reference: Mapping[str, Acts] | None, shape: torch.Size
) -> _Target:
    """The same for every example: a reference, or zero for want of one."""
    if reference is None:
        zero = torch.zeros((), device=model.device, dtype=model.dtype)
        acts = Acts(zero.expand(splice.n_features), zero.expand(splice.site.width))
    elif splice.site.name in reference:
        acts = reference[splice.site.name]
        received = splice.received({up.site: reference[up.site.name].features for up in splice.earlier})
        acts = Acts(acts.features, acts.error + received)
    else:
        raise ValueError(
            f"The reference has no activations for {splice.site}; it has {', '.join(reference)}."
        )
    features = acts.features.expand(*shape, -1).flatten(0, 1)
    flow = splice.decoded(acts.features) + acts.error
    return _Target(*splice.listed(features), flow.expand(*shape, -1))


@torch.no_grad()
def _patched_targets(
    model: Model, batch: Batch, prompts: Tensor, metric: Metric, bound: Mapping[Site, Splice]
) -> tuple[dict[Site, _Target], Tensor]:
    targets: dict[Site, _Target] = {}

    def keep(splice: Splice, entered: Tensor, left: Tensor) -> Tensor:
        targets[splice.site] = _Target.of(splice, entered, left)
        return left

    with splicing(model, bound, keep):
        patch = measured(model, prompts, metric, batch)
    check_finite("activation", {site: target.flow for site, target in targets.items()})
    return targets, patch


def check_finite(what: str, tensors: Mapping[Site, Tensor] | Mapping[str, Tensor]) -> None:
    """Raises a ValueError that names the first place where a tensor is not finite."""
    finite = torch.stack([torch.isfinite(x).all() for x in tensors.values()])
    for where, ok in zip(tensors, finite.tolist(), strict=True):
        if not ok:
            raise ValueError(
                f"The {what} at {where} is not finite. Try dtype=torch.float32 and check the prompts."
            )
