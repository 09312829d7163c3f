"""SHIFT on a model that classifies texts by itself: its own head takes the place of the biased probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.binding import Dictionaries
from interventions.concepts.ablation import Features, check_features
from interventions.edits import Ablate
from interventions.features.passes import batches, padded, readings
from interventions.intervention import Intervention
from interventions.model import Model
from interventions.probing import Recipe
from interventions.splice import applied
from interventions.steering.token_choice import every
from tasks import LabelledSet

from .evidence import evidence
from .judges import Judge, judged
from .ranking import ranking
from .report import Report
from .scores import Scores, renamed
from .shift import check_before, retrained, settings
from .skylines import counted
from .trial import Trial


def shift_head(
    model: Model,
    dictionaries: Dictionaries,
    train: LabelledSet,
    test: LabelledSet,
    judge: Judge,
    *,
    at: str | None = None,
    classes: Sequence[str] | None = None,
    known: LabelledSet | None = None,
    recipe: Recipe | None = None,
    pairs: Mapping[str, str] | None = None,
    most: int = 100,
    seed: int = 0,
    folder: str | Path | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Report:
    """What a sequence-classification head says before and after the features are ablated that a judge finds
    spurious; and what a probe says that is fitted to `train` without them, in place of training the head.

    Args:
        model: one whose logits are of texts, such as a `...ForSequenceClassification` of transformers.
        train: texts of the kind that the head was trained on, in which a spurious label goes with the label.
        test: texts of every pair of labels.
        at: the site that the probe reads, by default the last of the stream; dictionaries lie up to it.
        classes: the labels in the order of the head's classes, by default the model's own names.
        known, recipe, pairs, most, seed, folder: as for `shift` and `Trial`.

    Raises:
        ValueError: a model that does not classify texts, labels that are not its classes, and what `Trial`
            refuses.
    """
    names = _classes(model, train, classes)
    last = at or f"resid.{len(model.blocks) - 1}"
    given = {} if recipe is None else {"recipe": recipe}
    trial = Trial(
        model,
        train,
        test,
        last,
        known,
        pairs=pairs,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        **given,
    )
    check_before(trial, dictionaries)
    found = ranking(
        model, train, dictionaries, classes=names, most=most, batch_size=batch_size, progress=progress
    )
    texts, attribute = (train, None) if known is None else (trial.required(""), trial.probed_spurious)
    dossier = evidence(
        model, found, texts, dictionaries, attribute=attribute,
        attributes=None if attribute is None else trial.attributes,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    path = None if folder is None else Path(folder) / "verdicts.jsonl"
    verdicts = judged(dossier, judge, path, progress=progress)
    features = verdicts.features
    check_features(model, dictionaries, features)
    spurious = sum(verdict.spurious for verdict in verdicts.given)
    scores = (
        head_scores(trial, names, {}, dictionaries),
        renamed(head_scores(trial, names, features, dictionaries), "SHIFT"),
        renamed(retrained(trial, dictionaries, features), "SHIFT, probe in place of the head"),
    )
    counts = {"spurious": spurious, "kept": len(verdicts) - spurious}
    return Report(scores, counts, counted(features), {**settings(trial), "classes": list(names)})


def head_scores(
    trial: Trial, classes: Sequence[str], features: Features, dictionaries: Dictionaries
) -> Scores:
    """What the model's own head says of the test texts with features at zero, their errors kept."""
    some = {site: list(each) for site, each in features.items() if len(each)}
    edits = [Ablate(some)] if some else []
    logits = text_logits(
        trial.model, [one.text for one in trial.test], edits, dictionaries,
        batch_size=trial.batch_size, progress=trial.progress,
    )  # fmt: skip
    logits = logits[:, [classes.index(label) for label in trial.classes]]
    needs = "a judge" if some else ""
    return trial.scores("head", logits, needs=needs, ablated=counted(features))


@torch.no_grad()
def text_logits(
    model: Model,
    texts: Sequence[str],
    edits: Sequence[Intervention] = (),
    dictionaries: Dictionaries | None = None,
    *,
    batch_size: int = 16,
    progress: bool | None = None,
) -> Float[Tensor, "text class"]:
    """What a classifier says of each whole text while interventions change its passes, in float64."""
    from tqdm import tqdm

    found = [replace(reading, label=i) for i, reading in enumerate(readings(model, texts, every))]
    rows: dict[int, Tensor] = {}
    off = None if progress is None else not progress
    with (
        applied(model, *edits, dictionaries=dictionaries if edits else None),
        tqdm(total=len(found), desc="texts", unit="text", disable=off) as bar,
    ):
        for batch in batches(found, batch_size, padded=model.pads):
            logits = model.logits(*padded(batch), last=1)[:, -1].cpu().double()
            rows |= {reading.label: row for reading, row in zip(batch, logits, strict=True)}
            bar.update(len(batch))
    return torch.stack([rows[i] for i in range(len(found))])


def _classes(model: Model, train: LabelledSet, given: Sequence[str] | None) -> tuple[str, ...]:
    if model.classes is None:
        raise ValueError(
            f"{model!r} does not classify texts: give one with such a head, or `shift`, which fits a probe."
        )
    names = tuple(given or model.classes)
    if len(names) != len(model.classes) or set(train.classes) - set(names):
        raise ValueError(
            f"The classes of the head are {', '.join(names)}, the labels {', '.join(train.classes)}: give "
            "`classes`, the labels in the order of the head's."
        )
    return names
