"""Runs a model with dictionaries and interventions in its path.

A splice writes a site's tensor as `decode(features) + error`, which changes nothing; then an intervention may
change the features or the error. The same visit serves reading, ablation, steering and attribution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .acts import Acts, Dictionary, Identity
from .binding import Dictionaries, Splice, by_site, splices, written_later
from .intervention import Here, Intervention
from .limited import Placed
from .model import Model
from .passage import Prompt
from .recurrence import StateIntervention, state_changes, stepping
from .sites import Site

Rewrite = Callable[[Splice, Tensor, Tensor], Tensor]  # splice, what entered, what left -> what flows on


@contextmanager
def splicing(
    model: Model,
    bound: Mapping[Site, Splice],
    rewrite: Rewrite,
    watched: Mapping[Site, dict[str, Tensor]] | None = None,
) -> Iterator[None]:
    """While open, every forward pass hands each splice what it reads and what its site holds.

    A dictionary that reads a site which another dictionary writes is given what flows on from there. What
    the model computes at a site of `watched` is put into the mapping there, by the site's name.
    """
    reads = {splice.read for splice in bound.values() if splice.transcodes}
    entered: dict[Site, Tensor] = {}
    watched = watched or {}

    def visit(site: Site, x: Tensor) -> Tensor:
        if site in watched:
            watched[site][site.name] = x
        if site in bound:
            splice = bound[site]
            x = rewrite(splice, entered[splice.read] if splice.transcodes else x, x)
        if site in reads:
            entered[site] = x
        return x

    with model.visiting(sorted(reads | set(bound) | set(watched)), visit):
        yield


def _by_site(model: Model, interventions: Sequence[Intervention]) -> dict[Site, list[Intervention]]:
    """The interventions at each site, in their order. Raises ValueError for those of another model."""
    found: dict[Site, list[Intervention]] = {}
    for intervention in interventions:
        if not isinstance(intervention, Intervention):
            raise TypeError(
                f"{intervention!r} is no intervention: give one, such as Add({{site: direction}})."
            )
        if others := intervention.fingerprints - model.fingerprints:
            raise ValueError(
                f"{intervention!r} was made with another model (fingerprint {min(others)[:8]}, this one has "
                f"{model.fingerprint[:8]}): its directions mean nothing here."
            )
        sites = [model.site(name) for name in intervention.sites]
        for site in sites:
            found.setdefault(site, []).append(intervention)
        _check_order(model, intervention)
    return found


def _check_order(model: Model, intervention: Intervention) -> None:
    """Raises ValueError where a condition reads a site that comes after one that hangs on it."""
    if isinstance(intervention, Placed):
        sites = [model.site(name) for name in intervention.sites]
        for watched in map(model.site, intervention.where.watches):
            if sites and watched > min(sites):
                raise ValueError(
                    f"{intervention!r} hangs on {watched}, which the model computes only after {min(sites)}."
                )
    for part in intervention.parts:
        _check_order(model, part)


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
    if model.follower.parted:
        raise ValueError(
            "A pass whose state is being changed is made in parts, so it cannot be spliced by `run`."
        )
    computed: dict[str, Acts] = {}
    used: dict[str, Acts] = {}
    made_there: dict[Site, Tensor] = {}  # features, for those that they write to later
    used_there: dict[Site, Tensor] = {}
    plan = _Plan.of(model, interventions)

    def rewrite(splice: Splice, entered: Tensor, left: Tensor) -> Tensor:
        features = splice.dictionary.encode(entered)
        prediction = splice.prediction(features, entered) + splice.received(made_there)
        error = left - prediction
        through = left
        if splice.transcodes:
            error, through = error.detach(), prediction
        made = Acts(features, error)
        changed = plan.changed(splice, made, entered, made_there)
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
    with plan.followed(None), splicing(model, bound, rewrite, plan.watched):
        logits = model.logits(tokens, mask)
    return Run(logits, computed, used)


@contextmanager
def applied(
    model: Model,
    *interventions: Intervention,
    dictionaries: Dictionaries | None = None,
    prompt: Prompt | None = None,
) -> Iterator[Model]:
    """While open, every pass of `model`, generation too, is changed by `interventions`.

    The error of a dictionary is taken from the unchanged activations and kept. Sites without a dictionary are
    changed in the neuron basis. Gradients flow through the changed activations. Of tokens that are given to
    the model outside `generate`, all count as prompt, or in every row the first `prompt` (a number, or one
    for each row): so a text is read as it would have been when the model wrote it.

    Raises:
        LookupError: a site that the model does not have.
        ValueError: directions of another model; a condition on a site that comes later.
    """
    plan = _Plan.of(model, interventions)
    if not dictionaries:
        with plan.followed(prompt), model.visiting(sorted({*plan.steps, *plan.watched}), plan.visit):
            yield model
        return
    every = _with_neurons(model, dictionaries, interventions)
    touched = set(plan.steps)
    touched |= {site for at in touched for site in written_later(model, at, every[at])}
    bound = splices(model, {site: d for site, d in every.items() if site in touched})
    made: dict[Site, Tensor] = {}  # features, for those that they write to later
    used: dict[Site, Tensor] = {}

    def rewrite(splice: Splice, entered: Tensor, left: Tensor) -> Tensor:
        if isinstance(splice.dictionary, Identity):
            return plan.tensor(splice.site, left)
        features = splice.dictionary.encode(entered)
        error = left - splice.prediction(features, entered) - splice.received(made)
        acts = Acts(features, error)
        changed = plan.changed(splice, acts, entered, made)
        made[splice.site], used[splice.site] = features, changed.features
        if changed is acts and all(made[up.site] is used[up.site] for up in splice.earlier):
            return left
        return splice.prediction(changed.features, entered) + splice.received(used) + changed.error

    with plan.followed(prompt), splicing(model, bound, rewrite, plan.watched):
        yield model


@dataclass(frozen=True)
class _Plan:
    """What interventions do at each site, in order, and what they must know for it."""

    model: Model
    steps: Mapping[Site, Sequence[Intervention]]
    watched: Mapping[Site, dict[str, Tensor]]
    seen: dict[str, Tensor]
    follows: bool
    changes: Sequence[StateIntervention]  # of the recurrent state, between tokens

    @classmethod
    def of(cls, model: Model, interventions: Sequence[Intervention]) -> _Plan:
        seen: dict[str, Tensor] = {}
        watched = {model.site(name): seen for i in interventions for name in i.watches}
        follows = any(i.placed for i in interventions)
        by_site = _by_site(model, interventions)
        changes = [change for i in interventions for change in state_changes(i)]
        return cls(model, by_site, watched, seen, follows, changes)

    @contextmanager
    def followed(self, prompt: Prompt | None) -> Iterator[None]:
        with ExitStack() as stack:
            if self.follows or prompt is not None:
                stack.enter_context(self.model.following(prompt))
            if self.changes:
                stack.enter_context(stepping(self.model, self.changes))
            yield

    def visit(self, site: Site, x: Tensor) -> Tensor:
        if site in self.watched:
            self.watched[site][site.name] = x
        return self.tensor(site, x) if site in self.steps else x

    def tensor(self, site: Site, x: Tensor) -> Tensor:
        here = self._here(site, None) if self.follows else self.heres[site]
        for step in self.steps[site]:
            x = step.tensor(site.name, x, here)
        return x

    def changed(self, splice: Splice, acts: Acts, entered: Tensor, made: Mapping[Site, Tensor]) -> Acts:
        """What the activations become; `made` are the features of earlier sites that write here."""
        if splice.site not in self.steps:
            return acts

        def decode(acts: Acts) -> Tensor:
            return splice.prediction(acts.features, entered) + splice.received(made) + acts.error

        here = self._here(splice.site, None if isinstance(splice.dictionary, Identity) else decode)
        for step in self.steps[splice.site]:
            acts = step(splice.site.name, acts, here)
        return acts

    @cached_property
    def heres(self) -> dict[Site, Here]:
        """Those that are the same in every pass."""
        return {site: self._here(site, None) for site in self.steps}

    def _here(self, site: Site, decode: Callable[[Acts], Tensor] | None) -> Here:
        passage = self.model.passage if self.follows else None
        return Here(
            site.name,
            decode,
            passage,
            self.seen,
            self.model.text if self.model.tokenizer is not None else None,
        )
