"""Ways of probing put to one situation: validated, fitted, and tested."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..probing.examples import plain
from ..probing.scores import accuracy, auroc
from .folds import folds
from .method import Method, validated
from .regimes import Situation


@dataclass(frozen=True)
class Tried:
    """A method in a situation: by validation the setting and its AUROC, and how it does on the test texts.

    `ranks` is where its scores place each test text, all that an AUROC depends on; `sparse` says whether it
    reads the dictionary. Without validation, where a class has one text, `validation` is None.
    """

    method: str
    sparse: bool
    setting: Mapping[str, Any]
    validation: float | None
    test: float
    accuracy: float
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Trial:
    """All methods in one situation, on the same texts and folds."""

    regime: str
    value: float | None
    site: str
    data: str
    n_train: int
    labels: tuple[int, ...]  # of the test texts
    tried: tuple[Tried, ...]
    digest: str = ""

    def best(self, *, sparse: bool | None = None) -> Tried | None:
        """The one of the highest validation AUROC, of equal ones the first, so that what comes later has to
        be better: of all methods, or of those with or without the dictionary alone. None where there is none.

        Where there is no validation, the first.
        """
        some = [one for one in self.tried if sparse is None or one.sparse == sparse]
        return max(some, key=lambda one: one.validation or 0.0, default=None)

    @property
    def positive(self) -> Bool[Tensor, " text"]:
        return torch.tensor(self.labels).bool()

    def written(self) -> dict[str, Any]:
        """In plain JSON."""
        return {**asdict(self), "labels": "".join(map(str, self.labels))}

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Trial:
        """What `written` gave."""
        tried = tuple(Tried(**{**one, "ranks": tuple(one["ranks"])}) for one in entry["tried"])
        return cls(**{**entry, "labels": tuple(map(int, entry["labels"])), "tried": tried})


def trial(situation: Situation, methods: Sequence[Method], *, seed: int = 0) -> Trial:
    """Every method in one situation. The test texts are scored once, by the setting that validation chose.

    >>> from .dense import DenseLogistic
    >>> from .examples import Examples
    >>> texts = Examples("x", torch.tensor([[0.0], [1], [2], [3]]), torch.zeros(4, 1), [0, 0, 1, 1])
    >>> found = trial(Situation("normal", None, texts, texts), [DenseLogistic()])
    >>> found.best().test
    1.0
    """
    train, test = situation.train, situation.test
    splits, tried = folds(train.labels, seed=seed), []
    for method in methods:
        try:
            chosen = validated(method, train, splits)
            (scores,) = method.scores(train, test, [chosen.setting])
        except ValueError as error:
            raise ValueError(f"{method.name}, {situation!r}: {error}") from error
        tried.append(
            Tried(
                method=method.name,
                sparse=method.sparse,
                setting=plain(method.told(train, chosen.setting)),
                validation=chosen.auroc,
                test=auroc(scores, test.labels),
                accuracy=accuracy(scores, test.labels),
                ranks=tuple(_ranks(scores).tolist()),
            )
        )
    return Trial(
        situation.regime,
        situation.value,
        situation.site,
        situation.data,
        len(train),
        tuple(test.labels.tolist()),
        tuple(tried),
        digest(situation, methods, seed),
    )


def digest(situation: Situation, methods: Sequence[Method], seed: int) -> str:
    """Of all that the outcome hangs on."""
    parts = [situation.train.digest, situation.test.digest, repr(list(methods)), seed]
    parts += [situation.regime, situation.value, situation.site, situation.data]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _ranks(scores: Tensor) -> Int[Tensor, " text"]:
    return scores.unique(return_inverse=True)[1]
