"""Which features a classifier uses, and how much."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Bool
from torch import Tensor

from interventions.binding import Dictionaries, splices
from interventions.model import Model
from interventions.steering.columns import aligned
from tasks import Batch, LabelledSet, Task

from ..attribution import Method, integrated_gradients
from ..checkpoint import Checkpoint
from ..discovery import identity, memory_advice, prompts, run_settings, versions
from ..effects import Effects, SiteEffects
from ..selection import top
from ..tally import Tally
from .asking import asked
from .saved import described, differing, load, save


@dataclass(frozen=True)
class Candidate:
    """A feature that the classifier uses.

    `effect` is what it adds to the logit of a text's label, less those of the other labels: summed over
    tokens, in the mean over texts. `error` is the standard error of that mean; nan for a single text.
    """

    site: str
    feature: int
    effect: float
    error: float

    @property
    def name(self) -> str:
        return f"{self.site}/{self.feature}"


@dataclass(frozen=True)
class Total:
    """What all features of a site add up to, and its errors, in the mean over texts.

    `missed` is the share of the errors in the sizes of the two, text by text: what no feature stands for.
    """

    features: float
    error: float
    missed: float


@dataclass(frozen=True)
class Ranking(Sequence[Candidate]):
    """The features that a classifier uses, by descending size of their effects."""

    candidates: tuple[Candidate, ...]
    totals: Mapping[str, Total]  # by site
    n_features: Mapping[str, int]  # of each site's dictionary
    missed: float  # the share of errors, over all sites
    clean: float  # the logit of a text's label less those of the others, in the mean over texts
    texts: int
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Candidate, ...]: ...
    def __getitem__(self, index: int | slice) -> Candidate | tuple[Candidate, ...]:
        return self.candidates[index]

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    def __repr__(self) -> str:
        sites = f"{len(self.totals)} site{'s' * (len(self.totals) != 1)}"
        return f"Ranking({len(self)} features of {sites}, on {self.texts} texts)"

    @property
    def features(self) -> dict[str, list[int]]:
        """The features by site, in the order of the ranking."""
        found: dict[str, list[int]] = {}
        for candidate in self:
            found.setdefault(candidate.site, []).append(candidate.feature)
        return found

    def first(self, most: int) -> Ranking:
        """The ranking with no more than so many of its features."""
        return replace(self, candidates=self.candidates[:most])

    def table(self, *, most: int = 20) -> str:
        """The first so many features, and what the errors of each site add beside them."""
        rows = [["", "feature", "effect", "±"]]
        rows += [
            [str(i), c.name, f"{c.effect:+.4g}", f"{c.error:.2g}"] for i, c in enumerate(self[:most], start=1)
        ]
        lines = [repr(self), aligned(rows)]
        if len(self) > most:
            lines.append(f"... and {len(self) - most} more")
        sites = [["site", "features add", "errors add", "missed"]]
        sites += [
            [name, f"{t.features:+.4g}", f"{t.error:+.4g}", f"{t.missed:.0%}"]
            for name, t in self.totals.items()
        ]
        return "\n".join([*lines, "", aligned(sites)])

    def __str__(self) -> str:
        return self.table()

    def check(self, model: Model, dictionaries: Dictionaries) -> None:
        """Raises ValueError where the ranking is of another model, or of other dictionaries."""
        given = {
            "model": {"fingerprint": model.fingerprint},
            "dictionaries": {
                site.name: {"fingerprint": identity(splice.dictionary)}
                for site, splice in splices(model, dictionaries).items()
            },
            "task": self.about.get("task"),
        }
        if differ := differing(self.about, given):
            raise ValueError(
                f"This ranking was made with something else; these differ: {', '.join(differ)}. Rank anew, "
                "or give what it was made with."
            )

    def save(self, path: str | Path) -> Path:
        """Writes one JSON file."""
        said = {**vars(self), "candidates": [_plain(c) for c in self]}
        said["totals"] = {site: asdict(total) for site, total in self.totals.items()}
        return save(path, "ranking", {**said, "n_features": dict(self.n_features), "about": dict(self.about)})

    @classmethod
    def load(cls, path: str | Path) -> Ranking:
        """What `save` wrote; see `saved.load` for errors."""
        said = load(path, "ranking")
        with described(path, "ranking"):
            found = tuple(
                Candidate(**{**one, "error": math.nan if one["error"] is None else one["error"]})
                for one in said.pop("candidates")
            )
            totals = {site: Total(**total) for site, total in said.pop("totals").items()}
            return cls(candidates=found, totals=totals, **said)


def ranking(
    model: Model,
    texts: LabelledSet | Task,
    dictionaries: Dictionaries,
    *,
    classes: Sequence[str] | None = None,
    method: Method = integrated_gradients,
    most: int = 100,
    batch_size: int = 16,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Ranking:
    """The features that a classifier uses on some texts, the most used first (Marks et al. 2024, section 4).

    The effect of a feature is minus that of moving it to zero, by any method of `circuits.attribution`. The
    tokens that open a text are left out, as by the paper. Features alone are ranked; what the errors of the
    dictionaries add is told beside, because no verdict on features reaches that.

    With a `checkpoint` folder the work is resumable, batch by batch, to the same result bit for bit.

    >>> from interventions.dictionaries import SparseCoder
    >>> from tasks import Pair
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = Model.load(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)))
    >>> task = Task("tokens", [Pair((3, 1, i), None, (5,), (6,)) for i in range(8)])
    >>> ranking(model, task, {"resid.0": SparseCoder.random(32, 64)}, most=3, progress=False)
    Ranking(3 features of 1 site, on 8 texts)

    Args:
        model: a classifier, whose logits after the last token are of classes: `model.probed(probe, at=site)`.
        texts: those that the classifier was trained on, say; or a task of unpaired prompts, whose answers and
            foils are classes.
        classes: the labels in the order of the classifier's classes, by default the names of these, where the
            labels are among them, else the labels in the order in which they appear.
        most: how many features are listed.

    Raises:
        LookupError: a dictionary at a site that the model does not have.
        ValueError: no dictionaries, paired prompts, nothing with an effect, a checkpoint of another run;
            labels about which a model of tokens is asked, or another number of them than of its classes.
        MemoryError: out of memory; says which batch size to try.
    """
    if most < 1:
        raise ValueError(f"most={most}: at least one feature is ranked.")
    bound = splices(model, dictionaries)
    if not bound:
        raise ValueError("There are no dictionaries, so there are no features to rank.")
    task = texts if isinstance(texts, Task) else asked(model, texts, classes)
    batches = prompts(model, task, batch_size)
    if any(batch.patch is not None for batch in batches):
        raise ValueError(f"The prompts of {task.name} are paired; a classifier is asked about single texts.")
    settings = run_settings(model, task, batches, bound, method, None, False, batch_size)
    store = None if checkpoint is None else Checkpoint(checkpoint, settings)
    tally, sums = Tally(bound), {site.name: _Sums() for site in bound}
    with memory_advice(batch_size, checkpoint):
        for number, batch in enumerate(_bar(batches, progress)):
            found = store.effects(number) if store else None
            if found is None:
                found = of_text(method(model, batch, task.metric, dictionaries), model, batch).to("cpu")
                if store:
                    store.save_effects(number, found)
            tally.add(found)
            for name, nodes in found.items():
                sums[name].add(nodes)
    clean = tally.clean / tally.examples
    if clean < 0:
        warnings.warn(
            f"On these texts the classifier gives the labels {-clean:.3g} less than it gives the others, in "
            "the mean: are `classes` in the order that it was trained with?",
            stacklevel=2,
        )
    split = sum(s.feature_size for s in sums.values()), sum(s.error_size for s in sums.values())
    return Ranking(
        _candidates(tally, most),
        {name: s.total(tally.examples) for name, s in sums.items()},
        {site.name: splice.n_features for site, splice in bound.items()},
        _part(split[1], split[0]),
        clean,
        tally.examples,
        {**settings, "most": most, "versions": versions()},
    )


def of_text(effects: Effects, model: Model, batch: Batch) -> Effects:
    """The effects at tokens that stand for text, not at those that open it; without what only edges are made
    from."""
    special = torch.tensor(sorted(getattr(model.tokenizer, "all_special_ids", ())), dtype=torch.long)
    counted = torch.isin(batch.clean, special.to(batch.clean.device), invert=True)
    return replace(effects, sites={name: _counted(nodes, counted) for name, nodes in effects.items()})


class _Sums:
    """What features and errors of a site add, text by text."""

    def __init__(self) -> None:
        self.feature = self.error = self.feature_size = self.error_size = 0.0

    def add(self, nodes: SiteEffects) -> None:
        batch, n_pos = nodes.error_effect.shape
        features = torch.zeros(batch, dtype=torch.float64)
        features.index_add_(0, nodes.token // n_pos, -nodes.effect.double())
        errors = -nodes.error_effect.double().sum(1)
        self.feature += features.sum().item()
        self.error += errors.sum().item()
        self.feature_size += features.abs().sum().item()
        self.error_size += errors.abs().sum().item()

    def total(self, n: int) -> Total:
        return Total(self.feature / n, self.error / n, _part(self.error_size, self.feature_size))


def _bar(batches: Sequence[Batch], progress: bool | None) -> Iterator[Batch]:
    from tqdm import tqdm

    off = None if progress is None else not progress
    with tqdm(total=sum(map(len, batches)), desc="effects", unit="text", disable=off) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))


def _plain(candidate: Candidate) -> dict[str, Any]:
    said = asdict(candidate)
    return {**said, "error": None if math.isnan(candidate.error) else candidate.error}


def _part(one: float, other: float) -> float:
    return one / (one + other) if one + other else 0.0


def _candidates(tally: Tally, most: int) -> tuple[Candidate, ...]:
    sites = list(tally.sums)
    effect, error = ([line[0, :-1] for line in map(of, sites)] for of in (tally.mean, tally.error))
    ends = torch.tensor([len(values) for values in effect]).cumsum(0)
    effects, errors = -torch.cat(effect), torch.cat(error)
    chosen = top(most)(effects).nonzero()[:, 0]
    if not len(chosen):
        raise ValueError(f"No feature at {', '.join(sites)} has an effect on what the classifier says.")
    found = []
    for at in chosen[effects[chosen].abs().argsort(descending=True, stable=True)]:
        site = int(torch.searchsorted(ends, at, right=True))
        feature = int(at - ends[site]) + len(effect[site])
        found.append(Candidate(sites[site], feature, effects[at].item(), errors[at].item()))
    return tuple(found)


def _counted(nodes: SiteEffects, counted: Bool[Tensor, "batch pos"]) -> SiteEffects:
    counted = counted.to(nodes.token.device)
    return replace(
        nodes.only(counted.flatten()[nodes.token]),
        gradient=nodes.gradient[..., :0],
        error_delta=nodes.error_delta[..., :0],
        error_effect=nodes.error_effect.where(counted, 0),
    )
