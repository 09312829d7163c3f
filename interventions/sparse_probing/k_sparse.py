"""Probes of the few features in which two classes differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..probing import Probe
from ..probing.logistic import spread
from .examples import Examples
from .method import Method, Scores, Setting
from .penalised import PENALTIES, Solver, l1_logistic
from .ranking import Ranking, scaled_mean_differences, strongest

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOLD = 16  # features named at most


@dataclass(frozen=True, eq=False)
class SparseProbe:
    """A probe and the features that it reads, those in which the classes differ most first."""

    features: Int[Tensor, " k"]
    probe: Probe

    def logits(self, examples: Examples) -> Float[Tensor, " text"]:
        """The log odds of class 1."""
        return self.probe.logits(examples.some(self.features))


@dataclass(frozen=True, repr=False)
class KSparse:
    """Logistic regression on the `k` features in which the classes differ most, the penalty chosen by
    validation.

    Which features is decided by `ranking` on the texts that it is fitted to alone, in every fold anew: where
    SAE-Probes chooses them on all training texts, what is held out has had its say. Their values are divided
    by their standard deviation. With `ranking=mean_differences, solve=l2_logistic, penalties=(1.0,)` it is
    the probe of SAEBench but for that.

    >>> features = torch.tensor([[0.0, 1.0], [0.0, 0.0], [3.0, 0.0], [2.0, 1.0]])
    >>> KSparse(1).fit(Examples("x", torch.zeros(4, 1), features, [0, 0, 1, 1])).features
    tensor([0])

    Raises:
        ValueError: `k` below 1, penalties that are not above 0.
    """

    k: int
    ranking: Ranking = scaled_mean_differences
    solve: Solver = l1_logistic
    penalties: Sequence[float] = PENALTIES
    sparse: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: a probe reads at least one feature.")
        if not self.penalties or not all(0 < each < float("inf") for each in self.penalties):
            raise ValueError(f"penalties={self.penalties!r}: one or several numbers above 0.")

    def __repr__(self) -> str:
        named = [getattr(each, "__name__", repr(each)) for each in (self.ranking, self.solve)]
        return f"KSparse({self.k}, {', '.join(named)}, {tuple(self.penalties)})"

    @property
    def name(self) -> str:
        return f"k={self.k}"

    def settings(self, n: int) -> Sequence[Setting]:
        return [{"penalty": penalty} for penalty in self.penalties]

    def scores(self, train: Examples, others: Examples, settings: Sequence[Setting]) -> Scores:
        probes = self._probes(train, [each["penalty"] for each in settings])
        return torch.stack([probe.logits(others) for probe in probes])

    def told(self, train: Examples, setting: Setting) -> dict[str, Any]:
        features = strongest(self.ranking(train), self.k).tolist()
        return {**setting, "features": features[:_TOLD], "n_features": len(features)}

    def fit(self, train: Examples, penalty: float = 1.0) -> SparseProbe:
        """The probe of one penalty. Where no feature differs, it reads feature 0 with weight 0."""
        return self._probes(train, [penalty])[0]

    def _probes(self, train: Examples, penalties: Sequence[float]) -> list[SparseProbe]:
        features = strongest(self.ranking(train), self.k)
        if not len(features):
            nothing = Probe(torch.zeros(1, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
            return [SparseProbe(torch.zeros(1, dtype=torch.long), nothing)] * len(penalties)
        x = train.some(features)
        scale = spread(x)
        weights, bias = self.solve(x / scale, train.positive, penalties)
        how = {"recipe": repr(self), "examples": len(train)}
        return [
            SparseProbe(features, Probe(w / scale, b, {**how, "penalty": penalty}))
            for w, b, penalty in zip(weights, bias, penalties, strict=True)
        ]


def sparse_probes(sizes: Sequence[int] = SIZES) -> list[Method]:
    """A `KSparse` for each size.

    >>> [method.name for method in sparse_probes((1, 16))]
    ['k=1', 'k=16']
    """
    return [KSparse(size) for size in sizes]
