"""Runs a model with dictionaries and interventions in its path.

A splice writes a site's tensor as `decode(features) + error`, which changes nothing; then an intervention may
change the features or the error. The same visit serves reading, ablation, steering and attribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .acts import Acts, Dictionary, Identity
from .binding import Dictionaries, Splice, by_site, splices, written_later
from .edits import Intervention
from .model import Model
from .sites import Site

Rewrite = Callable[[Splice, Tensor, Tensor], Tensor]  # splice, what entered, what left -> what flows on


@contextmanager
def splicing(model: Model, bound: Mapping[Site, Splice], rewrite: Rewrite) -> Iterator[None]:
    """While open, every forward pass hands each splice what it reads and what its site holds.

    A dictionary that reads a site which another dictionary writes is given what flows on from there.
    """
    reads = {splice.read for splice in bound.values()}
    entered: dict[Site, Tensor] = {}

    def visit(site: Site, x: Tensor) -> Tensor:
        if site in bound:
            splice = bound[site]
            x = rewrite(splice, entered[splice.read] if splice.transcodes else x, x)
        if site in reads:
            entered[site] = x
        return x

    with model.visiting(sorted(reads | set(bound)), visit):
        yield


def _changed(site: Site, acts: Acts, interventions: Sequence[Intervention]) -> Acts:
    for intervention in interventions:
        if site.name in intervention.sites:
            acts = intervention(site.name, acts)
    return acts


def _with_neurons(
    model: Model, dictionaries: Dictionaries, interventions: Sequence[Intervention]
) -> dict[Site, Dictionary]:
    """The dictionaries, and the neurons wherever an intervention changes a site that has none."""
    given = by_site(model, dictionaries)
    changed = {model.site(site) for intervention in interventions for site in intervention.sites}
    return {site: Identity() for site in changed} | given


@dataclass(frozen=True)
class Run:
    """One spliced forward pass, its autograd graph still attached. Keys are site names."""

    logits: Float[Tensor, "batch pos vocab"]
    computed: dict[str, Acts]  # what the model produced at each site
    used: dict[str, Acts]  # the leaves that were fed onwards in their place


def run(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    dictionaries: Dictionaries,
    interventions: Sequence[Intervention] = (),
    *,
    cut: bool = False,
    mask: Int[Tensor, "batch pos"] | None = None,
) -> Run:
    """The forward pass of `model` with every site of `dictionaries` written as features plus error.

    With `cut=False` gradients pass straight through every site, as if nothing were spliced in; the gradient
    at a leaf is then the total effect of that feature on the logits. With `cut=True` they stop at every site;
    the gradient between two sites is then the direct effect of one on the other, by whatever path the
    architecture has for it. Gradients cross a transcoder only through its features (and its skip path).
    Under `torch.no_grad` the leaves are on no graph.
    """
    computed: dict[str, Acts] = {}
    used: dict[str, Acts] = {}
    made_there: dict[Site, Tensor] = {}  # features, for those that they write to later
    used_there: dict[Site, Tensor] = {}

    def rewrite(splice: Splice, entered: Tensor, left: Tensor) -> Tensor:
        features = splice.dictionary.encode(entered)
        prediction = splice.prediction(features, entered) + splice.received(made_there)
        error = left - prediction
        through = left
        if splice.transcodes:
            error, through = error.detach(), prediction
        made = Acts(features, error)
        changed = _changed(splice.site, made, interventions)
        acts = changed.as_leaves()
        computed[splice.site.name], used[splice.site.name] = made, acts
        made_there[splice.site], used_there[splice.site] = features, acts.features
        if changed is made and not splice.earlier and not torch.is_grad_enabled():
            return left
        out = splice.decoded(acts.features) + splice.received(used_there) + acts.error
        skip = splice.skip(entered)
        if skip is not None:
            out = out + (skip if cut else skip.detach())
        return out if cut else out + (through - through.detach())

    bound = splices(model, _with_neurons(model, dictionaries, interventions))
    with splicing(model, bound, rewrite):
        logits = model.logits(tokens, mask)
    return Run(logits, computed, used)


@contextmanager
def applied(
    model: Model, *interventions: Intervention, dictionaries: Dictionaries | None = None
) -> Iterator[Model]:
    """While open, every pass of `model`, generation too, is changed by `interventions`.

    The error of a dictionary is taken from the unchanged activations and kept. Sites without a dictionary are
    changed in the neuron basis. Gradients flow through the changed activations.
    """
    every = _with_neurons(model, dictionaries or {}, interventions)
    touched = {model.site(site) for intervention in interventions for site in intervention.sites}
    touched |= {site for at in touched for site in written_later(model, at, every[at])}
    bound = splices(model, {site: d for site, d in every.items() if site in touched})
    made: dict[Site, Tensor] = {}  # features, for those that they write to later
    used: dict[Site, Tensor] = {}

    def rewrite(splice: Splice, entered: Tensor, left: Tensor) -> Tensor:
        features = splice.dictionary.encode(entered)
        error = left - splice.prediction(features, entered) - splice.received(made)
        acts = Acts(features, error)
        changed = _changed(splice.site, acts, interventions)
        made[splice.site], used[splice.site] = features, changed.features
        if changed is acts and all(made[up.site] is used[up.site] for up in splice.earlier):
            return left
        return splice.prediction(changed.features, entered) + splice.received(used) + changed.error

    with splicing(model, bound, rewrite):
        yield model
