"""Many dictionaries scored on one data set, for whose texts the model runs once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from ..acts import Dictionary
from ..binding import Splice
from ..model import Model
from ..probing import Logistic, Probe, Recipe
from ..probing.examples import Labels
from ..sites import Site
from ..steering.digest import digest
from ..steering.token_choice import Choice, every
from .held import Held, numbered, read
from .perturbation import TPP, check_classes, tpp
from .pooled import Pooled, bind, pool
from .removal import SCR, check_pairs, scr
from .scores import SIZES, checked
from .sweep_result import Scored, Sweep, kept, key, reserve, write_scored

Score: TypeAlias = TPP | SCR
Sets = Mapping[str, Any] | Mapping[Site, Any]


class Labelled(Protocol):
    """A text with the label that a classifier should learn, and the one that it should not use."""

    @property
    def text(self) -> Any: ...

    @property
    def label(self) -> str: ...

    @property
    def spurious(self) -> str: ...


class LabelledTexts(Protocol):
    """A sequence of labelled texts, such as `tasks.LabelledSet`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Labelled]: ...


def tpp_sweep(
    model: Model,
    dictionaries: Sets,
    train: LabelledTexts,
    test: LabelledTexts,
    *,
    sizes: Sequence[int] = SIZES,
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    tokens: Choice = every,
    context: int | None = None,
    batch_size: int = 16,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Sweep:
    """`tpp` of every dictionary on labelled texts; the model reads each text once.

    What the sites hold at the tokens of the texts is kept in memory until the end, in the model's precision;
    of dictionaries one after the other is encoded.

    Args:
        dictionaries: `{site: dictionary}`, or `{site: {name: dictionary}}` for several at one.
        train, test: texts to fit and to test on, with attributes `text`, `label` and `spurious`.
        recipe: of the probes, by default `Logistic()`; `Selected()` chooses by examples held out of `train`.
        seeds: each draws the texts of the probes anew; the score is the mean.
        context: of each text only so many tokens are read.
        folder: where the sweep is kept as it goes; the same call goes on from there, and a call with more
            dictionaries adds them.

    Raises:
        ValueError: what `tpp` and `pooled` refuse, or a folder of another sweep.
        LookupError: a site that the model does not have.
    """
    labels, others = ([one.label for one in texts] for texts in (train, test))
    check_classes(labels, others)

    once = _Once(recipe or Logistic())

    def score(here: Pooled, there: Pooled, seed: int) -> TPP:
        return tpp(here, labels, there, others, sizes=sizes, recipe=once, seed=seed)

    plan = {"kind": "tpp", "labels": [labels, others], "recipe": recipe or Logistic()}
    return _sweep(
        model, dictionaries, train, test, score, plan, sizes=sizes, seeds=seeds, tokens=tokens,
        context=context, batch_size=batch_size, folder=folder, progress=progress,
    )  # fmt: skip


def scr_sweep(
    model: Model,
    dictionaries: Sets,
    train: LabelledTexts,
    test: LabelledTexts,
    *,
    keep: tuple[str, str] = ("label", "spurious"),
    together: Mapping[str, str] | None = None,
    sizes: Sequence[int] = SIZES,
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    tokens: Choice = every,
    context: int | None = None,
    batch_size: int = 16,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Sweep:
    """`scr` of every dictionary on texts with two labels; the model reads each text once.

    Arguments are those of `tpp_sweep`, and `keep` and `together` those of `scr`.

    Raises:
        ValueError: what `scr` and `pooled` refuse, or a folder of another sweep.
        LookupError: a site that the model does not have.
    """
    pairs, others = ([(one.label, one.spurious) for one in texts] for texts in (train, test))
    values, once = check_pairs(pairs, others, keep, together), _Once(recipe or Logistic())

    def score(here: Pooled, there: Pooled, seed: int) -> SCR:
        how: Any = {"keep": keep, "together": dict(values), "sizes": sizes, "recipe": once}
        return scr(here, pairs, there, others, seed=seed, **how)

    plan = {"kind": "scr", "labels": [pairs, others, keep, values], "recipe": recipe or Logistic()}
    return _sweep(
        model, dictionaries, train, test, score, plan, sizes=sizes, seeds=seeds, tokens=tokens,
        context=context, batch_size=batch_size, folder=folder, progress=progress,
    )  # fmt: skip


def _sweep(
    model: Model,
    dictionaries: Sets,
    train: LabelledTexts,
    test: LabelledTexts,
    score: Callable[[Pooled, Pooled, int], Score],
    plan: Mapping[str, Any],
    *,
    sizes: Sequence[int],
    seeds: Sequence[int],
    tokens: Choice,
    context: int | None,
    batch_size: int,
    folder: str | Path | None,
    progress: bool | None,
) -> Sweep:
    from tqdm import tqdm

    sizes, seeds = checked(sizes), tuple(dict.fromkeys(seeds))
    if not seeds:
        raise ValueError("seeds: give at least one, such as (0,).")
    texts = {"train": [one.text for one in train], "test": [one.text for one in test]}
    bound = _bound(model, dictionaries)
    made = digest({**plan, **texts, "sizes": sizes, "seeds": seeds, "tokens": tokens, "context": context})
    sweep = Sweep(plan["kind"], sizes, seeds, model.fingerprint, made, {})
    listed = [
        numbered(model, some, tokens, context=context, name=f"{which} text") for which, some in texts.items()
    ]
    done = {} if folder is None else dict(reserve(sweep, folder).scored)
    prints = {name: _print(splice.dictionary) for name, splice in bound.items()}
    left = [name for name in bound if name not in done or done[name].dictionary != prints[name]]
    if left:
        sites = list(dict.fromkeys(bound[name].site for name in left))
        here, there = (read(model, sites, one, batch_size=batch_size, progress=progress) for one in listed)
        for name in tqdm(left, unit="dictionary", disable=None if progress is None else not progress):
            at = bound[name].site.name
            found = _scored(name, bound[name], here[at], there[at], score, seeds, prints[name])
            done[name] = found if folder is None else write_scored(found, sweep, folder)
    return kept(sweep, {name: done[name] for name in bound})


@dataclass(frozen=True)
class _Once:
    """A recipe that fits the same activations only once, whichever dictionary they are pooled with."""

    recipe: Recipe
    known: dict[bytes, Probe] = field(default_factory=dict, repr=False)

    def fit(self, x: Tensor, labels: Labels) -> Probe:
        both = (x.contiguous().numpy(), torch.as_tensor(labels).numpy())
        key = sha256(b"".join(part.tobytes() for part in both)).digest()
        if key not in self.known:
            self.known[key] = self.recipe.fit(x, labels)
        return self.known[key]

    def __repr__(self) -> str:
        return repr(self.recipe)


def _scored(
    name: str, splice: Splice, here: Held, there: Held, score: Callable[[Pooled, Pooled, int], Score],
    seeds: Sequence[int], dictionary: str,
) -> Scored:  # fmt: skip
    began = time.perf_counter()
    train, test = pool(splice, here), pool(splice, there)
    scores = tuple(score(train, test, seed) for seed in seeds)
    seconds = time.perf_counter() - began
    return Scored(name, splice.site.name, dictionary, splice.n_features, test.l0, seconds, scores)


def _bound(model: Model, dictionaries: Sets) -> dict[str, Splice]:
    """Each dictionary bound to its site, by a name of its own."""
    if not isinstance(dictionaries, Mapping) or not dictionaries:
        raise ValueError(
            "Pass dictionaries as {site: dictionary} or {site: {name: dictionary}}, at least one."
        )
    found: dict[str, Splice] = {}
    for given, at in dictionaries.items():
        site = model.site(given)
        several = at if isinstance(at, Mapping) and not isinstance(at, Dictionary) else {"": at}
        for name, dictionary in several.items():
            called = key(site.name, str(name))
            try:
                found[called] = bind(model, {site.name: dictionary})[site.name]
            except (ValueError, TypeError) as error:
                raise type(error)(f"{called}: {error}" if name else str(error)) from None
    if not found:
        raise ValueError("There are no dictionaries to score.")
    return found


def _print(dictionary: Dictionary) -> str:
    own = getattr(dictionary, "fingerprint", None)
    return own if isinstance(own, str) else digest(dictionary)
