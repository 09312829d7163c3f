"""Directions from pairs of texts that differ in one respect."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..binding import Dictionaries, Splice, splices
from ..model import Model
from ..sites import Site
from .controls import bootstrapped, cross_validated
from .direction import Direction
from .features import FeatureDifference, splice_at
from .methods import Method, MomentMethod, PairMoments, mean_difference
from .pair_activations import PairActivations, encoded, flips, grouped, pair_activations, read, sites_of
from .token_choice import Choice, PairChoice, label, last


@torch.no_grad()
def contrast(
    model: Model,
    pairs: Iterable[Any],
    sites: Sequence[str | Site],
    *,
    method: Method | FeatureDifference = mean_difference,
    tokens: Choice | PairChoice = last,
    dictionaries: Dictionaries | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
    shuffled: int | None = None,
    bootstrap: int = 0,
    folds: int = 0,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Direction:
    """The direction at each site along which the positive texts of some pairs differ from the negative ones.

    One forward pass for each text serves all sites. With a method that works from moments, nothing is held
    but these; with other methods, or with `bootstrap` or `folds`, the activations of the chosen tokens.

    Args:
        pairs: (positive, negative) each: texts, or token ids. Texts are opened as the tokenizer opens one.
        method: from positive and negative activations, (pair d_model), to a vector (d_model); those of this
            package, such as `mean_difference`, `lda` or `LogisticProbe(l2=0.1)`, or any function.
        tokens: which are read, and averaged where they are several: see `token_choice`.
        dictionaries: for `FeatureDifference`, one at every site.
        batch_size: texts in a pass.
        shuffled: a seed; the two texts of half of the pairs (or groups) are exchanged, as a control.
        bootstrap: how many times pairs are drawn anew: `how["bootstrap"]` has for each site the mean cosine
            of what is found then with the direction, and the bounds of its middle 95 %.
        folds: in how many parts pairs are held out in turn: `how["separation"]` has for each site how
            well the direction from the others separates them, and `how["split_half"]` the mean cosine
            between the directions of two halves.
        groups: a label for each pair; those of one label, such as a name that several pairs share, are drawn,
            halved and held out together. Without it, what they share passes for what the contrast is.

    Raises:
        LookupError: a site that the model does not have, or that has no dictionary.
        ValueError: no pairs; an empty text, a text that lacks the chosen tokens, or twice the same text,
            which are named; classes that do not differ at a site at the chosen tokens.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)))
    >>> found = contrast(model, [((3, 5), (3, 6)), ((4, 5), (4, 6))], ["resid.0", "resid.1"])
    >>> list(found), found.how["method"], found.how["tokens"], found.how["pairs"]
    (['resid.0', 'resid.1'], 'MeanDifference()', 'last', 2)
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap={bootstrap}: draws are counted from 0, none.")
    if isinstance(pairs, PairActivations):
        if tokens is not last and label(tokens) != pairs.tokens:
            raise ValueError(f"These activations were read at {pairs.tokens}, not at {label(tokens)}.")
        return _of_activations(
            model, pairs, sites, method, dictionaries, shuffled, bootstrap, folds, groups, seed, progress
        )
    found = sites_of(model, sites)
    methods, reads = _bound(model, found, method, dictionaries)
    if bootstrap or folds or not all(isinstance(each, MomentMethod) for each in methods.values()):
        acts = pair_activations(
            model, pairs, [*reads, *reads.values()], tokens=tokens, batch_size=batch_size, progress=progress
        )
        return _of_activations(
            model, acts, sites, method, dictionaries, shuffled, bootstrap, folds, groups, seed, progress
        )
    texts = encoded(model, pairs)
    grouped(len(texts), groups)
    flip = None if shuffled is None else flips(len(texts), shuffled, groups)
    kept: dict[Site, PairMoments] = {}
    every = sorted(set(reads.values()))
    for index, (positive, negative) in read(
        model, texts, every, tokens=tokens, batch_size=batch_size, progress=progress
    ):
        for site, at in reads.items():
            sides = positive[at], negative[at]
            if flip is not None:
                swap = flip[index][:, None]
                sides = sides[1].where(swap, sides[0]), sides[0].where(swap, sides[1])
            new = methods[site].moments(*sides)
            kept[site] = kept[site] + new if site in kept else new
    vectors = {site.name: methods[site].of_moments(kept[site]) for site in found}
    return _direction(model, vectors, _how(method, label(tokens), len(texts), shuffled))


def _of_activations(
    model: Model,
    acts: PairActivations,
    sites: Sequence[str | Site],
    method: Method | FeatureDifference,
    dictionaries: Dictionaries | None,
    shuffled: int | None,
    bootstrap: int,
    folds: int,
    groups: Sequence[Hashable] | None,
    seed: int,
    progress: bool | None,
) -> Direction:
    """The direction of activations that are held, with its confidence."""
    from tqdm import tqdm

    if acts.fingerprint != model.fingerprint:
        raise ValueError("These activations were read in another model; read them in this one.")
    found = sites_of(model, sites)
    methods, reads = _bound(model, found, method, dictionaries)
    if absent := [
        at.name for at in (*reads.values(), *(reads if folds else ())) if at.name not in acts.positive
    ]:
        raise LookupError(f"{absent[0]} was not read; these activations are at {', '.join(acts.positive)}.")
    acts = acts if shuffled is None else acts.shuffled(shuffled, groups)
    how = _how(method, acts.tokens, len(acts), shuffled)
    together = grouped(len(acts), groups)
    vectors, confidence, separations, halves = {}, {}, {}, {}
    off = not (bootstrap or folds) or (None if progress is None else not progress)
    for site in tqdm(found, desc="sites", unit="site", disable=off):
        rows = acts.positive[reads[site].name], acts.negative[reads[site].name]
        vectors[site.name] = methods[site](*rows)
        if bootstrap:
            confidence[site.name] = asdict(
                bootstrapped(methods[site], *rows, n=bootstrap, seed=seed, groups=together)
            )
        if folds:
            at = acts.positive[site.name], acts.negative[site.name]
            separation, half = cross_validated(
                methods[site], *rows, folds=folds, seed=seed, groups=together, at=at
            )
            separations[site.name], halves[site.name] = asdict(separation), half
    if bootstrap:
        how["bootstrap"] = confidence
    if folds:
        how |= {"separation": separations, "split_half": halves}
    return _direction(model, vectors, how)


def _bound(
    model: Model,
    sites: Sequence[Site],
    method: Method | FeatureDifference,
    dictionaries: Dictionaries | None,
) -> tuple[dict[Site, Any], dict[Site, Site]]:
    """The method of each site, and the site that it reads."""
    if isinstance(method, FeatureDifference):
        bound: Mapping[Site, Splice] = splices(model, dictionaries or {})
        own = {site: splice_at(bound, site) for site in sites}
        return {site: method.bound(own[site]) for site in sites}, {site: own[site].read for site in sites}
    if isinstance(method, type) or not isinstance(method, Callable):
        raise TypeError(f"`method` is a callable such as mean_difference or LDA(), not {method!r}.")
    return {site: method for site in sites}, {site: site for site in sites}


def _how(method: Any, tokens: str, n: int, shuffled: int | None) -> dict[str, Any]:
    how: dict[str, Any] = {"method": label(method), "tokens": tokens, "pairs": n}
    return how if shuffled is None else {**how, "shuffled": shuffled}


def _direction(model: Model, vectors: Mapping[str, Tensor], how: Mapping[str, Any]) -> Direction:
    for site, vector in vectors.items():
        width = model.site(site).width
        if not isinstance(vector, Tensor) or vector.shape != (width,):
            shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise ValueError(f"The method gave {shape} at {site}, not a vector ({width}).")
        if not vector.any():
            raise ValueError(
                f"At {site} the texts of the pairs do not differ at the chosen tokens ({how['tokens']}). "
                "Leave the site out, or choose tokens at or after the place where they differ."
            )
    return Direction({site: vector.float().cpu() for site, vector in vectors.items()}, model.fingerprint, how)
