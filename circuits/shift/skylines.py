"""What could be had by ablating if the spurious label were known: features, or neurons, that tell it most.

Not rivals of SHIFT but what it could reach: they are chosen by labels that it does without.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from interventions.acts import Acts, Identity
from interventions.binding import Dictionaries
from interventions.concepts.ablation import Features
from interventions.edits import Ablate
from interventions.probing import probe_activations
from interventions.steering.token_choice import every
from tasks import LabelledSet

from ..attribution import Method, integrated_gradients
from .ranking import Ranking, ranking
from .scores import Scores
from .trial import Trial

SPURIOUS = "spurious labels, texts of every pair"


def feature_skyline(
    trial: Trial,
    dictionaries: Dictionaries,
    n: int,
    *,
    texts: int = 100,
    method: Method = integrated_gradients,
) -> Scores:
    """The biased probe without the `n` features that do most for its telling the spurious label.

    As in the paper: effects on the biased probe, the spurious label taken for the label, on at most so many
    texts of `known`. Those that do nothing for it are left in, so that there may be fewer.

    Raises:
        ValueError: a trial without `known`.
    """
    features = spurious_features(trial, dictionaries, n, texts=texts, method=method)
    logits = trial.probe.logits(trial.ablated(trial.test, dictionaries, features))
    return trial.scores("feature skyline", logits, needs=SPURIOUS, ablated=counted(features))


def feature_skyline_retrained(
    trial: Trial,
    dictionaries: Dictionaries,
    n: int,
    *,
    texts: int = 100,
    method: Method = integrated_gradients,
) -> Scores:
    """A probe fitted again to ambiguous texts without these features, which the paper does not have.

    Raises:
        ValueError: a trial without `known`.
    """
    features = spurious_features(trial, dictionaries, n, texts=texts, method=method)
    logits = trial.refitted(dictionaries, features)
    return trial.scores("feature skyline, retrained", logits, needs=SPURIOUS, ablated=counted(features))


def neuron_skyline(
    trial: Trial, sites: Sequence[str], n: int, *, texts: int = 100, method: Method = integrated_gradients
) -> Scores:
    """The biased probe with the `n` neurons at their means that do most for its telling the spurious label.

    Neurons are the coordinates of what the sites hold. Chosen as features are by `feature_skyline`; the means
    are over texts of `known`, each text counting once. (The paper's are over the tokens of a batch, padding
    among them.)

    Raises:
        ValueError: a trial without `known`.
    """
    neurons = trial.kept("neurons", tuple(sites), lambda: {site: Identity() for site in sites})
    chosen = spurious_features(trial, neurons, n, texts=texts, method=method)
    edits = [mean_ablation(trial, chosen)] if chosen else []
    logits = trial.probe.logits(trial.changed(trial.test, edits))
    return trial.scores("neuron skyline", logits, needs=SPURIOUS, ablated=counted(chosen))


def spurious_features(
    trial: Trial,
    dictionaries: Dictionaries,
    n: int,
    *,
    texts: int = 100,
    method: Method = integrated_gradients,
) -> dict[str, list[int]]:
    """The `n` features that do most for the biased probe's telling the spurious label; by site.

    Raises:
        ValueError: a trial without `known`.
    """
    known = trial.required("A skyline")
    if n < 1:
        return {}

    held = dict(dictionaries)

    def made() -> Ranking:
        some = trial.by_spurious(_some(known, texts))
        return ranking(
            trial.probed, some, held, classes=trial.classes, method=method, most=10**9,
            batch_size=trial.batch_size, progress=trial.progress,
        )  # fmt: skip

    found = trial.kept("spurious", (key(held), texts, method), made, held)
    helpful = [one for one in found if one.effect > 0][:n]
    return {
        site: sorted(one.feature for one in helpful if one.site == site)
        for site in dict.fromkeys(one.site for one in helpful)
    }


def mean_ablation(trial: Trial, neurons: Features) -> Ablate:
    """Holds neurons at their mean over `known`."""
    known = trial.required("A mean ablation")
    texts = [one.text for one in known]
    found = probe_activations(
        trial.reader, texts, list(neurons), tokens=every, batch_size=trial.batch_size, progress=trial.progress
    )
    means = {}
    for site in neurons:
        mean = found[site].double().mean(0).to(trial.model.dtype)[None, None]
        means[site] = Acts(mean, torch.zeros_like(mean))
    return Ablate({site: list(some) for site, some in neurons.items()}, to=means)


def counted(features: Features) -> dict[str, int]:
    """How many features there are at each site that has some."""
    return {site: len(set(some)) for site, some in features.items() if len(some)}


def _some(texts: LabelledSet, most: int) -> LabelledSet:
    """At most so many, as many of every pair of labels."""
    each = max(1, most // len(texts.groups))
    return texts if min(texts.groups.values()) <= each else texts.balanced(each)


def key(dictionaries: Dictionaries) -> tuple[tuple[str, int], ...]:
    """What tells dictionaries at hand from others, while they are."""
    return tuple((str(site), id(dictionary)) for site, dictionary in dictionaries.items())
