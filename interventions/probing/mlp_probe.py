"""Probes with hidden layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from .classifying import Classifying, Logits
from .examples import plain
from .files import load, save


@dataclass(frozen=True, eq=False)
class MLPProbe(Classifying):
    """Affine functions one after the other, with a ReLU between any two: what `Trained(hidden=...)` makes.

    Of two classes the last layer has one row, whose logit is that of class 1; of more, one for each class. As
    a `Probe` it reads raw activations, says `logits`, and is read by `Model.probed`.

    >>> import torch
    >>> probe = MLPProbe([torch.tensor([[1.0], [-1.0]]), torch.ones(1, 2)], [torch.zeros(2), torch.zeros(1)])
    >>> probe.logits(torch.tensor([[3.0], [-2.0]]))
    tensor([3., 2.])

    Raises:
        ValueError: a single layer, layers that do not fit one another, or numbers that are not finite.
    """

    weights: Sequence[Float[Tensor, "out in"]]
    biases: Sequence[Float[Tensor, " out"]]
    how: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = tuple(x.detach().clone() for x in self.weights)
        biases = tuple(x.detach().clone() for x in self.biases)
        if len(weights) < 2 or len(weights) != len(biases):
            raise ValueError(
                f"{len(weights)} matrices and {len(biases)} biases: at least two layers, of one each. A "
                "probe without a hidden layer is a `Probe`."
            )
        shapes = [tuple(x.shape) for x in weights]
        fits = all(len(shape) == 2 and 0 not in shape for shape in shapes)
        fits = fits and all(below[0] == above[1] for below, above in pairwise(shapes))
        if not fits or [tuple(x.shape) for x in biases] != [shape[:1] for shape in shapes]:
            raise ValueError(f"Layers of shapes {shapes} and their biases do not fit one another.")
        if not all(x.isfinite().all() for x in (*weights, *biases)):
            raise ValueError("The weights or the biases of the probe are not finite.")
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "biases", biases)
        object.__setattr__(self, "how", plain(self.how))

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(x)) for x in self.weights[:-1])
        classes = "" if self.n_classes == 2 else f", {self.n_classes} classes"
        return f"MLPProbe({self.how.get('recipe', 'of weights given')}, width {self.width}, {sizes}{classes})"

    @property
    def width(self) -> int:
        return self.weights[0].shape[1]

    @property
    def n_classes(self) -> int:
        return max(2, len(self.weights[-1]))

    def logits(self, x: Float[Tensor, "*batch d_model"]) -> Logits:
        """The log odds of class 1, or of more classes a logit for each.

        Worked out in the precision of the probe, float64 as fitted, on the device of `x`; gradients flow.
        """
        self._reads(x)
        x = x.to(self.weights[0].dtype)
        for i, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (x if i == 0 else x.relu()) @ weights.to(x.device).T + bias.to(x.device)
        return x[..., 0] if self.n_classes == 2 and x.shape[-1] == 1 else x

    def tensors(self) -> dict[str, Tensor]:
        found = {f"weights.{i}": x for i, x in enumerate(self.weights)}
        return found | {f"biases.{i}": x for i, x in enumerate(self.biases)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], how: Mapping[str, Any]) -> MLPProbe:
        """The probe of which `tensors` are all there is."""
        n = len(tensors) // 2
        weights, biases = ([tensors[f"{name}.{i}"] for i in range(n)] for name in ("weights", "biases"))
        return cls(weights, biases, how)

    def to(self, *args: Any) -> MLPProbe:
        """On another device, or of another dtype."""
        weights, biases = ([x.to(*args) for x in layers] for layers in (self.weights, self.biases))
        return replace(self, weights=weights, biases=biases)

    def save(self, folder: str | Path) -> None:
        """Writes `mlp_probe.json` and a safetensors file beside it, which `load` reads back exactly."""
        save(folder, "mlp_probe", self.tensors(), {"how": dict(self.how)})

    @classmethod
    def load(cls, folder: str | Path) -> MLPProbe:
        """What `save` wrote; see `Probe.load` for errors."""
        tensors, about = load(folder, "mlp_probe")
        return cls.of_tensors(tensors, about["how"])
