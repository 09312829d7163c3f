"""SHIFT (Marks et al. 2024, section 4): what a classifier should not use is found, judged and ablated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interventions.binding import Dictionaries, splices
from interventions.concepts.ablation import Features, check_features
from interventions.dictionaries.texts import TextLike
from interventions.model import Model
from interventions.probing import Logistic, Recipe
from tasks import LabelledSet

from . import baselines, skylines
from .dossier import Dossier
from .evidence import evidence
from .judges import Judge, judged
from .ranking import Ranking, ranking
from .report import Report
from .scores import Scores
from .trial import Trial
from .verdicts import Verdicts


def shift(
    model: Model,
    dictionaries: Dictionaries,
    train: LabelledSet,
    test: LabelledSet,
    judge: Judge,
    *,
    at: str,
    known: LabelledSet | None = None,
    recipe: Recipe | None = None,
    most: int = 1000,
    words: Sequence[str] | None = None,
    delete: Callable[[Sequence[str]], Sequence[str]] | None = None,
    draws: int = 5,
    seed: int = 0,
    folder: str | Path | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Report:
    """What a biased probe says before and after the features are ablated that a judge finds spurious, beside
    the baselines. The steps are `Trial`, `ranked`, `shown`, `judged` and `reported`, to be called alone.

    Args:
        dictionaries: at sites up to the one that the probe reads.
        train: texts whose spurious label goes with the label.
        test: texts of every pair of labels.
        judge: says of the evidence on a feature whether it is spurious: see `shift.judges`.
        at: the site that the probe reads, in the mean over tokens.
        known: other texts of every pair of labels, for the baselines that know the spurious label, and for
            what the judge is shown of it; without them, these are left out.
        recipe: of probes, by default `Logistic()`.
        most: how many features are judged: a person will want a hundred, others do better with more.
        words: of a concept bottleneck; by default those of the paper where the labels are its professions.
        delete: what takes words out of texts, such as `tasks.biographies.without_gendered_words`.
        draws: of features at random; with 0 there are none.
        folder: where verdicts are written as they are given, and read again.

    Raises:
        ValueError: what `Trial` refuses; a dictionary at a site after the probe.
    """
    trial = Trial(
        model, train, test, at, known, recipe or Logistic(), seed=seed, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    found = ranked(trial, dictionaries, most=most)
    path = None if folder is None else Path(folder) / "verdicts.jsonl"
    verdicts = judged(shown(trial, dictionaries, found), judge, path, progress=progress)
    return reported(trial, dictionaries, verdicts, words=words, delete=delete, draws=draws)


def ranked(
    trial: Trial,
    dictionaries: Dictionaries,
    *,
    most: int = 100,
    texts: LabelledSet | None = None,
    checkpoint: str | Path | None = None,
) -> Ranking:
    """The features that the biased probe uses on its training texts, or on others.

    Raises:
        ValueError: a dictionary at a site after the probe.
    """
    check_before(trial, dictionaries)
    return ranking(
        trial.probed, texts or trial.train, dictionaries, classes=trial.classes, most=most,
        batch_size=trial.batch_size, checkpoint=checkpoint, progress=trial.progress,
    )  # fmt: skip


def shown(
    trial: Trial,
    dictionaries: Dictionaries,
    found: Ranking,
    *,
    contexts: int = 12,
    other: TextLike | None = None,
) -> Dossier:
    """What a judge sees of each feature: on `known`, where there is such, with what the feature does for a
    probe of the spurious label fitted there; else on the training texts.

    `contexts` are shown of each feature, of `other` text too.
    """
    texts, attribute = trial.train, None
    if trial.known is not None:
        texts, attribute = trial.known, trial.probed_spurious
    return evidence(
        trial.probed, found, texts, dictionaries, attribute=attribute,
        attributes=None if attribute is None else trial.attributes, other=other, n=contexts,
        batch_size=trial.batch_size, progress=trial.progress,
    )  # fmt: skip


def ablated(
    trial: Trial, dictionaries: Dictionaries, features: Features, *, needs: str = "a judge"
) -> Scores:
    """The biased probe where features are at zero, their errors kept.

    Raises:
        LookupError, ValueError: features that there are not.
    """
    logits = trial.probe.logits(trial.ablated(trial.test, dictionaries, features))
    return trial.scores("SHIFT", logits, needs=needs, ablated=skylines.counted(features))


def retrained(
    trial: Trial, dictionaries: Dictionaries, features: Features, *, needs: str = "a judge"
) -> Scores:
    """A probe fitted to the same ambiguous texts once the features are gone, tested without them.

    Raises:
        LookupError, ValueError: features that there are not.
    """
    logits = trial.refitted(dictionaries, features)
    return trial.scores("SHIFT, retrained", logits, needs=needs, ablated=skylines.counted(features))


def compared(
    trial: Trial,
    dictionaries: Dictionaries,
    features: Features,
    *,
    words: Sequence[str] | None = None,
    delete: Callable[[Sequence[str]], Sequence[str]] | None = None,
    draws: int = 5,
    needs: str = "a judge",
) -> tuple[Scores, ...]:
    """SHIFT with these features, and every baseline that there is what it needs for.

    Skylines take the spurious label for the label, so they are left out where one goes with several labels,
    or with none.
    """
    check_before(trial, dictionaries)
    check_features(trial.reader, dictionaries, features)
    n = sum(skylines.counted(features).values())
    words = _words(trial) if words is None else words
    found = [baselines.biased(trial)]
    found += [step(trial, dictionaries, features, needs=needs) for step in (ablated, retrained)]
    if draws:
        found.append(baselines.random_features(trial, dictionaries, features, draws=draws))
        found.append(baselines.random_features_retrained(trial, dictionaries, features, draws=draws))
    if words:
        found.append(baselines.concept_bottleneck(trial, words))
    if delete is not None:
        found.append(baselines.words_deleted(trial, delete))
    if trial.known is not None and trial.one_to_one:
        sites = [site.name for site in splices(trial.reader, dictionaries)]
        found.append(skylines.neuron_skyline(trial, sites, n))
        found.append(skylines.feature_skyline(trial, dictionaries, n))
        found.append(skylines.feature_skyline_retrained(trial, dictionaries, n))
    if trial.known is not None:
        found += [baselines.erased(trial), baselines.erased_retrained(trial), baselines.oracle(trial)]
    return tuple(found)


def reported(
    trial: Trial,
    dictionaries: Dictionaries,
    verdicts: Verdicts,
    *,
    words: Sequence[str] | None = None,
    delete: Callable[[Sequence[str]], Sequence[str]] | None = None,
    draws: int = 5,
    config: Mapping[str, Any] | None = None,
) -> Report:
    """What comes of verdicts: the features judged spurious are ablated, and everything is compared."""
    features = verdicts.features
    needs = "a judge" if trial.known is None else f"a judge, {skylines.SPURIOUS}"
    scores = compared(trial, dictionaries, features, words=words, delete=delete, draws=draws, needs=needs)
    spurious = sum(verdict.spurious for verdict in verdicts.given)
    counts = {"spurious": spurious, "kept": len(verdicts) - spurious}
    return Report(scores, counts, skylines.counted(features), {**settings(trial), **(config or {})})


def check_before(trial: Trial, dictionaries: Dictionaries) -> None:
    """Raises ValueError for a dictionary at a site after the one that the probe reads."""
    last = trial.model.site(trial.at)
    for site in map(trial.model.site, dictionaries):
        if site > last:
            raise ValueError(
                f"There is a dictionary at {site}, which comes after {last}, where the probe reads: what is "
                "ablated there changes nothing. Leave it out, or put the probe later."
            )


def _words(trial: Trial) -> tuple[str, ...]:
    if not all(label in baselines.CONCEPTS for label in trial.classes):
        return ()
    words = (word for label in trial.classes for word in baselines.CONCEPTS[label])
    known = tuple(word for word in words if baselines.is_read(trial, word))
    return known if len(known) > 1 else ()


def settings(trial: Trial) -> dict[str, Any]:
    """What a trial was made with, in plain JSON."""
    return {
        "model": trial.model.fingerprint, "at": trial.at, "recipe": repr(trial.recipe), "seed": trial.seed,
        "train": len(trial.train), "test": len(trial.test),
        "known": None if trial.known is None else len(trial.known), "pairs": dict(trial.pairing),
    }  # fmt: skip
