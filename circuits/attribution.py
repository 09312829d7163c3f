"""How much each node moves the metric.

A node is one feature of a site's dictionary, or its error, at one position of one example. Its effect is the
change of the metric as the node moves from its clean to its patched value, everything else held clean:

- `attribution_patching`: to first order, for all nodes of all sites, by two forward passes and one backward;
- `integrated_gradients`: the gradient averaged along the way, one site at a time;
- `input_integrated_gradients`: the gradient averaged as the embeddings move, for all sites at once;
- `exact_patching`: by running the model, once for each node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from interventions.acts import Acts
from interventions.binding import Dictionaries, Splice, splices
from interventions.model import Model
from tasks import Batch

from .effects import Changes, Effects, Metric, SiteEffects, changes, gradients
from .suffix import Suffix

Rule = tuple[Sequence[float], Sequence[float]]  # points in [0, 1] from clean to patch, and their weights


class Method(Protocol):
    """A way to score nodes. Anything of this form can be given to `find`."""

    def __call__(
        self,
        model: Model,
        batch: Batch,
        metric: Metric,
        dictionaries: Dictionaries,
        *,
        reference: Mapping[str, Acts] | None = None,
    ) -> Effects: ...


def midpoint(steps: int) -> Rule:
    """The middles of equal steps. Holds its own where the metric turns sharply on the way, as it often does.

    >>> midpoint(2)
    ([0.25, 0.75], [0.5, 0.5])
    """
    return [(k + 0.5) / steps for k in range(steps)], [1 / steps] * steps


def gauss_legendre(steps: int) -> Rule:
    """The points and weights that integrate polynomials up to degree `2 * steps - 1` exactly.

    The most exact where the way is smooth.

    >>> gauss_legendre(1)
    ([0.5], [1.0])
    """
    from numpy.polynomial.legendre import leggauss

    points, weights = leggauss(steps)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


def left_riemann(steps: int) -> Rule:
    """Equal steps from the clean end, as in the code of Sparse Feature Circuits (Marks et al. 2024).

    >>> left_riemann(2)
    ([0.0, 0.5], [0.5, 0.5])
    """
    return [k / steps for k in range(steps)], [1 / steps] * steps


SIX_MIDDLES = midpoint(6)


def attribution_patching(
    model: Model,
    batch: Batch,
    metric: Metric,
    dictionaries: Dictionaries,
    *,
    reference: Mapping[str, Acts] | None = None,
) -> Effects:
    """First-order effects: change times gradient at the clean point (Syed et al. 2023; Marks et al. 2024).

    Nodes move to the values that they take on `batch.patch`; for unpaired prompts to those of `reference`,
    or to zero. Gradients pass straight through every autoencoder, and cross a transcoder by its prediction.

    Raises:
        ValueError: activations or a metric that are not finite; the first site is named.
    """
    bound = splices(model, dictionaries)
    with torch.enable_grad():
        moved = changes(model, batch, metric, bound, reference)
        slopes = moved.gradients()
    return moved.effects(bound, slopes)


def integrated_gradients(
    model: Model,
    batch: Batch,
    metric: Metric,
    dictionaries: Dictionaries,
    *,
    reference: Mapping[str, Acts] | None = None,
    rule: Rule = SIX_MIDDLES,
) -> Effects:
    """Effects by integrated gradients, one site at a time (Marks et al. 2024, 2.3).

    A site's features and error move together on the straight line from clean to patch, in the true model;
    the effects of a site add up to the change of the metric when the whole site is patched, as far as `rule`
    integrates exactly. All points run as one batch, and blocks before the site are not run again. The paper's
    code takes ten left-hand steps; six midpoints cost less and err less.
    """
    bound = splices(model, dictionaries)
    with torch.no_grad():
        moved = changes(model, batch, metric, bound, reference)
    points, weights = rule
    averaged = {}
    suffix = Suffix(model, batch, copies=len(points))
    for site, change in moved.sites.items():
        along = torch.cat([change.left + point * change.total for point in points]).requires_grad_()
        with torch.enable_grad():
            values = suffix.measured(metric, site, along)
            (gradient,) = torch.autograd.grad(values.sum(), along)
        averaged[site] = _averaged(gradient, weights)
    return moved.effects(bound, averaged)


def input_integrated_gradients(
    model: Model,
    batch: Batch,
    metric: Metric,
    dictionaries: Dictionaries,
    *,
    reference: Mapping[str, Acts] | None = None,
    rule: Rule = SIX_MIDDLES,
) -> Effects:
    """Effects of all sites, by gradients averaged as the embeddings move to the patch.

    One batch of passes serves every site: cheaper than `integrated_gradients`, but the effects of a site need
    not add up to anything (EAP-IG: Hanna et al. 2024, section 3).
    """
    if batch.patch is None:
        raise ValueError("Gradients along the inputs need pairs, and this batch has no patched prompts.")
    bound = splices(model, dictionaries)
    points, weights = rule
    embed = model.site("embed")
    with torch.no_grad():
        moved = changes(model, batch, metric, bound, reference)
        start, end = (model.read(tokens, [embed])[embed] for tokens in (batch.clean, batch.patch))
    along = torch.cat([start + point * (end - start) for point in points])
    copies = batch[torch.arange(len(batch)).repeat(len(points))]
    with torch.enable_grad(), model.visiting([embed], lambda _site, _x: along):
        found = gradients(model, copies, metric, bound)
    return moved.effects(bound, {site: _averaged(gradient, weights) for site, gradient in found.items()})


def _averaged(gradient: Tensor, weights: Sequence[float]) -> Tensor:
    per_point = gradient.unflatten(0, (len(weights), -1))
    return torch.einsum("k,k...->...", gradient.new_tensor(weights), per_point)


def exact_patching(
    model: Model,
    batch: Batch,
    metric: Metric,
    dictionaries: Dictionaries,
    *,
    reference: Mapping[str, Acts] | None = None,
    features: Mapping[str, Sequence[int]] | None = None,
    at_once: int = 32,
) -> Effects:
    """True effects: the model is run with each node patched alone.

    Takes a pass for every position and feature that changes, `at_once` of them in one batch. `features`
    restricts it to a chosen few and the errors of their sites. Gradients are left zero.
    """
    bound = splices(model, dictionaries)
    chosen = None if features is None else {model.site(name): some for name, some in features.items()}
    if missing := [site.name for site in chosen or () if site not in bound]:
        raise ValueError(f"Features are listed at {', '.join(missing)}, where no dictionary is given.")
    with torch.no_grad():
        moved = changes(model, batch, metric, bound, reference)
    found = moved.effects(bound, {site: torch.zeros_like(c.left) for site, c in moved.sites.items()})
    sites = {}
    suffix = Suffix(model, batch, copies=at_once)
    with torch.no_grad():
        for site, splice in bound.items():
            nodes = found[site.name]
            if chosen is not None:
                if site not in chosen:
                    continue
                listed = torch.tensor(list(chosen[site]), device=nodes.feature.device)
                nodes = nodes.only(torch.isin(nodes.feature, listed))
            sites[site.name] = _patched_alone(nodes, splice, moved, metric, suffix)
    return replace(found, sites=sites)


def _patched_alone(
    nodes: SiteEffects, splice: Splice, moved: Changes, metric: Metric, suffix: Suffix
) -> SiteEffects:
    left = moved.sites[splice.site].left
    batch, n_pos = nodes.error_effect.shape
    row, pos = nodes.token // n_pos, nodes.token % n_pos
    effect, error_effect = torch.zeros_like(nodes.delta), torch.zeros_like(nodes.error_effect)
    places = torch.stack([pos, nodes.feature], dim=1)[nodes.delta != 0].unique(dim=0).tolist()
    places += [(p, None) for p in range(n_pos)]
    for start in range(0, len(places), suffix.copies):
        some = places[start : start + suffix.copies]
        points = left.repeat(suffix.copies, 1, 1).unflatten(0, (suffix.copies, batch))
        later = {site: points.new_zeros(*points.shape[:-1], site.width) for site in splice.later}
        for copy, (at, feature) in enumerate(some):
            if feature is None:
                points[copy, :, at] += nodes.error_delta[:, at]
                continue
            here = (pos == at) & (nodes.feature == feature)
            listed, delta = nodes.feature[here], nodes.delta[here, None]
            points[copy, row[here], at] += delta * splice.decoder_rows(listed)
            for site, writes in splice.later.items():
                later[site][copy, row[here], at] += delta * writes.decoder_rows(listed)
        added = {site: x.flatten(0, 1) for site, x in later.items()}
        change = suffix.measured(metric, splice.site, points.flatten(0, 1), added)
        change = change.unflatten(0, (suffix.copies, batch)) - moved.clean
        for by_row, (at, feature) in zip(change, some, strict=False):
            if feature is None:
                error_effect[:, at] = by_row.to(error_effect.dtype)
            else:
                here = (pos == at) & (nodes.feature == feature)
                effect[here] = by_row[row[here]].to(effect.dtype)
    return replace(nodes, effect=effect, error_effect=error_effect)
