"""What a classifier is asked about texts."""

from __future__ import annotations

from collections.abc import Sequence

from interventions.model import Model
from tasks import LabelledSet, Task


def asked(model: Model, texts: LabelledSet, classes: Sequence[str] | None = None) -> Task:
    """The task to classify texts, their labels in the places that they have among the model's classes.

    `classes` are all labels in that order; by default the names of the model's classes, where the labels are
    among them, else the labels in the order in which they appear.

    Raises:
        ValueError: a model that does not classify; another number of classes than it has; labels that are
            none of them; a text of which no token is left.
    """
    if model.classes is None:
        raise ValueError(
            f"The logits of {model!r} are of tokens, and labels are asked about: make it a classifier, "
            "`model.probed(probe, at=site)`, or give a task whose answers are tokens."
        )
    if classes is None and set(texts.classes) <= set(model.classes):
        classes = model.classes
    names = texts.classes if classes is None else tuple(classes)
    if len(names) != len(model.classes):
        raise ValueError(
            f"The classifier tells {len(model.classes)} classes apart, and these are {len(names)}: "
            f"{', '.join(names)}. Give all of its classes in its order."
        )
    return texts.task(model.tokenizer, names)
