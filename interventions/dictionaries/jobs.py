"""Dictionaries to train, as values."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..model import Model
from ..sites import Site
from .cross_learner import CrossLearner
from .learner import Learner
from .pool import Pool
from .recipes import Recipe
from .trainee import Trainee


class AnyJob(ABC):
    """What is told of every dictionary to train.

    `lr` is Adam's, by default `2e-4 / sqrt(n_features / 2**14)`; `auxk` weighs the term that revives features
    silent for `dead_after` steps; `seed` is that of the weights at the beginning.
    """

    n_features: int
    recipe: Recipe
    lr: float | None
    auxk: float
    dead_after: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise ValueError(f"A dictionary has at least one feature, not {self.n_features}.")
        if getattr(self.recipe, "k", 0) >= self.n_features:
            raise ValueError(f"{self.recipe} needs more than {self.n_features} features to choose from.")
        if not 0 <= self.rate < float("inf"):
            raise ValueError(f"A learning rate is at least 0, not {self.lr}.")

    @property
    def rate(self) -> float:
        """The learning rate between warm-up and decay."""
        return 2e-4 / (self.n_features / 2**14) ** 0.5 if self.lr is None else self.lr

    @abstractmethod
    def pairs(self, model: Model) -> list[tuple[Site, Site]]:
        """What is read and what is written, layer by layer."""

    @abstractmethod
    def learner(self, model: Model, pool: Pool) -> Trainee:
        """The dictionary before its first step."""

    def settings(self, model: Model) -> dict[str, Any]:
        """What it is, in plain JSON."""
        pairs = self.pairs(model)
        reads, writes = ([pair[i].name for pair in pairs] for i in (0, 1))
        recipe = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.recipe))
        own = {name: getattr(self, name) for name in ("n_features", "auxk", "dead_after", "seed")}
        return {"reads": reads, "writes": writes, "recipe": recipe, "lr": self.rate, **own}


@dataclass(frozen=True)
class Job(AnyJob):
    """A dictionary to train at a site, `writes`.

    It reads the site that it writes, which makes an autoencoder; `reads`, another site, makes a transcoder,
    with `skip` one that has a linear path beside its features.

    >>> from interventions.dictionaries import recipes
    >>> job = Job("mlp.1", 512, recipes.TopK(16), reads="mlp_in.1")
    >>> print(f"{job.rate:.1e}")
    1.1e-03
    """

    writes: str | Site
    n_features: int
    recipe: Recipe
    _: KW_ONLY
    reads: str | Site | None = None
    skip: bool = False
    lr: float | None = None
    auxk: float = 1 / 32
    dead_after: int = 200
    seed: int = 0

    def pairs(self, model: Model) -> list[tuple[Site, Site]]:
        writes = model.site(self.writes)
        return [(writes if self.reads is None else model.site(self.reads), writes)]

    def learner(self, model: Model, pool: Pool) -> Learner:
        reads, writes = self.pairs(model)[0]
        return Learner(reads, writes, self.n_features, self.recipe, pool, skip=self.skip, seed=self.seed)

    def settings(self, model: Model) -> dict[str, Any]:
        return {**super().settings(model), "skip": self.skip}


@dataclass(frozen=True)
class CrossLayerJob(AnyJob):
    """A cross-layer transcoder to train: pairs of sites read and written, in the order of the layers.

    Each layer has `n_features`, which write at its own site and at those of later layers.

    >>> from interventions.dictionaries import recipes
    >>> pairs = [(f"mlp_in.{i}", f"mlp.{i}") for i in range(3)]
    >>> job = CrossLayerJob(pairs, 512, recipes.JumpReLU(recipes.TargetL0(16)))
    """

    sites: Sequence[tuple[str | Site, str | Site]]
    n_features: int
    recipe: Recipe
    _: KW_ONLY
    lr: float | None = None
    auxk: float = 1 / 32
    dead_after: int = 200
    seed: int = 0

    def pairs(self, model: Model) -> list[tuple[Site, Site]]:
        pairs = [(model.site(reads), model.site(writes)) for reads, writes in self.sites]
        written = [writes for _, writes in pairs]
        if not pairs or written != sorted(set(written)):
            raise ValueError(
                "A cross-layer transcoder writes at least one site, each once, in the model's order, "
                f"not {written}."
            )
        return pairs

    def learner(self, model: Model, pool: Pool) -> CrossLearner:
        return CrossLearner(self.pairs(model), self.n_features, self.recipe, pool, seed=self.seed)
