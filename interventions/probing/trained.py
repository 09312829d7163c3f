"""Probes trained by steps on minibatches, with hidden layers or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .activations import Activations
from .class_weights import ClassWeights, example_weights, settled
from .examples import Labels, statements
from .logistic import spread
from .mlp_probe import MLPProbe
from .probe import Probe

Layers = list[Tensor]  # a matrix and a bias of each in turn


@dataclass(frozen=True)
class Trained:
    """Minibatches and AdamW (Loshchilov and Hutter 2019), with `hidden` layers of ReLUs or without.

    Learning rate, epochs and batch size are those of SHIFT (Marks et al. 2024, section 4), whose probe reads
    raw activations: `standardise=False`. As a rule they are standardised, by the examples that are learned
    from, which is then folded into the first layer. `validation` is the share of the examples that are held
    out, of each class alike: the weights kept are those of the epoch of least loss on these, and `patience`
    epochs without a lower one end the training. `class_weights`, "balanced" or a number for each class, say
    how much an example of a class counts. `l1` is a penalty on the sizes of the first layer's weights, beside
    the decay of all.

    >>> x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    >>> Trained(epochs=200).fit(x, [0, 0, 1, 1]).predict(x)
    tensor([0, 0, 1, 1])
    >>> Trained(hidden=(8,), epochs=200).fit(x, [0, 1, 1, 0])
    MLPProbe(Trained(hidden=(8,), epochs=200), width 2, 8)

    Raises:
        ValueError: sizes below 1, a learning rate that is not above 0, a negative decay or penalty, a
            validation share outside of [0, 1), patience with nothing held out, weights that are not above 0.
    """

    hidden: Sequence[int] = ()
    lr: float = 1e-2
    epochs: int = 1
    batch_size: int = 32
    weight_decay: float = 0.01
    l1: float = 0.0
    validation: float = 0.0
    patience: int | None = None
    class_weights: ClassWeights | None = None
    standardise: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, Sequence):
            raise TypeError(f"hidden={self.hidden!r}: the sizes of the hidden layers, such as (8,).")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "class_weights", settled(self.class_weights))
        if min(*self.hidden, self.epochs, self.batch_size, self.patience or 1) < 1 or self.patience == 0:
            raise ValueError(
                f"hidden={self.hidden}, epochs={self.epochs}, batch_size={self.batch_size}, "
                f"patience={self.patience}: all of these are at least 1."
            )
        if not 0 < self.lr < float("inf") or not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"lr={self.lr} is above 0, and weight_decay={self.weight_decay} no less than 0.")
        if not 0 <= self.l1 < float("inf"):
            raise ValueError(f"l1={self.l1}: a penalty is finite, and no less than 0.")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation={self.validation}: a share of the examples, from 0 to below 1.")
        if self.patience is not None and not self.validation:
            raise ValueError(f"patience={self.patience} needs examples held out: give validation=0.2, say.")

    def __repr__(self) -> str:
        asked = (f"{f.name}={value!r}" for f in fields(self) if (value := getattr(self, f.name)) != f.default)
        return f"Trained({', '.join(asked)})"

    def fit(self, x: Float[Tensor, "example d_model"], labels: Labels) -> Any:
        """A `Probe`, or with hidden layers an `MLPProbe`, of activations and their classes from 0 on.

        Raises ValueError where training diverges, and where a part would have no example of some class.
        """
        x, found = statements(x, labels)
        held = self._held_out(found)
        centre, scale = x[~held].mean(0), spread(x[~held])
        if not self.standardise:
            centre, scale = torch.zeros_like(centre), torch.ones_like(scale)
        run = _Run.of(self, (x - centre) / scale, found, held)
        layers, losses = run.trained()
        layers[0] = layers[0] / scale
        layers[1] = layers[1] - layers[0] @ centre
        how: dict[str, Any] = {"recipe": repr(self), "examples": len(x), "epochs": run.epochs}
        if losses:
            how["validation"] = {"examples": len(run.held[1]), "losses": losses}
        if self.hidden:
            return MLPProbe(layers[::2], layers[1::2], how)
        weights, bias = layers
        return Probe(weights[0], bias[0], how) if len(bias) == 1 else Probe(weights, bias, how)

    def _held_out(self, labels: Int[Tensor, " example"]) -> Bool[Tensor, " example"]:
        held = torch.zeros(len(labels), dtype=torch.bool)
        if self.validation:
            rows = Activations({"": torch.arange(len(labels))[:, None]}, labels)
            held[rows.split(self.validation, seed=self.seed)[0][""][:, 0]] = True
        return held


Examples = tuple[Float[Tensor, "example d_model"], Int[Tensor, " example"], Float[Tensor, " example"]]


@dataclass(eq=False)
class _Run:
    """One training: what is learned from, what is held out, and the weights as they stand."""

    how: Trained
    learned: Examples
    held: Examples
    layers: Layers
    generator: torch.Generator
    epochs: int = 0

    @classmethod
    def of(cls, how: Trained, x: Tensor, labels: Tensor, held: Tensor) -> _Run:
        weights = settled(how.class_weights)
        each = torch.ones(len(x), dtype=x.dtype) if weights is None else example_weights(labels, weights)
        parts = [(x[some], labels[some], each[some]) for some in (~held, held)]
        classes = int(labels.max()) + 1
        sizes = [x.shape[1], *how.hidden, 1 if classes == 2 else classes]
        generator = torch.Generator().manual_seed(how.seed)
        return cls(how, parts[0], parts[1], _drawn(sizes, generator), generator)

    def trained(self) -> tuple[Layers, list[float]]:
        """The weights that are kept, and the loss on what is held out after each epoch."""
        optimizer = torch.optim.AdamW(self.layers, lr=self.how.lr, weight_decay=self.how.weight_decay)
        kept, losses = self._copied(), []
        while self.epochs < self.how.epochs and not self._stale(losses):
            self._epoch(optimizer)
            self.epochs += 1
            if self.how.validation:
                with torch.no_grad():
                    losses.append(_loss(self.layers, *self.held).item())
            if not losses or losses[-1] == min(losses):
                kept = self._copied()
        if not all(x.isfinite().all() for x in kept) or losses != [x for x in losses if x < float("inf")]:
            raise ValueError(f"Training diverged with lr={self.how.lr}: a lower one may do, or standardise.")
        return kept, losses

    def _epoch(self, optimizer: torch.optim.Optimizer) -> None:
        order = torch.randperm(len(self.learned[0]), generator=self.generator)
        with torch.enable_grad():
            for some in order.split(self.how.batch_size):
                optimizer.zero_grad()
                loss = _loss(self.layers, *(part[some] for part in self.learned))
                (loss + self.how.l1 * self.layers[0].abs().sum()).backward()
                optimizer.step()

    def _stale(self, losses: list[float]) -> bool:
        patience = self.how.patience
        return (
            patience is not None and len(losses) - losses.index(min(losses)) > patience if losses else False
        )

    def _copied(self) -> Layers:
        return [x.detach().clone() for x in self.layers]


def _drawn(sizes: Sequence[int], generator: torch.Generator) -> Layers:
    """Weights to start from, drawn as those of torch's `nn.Linear` are."""
    layers = []
    for wide, narrow in pairwise(sizes):
        for shape in ((narrow, wide), (narrow,)):
            drawn = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
            layers.append((drawn / wide**0.5).requires_grad_())
    return layers


def _loss(layers: Layers, x: Tensor, labels: Tensor, each: Tensor) -> Tensor:
    """The cross-entropy, the mean over examples by their weights."""
    for i in range(0, len(layers), 2):
        x = (x.relu() if i else x) @ layers[i].T + layers[i + 1]
    logits = x if x.shape[1] > 1 else torch.cat([torch.zeros_like(x), x], dim=1)
    return (each * torch.nn.functional.cross_entropy(logits, labels, reduction="none")).sum() / each.sum()
